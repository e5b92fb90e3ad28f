"""Pooling. Small windows are computed from slices, whose gradient is cheap.

XLA's gradient of a windowed maximum (select-and-scatter) is slow on CPU: 34 ms against 1.4 ms for 2×2 windows on
128×28×28×32 maps. Non-overlapping windows use slices on all platforms; overlapping ones only for maxima on CPU.

In all functions `padding` is "VALID", "SAME" or ((above, below), (left, right)). With `ceil_mode` the last windows may
extend beyond the lower and right padding if they begin before it, as in Caffe and PyTorch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cnn_jax.arithmetic import output_size
from cnn_jax.ops.plain import are_plain

Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
    x_BxHxWxC: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding,
    ceil_mode: bool = False,
) -> jax.Array:
    """Maximum over each window, per channel; NaN if the window contains one. Padding is never the maximum.

    Of several equal maxima the first one in row-major order gets the whole gradient, as in XLA's own pooling.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2), "VALID").ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    pads = window_pads(x_BxHxWxC.shape[1:3], window, strides, padding, ceil_mode)
    windows = _sliced(x_BxHxWxC, window, strides, pads, overlapping=jax.default_backend() == "cpu")
    if windows is not None:
        return _maximum(x_BxHxWxC, windows)
    return nn.pool(x_BxHxWxC, -jnp.inf, lax.max, window, strides, pads)


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
    windows = _sliced(x_BxHxWxC, window, strides, pads, overlapping=False)
    if windows is not None:
        return reduce(jnp.add, windows.corners(x_BxHxWxC, 0.0))
    return nn.pool(x_BxHxWxC, 0.0, lax.add, window, strides, pads)


