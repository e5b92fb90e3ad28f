"""What is compared, as the user writes it: values of a field, ranges, optimizers; from text or from Python."""

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from cnn_jax.config import field_types
from cnn_jax.errors import UserError
from cnn_jax.optim.optimizers import optax_factories
from cnn_jax.optim.spaces import Ranges

Spaces = Mapping[str, Ranges]  # ranges that the user declares, by optimizer


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """Parses the values of a field as `--vary` takes them.

    Values are separated by commas. "none" is an empty list, or no value; the parts of a list are joined by "+"; the
    arguments of an augmentation stay together.

    Raises:
        UserError: it is not FIELD=VALUE,VALUE.

    >>> parse_vary("augment=none,flip+affine:degrees=10,translate=0.1")
    ('augment', [(), ('flip', 'affine:degrees=10,translate=0.1')])
    >>> parse_vary("batch_size=64,128")
    ('batch_size', [64, 128])
    """
    field, equals, rest = text.partition("=")
    field = field.strip().replace("-", "_")
    if not equals:
        raise UserError(f"`vary` is {text!r}: write FIELD=VALUE,VALUE, such as schedule=constant,cosine")
    if field not in field_types():
        return field, [rest]  # `field_candidates` names the nearest
    words: list[str] = []
    for word in filter(None, rest.split(",")):
        first = word.partition("+")[0]
        if words and "=" in first and ":" in words[-1] and ":" not in first:
            words[-1] += f",{word}"
        else:
            words.append(word)
    return field, [_read(field, word.strip()) for word in words]


def read_spaces(given: Mapping[Any, Ranges] | Sequence[str]) -> Spaces:
    """Reads ranges as `--spaces` takes them, or a dict with optimizers or their names as keys.

    Raises:
        UserError: a text is not OPTIMIZER:ARGUMENT=LOW..HIGH, or an argument has two ranges.

    >>> read_spaces(["adam:learning_rate=1e-5..0.1", "adam:b1=0..0.9"])
    {'adam': {'learning_rate': (1e-05, 0.1), 'b1': (0.0, 0.9)}}
    """
    if isinstance(given, Mapping):
        return {name_of(optimizer): ranges for optimizer, ranges in given.items()}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for text in given:
        place, _, values = text.partition("=")
        optimizer, _, argument = place.rpartition(":")
        low, _, high = values.partition("..")
        argument = argument.strip().replace("-", "_")
        try:
            ends = float(low), float(high)
        except ValueError:
            ends = None
        if not (optimizer and argument and ends):
            raise UserError(
                f"`spaces` has {text!r}: write OPTIMIZER:ARGUMENT=LOW..HIGH, such as adam:learning_rate=1e-5..0.1"
            )
        if argument in found.setdefault(optimizer, {}):
            raise UserError(f"`spaces` has two ranges for {argument} of {optimizer}: drop one")
        found[optimizer][argument] = ends
    return found


def name_of(optimizer: Any) -> str:
    """The name of an optimizer: of Optax, or package.module:attribute.

    Raises:
        UserError: it is no function that can be imported again.
    """
    if isinstance(optimizer, str):
        return optimizer
    for name, factory in optax_factories().items():
        if factory is optimizer:
            return name
    module, name = getattr(optimizer, "__module__", None), getattr(optimizer, "__qualname__", "<")
    if not isinstance(optimizer, Callable) or not inspect.isfunction(optimizer) or "<" in name:
        raise UserError(
            f"`optimizers` has {optimizer!r}, which cannot be imported: pass names, Optax factories such as "
            "optax.adam, or functions of a module"
        )
    return f"{module}:{name}"


def _read(field: str, word: str) -> Any:
    """Reads a value of a field from the command line."""
    hint = field_types()[field]
    choices = _options(hint)
    if word.lower() == "none" and type(None) in choices and "none" not in choices:
        return None
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return () if word.lower() == "none" else tuple(_scalar(part, {kind}) for part in word.split("+"))
    return _scalar(word, choices)


def _scalar(word: str, choices: Collection[Any]) -> Any:
    for choice in choices:
        if not isinstance(choice, type) and str(choice) == word:
            return choice
    if bool in choices and word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        if kind in choices:
            try:
                return kind(word)
            except ValueError:
                continue
    return word  # of the wrong type if the field takes no text: `Config.check_types` says so


def _options(hint: Any) -> list[Any]:
    """The types and literals that a field takes, such as [int, NoneType] of `int | None`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [option for arg in args for option in _options(arg)]
    return list(args) if origin is Literal else [hint]
