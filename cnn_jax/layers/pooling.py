"""Pooling layers, with the ways in which PyTorch and Caffe round and count."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.arithmetic import ends
from cnn_jax.errors import UserError
from cnn_jax.layers.sizes import check_fits
from cnn_jax.ops.pool import avg_pool, max_pool, sum_pool


class Pool(nn.Module):
    """One number for each window of (B, H, W, C) maps.

    Attributes:
        window: rows and columns.
        strides: rows and columns between neighbouring windows; default: the window, so that they do not overlap.
        padding: "VALID", "SAME" or ((above, below), (left, right)), less than a window.
        ceil_mode: whether the last windows may overhang the lower and right edge, instead of leaving it out.
    """

    window: tuple[int, int] = (2, 2)
    strides: tuple[int, int] | None = None
    padding: str | Sequence[tuple[int, int]] = "VALID"
    ceil_mode: bool = False

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Pools; raises UserError if the window does not fit."""
        strides = self.strides or self.window
        if not isinstance(self.padding, str):
            for k, pad in zip(self.window, self.padding, strict=True):
                if max(ends(pad)) >= k:
                    raise UserError(
                        f"{self.name or type(self).__name__}: given padding {pad} for a window of {k}; expected less "
                        "than the window, which would see nothing but padding; lower it"
                    )
        check_fits(self, x_BxHxWxC.shape[1:3], self.window, strides, self.padding, self.ceil_mode)
        return self.reduce(x_BxHxWxC, strides)

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Makes one number of each window."""
        raise TypeError("use MaxPool, AvgPool, MinPool or L2Pool")


class MaxPool(Pool):
    """The maximum of each window."""

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Padding is never the maximum."""
        return max_pool(x_BxHxWxC, self.window, strides, self.padding, self.ceil_mode)


class MinPool(Pool):
    """The minimum of each window."""

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Padding is never the minimum."""
        return -max_pool(-x_BxHxWxC, self.window, strides, self.padding, self.ceil_mode)


class AvgPool(Pool):
    """The mean of each window; padding counts as zeros, or not at all without `count_include_pad`."""

    count_include_pad: bool = True

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """The overhang of `ceil_mode` never counts."""
        return avg_pool(x_BxHxWxC, self.window, strides, self.padding, self.ceil_mode, self.count_include_pad)


class L2Pool(Pool):
    """The Euclidean norm of each window, sqrt(sum x²)."""

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """The gradient of a window of zeros, of which there are many behind a ReLU, is 0."""
        squares = sum_pool(jnp.square(x_BxHxWxC), self.window, strides, self.padding, self.ceil_mode)
        positive = squares > 0
        # The inner `where` keeps the infinite slope of the root at 0 out of the gradient.
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


class GlobalPool(nn.Module):
    """One number for each map, (B, H, W, C) → (B, C): a window as large as the map."""

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Pools over rows and columns."""
        raise TypeError("use GlobalAvgPool or GlobalMaxPool")

    def slide(self, x_BxHxWxC: jax.Array, window: tuple[int, int]) -> jax.Array:
        """(B, H, W, C) → (B, H - rows + 1, W - columns + 1, C): the same of each window of this size, at stride 1."""
        raise TypeError("use GlobalAvgPool or GlobalMaxPool")


class GlobalAvgPool(GlobalPool):
    """The mean of each map (Lin et al. 2013, "Network in network", §3.2)."""

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, C)."""
        return jnp.mean(x_BxHxWxC, axis=(1, 2))

    def slide(self, x_BxHxWxC: jax.Array, window: tuple[int, int]) -> jax.Array:
        """The mean of each window."""
        return avg_pool(x_BxHxWxC, window, (1, 1), "VALID")


class GlobalMaxPool(GlobalPool):
    """The maximum of each map."""

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, C)."""
        return jnp.max(x_BxHxWxC, axis=(1, 2))

    def slide(self, x_BxHxWxC: jax.Array, window: tuple[int, int]) -> jax.Array:
        """The maximum of each window."""
        return max_pool(x_BxHxWxC, window, (1, 1), "VALID")


def adaptive_avg_pool(x_BxHxWxC: jax.Array, size: int) -> jax.Array:
    """(B, H, W, C) → (B, size, size, C): the mean of each of `size` windows along each axis.

    Window i reaches from floor(i·H/size) to ceil((i + 1)·H/size), PyTorch's rule: windows overlap where `size` does not
    divide H, repeat pixels where it exceeds H, and are the pixels themselves where it is H.

    Raises:
        UserError: a size that is no whole number of at least 1.

    >>> adaptive_avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, ..., 0].tolist()
    [[2.0, 3.0], [5.0, 6.0]]
    """
    if not isinstance(size, int) or size < 1:
        raise UserError(f"given {size} as side of an averaged map; expected a whole number of at least 1; change it")
    rows, columns = (jnp.asarray(_windows(length, size), x_BxHxWxC.dtype) for length in x_BxHxWxC.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x_BxHxWxC, rows, columns)


def _windows(length: int, size: int) -> np.ndarray:
    """(size, length) array; row i averages over window i."""
    i, pixel = np.arange(size)[:, None], np.arange(length)[None]
    inside = (pixel >= i * length // size) & (pixel < -(-(i + 1) * length // size))
    return inside / inside.sum(axis=1, keepdims=True)


class AdaptiveAvgPool(nn.Module):
    """`adaptive_avg_pool` as a layer: listed with the others, and seen where weights are converted."""

    size: int

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, size, size, C)."""
        return adaptive_avg_pool(x_BxHxWxC, self.size)


POOLS: dict[str, type[Pool]] = {"max": MaxPool, "average": AvgPool, "min": MinPool, "l2": L2Pool}