def avg_pool(
    x_BxHxWxC: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> jax.Array:
    """Mean over each window, per channel.

    As in PyTorch, padding counts as zeros, or not at all without `count_include_pad`, and the overhang of `ceil_mode`
    never counts.

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
    """Returns the padding as ((above, below), (left, right)), including the overhang of `ceil_mode`.

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
    """Number of positions of each window along an axis that lie in the input or in the padding `counted`."""
    start = np.arange(output_size(n, k, stride, pads, rounding="floor")) * stride - pads[0]
    return np.minimum(start + k, n + counted[1]) - np.maximum(start, -counted[0])


@dataclass(frozen=True)
class _Windows:
    """Small pooling windows over maps of one size; with `pads`, at least one window must fit.

    The maps are cut into blocks of the size of the strides. The pixels at one position in all blocks form a smaller
    map, and a given element of all windows is a slice of that map. So scattering to an element is adding to a slice,
    and the maps are reassembled once.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    pads: Pads

    @property
    def outputs(self) -> tuple[int, int]:
        rows, columns = (
            output_size(n, k, stride, ends, rounding="floor")
            for n, k, stride, ends in zip(self.size, self.window, self.strides, self.pads, strict=True)
        )
        return rows, columns

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of blocks that the windows cover."""
        rows, columns = (n + (k - 1) // stride for n, k, stride in zip(self.outputs, self.window, self.strides))
        return rows, columns

    def elements(self) -> Iterator[tuple[int, tuple[int, int], tuple[int, int]]]:
        """Yields each window element's number, its position in a block, and the block, from the window's first."""
        for number in range(self.window[0] * self.window[1]):
            i, j = divmod(number, self.window[1])
            yield number, (i % self.strides[0], j % self.strides[1]), (i // self.strides[0], j // self.strides[1])

    def corners(self, x: jax.Array, padding_value: float) -> list[jax.Array]:
        """Returns the first, second, … element of every window."""
        blocks, strides, (rows, columns) = self.blocks, self.strides, self.outputs
        ends = [(before, blocks[a] * strides[a] - self.size[a] - before, 0) for a, (before, _) in enumerate(self.pads)]
        x = lax.pad(x, jnp.asarray(padding_value, x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
        x = x.reshape(len(x), blocks[0], strides[0], blocks[1], strides[1], x.shape[3])
        return [x[:, row : row + rows, y, column : column + columns, z] for _, (y, z), (row, column) in self.elements()]

    def maximum(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the maximum of each window and the number, uint8, of the first element that has it."""
        least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        first, *others = self.corners(x, least)
        greatest, where = first, jnp.zeros(first.shape, jnp.uint8)
        for number, corner in enumerate(others, start=1):
            keep = (corner <= greatest) | jnp.isnan(greatest)
            greatest = jnp.where(keep, greatest, corner)
            where = jnp.where(keep, where, jnp.uint8(number))
        return greatest, where

    def pick(self, x: jax.Array, where: jax.Array) -> jax.Array:
        """Returns element number `where` of each window."""
        zero = jnp.zeros((), x.dtype)
        return reduce(jnp.add, (jnp.where(where == t, corner, zero) for t, corner in enumerate(self.corners(x, 0.0))))

    def place(self, g: jax.Array, where: jax.Array) -> jax.Array:
        """Adds each window's `g` to its element number `where`: the transpose of `pick`."""
        blocks, strides, (rows, columns), zero = self.blocks, self.strides, self.outputs, jnp.zeros((), g.dtype)
        sums: dict[tuple[int, int], jax.Array] = {}
        for number, place, (row, column) in self.elements():
            ends = [(0, 0, 0), (row, blocks[0] - rows - row, 0), (column, blocks[1] - columns - column, 0), (0, 0, 0)]
            part = lax.pad(jnp.where(where == number, g, zero), zero, ends)
            sums[place] = sums[place] + part if place in sums else part
        none = jnp.zeros((len(g), *blocks, g.shape[3]), g.dtype)  # for a position in no window
        lines = [jnp.stack([sums.get((y, z), none) for z in range(strides[1])], axis=3) for y in range(strides[0])]
        x = jnp.stack(lines, axis=2).reshape(len(g), blocks[0] * strides[0], blocks[1] * strides[1], g.shape[3])
        ends = [(-before, self.size[a] + before - x.shape[1 + a], 0) for a, (before, _) in enumerate(self.pads)]
        return lax.pad(x, zero, [(0, 0, 0), *ends, (0, 0, 0)])


def _sliced(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads, *, overlapping: bool
) -> _Windows | None:
    """Returns the windows if they are small and fit and, without `overlapping`, do not overlap; else None."""
    size = x.shape[1], x.shape[2]
    fits = all(n + sum(ends) >= k for n, ends, k in zip(size, pads, window, strict=True))
    small = max(window[0] * window[1], strides[0] * strides[1]) <= 16
    if are_plain() or not (fits and small and (overlapping or tuple(window) == tuple(strides))):
        return None
    return _Windows(size, (window[0], window[1]), (strides[0], strides[1]), pads)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _maximum(x: jax.Array, windows: _Windows) -> jax.Array:
    return windows.maximum(x)[0]


@_maximum.defjvp
def _maximum_jvp(windows: _Windows, primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    # The barrier keeps XLA from fusing the numbers with their readers and recomputing them for each window element.
    y, where = lax.optimization_barrier(windows.maximum(x))
    return y, _pick.bind(dx, where, windows=windows)


def _linear(name: str, method: Callable[..., jax.Array], transpose: Callable[[], Primitive]) -> Primitive:
    """Makes a primitive of maps and `where` that is linear in the maps; `transpose` returns its transpose."""
    primitive = Primitive(name)

    def call(x: jax.Array, where: jax.Array, *, windows: _Windows) -> jax.Array:
        return method(windows, x, where)

    def abstract(x: Any, where: Any, *, windows: _Windows) -> Any:
        return x.update(shape=jax.eval_shape(partial(call, windows=windows), x, where).shape)

    def batch(arrays: Any, axes: Any, *, windows: _Windows) -> tuple[jax.Array, int]:
        return jax.vmap(partial(call, windows=windows), axes)(*arrays), 0

    def transposed(g: Any, x: Any, where: jax.Array, *, windows: _Windows) -> list[jax.Array | None]:
        return [transpose().bind(g, where, windows=windows), None]

    primitive.def_impl(jax.jit(call, static_argnames="windows"))
    primitive.def_abstract_eval(abstract)
    ad.defjvp(primitive, lambda dx, x, where, *, windows: primitive.bind(dx, where, windows=windows), None)
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(call, multiple_results=False))
    return primitive


_pick = _linear("cnn_jax_pick", _Windows.pick, lambda: _place)
_place = _linear("cnn_jax_place", _Windows.place, lambda: _pick)
