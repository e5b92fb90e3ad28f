"""Pooling layers that can round and count padding as PyTorch and Caffe do."""

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
    """Base class: reduces each window of (B, H, W, C) maps to one number.

    Attributes:
        window: rows and columns.
        strides: rows and columns between neighbouring windows; default: `window`, so that they do not overlap.
        padding: "VALID", "SAME" or ((top, bottom), (left, right)), less than the window.
        ceil_mode: round the output size up, so that the last windows may extend past the bottom and right edges.
    """

    window: tuple[int, int] = (2, 2)
    strides: tuple[int, int] | None = None
    padding: str | Sequence[tuple[int, int]] = "VALID"
    ceil_mode: bool = False

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H', W', C); raises UserError if the window does not fit."""
        strides = self.strides or self.window
        if not isinstance(self.padding, str):
            for k, pad in zip(self.window, self.padding, strict=True):
                if max(ends(pad)) >= k:
                    raise UserError(
                        f"{self.name or type(self).__name__}: padding {pad} is not less than the window of {k}, so "
                        "some windows would hold nothing but padding: lower it"
                    )
        check_fits(self, x_BxHxWxC.shape[1:3], self.window, strides, self.padding, self.ceil_mode)
        return self.reduce(x_BxHxWxC, strides)

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Reduces each window to one number."""
        raise TypeError("use MaxPool, AvgPool, MinPool or L2Pool")


class MaxPool(Pool):
    """Maximum of each window."""

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Takes the maximum; padding never counts."""
        return max_pool(x_BxHxWxC, self.window, strides, self.padding, self.ceil_mode)


class MinPool(Pool):
    """Minimum of each window."""

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Takes the minimum; padding never counts."""
        return -max_pool(-x_BxHxWxC, self.window, strides, self.padding, self.ceil_mode)


class AvgPool(Pool):
    """Mean of each window; padding counts as zeros, unless `count_include_pad` is false."""

    count_include_pad: bool = True

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Takes the mean; what `ceil_mode` adds past the edge never counts."""
        return avg_pool(x_BxHxWxC, self.window, strides, self.padding, self.ceil_mode, self.count_include_pad)


class L2Pool(Pool):
    """Euclidean norm of each window, sqrt(sum x²)."""

    def reduce(self, x_BxHxWxC: jax.Array, strides: tuple[int, int]) -> jax.Array:
        """Takes the norm; the gradient of an all-zero window, common after a ReLU, is 0."""
        squares = sum_pool(jnp.square(x_BxHxWxC), self.window, strides, self.padding, self.ceil_mode)
        positive = squares > 0
        # The inner `where` keeps sqrt's infinite slope at 0 out of the gradient.
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


class GlobalPool(nn.Module):
    """Base class: pools each whole map to one number, (B, H, W, C) → (B, C)."""

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, C)."""
        raise TypeError("use GlobalAvgPool or GlobalMaxPool")

    def slide(self, x_BxHxWxC: jax.Array, window: tuple[int, int]) -> jax.Array:
        """Applies the pooling to each `window` at stride 1: (B, H, W, C) → (B, H - rows + 1, W - columns + 1, C)."""
        raise TypeError("use GlobalAvgPool or GlobalMaxPool")


class GlobalAvgPool(GlobalPool):
    """Mean of each map (Lin et al. 2013, "Network in network", §3.2)."""

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, C)."""
        return jnp.mean(x_BxHxWxC, axis=(1, 2))

    def slide(self, x_BxHxWxC: jax.Array, window: tuple[int, int]) -> jax.Array:
        """Takes the mean of each window."""
        return avg_pool(x_BxHxWxC, window, (1, 1), "VALID")


class GlobalMaxPool(GlobalPool):
    """Maximum of each map."""

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, C)."""
        return jnp.max(x_BxHxWxC, axis=(1, 2))

    def slide(self, x_BxHxWxC: jax.Array, window: tuple[int, int]) -> jax.Array:
        """Takes the maximum of each window."""
        return max_pool(x_BxHxWxC, window, (1, 1), "VALID")


def adaptive_avg_pool(x_BxHxWxC: jax.Array, size: int) -> jax.Array:
    """Averages `size` windows along each axis: (B, H, W, C) → (B, size, size, C).

    Window i runs from floor(i·H/size) to ceil((i + 1)·H/size), as in PyTorch. Windows overlap if `size` does not divide
    H, repeat pixels if it exceeds H, and are single pixels if it equals H.

    Raises:
        UserError: `size` is not a whole number of at least 1.

    >>> adaptive_avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, ..., 0].tolist()
    [[2.0, 3.0], [5.0, 6.0]]
    """
    if not isinstance(size, int) or size < 1:
        raise UserError(f"cannot average maps to side {size}: use a whole number of at least 1")
    rows, columns = (jnp.asarray(_windows(length, size), x_BxHxWxC.dtype) for length in x_BxHxWxC.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x_BxHxWxC, rows, columns)


def _windows(length: int, size: int) -> np.ndarray:
    """Returns a (size, length) array whose row i averages over window i."""
    i, pixel = np.arange(size)[:, None], np.arange(length)[None]
    inside = (pixel >= i * length // size) & (pixel < -(-(i + 1) * length // size))
    return inside / inside.sum(axis=1, keepdims=True)


class AdaptiveAvgPool(nn.Module):
    """`adaptive_avg_pool` as a module, so that layer tables and weight conversion see it.

    Attributes:
        size: side of the output.
    """

    size: int

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, size, size, C)."""
        return adaptive_avg_pool(x_BxHxWxC, self.size)


POOLS: dict[str, type[Pool]] = {"max": MaxPool, "average": AvgPool, "min": MinPool, "l2": L2Pool}
