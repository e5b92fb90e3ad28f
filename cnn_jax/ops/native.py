"""CPU convolutions and moments in C++, `cnn_jax/native/convolution.cc`.

A convolution y = conv(x, k) belongs to a trilinear form: for any g of y's shape, sum(g·conv(x, k)) is linear in x, in k
and in g. Its derivative with respect to one of them is a bilinear function of the other two: y itself (for g), the
input's gradient (for x), the kernel's gradient (for k). Each is the transpose of the others, so one JAX primitive with
three parts is closed under differentiation of any order and mode.

Without a compiler, `available` returns False and convolutions fall back on `cnn_jax.ops.portable`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cnn_jax.native import build
from cnn_jax.ops.pool import Pads

# Operands of each part of the trilinear form.
_OPERANDS = {"output": ("input", "kernel"), "input": ("output", "kernel"), "kernel": ("input", "output")}


def convolve(
    x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array, strides: tuple[int, int], pads: Pads, groups: int = 1
) -> jax.Array:
    """Cross-correlates images with a kernel.

    Args:
        x_BxHxWxC: images or maps, float32.
        kernel_HxWxCxF: filters, float32.
        strides: rows and columns between neighbouring outputs.
        pads: zeros added (above, below) and (left, right).
        groups: number of feature groups: the kernel has C / groups channels, and its features are ordered by group.

    Returns:
        Maps of shape (B, (H + pads - kernel) // stride + 1, …, F).

    Raises:
        RuntimeError: `available()` is False.
        ValueError: the kernel's channels do not match the maps, or `groups` does not divide its features.
    """
    if not available():
        raise RuntimeError(f"no compiled convolutions: {status()}")
    channels, features = kernel_HxWxCxF.shape[2:]
    if x_BxHxWxC.shape[3] != channels * groups or features % groups:
        raise ValueError(f"maps {x_BxHxWxC.shape} and kernel {kernel_HxWxCxF.shape} do not fit in {groups} groups")
    size = [(x_BxHxWxC.shape[1 + a] + sum(pads[a]) - kernel_HxWxCxF.shape[a]) // strides[a] + 1 for a in (0, 1)]
    shape = (1, len(x_BxHxWxC), *size, kernel_HxWxCxF.shape[3])
    window = (*strides, *pads[0], *pads[1], groups)
    return _convolution.bind(x_BxHxWxC[None], kernel_HxWxCxF[None], part="output", shape=shape, window=window)[0]


def moments(x_BxHxWxC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel over all other axes, (C,) each; has no derivatives of its own.

    Args:
        x_BxHxWxC: any maps or features, float32, channels last, not empty.

    Raises:
        RuntimeError: `available()` is False.
    """
    if not available():
        raise RuntimeError(f"no compiled moments: {status()}")
    x_NxC = x_BxHxWxC.reshape(-1, x_BxHxWxC.shape[-1])
    shape = jax.ShapeDtypeStruct(x_NxC.shape[1:], x_NxC.dtype)
    mean_C, variance_C = jax.ffi.ffi_call(_target("moments"), (shape, shape), vmap_method="broadcast_all")(x_NxC)
    return mean_C, variance_C


def available() -> bool:
    """Whether the compiled code can be used; the first call waits until it is compiled."""
    return _register()


def status() -> str:
    """Returns the compiler and its version, or the reason why there is no compiled code."""
    return build.library()[1]


def _lower(context: Any, one: Any, other: Any, *, part: str, window: tuple[int, ...], **static: Any) -> Any:
    if any(0 in aval.shape for aval in (*context.avals_in, *context.avals_out)):  # from a vmap over an empty axis
        return _lower_by_xla(context, one, other, part=part, window=window, **static)
    return jax.ffi.ffi_lowering(_target(part))(context, one, other, window=np.array(window, np.int64))


def _by_xla(one: Any, other: Any, *, part: str, shape: tuple[int, ...], window: tuple[int, ...]) -> jax.Array:
    sy, sx, top, bottom, left, right, groups = window

    def output(x: Any, kernel: Any) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (sy, sx),
            ((top, bottom), (left, right)),
            dimension_numbers=numbers,
            feature_group_count=groups,
        )

    def member(one: Any, other: Any) -> Any:
        wanted = jax.ShapeDtypeStruct(shape[1:], one.dtype)
        if part == "input":
            return jax.linear_transpose(lambda x: output(x, other), wanted)(one)[0]
        if part == "kernel":
            return jax.linear_transpose(lambda kernel: output(one, kernel), wanted)(other)[0]
        return output(one, other)

    return jax.vmap(member)(one, other)


_lower_by_xla = mlir.lower_fun(_by_xla, multiple_results=False)


def _transpose(
    index: int,
    cotangent: jax.Array,
    one: Any,
    other: Any,
    *,
    part: str,
    shape: tuple[int, ...],
    window: tuple[int, ...],
) -> jax.Array:
    wanted, given = _OPERANDS[part][index], _OPERANDS[part][1 - index]
    unknown, known = (one, other) if index == 0 else (other, one)
    arrays = {part: cotangent, given: known}
    operands = (arrays[operand] for operand in _OPERANDS[wanted])
    return _convolution.bind(*operands, part=wanted, shape=unknown.aval.shape, window=window)


def _batch(
    arrays: tuple[jax.Array, jax.Array],
    axes: tuple[int | None, int | None],
    *,
    part: str,
    shape: tuple[int, ...],
    window: tuple[int, ...],
) -> tuple[jax.Array, int]:
    (size,) = {x.shape[axis] for x, axis in zip(arrays, axes) if axis is not None}
    if part != "kernel" and axes[0] is not None and axes[1] is None:  # shared kernel: the axis becomes more images
        images = jnp.moveaxis(arrays[0], axes[0], 1)
        merged = images.reshape(images.shape[0], -1, *images.shape[3:])
        more = (shape[0], size * shape[1], *shape[2:])
        result = _convolution.bind(merged, arrays[1], part=part, shape=more, window=window)
        return result.reshape(shape[0], size, *shape[1:]), 1
    stacked = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes)
    )
    one, other = (x.reshape(-1, *x.shape[2:]) for x in stacked)
    merged = (size * shape[0], *shape[1:])
    result = _convolution.bind(one, other, part=part, shape=merged, window=window)
    return result.reshape(size, *shape), 0


def _make_primitive() -> Primitive:
    primitive = Primitive("cnn_jax_convolution")
    compiled = jax.jit(primitive.bind, static_argnames=("part", "shape", "window"))

    def evaluate(one: jax.Array, other: jax.Array, **static: Any) -> jax.Array:
        with jax.disable_jit(False):  # else `compiled` would call `evaluate` again
            return compiled(one, other, **static)

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(lambda one, other, *, shape, **_: one.update(shape=shape, weak_type=False))
    ad.defbilinear(primitive, functools.partial(_transpose, 0), functools.partial(_transpose, 1))
    batching.primitive_batchers[primitive] = _batch
    mlir.register_lowering(primitive, _lower, platform="cpu")
    mlir.register_lowering(primitive, _lower_by_xla)  # for programs lowered for other platforms
    return primitive


_convolution = _make_primitive()


def _target(part: str) -> str:
    return f"cnn_jax_{part}_{build.key()}"


@functools.cache
def _register() -> bool:
    """Registers the compiled functions with XLA; returns whether there are any."""
    functions, _ = build.library()
    for part, function in functions.items():
        jax.ffi.register_ffi_target(_target(part), jax.ffi.pycapsule(function), platform="cpu")
    return bool(functions)
