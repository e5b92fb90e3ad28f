"""Pooling over windows. Those that do not overlap become strided slices, whose gradient is cheap on every platform.

XLA's gradient of a windowed maximum (select-and-scatter) is slow on CPU: 51 ms against 4 ms for 2×2 windows on
128×28×28×32 maps.

In all functions `padding` is "VALID", "SAME" or ((above, below), (left, right)). With `ceil_mode` the last windows may
overhang the lower and right edge, beyond the padding, if they begin before it (Caffe's and PyTorch's pooling).
"""

from collections.abc import Sequence
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn_jax.arithmetic import output_size

Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
    x_BxHxWxC: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding,
    ceil_mode: bool = False,
) -> jax.Array:
    """Maximum over each window, per channel; NaN if the window holds one. Padding is never the maximum.

    Where several elements of a window are the maximum, the first one (rows before columns) gets the whole gradient, as
    in XLA's own pooling.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2), "VALID").ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    pads = window_pads(x_BxHxWxC.shape[1:3], window, strides, padding, ceil_mode)
    if not _side_by_side(window, strides):
        return nn.pool(x_BxHxWxC, -jnp.inf, lax.max, window, strides, pads)
    return reduce(_first_max, _corners(x_BxHxWxC, window, pads, -jnp.inf))


def sum_pool(
    x_BxHxWxC: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding,
    ceil_mode: bool = False,
) -> jax.Array:
    """Sum over each window, per channel.

    >>> sum_pool(jnp.ones((1, 5, 5, 1)), (2, 2), (2, 2), "VALID", ceil_mode=True).ravel().tolist()
    [4.0, 4.0, 2.0, 4.0, 4.0, 2.0, 2.0, 2.0, 1.0]
    """
    pads = window_pads(x_BxHxWxC.shape[1:3], window, strides, padding, ceil_mode)
    if not _side_by_side(window, strides):
        return nn.pool(x_BxHxWxC, 0.0, lax.add, window, strides, pads)
    return reduce(jnp.add, _corners(x_BxHxWxC, window, pads, 0.0))


def avg_pool(
    x_BxHxWxC: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> jax.Array:
    """Mean over each window, per channel.

    Padding counts as zeros, or not at all without `count_include_pad`; the overhang of `ceil_mode` never counts. So it
    is in PyTorch.

    >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2), "VALID").ravel().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    size = x_BxHxWxC.shape[1:3]
    sums = sum_pool(x_BxHxWxC, window, strides, padding, ceil_mode)
    counted = window_pads(size, window, strides, padding, False) if count_include_pad else ((0, 0), (0, 0))
    pads = window_pads(size, window, strides, padding, ceil_mode)
    rows, columns = (_elements(*axis) for axis in zip(size, window, strides, pads, counted, strict=True))
    counts = np.outer(rows, columns)
    if (counts == window[0] * window[1]).all():
        return sums / (window[0] * window[1])
    return sums / jnp.asarray(counts, sums.dtype).reshape(1, *counts.shape, 1)


def window_pads(
    size: tuple[int, ...], window: tuple[int, int], strides: tuple[int, int], padding: Padding, ceil_mode: bool
) -> Pads:
    """Padding as ((above, below), (left, right)), the overhang of `ceil_mode` included.

    >>> window_pads((6, 7), (3, 3), (2, 2), "VALID", True)
    ((0, 1), (0, 0))
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, strides, padding)
    axes = []
    for n, k, stride, (before, after) in zip(size, window, strides, padding, strict=True):
        if ceil_mode:
            outputs = output_size(n, k, stride, (before, after), rounding="ceil")
            after = max(after, (outputs - 1) * stride + k - n - before)
        axes.append((int(before), int(after)))
    return axes[0], axes[1]


def _elements(n: int, k: int, stride: int, pads: tuple[int, int], counted: tuple[int, int]) -> np.ndarray:
    """How many positions each window along an axis holds from `counted[0]` before its beginning to after its end."""
    start = np.arange(output_size(n, k, stride, pads, rounding="floor")) * stride - pads[0]
    return np.minimum(start + k, n + counted[1]) - np.maximum(start, -counted[0])


def _side_by_side(window: tuple[int, int], strides: tuple[int, int]) -> bool:
    """Whether the windows touch without overlapping, and are few enough elements to be worth slicing."""
    return tuple(window) == tuple(strides) and window[0] * window[1] <= 16


def _corners(x: jax.Array, window: tuple[int, int], pads: Pads, padding_value: float) -> list[jax.Array]:
    """The first, second, … element of every window, each as (B, H', W', C); edges that fill no window are cut off."""
    if pads != ((0, 0), (0, 0)):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=padding_value)
    height, width = (x.shape[1] // window[0] * window[0], x.shape[2] // window[1] * window[1])
    return [x[:, i : height : window[0], j : width : window[1]] for i in range(window[0]) for j in range(window[1])]


def _first_max(a: jax.Array, b: jax.Array) -> jax.Array:
    # Not jnp.maximum: its gradient splits a tie, and after a ReLU ties at 0 are the rule.
    return jnp.where((b <= a) | jnp.isnan(a), a, b)
