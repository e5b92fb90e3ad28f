"""Pooling over windows. Those that do not overlap become strided slices, whose gradient is cheap on every platform.

XLA's gradient of a windowed maximum (select-and-scatter) is slow on CPU: 51 ms against 4 ms for 2×2 windows on
128×28×28×32 maps.
"""

from collections.abc import Sequence
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]


def max_pool(x_BxHxWxC: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Maximum over each window, per channel; NaN if the window holds one.

    Where several elements of a window are the maximum, the first one (rows before columns) gets the whole gradient, as
    in XLA's own pooling.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2), "VALID").ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    if not _tiles(x_BxHxWxC, window, strides, padding):
        return nn.pool(x_BxHxWxC, -jnp.inf, lax.max, window, strides, padding)
    return reduce(_first_max, _corners(x_BxHxWxC, window))


def avg_pool(x_BxHxWxC: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Mean over each window, per channel; padding counts as zeros.

    >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2), "VALID").ravel().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    if not _tiles(x_BxHxWxC, window, strides, padding):
        # Not nn.avg_pool: it divides by an integer array, which strict dtype promotion refuses.
        return nn.pool(x_BxHxWxC, 0.0, lax.add, window, strides, padding) / (window[0] * window[1])
    return reduce(jnp.add, _corners(x_BxHxWxC, window)) / (window[0] * window[1])


def _tiles(x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding) -> bool:
    """Whether the windows lie side by side, unpadded, at least one, and few enough elements to be worth slicing."""
    unpadded = padding == "VALID" or not isinstance(padding, str) and all(tuple(p) == (0, 0) for p in padding)
    fits = x.ndim == 4 and x.shape[1] >= window[0] and x.shape[2] >= window[1]
    return tuple(window) == tuple(strides) and unpadded and fits and window[0] * window[1] <= 16


def _corners(x: jax.Array, window: tuple[int, int]) -> list[jax.Array]:
    """The first, second, … element of every window, each as (B, H', W', C); edges that fill no window are cut off."""
    height, width = (x.shape[1] // window[0] * window[0], x.shape[2] // window[1] * window[1])
    return [x[:, i : height : window[0], j : width : window[1]] for i in range(window[0]) for j in range(window[1])]


def _first_max(a: jax.Array, b: jax.Array) -> jax.Array:
    # Not jnp.maximum: its gradient splits a tie, and after a ReLU ties at 0 are the rule.
    return jnp.where((b <= a) | jnp.isnan(a), a, b)
