"""Builds models by name: from the catalogue, or the user's own as `package.module:attribute`."""

import inspect
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.arguments import load_attribute, naming, parse_arguments
from cnn_jax.errors import UserError, unknown
from cnn_jax.models import MODELS, build


def make_model(
    name: str,
    num_classes: int | None,
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    args: Sequence[str] = (),
) -> nn.Module:
    """Builds a model from the catalogue or from the user's code.

    Args:
        name: a name of the catalogue, or `package.module:attribute` of a Linen module, or of a class or function that
            returns one and is passed those of num_classes, dtype and axis_name that it has parameters for.
        num_classes: K; None for models without classes.
        dtype: computation type.
        axis_name: `pmap` axis of batch normalisation.
        args: other parameters, each "key=value".

    Raises:
        UserError: unknown name or argument, or not a Linen module with `train` in its call.
    """
    if ":" not in name:
        if name not in MODELS:
            raise unknown("model", name, MODELS)
        with naming("`model_args`"):
            return build(name, num_classes, dtype=dtype, axis_name=axis_name, args=args)
    found = load_attribute(name)
    if isinstance(found, nn.Module):
        if args:
            raise UserError(f"{name} is an instance: leave `model_args` out, or name its class")
        return check_module(found, name)
    if not callable(found):
        raise UserError(f"{name} is {type(found).__name__}: name a Linen module, or a class or function that makes one")
    own = {"num_classes": num_classes, "dtype": dtype, "axis_name": axis_name}
    with naming("`model_args`"):
        values = parse_arguments(name, found, args, hidden=(*own, "parent", "name"))
    accepted = inspect.signature(found).parameters
    values |= {key: value for key, value in own.items() if key in accepted and value is not None}
    return check_module(found(**values), name)


def variable_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """Returns the shapes of a model's variables for images (H, W, C), `jax.ShapeDtypeStruct`s; computes nothing."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))


def check_module(module: Any, name: str | None = None) -> nn.Module:
    """Returns `module` if it is a Linen module that can be trained.

    Raises:
        UserError: it is something else, or its call has no parameter `train`.
    """
    called = name or type(module).__name__
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise UserError(f"{module.__name__} is a class: pass an instance, {module.__name__}(…)")
    if not isinstance(module, nn.Module):
        raise UserError(f"{called} is {type(module).__name__}: pass a flax.linen module")
    parameters = inspect.signature(type(module).__call__).parameters
    if "train" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise UserError(f"{called} has no argument train in __call__: write `def __call__(self, x, *, train: bool)`")
    return module
