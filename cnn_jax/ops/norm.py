"""Batch normalisation, arranged so that training reads the maps as few times as possible."""

from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.ops.plain import are_plain


def batch_moments(x_BxHxWxC: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel over all other axes, (C,) each, float32 or wider.

    The variance is E[x²] - E[x]², never negative: both sums can be taken in one pass.

    Args:
        x_BxHxWxC: any maps or features, channels last.
        axis_name: of `pmap`, `vmap` or `shard_map`, over which the statistics are taken, too.
    """
    x = x_BxHxWxC.astype(jnp.promote_types(x_BxHxWxC.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    moments = x.mean(axes), jnp.square(x).mean(axes)
    mean, mean_square = moments if axis_name is None else jax.lax.pmean(moments, axis_name)
    return mean, jnp.maximum(0, mean_square - jnp.square(mean))


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

    So the derivatives of a and b are sums over the gradient, and over the gradient times x. Those of the usual form
    need x - mean and the gradient times a for one more sum each, and XLA writes both out in full: a step reads and
    writes maps 18 times in place of 13.

    Args:
        x_BxHxWxC: any maps or features, channels last.
        mean_C, variance_C: of each channel, float32 or wider.
        scale_C, bias_C: of each channel, None for 1 and 0.
        epsilon: keeps the denominator from 0.
        dtype: of the result; None: of the maps, the scale and the bias together. The arithmetic is float32 at least.

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
