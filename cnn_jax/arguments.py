"""Parses `key=value` arguments and checks them against the signature of the target function."""

import functools
import importlib
import inspect
import math
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from cnn_jax.errors import UserError, nearest, unknown


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Prefixes the message of a UserError raised within with the config field that it is about.

    >>> with naming("`model_args`"):
    ...     raise UserError("lenet5 has no argument 'depth'")
    Traceback (most recent call last):
        ...
    cnn_jax.errors.UserError: `model_args`: lenet5 has no argument 'depth'
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def load_attribute(text: str) -> Any:
    """Imports `package.module:attribute`; the current folder is searched, too.

    Raises:
        UserError: there is no such module or attribute. Errors raised by the module itself propagate: it is the user's
            own code.

    >>> load_attribute("math:tau") == 2 * math.pi
    True
    """
    module_name, _, attribute = text.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"{text!r} is not package.module:attribute: write it like mynet:TinyNet")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that the user's own code imports
        raise UserError(
            f"there is no module {error.name} for {text!r}: correct the name, or run from the folder that holds it"
        ) from None
    except (OSError, MemoryError, SystemExit) as error:  # not to be taken for a problem of ours
        raise ImportError(f"{module_name} fails when it is imported: {type(error).__name__}: {error}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = {own.lower(): own for own in dir(found) if not own.startswith("_")}
            close = " or ".join(public[own] for own in nearest(name, public))
            hint = f"perhaps you meant {close}" if close else "correct the name"
            raise UserError(f"{module_name} has no attribute {name}: {hint}")
        found = getattr(found, name)
    return found


def parse_spec(
    kind: str, spec: str, functions: Mapping[str, Callable[..., Any]], *, hidden: Collection[str] = ()
) -> tuple[str, Callable[..., Any]]:
    """Parses "name" or "name:key=value,key=value" into (name, the function of that name with those arguments bound).

    Args:
        kind: name for such a function in messages.
        spec: the text.
        functions: the known functions by name.
        hidden: parameters set by the caller, which the text may not set.

    Raises:
        UserError: unknown name or argument, or a value of the wrong type.

    >>> def shift(image, *, pixels: int = 1): return image + pixels
    >>> name, function = parse_spec("view", "shift:pixels=3", {"shift": shift}, hidden=["image"])
    >>> name, function(0)
    ('shift', 3)
    """
    name, _, rest = spec.partition(":")
    if name not in functions:
        raise unknown(kind, name, functions)
    values = parse_arguments(f"{kind} {name}", functions[name], rest.split(",") if rest else (), hidden=hidden)
    return name, functools.partial(functions[name], **values)


def parse_arguments(
    owner: str, function: Callable[..., Any], texts: Iterable[str], *, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """Parses texts such as "b1=0.95" into keyword arguments of `function`.

    A value has the annotated type if that is bool, int, float, str, a Literal or a tuple of one of them, else the
    default's type. Elements of a tuple are separated by "/", as in "scale=0.5/1".

    Args:
        owner: name for the function in messages.
        function: its parameters are accepted if their values can be written as text.
        texts: each key=value.
        hidden: parameters set by the caller, which are not accepted.

    Raises:
        UserError: a text is not key=value, its key is unknown or occurs twice, its value has the wrong type, or a
            parameter without default is missing.

    >>> def crop(image, *, padding: int = 4, scale: tuple[float, float] = (0.5, 1.0)): ...
    >>> parse_arguments("crop", crop, ["padding=2", "scale=0.8/1"], hidden=["image"])
    {'padding': 2, 'scale': (0.8, 1.0)}
    """
    parameters = inspect.signature(function).parameters.values()
    accepted = {p.name: p for p in parameters if p.name not in hidden and _is_text(p)}
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise UserError(f"{text!r} for {owner} is not key=value: correct it ({_listing(accepted)})")
        if key not in accepted:
            close = " or ".join(nearest(key, accepted))
            hint = f"perhaps you meant {close} " if close else "choose another "
            raise UserError(f"{owner} has no argument {key!r}; {hint}({_listing(accepted)})")
        if key in values:
            raise UserError(f"{key} is given twice for {owner}: drop one")
        values[key] = _convert(owner, accepted[key], value)
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in values]
    if missing:
        raise UserError(f"{owner} needs {', '.join(missing)}: add {missing[0]}=VALUE")
    return values


def _is_text(parameter: inspect.Parameter) -> bool:
    """Whether values of the parameter can be written as text."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    default = parameter.default
    parts = default if type(default) is tuple else (default,)
    return all(part in (None, parameter.empty) or isinstance(part, bool | int | float | str) for part in parts)


def _listing(accepted: dict[str, inspect.Parameter]) -> str:
    shown = [n if p.default is p.empty else f"{n}={as_text(p.default)}" for n, p in accepted.items()]
    return f"known: {', '.join(shown)}" if shown else "it takes none"


def as_text(value: Any) -> str:
    """Writes a value as `parse_arguments` reads it.

    >>> as_text((0.5, 1))
    '0.5/1'
    """
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(owner: str, parameter: inspect.Parameter, text: str) -> Any:
    """Parses `text` as a value of the parameter."""
    hint, default = parameter.annotation, parameter.default
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    parts, count = [text], 1
    if origin is Literal:
        kinds: Any = [inner]
    elif origin is tuple and set(inner) <= {int, float, str, ...}:
        parts = text.split("/")
        kinds = [inner[0]] * len(parts) if ... in inner else list(inner)
        count = len(kinds)
    elif isinstance(default, tuple):
        parts, kinds, count = text.split("/"), [type(part) for part in default], len(default)
    elif hint in (bool, int, float, str):
        kinds = [hint]
    elif default is None or default is parameter.empty:
        kinds = [str if "dtype" in parameter.name else None]
    else:
        kinds = [type(default)]
    try:
        if len(parts) != count:
            raise ValueError
        values = tuple(_scalar(part.strip(), kind) for part, kind in zip(parts, kinds, strict=True))
    except ValueError:
        names = "/".join(_kind_name(kind) for kind in kinds)
        raise UserError(f"{parameter.name}={text} for {owner}: write {parameter.name}={names}") from None
    return values if origin is tuple or isinstance(default, tuple) else values[0]


def _scalar(text: str, kind: Any) -> Any:
    """Parses one word as `kind`: a type, a tuple of choices, or None for any number, true, false or none."""
    words = {"true": True, "false": False, "none": None}
    if isinstance(kind, tuple):
        return {str(choice): choice for choice in kind}[text] if text in map(str, kind) else _refuse()
    if kind is bool or (kind is None and text.lower() in words):
        value = words.get(text.lower())
        return value if kind is None or value is not None else _refuse()
    if kind is int:
        return int(text)
    if kind is str:
        return text
    value = float(text)
    if not math.isfinite(value):
        return _refuse()
    return int(text) if kind is None and text.lstrip("+-").isdigit() else value


def _refuse() -> Any:
    raise ValueError


def _kind_name(kind: Any) -> str:
    if isinstance(kind, tuple):
        return "|".join(map(str, kind))
    names = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "NAME", None: "NUMBER|true|false|none"}
    return names.get(kind, "VALUE")
