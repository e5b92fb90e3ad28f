"""Labels of objects in the config: the same in every process, and another one for an object with other settings."""

import dataclasses
import functools
import re
import types
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_DEPTH = 16  # of nesting that is described: objects may refer to themselves


def label(value: Any) -> str:
    """Returns the class of an object and a checksum of its settings, such as `<TinyNet 1a2b3c4d>`."""
    text = _update(value) if isinstance(value, optax.GradientTransformation) else describe(value)
    return f"<{type(value).__name__} {zlib.crc32(text.encode()):08x}>"


def describe(value: Any, depth: int = _DEPTH) -> str:
    """Describes a value by its class and fields, without addresses; a function by module, name and what it encloses.

    >>> import math
    >>> describe({"activation": math.tanh, "widths": (16, 32)})
    "{'activation': math.tanh, 'widths': (16, 32)}"
    """
    if depth == 0:
        return "…"
    inner = functools.partial(describe, depth=depth - 1)
    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inner(key)}: {inner(of)}" for key, of in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(inner, value))})"
    if isinstance(value, np.ndarray | jax.Array):
        return f"array({value.dtype}, {value.shape}, {zlib.crc32(np.ascontiguousarray(value).tobytes()):08x})"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__func__)} of {inner(value.__self__)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A Linen module's parent is the module around it.
        fields = {of.name: getattr(value, of.name, None) for of in dataclasses.fields(value) if of.name != "parent"}
        return f"{_name(type(value))}({inner(fields)})"
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value) + _body(value, inner)
    if type(value).__repr__ is object.__repr__:
        return f"{_name(type(value))}({inner(getattr(value, '__dict__', {}))})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{value.__qualname__}"


def _body(function: Any, inner: Any) -> str:
    """What tells functions of one name apart: the variables that they enclose, and the code of a lambda."""
    text = ""
    if function.__qualname__.endswith("<lambda>") and (code := getattr(function, "__code__", None)):
        constants = [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]
        text += f" {zlib.crc32(code.co_code):08x} {constants} {code.co_names}"
    if enclosed := [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_set(cell)]:
        text += f" with {inner(enclosed)}"
    return text


def _is_set(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that is assigned later
        return False


def _update(optimizer: optax.GradientTransformation) -> str:
    """The program of one update of two small parameters; it holds rates and schedules, however they are written."""
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros((2,))}
    try:
        state = jax.eval_shape(optimizer.init, params)
        first = jax.jit(optimizer.init).lower(params).as_text()
        return first + jax.jit(optimizer.update).lower(params, state, params).as_text()
    except Exception:  # noqa: BLE001  (it needs the loss, or certain parameters; `check_update` judges it)
        return describe(optimizer)
