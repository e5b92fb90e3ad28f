"""Pooling over windows. Small windows become slices, whose gradient is cheap.

XLA's gradient of a windowed maximum (select-and-scatter) is slow on CPU: 34 ms against 1.4 ms for 2×2 windows on
128×28×28×32 maps. Windows that lie side by side are slices everywhere; those that overlap, maxima on CPU only.

In all functions `padding` is "VALID", "SAME" or ((above, below), (left, right)). With `ceil_mode` the last windows may
overhang the lower and right edge, beyond the padding, if they begin before it (Caffe's and PyTorch's pooling).
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
    """Maximum over each window, per channel; NaN if the window holds one. Padding is never the maximum.

    Where several elements of a window are the maximum, the first one (rows before columns) gets the whole gradient, as
    in XLA's own pooling.

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


@dataclass(frozen=True)
class _Windows:
    """Small windows over maps of one size; `pads` must leave at least one.

    The maps are cut into squares as large as the strides. Then an element of all windows is a slice: of the maps that
    one place in the squares makes up. To add something to it is to add a slice, and the maps are put together once.
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
    def squares(self) -> tuple[int, int]:
        """How many squares of strides the windows cover."""
        rows, columns = (n + (k - 1) // stride for n, k, stride in zip(self.outputs, self.window, self.strides))
        return rows, columns

    def elements(self) -> Iterator[tuple[int, tuple[int, int], tuple[int, int]]]:
        """Of each element of a window: its number, its place in a square, and the square, from the window's first."""
        for number in range(self.window[0] * self.window[1]):
            i, j = divmod(number, self.window[1])
            yield number, (i % self.strides[0], j % self.strides[1]), (i // self.strides[0], j // self.strides[1])

    def corners(self, x: jax.Array, padding_value: float) -> list[jax.Array]:
        """The first, second, … element of every window: slices of the maps of one place in all squares."""
        squares, strides, (rows, columns) = self.squares, self.strides, self.outputs
        ends = [(before, squares[a] * strides[a] - self.size[a] - before, 0) for a, (before, _) in enumerate(self.pads)]
        x = lax.pad(x, jnp.asarray(padding_value, x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
        x = x.reshape(len(x), squares[0], strides[0], squares[1], strides[1], x.shape[3])
        return [x[:, row : row + rows, y, column : column + columns, z] for _, (y, z), (row, column) in self.elements()]

    def maximum(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first of the greatest elements of each window, and its number, uint8."""
        least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        first, *others = self.corners(x, least)
        greatest, where = first, jnp.zeros(first.shape, jnp.uint8)
        for number, corner in enumerate(others, start=1):
            keep = (corner <= greatest) | jnp.isnan(greatest)
            greatest = jnp.where(keep, greatest, corner)
            where = jnp.where(keep, where, jnp.uint8(number))
        return greatest, where

    def pick(self, x: jax.Array, where: jax.Array) -> jax.Array:
        """The elements with the given numbers."""
        zero = jnp.zeros((), x.dtype)
        return reduce(jnp.add, (jnp.where(where == t, corner, zero) for t, corner in enumerate(self.corners(x, 0.0))))

    def place(self, g: jax.Array, where: jax.Array) -> jax.Array:
        """Adds what belongs to each window to its element of that number: the transpose of `pick`."""
        squares, strides, (rows, columns), zero = self.squares, self.strides, self.outputs, jnp.zeros((), g.dtype)
        sums: dict[tuple[int, int], jax.Array] = {}
        for number, place, (row, column) in self.elements():
            ends = [(0, 0, 0), (row, squares[0] - rows - row, 0), (column, squares[1] - columns - column, 0), (0, 0, 0)]
            part = lax.pad(jnp.where(where == number, g, zero), zero, ends)
            sums[place] = sums[place] + part if place in sums else part
        none = jnp.zeros((len(g), *squares, g.shape[3]), g.dtype)  # of a place in no window
        lines = [jnp.stack([sums.get((y, z), none) for z in range(strides[1])], axis=3) for y in range(strides[0])]
        x = jnp.stack(lines, axis=2).reshape(len(g), squares[0] * strides[0], squares[1] * strides[1], g.shape[3])
        ends = [(-before, self.size[a] + before - x.shape[1 + a], 0) for a, (before, _) in enumerate(self.pads)]
        return lax.pad(x, zero, [(0, 0, 0), *ends, (0, 0, 0)])


def _sliced(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads, *, overlapping: bool
) -> _Windows | None:
    """The windows, if they are small and fit; without `overlapping`, if they lie side by side, too."""
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
    # Kept apart: fused with what reads it, XLA would compute the numbers anew for each element of a window.
    y, where = lax.optimization_barrier(windows.maximum(x))
    return y, _pick.bind(dx, where, windows=windows)


def _linear(name: str, method: Callable[..., jax.Array], transpose: Callable[[], Primitive]) -> Primitive:
    """A primitive of maps and of `where`, linear in the maps, whose transpose is another one."""
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
