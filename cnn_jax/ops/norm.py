"""Batch normalisation, arranged so that training reads the maps as few times as possible."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn_jax.ops import native
from cnn_jax.ops.conv import on_one_cpu, varies
from cnn_jax.ops.plain import are_plain

Moments = tuple[jax.Array, jax.Array]


def batch_moments(x_BxHxWxC: jax.Array, axis_name: str | None = None) -> Moments:
    """Mean and variance of each channel over all other axes, (C,) each, float32 or wider.

    Both are computed in one pass, from differences from a value of the channel. E[x²] - E[x]² without a shift is noise
    where the mean is thousands of times the deviation.

    Args:
        x_BxHxWxC: any maps or features, channels last.
        axis_name: axis of `pmap`, `vmap` or `shard_map` to take them over as well.
    """
    x = x_BxHxWxC.astype(jnp.promote_types(x_BxHxWxC.dtype, jnp.float32))
    compiled = on_one_cpu() and not are_plain() and x_BxHxWxC.dtype == jnp.float32 and x.size > 0 and not varies(x)
    mean, variance = _compiled_moments(x) if compiled and native.available() else shifted_moments(x)
    if axis_name is None:
        return mean, variance
    whole = lax.pmean(mean, axis_name)  # parts of equal size: Chan, Golub and LeVeque 1983, eq. 2.1
    return whole, lax.pmean(variance + jnp.square(mean - whole), axis_name)


def shifted_moments(x_BxHxWxC: jax.Array) -> Moments:
    """Mean and variance by XLA, as E[(x - o)²] - E[x - o]², where o is one value of the channel.

    The relative error is at most about N times the rounding, for N values of which o is the only one of its kind.
    """
    axes = tuple(range(x_BxHxWxC.ndim - 1))
    # The first image's centre. As a sum over a slice, as XLA would copy an indexed image between devices.
    centre = x_BxHxWxC[(slice(1), *(slice(n // 2, n // 2 + 1) for n in x_BxHxWxC.shape[1:-1]))]
    origin_C = lax.stop_gradient(centre.sum(axes))
    x = x_BxHxWxC - origin_C.reshape((1,) * len(axes) + (-1,))
    mean, mean_square = x.mean(axes), jnp.square(x).mean(axes)
    return origin_C + mean, jnp.maximum(0, mean_square - jnp.square(mean))


@jax.custom_jvp
def _compiled_moments(x_BxHxWxC: jax.Array) -> Moments:
    return lax.platform_dependent(x_BxHxWxC, cpu=native.moments, default=shifted_moments)


@_compiled_moments.defjvp
def _compiled_moments_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Moments, Moments]:
    (x,), (dx,) = primals, tangents
    axes = tuple(range(x.ndim - 1))
    mean, variance = _compiled_moments(x)
    centred = x - mean.reshape((1,) * len(axes) + (-1,))
    return (mean, variance), (dx.mean(axes), 2 * (centred * dx).mean(axes))


def normalize(
    x_BxHxWxC: jax.Array,
    mean_C: jax.Array,
    variance_C: jax.Array,
    scale_C: jax.Array | None,
    bias_C: jax.Array | None,
    epsilon: float,
    dtype: Any,
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon)·scale + bias (Ioffe and Szegedy 2015, algorithm 1), as one a·x + b.

    This way the derivatives of a and b are sums over the gradient, and over the gradient times x. The usual form needs
    x - mean and the gradient times a for one more sum each, and XLA materialises both: a step reads and writes maps 18
    times instead of 13.

    Args:
        x_BxHxWxC: any maps or features, channels last.
        mean_C, variance_C: per channel, float32 or wider.
        scale_C, bias_C: per channel; None for 1 and 0.
        epsilon: keeps the denominator above 0.
        dtype: type of the result; None promotes the types of maps, scale and bias. The arithmetic is at least float32.

    >>> normalize(jnp.array([[1.0], [3.0]]), jnp.array([2.0]), jnp.array([4.0]), None, None, 0.0, "float32").tolist()
    [[-0.5], [0.5]]
    """
    dtype = dtype or jnp.result_type(*(v for v in (x_BxHxWxC, scale_C, bias_C) if v is not None))
    x = x_BxHxWxC.astype(jnp.promote_types(x_BxHxWxC.dtype, mean_C.dtype))

    def along_channels(values_C: jax.Array) -> jax.Array:
        return values_C.reshape((1,) * (x.ndim - 1) + (-1,))

    factor_C = jax.lax.rsqrt(variance_C + epsilon)
    if scale_C is not None:
        factor_C = factor_C * scale_C
    if are_plain():
        y = (x - along_channels(mean_C)) * along_channels(factor_C)
        return (y if bias_C is None else y + along_channels(bias_C)).astype(dtype)
    shift_C = -mean_C * factor_C if bias_C is None else bias_C - mean_C * factor_C
    return (x * along_channels(factor_C) + along_channels(shift_C)).astype(dtype)
