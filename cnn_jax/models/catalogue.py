"""Catalogue of models: builds them by name, and knows their sources and measured sizes."""

import csv
import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cnn_jax.arguments import parse_arguments
from cnn_jax.errors import UserError, unknown
from cnn_jax.models.alexnet import MODELS as ALEXNET
from cnn_jax.models.all_cnn import MODELS as ALL_CNN
from cnn_jax.models.autoencoder import MODELS as AUTOENCODER
from cnn_jax.models.base import Entry
from cnn_jax.models.convnext import MODELS as CONVNEXT
from cnn_jax.models.densenet import MODELS as DENSENET
from cnn_jax.models.digits import MODELS as DIGITS
from cnn_jax.models.efficientnet import MODELS as EFFICIENTNET
from cnn_jax.models.googlenet import MODELS as GOOGLENET
from cnn_jax.models.inception_bn import MODELS as INCEPTION_BN
from cnn_jax.models.inception_v3 import MODELS as INCEPTION_V3
from cnn_jax.models.lenet import MODELS as LENET
from cnn_jax.models.linear import MODELS as LINEAR
from cnn_jax.models.mobilenet import MODELS as MOBILENET
from cnn_jax.models.multiscale import MODELS as MULTISCALE
from cnn_jax.models.pattern import MODELS as PATTERN
from cnn_jax.models.preact_resnet import MODELS as PREACT_RESNET
from cnn_jax.models.resnet import MODELS as RESNET
from cnn_jax.models.small import MODELS as SMALL
from cnn_jax.models.speednet import MODELS as SPEEDNET
from cnn_jax.models.vgg import MODELS as VGG
from cnn_jax.models.zfnet import MODELS as ZFNET

CATALOGUE: dict[str, Entry] = {
    **LINEAR,
    **LENET,
    **DIGITS,
    **SMALL,
    **MULTISCALE,
    **RESNET,
    **PREACT_RESNET,
    **ALEXNET,
    **ZFNET,
    **VGG,
    **ALL_CNN,
    **GOOGLENET,
    **INCEPTION_BN,
    **INCEPTION_V3,
    **DENSENET,
    **MOBILENET,
    **EFFICIENTNET,
    **CONVNEXT,
    **SPEEDNET,
    **PATTERN,
    **AUTOENCODER,
}
MODELS: dict[str, Callable[..., nn.Module]] = {name: entry.make for name, entry in CATALOGUE.items()}
SOURCES: dict[str, str] = {name: entry.source for name, entry in CATALOGUE.items()}

TABLE = Path(__file__).parent / "table.csv"
COLUMNS: tuple[str, ...] = ("model", "input", "classes", "parameters", "without_heads", "flops")

# Set by `build`'s own parameters or by Flax; every other field of a model is one of its arguments.
_HIDDEN = ("num_classes", "input_shape", "axis_name", "dtype", "param_dtype", "parent", "name")


def create_model(name: str, num_classes: int | None = None, **fields: Any) -> nn.Module:
    """Builds a model from Python values, as in `create_model("resnet20", 10, shortcut="B")`.

    Args:
        name: a key of `MODELS`.
        num_classes: K; default: the published number.
        fields: module fields, such as dtype, axis_name or activation.

    Raises:
        UserError: unknown name or field, or a value out of range.

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
    """Returns the names of the models that match a shell pattern, in catalogue order.

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
    **fields: Any,
) -> nn.Module:
    """Builds a model as `create_model` does, also from text arguments.

    Args:
        name: a key of `MODELS`.
        num_classes: K, at least 1; default: the published number.
        dtype: computation type; parameters and logits are always float32.
        axis_name: `pmap` axis over which batch normalisation takes its statistics; ignored by models without it.
        args: fields as "key=value", such as "shortcut=B"; "/" separates the elements of a tuple.
        fields: other fields, as Python values.

    Raises:
        UserError: unknown name, argument or field, or a value of the wrong type or out of range.

    >>> build("lenet5", 10, args=["activation=tanh"]) == build("lenet5", 10, activation="tanh")
    True
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if twice := fields.keys() & {text.partition("=")[0].strip() for text in args}:
        raise UserError(f"{min(twice)} is given twice for {name}: drop one")
    values = parse_arguments(name, MODELS[name], args, hidden=(*_HIDDEN, *fields))
    if "axis_name" in _fields(MODELS[name]):
        values["axis_name"] = axis_name
    return create_model(name, num_classes, dtype=dtype, **values, **fields)


def _fields(factory: Callable[..., nn.Module]) -> Mapping[str, inspect.Parameter]:
    """Returns a factory's parameters by name."""
    return inspect.signature(factory).parameters


def _check_classes(name: str, num_classes: int, fields: Mapping[str, Any]) -> None:
    if "num_classes" not in fields:
        raise UserError(f"{name} has no classes: use a classifier, or another task")
    if num_classes < 1:
        raise UserError(f"{num_classes} classes for {name}: set 1 or more")


def _check_range(model: str, key: str, value: Any, default: Any) -> None:
    """Rejects sizes and counts below 1 (below 0 if the default is 0), and dropout rates outside [0, 1)."""
    parts = value if isinstance(value, tuple) else (value,)
    text = "/".join(map(str, parts))
    least = 0 if default == 0 else 1
    for part in parts:
        if type(part) is int and part < least:
            raise UserError(f"{key}={text} is out of range for {model}: use whole numbers of at least {least}")
        if ("dropout" in key or key == "drop_path") and type(part) is float and not 0 <= part < 1:
            raise UserError(f"{key}={text} is out of range for {model}: use a rate of at least 0 and less than 1")


def default_input_shape(name: str) -> tuple[int, int, int]:
    """Returns (H, W, C) of the images a model was published with.

    >>> default_input_shape("resnet50")
    (224, 224, 3)
    """
    return build(name).input_shape


def model_name(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Returns the name and fields with which `create_model` makes an equal model, or None if there are none.

    Of several possible names, returns the one that needs the fewest fields. Pattern networks give None, because they do
    not keep the text of their pattern.

    >>> model_name(create_model("resnet56", 10, shortcut="B"))
    ('resnet56', {'shortcut': 'B'})
    """
    candidates = []
    for name, make in MODELS.items():
        if (make.func if isinstance(make, partial) else make) is type(model):
            candidates.append((name, _differences(make(), model)))
    if not candidates:
        return None
    name, fields = min(candidates, key=lambda candidate: len(candidate[1]))
    try:
        return (name, fields) if create_model(name, **fields) == model else None
    except UserError:  # a value outside the catalogue's range
        return None


def _differences(usual: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Returns the fields of `model` that differ from those of `usual`, by name."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name")]
    return {name: getattr(model, name) for name in names if getattr(model, name) != getattr(usual, name)}


def read_table() -> list[dict[str, str]]:
    """Reads table.csv: one dict per model, in the order of `MODELS`."""
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def source(row: Mapping[str, str]) -> str:
    """Returns the source of the model in a table row, and its parameters without auxiliary heads if it has any."""
    heads = row["without_heads"] != row["parameters"]
    note = f"; without auxiliary heads {int(row['without_heads']):,} parameters" if heads else ""
    return SOURCES[row["model"]] + note


def si(number: int) -> str:
    """Formats a count with an SI unit and three significant digits.

    >>> si(81_000_000)
    '81.0 M'
    """
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number >= 100 * factor else f"{number / factor:.1f} {unit}"
    return str(number)
