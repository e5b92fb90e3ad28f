"""2-D convolution by the fastest implementation for the platform; values and derivatives are XLA's."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn_jax.ops import native, portable
from cnn_jax.ops.plain import are_plain
from cnn_jax.ops.pool import Pads

_NHWC = ("NHWC", "HWIO", "NHWC")
_TYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **other: Any,
) -> jax.Array:
    """Drop-in for `jax.lax.conv_general_dilated`, faster where possible; for `nn.Conv(conv_general_dilated=…)`.

    Plain NHWC convolutions on a single CPU device use the compiled code of `cnn_jax.ops.native` or, without a compiler,
    `cnn_jax.ops.portable`. (On several CPU devices, XLA can partition only its own convolutions.) The choice is made at
    trace time, from shapes, types and platform alone.

    The compiled code multiplies float32 numbers. Shorter floats are converted, and the result is rounded once, as XLA
    does on a CPU. Kernels are dilated by `dilated`, unless there is a stride as well.
    """
    plain = (
        lhs.ndim == rhs.ndim == 4
        and (lhs_dilation is None or np.all(np.asarray(lhs_dilation) == 1))
        and batch_group_count == 1
        and precision is preferred_element_type is None
        and not other
        and lhs.dtype == rhs.dtype
        and lhs.dtype in _TYPES
        and _is_nhwc(lhs.shape, rhs.shape, dimension_numbers)
        and not (varies(lhs) or varies(rhs))
        # Otherwise JAX raises its own error.
        and lhs.shape[3] == rhs.shape[2] * feature_group_count
        and rhs.shape[3] % feature_group_count == 0
        and len(window_strides) == 2
        and min(window_strides) > 0
    )
    if plain and not are_plain() and on_one_cpu():
        strides = (int(window_strides[0]), int(window_strides[1]))
        dilation = (1, 1) if rhs_dilation is None else (int(rhs_dilation[0]), int(rhs_dilation[1]))
        window = tuple((k - 1) * d + 1 for k, d in zip(rhs.shape[:2], dilation, strict=True))
        pads = _pads(lhs, window, strides, padding)
        fits = all(n + sum(ends) >= k for n, ends, k in zip(lhs.shape[1:3], pads, window, strict=True))
        if fits and lhs.size > 0 and rhs.size > 0:
            y = _convolve(lhs, rhs, strides, pads, dilation, feature_group_count)
            if y is not None:
                return y
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **other,
    )


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, dilation: tuple[int, int], groups: int
) -> jax.Array | None:
    """Convolves on a CPU, in our fastest form for these operands; returns None if XLA's is to be used."""
    if native.available() and (dilation == (1, 1) or strides == (1, 1)):
        operands = x.astype(jnp.float32), kernel.astype(jnp.float32)
        if dilation == (1, 1):
            return native.convolve(*operands, strides, pads, groups).astype(x.dtype)
        return dilated(*operands, pads, dilation, groups).astype(x.dtype)
    if x.dtype == jnp.float32 and dilation == (1, 1) and groups == 1:
        return portable.convolve(x, kernel, strides, pads)
    return None


def dilated(
    x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array, pads: Pads, dilation: tuple[int, int], groups: int = 1
) -> jax.Array:
    """Convolves with a kernel whose numbers lie `dilation` pixels apart (Yu and Koltun 2016), by compiled code.

    Outputs whose rows differ by a multiple of the dilation see the same rows of the input, and no others do; likewise
    columns. So the padded image is split into dilation × dilation coarser ones, which are more images for a convolution
    without dilation, and their outputs are put together again (the "à trous" algorithm).

    Args and result as for `native.convolve`; all strides are 1.
    """
    (rows, columns), (height, width) = dilation, kernel_HxWxCxF.shape[:2]
    sizes = [n + sum(ends) for n, ends in zip(x_BxHxWxC.shape[1:3], pads, strict=True)]
    outputs = [n - (k - 1) * d for n, k, d in zip(sizes, (height, width), dilation, strict=True)]
    # Negative padding crops, as XLA's does; the rest fills up to a multiple of the dilation.
    fill = [(*ends, 0) for ends in pads]
    more = [(0, -n % d, 0) for n, d in zip(sizes, dilation, strict=True)]
    zero = jnp.zeros((), x_BxHxWxC.dtype)
    x = lax.pad(lax.pad(x_BxHxWxC, zero, ((0, 0, 0), *fill, (0, 0, 0))), zero, ((0, 0, 0), *more, (0, 0, 0)))
    batch, channels = len(x), x.shape[3]
    x = x.reshape(batch, x.shape[1] // rows, rows, x.shape[2] // columns, columns, channels)
    x = x.transpose(0, 2, 4, 1, 3, 5)
    y = native.convolve(x.reshape(-1, *x.shape[3:]), kernel_HxWxCxF, (1, 1), ((0, 0), (0, 0)), groups)
    y = y.reshape(batch, rows, columns, *y.shape[1:]).transpose(0, 3, 1, 4, 2, 5)
    y = y.reshape(batch, y.shape[1] * rows, y.shape[3] * columns, y.shape[5])
    return y[:, : outputs[0], : outputs[1]]


def form_of_convolutions() -> str:
    """Describes, for the record of a run, how plain convolutions are computed on this machine."""
    if not on_one_cpu():
        return "XLA's"
    return f"compiled by {native.status()}" if native.available() else f"XLA's, slower ({native.status()})"


def varies(x: jax.Array) -> bool:
    """Whether `x` differs between devices, inside `shard_map`."""
    return bool(getattr(getattr(jax.typeof(x), "manual_axis_type", None), "varying", None))


def on_one_cpu() -> bool:
    """Whether programs run on a single CPU device: XLA can partition only its own operations."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _is_nhwc(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dimension_numbers: Any) -> bool:
    expected = lax.conv_dimension_numbers(x_shape, kernel_shape, _NHWC)
    return lax.conv_dimension_numbers(x_shape, kernel_shape, dimension_numbers) == expected


def _pads(
    x: jax.Array, window: tuple[int, ...], strides: tuple[int, int], padding: str | Sequence[tuple[int, int]]
) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))
