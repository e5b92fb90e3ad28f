"""The networks by name. `python -m cnn_jax models` lists them; `python -m cnn_jax models NAME` prints one's layers."""

import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from cnn_jax.arguments import parse_arguments
from cnn_jax.errors import UserError, unknown
from cnn_jax.models.alexnet import (
    alexnet,
    alexnet_no_conv3_conv4,
    alexnet_no_conv3_conv4_fc6_fc7,
    alexnet_no_fc6_fc7,
    alexnet_no_fc7,
    alexnet_one_tower,
    alexnet_ungrouped,
)
from cnn_jax.models.all_cnn import all_cnn_a, all_cnn_b, all_cnn_c
from cnn_jax.models.autoencoder import conv_autoencoder
from cnn_jax.models.convnext import convnext_base, convnext_small, convnext_tiny
from cnn_jax.models.densenet import densenet121, densenet161, densenet169, densenet201, densenet_bc100
from cnn_jax.models.efficientnet import efficientnet_b0
from cnn_jax.models.googlenet import googlenet, googlenet_torchvision
from cnn_jax.models.inception_bn import bn_inception
from cnn_jax.models.inception_v3 import inception_v3
from cnn_jax.models.lenet import lenet5, lenet5_1998
from cnn_jax.models.linear import mlp, mlp_500_500, softmax_regression
from cnn_jax.models.mobilenet import mobilenet_v2
from cnn_jax.models.pattern import from_pattern as pattern
from cnn_jax.models.preact_resnet import (
    preact_resnet18,
    preact_resnet50,
    preact_resnet110,
    preact_resnet164,
    preact_resnet1001,
    wrn16_4,
    wrn28_10,
    wrn40_2,
)
from cnn_jax.models.resnet import (
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from cnn_jax.models.small import kaggle_lenet, keras_cifar_cnn, mnist_cnn, tf_cnn, xo_cnn
from cnn_jax.models.speednet import speednet94, speednet94_muon, speednet95, speednet96
from cnn_jax.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from cnn_jax.models.zfnet import zfnet

__all__ = [
    "MODELS",
    "alexnet",
    "alexnet_no_conv3_conv4",
    "alexnet_no_conv3_conv4_fc6_fc7",
    "alexnet_no_fc6_fc7",
    "alexnet_no_fc7",
    "alexnet_one_tower",
    "alexnet_ungrouped",
    "all_cnn_a",
    "all_cnn_b",
    "all_cnn_c",
    "bn_inception",
    "build",
    "conv_autoencoder",
    "convnext_base",
    "convnext_small",
    "convnext_tiny",
    "create_model",
    "default_input_shape",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet_bc100",
    "efficientnet_b0",
    "pattern",
    "googlenet",
    "googlenet_torchvision",
    "inception_v3",
    "kaggle_lenet",
    "keras_cifar_cnn",
    "lenet5",
    "lenet5_1998",
    "list_models",
    "mlp",
    "mlp_500_500",
    "mnist_cnn",
    "mobilenet_v2",
    "preact_resnet1001",
    "preact_resnet110",
    "preact_resnet164",
    "preact_resnet18",
    "preact_resnet50",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnext101_32x8d",
    "resnext50_32x4d",
    "softmax_regression",
    "speednet94",
    "speednet94_muon",
    "speednet95",
    "speednet96",
    "stages",
    "tf_cnn",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet101_2",
    "wide_resnet50_2",
    "wrn16_4",
    "wrn28_10",
    "wrn40_2",
    "xo_cnn",
    "zfnet",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "softmax_regression": softmax_regression,
    "mlp": mlp,
    "mlp_500_500": mlp_500_500,
    "lenet5": lenet5,
    "lenet5_1998": lenet5_1998,
    "mnist_cnn": mnist_cnn,
    "tf_cnn": tf_cnn,
    "keras_cifar_cnn": keras_cifar_cnn,
    "kaggle_lenet": kaggle_lenet,
    "xo_cnn": xo_cnn,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnext50_32x4d": resnext50_32x4d,
    "resnext101_32x8d": resnext101_32x8d,
    "wide_resnet50_2": wide_resnet50_2,
    "wide_resnet101_2": wide_resnet101_2,
    "preact_resnet110": preact_resnet110,
    "preact_resnet164": preact_resnet164,
    "preact_resnet1001": preact_resnet1001,
    "preact_resnet18": preact_resnet18,
    "preact_resnet50": preact_resnet50,
    "wrn16_4": wrn16_4,
    "wrn28_10": wrn28_10,
    "wrn40_2": wrn40_2,
    "alexnet": alexnet,
    "alexnet_ungrouped": alexnet_ungrouped,
    "alexnet_one_tower": alexnet_one_tower,
    "alexnet_no_fc7": alexnet_no_fc7,
    "alexnet_no_fc6_fc7": alexnet_no_fc6_fc7,
    "alexnet_no_conv3_conv4": alexnet_no_conv3_conv4,
    "alexnet_no_conv3_conv4_fc6_fc7": alexnet_no_conv3_conv4_fc6_fc7,
    "zfnet": zfnet,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg11_bn": vgg11_bn,
    "vgg13_bn": vgg13_bn,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    "all_cnn_a": all_cnn_a,
    "all_cnn_b": all_cnn_b,
    "all_cnn_c": all_cnn_c,
    "googlenet": googlenet,
    "googlenet_torchvision": googlenet_torchvision,
    "bn_inception": bn_inception,
    "inception_v3": inception_v3,
    "densenet121": densenet121,
    "densenet161": densenet161,
    "densenet169": densenet169,
    "densenet201": densenet201,
    "densenet_bc100": densenet_bc100,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
    "convnext_tiny": convnext_tiny,
    "convnext_small": convnext_small,
    "convnext_base": convnext_base,
    "speednet94": speednet94,
    "speednet94_muon": speednet94_muon,
    "speednet95": speednet95,
    "speednet96": speednet96,
    "pattern": pattern,
    "conv_autoencoder": conv_autoencoder,
}

# Set by `build`'s own parameters or by Flax; all other fields of a model are its arguments.
_HIDDEN = ("num_classes", "input_shape", "axis_name", "dtype", "param_dtype", "parent", "name")


def create_model(name: str, num_classes: int | None = None, **fields: Any) -> nn.Module:
    """Makes a model with Python values: `create_model("resnet20", 10, shortcut="B")`.

    Args:
        name: a key of `MODELS`.
        num_classes: K; default: the published number.
        fields: of the module, such as dtype, axis_name or activation.

    Raises:
        UserError: an unknown name or field.

    >>> create_model("lenet5", activation="tanh").activation
    'tanh'
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    known = _fields(MODELS[name])
    for field in fields:
        if field not in known:
            raise unknown(f"field of {name}", field, known)
    if num_classes is not None:
        _check_classes(name, num_classes, known)
        fields["num_classes"] = num_classes
    for key, value in fields.items():
        _check_range(name, key, value, known[key].default)
    return MODELS[name](**fields)


def list_models(pattern: str = "*") -> list[str]:
    """Names of models that match a shell pattern.

    >>> list_models("resnet?4")
    ['resnet44', 'resnet34']
    """
    return [name for name in MODELS if fnmatch.fnmatchcase(name, pattern)]


def build(
    name: str,
    num_classes: int | None = None,
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    args: Sequence[str] = (),
) -> nn.Module:
    """Makes a model.

    Args:
        name: a key of `MODELS`.
        num_classes: K, at least 1; default: the published number.
        dtype: of the computation; parameters and logits are float32 in any case.
        axis_name: `pmap` axis over which batch normalisation takes its statistics; ignored by models without.
        args: the model's other fields, each "key=value", such as "shortcut=B"; parts of a tuple are separated by "/".

    Raises:
        UserError: an unknown name or argument, or a value of the wrong type or out of range.

    >>> build("lenet5", 10, args=["activation=tanh"]).activation
    'tanh'
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    factory = MODELS[name]
    fields = _fields(factory)
    if num_classes is not None:
        _check_classes(name, num_classes, fields)
    values = parse_arguments(name, factory, args, hidden=_HIDDEN)
    for key, value in values.items():
        _check_range(name, key, value, fields[key].default)
    if num_classes is not None:
        values["num_classes"] = num_classes
    if "axis_name" in fields:
        values["axis_name"] = axis_name
    return factory(dtype=dtype, **values)


def _fields(factory: Callable[..., nn.Module]) -> Mapping[str, inspect.Parameter]:
    """What a factory takes, by name."""
    return inspect.signature(factory).parameters


def _check_classes(name: str, num_classes: int, fields: Mapping[str, Any]) -> None:
    if "num_classes" not in fields:
        raise UserError(f"{name} has no classes: it is no classifier; use another model, or another task")
    if num_classes < 1:
        raise UserError(f"{num_classes} classes for {name}: set 1 or more")


def _check_range(model: str, key: str, value: Any, default: Any) -> None:
    """Refuses sizes and counts below 1 (or 0, where that is the default), and shares to drop that are not in [0, 1)."""
    parts = value if isinstance(value, tuple) else (value,)
    given = "/".join(map(str, parts))
    for part in parts:
        if type(part) is int and part < (0 if default == 0 else 1):
            raise UserError(f"given {key}={given} for {model}; expected whole numbers of at least 1; correct it")
        if ("dropout" in key or key == "drop_path") and type(part) is float and not 0 <= part < 1:
            raise UserError(f"given {key}={given} for {model}; expected a share in [0, 1); correct it")


def default_input_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of the images the model was published with.

    >>> default_input_shape("resnet50")
    (224, 224, 3)
    """
    return build(name).input_shape


def stages(model: nn.Module, variables: Mapping[str, Any], x_BxHxWxC: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """Evaluates a model and returns what happens inside, too.

    Returns:
        Logits (B, K) and the recorded activations by stage name, first stage first; their leading axis is B.
    """
    logits, state = model.apply(variables, x_BxHxWxC, train=False, mutable=["stages"])  # type: ignore[misc]
    return logits, traverse_util.flatten_dict(state.get("stages", {}), sep="/")
