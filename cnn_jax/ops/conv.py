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

    Plain float32 NHWC convolutions on a single CPU device use the compiled code of `cnn_jax.ops.native` or, without a
    compiler, `cnn_jax.ops.portable`. (On several CPU devices, XLA can partition only its own convolutions.) The choice
    is made at trace time, from shapes and platform alone.
    """
    plain = (
        lhs.ndim == rhs.ndim == 4
        and all(dilation is None or np.all(np.asarray(dilation) == 1) for dilation in (lhs_dilation, rhs_dilation))
        and batch_group_count == 1
        and precision is preferred_element_type is None
        and not other
        and lhs.dtype == rhs.dtype == jnp.float32
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
        pads = _pads(lhs, rhs, strides, padding)
        fits = all(n + sum(ends) >= k for n, ends, k in zip(lhs.shape[1:3], pads, rhs.shape[:2], strict=True))
        if fits and lhs.size > 0 and rhs.size > 0:
            if native.available():
                return native.convolve(lhs, rhs, strides, pads, feature_group_count)
            y = portable.convolve(lhs, rhs, strides, pads) if feature_group_count == 1 else None
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


def form_of_convolutions() -> str:
    """Describes, for the record of a run, how plain float32 convolutions are computed on this machine."""
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


def _pads(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str | Sequence[tuple[int, int]]) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))
