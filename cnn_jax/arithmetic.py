"""The arithmetic of convolutional networks as plain functions: sizes, counts, convolution and its gradients by hand."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn_jax.errors import UserError

Ends = int | tuple[int, int]


def output_size(
    size: int,
    filter_size: int,
    stride: int = 1,
    padding: Ends = 0,
    *,
    rounding: Literal["exact", "floor", "ceil"] = "exact",
) -> int:
    """Number of outputs of a filter along one axis, (N + 2P - F)/S + 1.

    Args:
        size: N, inputs along the axis.
        filter_size: F.
        stride: S.
        padding: P, inputs added at each end, or (before, after).
        rounding: how to round the quotient. "exact" raises if it is not whole. "floor" ignores inputs at the end that
            fill no window, as layers do in all frameworks. "ceil" lets the last window overhang the end, as in Caffe's
            pooling, but it must begin before the end.

    Returns:
        The number of outputs; with "floor" and "ceil" it is below 1 if the filter does not fit.

    Raises:
        UserError: a stride below 1; with "exact" also a filter that does not fit.

    >>> output_size(227, 11, stride=4)
    55
    >>> output_size(7, 3, stride=3, rounding="floor"), output_size(7, 3, stride=3, rounding="ceil")
    (2, 3)
    """
    if stride < 1:
        raise UserError(f"stride {stride} is too small: set it to at least 1")
    before, after = ends(padding)
    room = size + before + after - filter_size
    if rounding == "exact" and (room < 0 or room % stride):
        raise UserError(
            f"a filter of {filter_size} with stride {stride} and padding {before} + {after} does not fit {size} "
            f"inputs, as ({size} + {before + after} - {filter_size})/{stride} + 1 = {room / stride + 1:.4g}: choose a "
            "padding or stride that makes it a whole number of at least 1"
        )
    if rounding != "ceil":
        return room // stride + 1
    outputs = -(-room // stride) + 1
    return outputs - 1 if (outputs - 1) * stride >= size + before else outputs


def ends(padding: Ends) -> tuple[int, int]:
    """Padding of one axis as (before, after).

    >>> ends(2), ends((0, 1))
    ((2, 2), (0, 1))
    """
    return (padding, padding) if isinstance(padding, int) else (padding[0], padding[1])


def same_padding(size: int, filter_size: int, stride: int = 1) -> tuple[int, int]:
    """Padding (before, after) for ceil(N/S) outputs ("SAME"); of an odd total the larger half goes to the end.

    With stride 1 and odd F this is (F - 1)/2 at each end, which keeps the size.

    >>> same_padding(28, 5), same_padding(224, 7, stride=2)
    ((2, 2), (2, 3))
    """
    total = max((math.ceil(size / stride) - 1) * stride + filter_size - size, 0)
    return total // 2, total - total // 2


def receptive_field(layers: Iterable[tuple[int, int]]) -> int:
    """Side of the receptive field of a stack of layers in pixels, 1 + sum (F_i - 1)·S_1·…·S_(i-1).

    Args:
        layers: (filter size, stride) of each convolution and pooling layer, from the input on.

    Source: Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks", eq. 2.

    >>> receptive_field([(3, 1), (3, 1), (3, 1)])  # three 3×3 filters see as much as one 7×7 (VGG 2014, §2.3)
    7
    """
    side, step = 1, 1
    for size, stride in layers:
        side += (size - 1) * step
        step *= stride
    return side


def conv_parameters(
    filter_size: tuple[int, int], maps: int, filters: int, *, groups: int = 1, bias: bool = True
) -> int:
    """Parameters of a convolution of `maps` input maps: `filters` filters of (kh, kw, maps/groups), and their biases.

    >>> conv_parameters((5, 5), 3, 10)
    760
    """
    return (math.prod(filter_size) * (maps // groups) + bias) * filters


def locally_connected_parameters(
    output: tuple[int, int], filter_size: tuple[int, int], maps: int, filters: int, *, bias: bool = True
) -> int:
    """Parameters of a convolution whose filters and biases are not shared between output positions.

    >>> locally_connected_parameters((28, 28), (5, 5), 1, 6)
    122304
    """
    return math.prod(output) * conv_parameters(filter_size, maps, filters, bias=bias)


def dense_parameters(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """Parameters of a dense layer, which connects every input to every output.

    >>> dense_parameters(784, 10)
    7850
    """
    return (inputs + bias) * outputs


def conv_flops(
    output: tuple[int, int], filter_size: tuple[int, int], maps: int, filters: int, *, groups: int = 1
) -> int:
    """FLOPs of a convolution for one image, two per multiply-add, without biases; the same for unshared weights.

    >>> conv_flops((28, 28), (5, 5), 1, 6)
    235200
    """
    return 2 * math.prod(output) * conv_parameters(filter_size, maps, filters, groups=groups, bias=False)


def dense_flops(inputs: int, outputs: int) -> int:
    """FLOPs of a dense layer for one example, two per multiply-add, without biases.

    >>> dense_flops(784, 10)
    15680
    """
    return 2 * inputs * outputs


Edges = Literal["valid", "zero", "edge"]


def cross_correlate(signal: Any, kernel: Any, edges: Edges = "valid", stride: int = 1) -> np.ndarray:
    """Slides a kernel over a signal, y[i] = sum_k h[k]·x[i + k]: what convolution layers compute.

    Args:
        signal: numbers along one or two axes.
        kernel: numbers along as many axes.
        edges: "valid" uses whole windows only. "zero" and "edge" keep the size (at stride 1) by padding with zeros or
            with the outermost values, (F - 1)/2 at each end; if F - 1 is odd, the larger half goes to the end.
        stride: between neighbouring outputs; inputs at the end that fill no window are ignored.

    Raises:
        UserError: the kernel and the signal differ in their number of axes, or the kernel does not fit.

    >>> cross_correlate([0, 0, 1, 1], [-1, 1]).tolist()
    [0, 1, 0]
    """
    return _slide(
        np.asarray(signal), np.asarray(kernel), [((k - 1) // 2, k // 2) for k in np.shape(kernel)], edges, stride
    )


def convolve(signal: Any, kernel: Any, edges: Edges = "valid", stride: int = 1) -> np.ndarray:
    """Convolution, y[i] = sum_k h[k]·x[i - k]: cross-correlation with the flipped kernel (rotated by 180° in 2-D).

    Arguments are those of `cross_correlate`, but the larger half of an odd padding goes to the beginning.

    >>> convolve([0, 0, 1, 1], [-1, 1]).tolist()
    [0, -1, 0]
    """
    flipped = np.flip(np.asarray(kernel))
    return _slide(np.asarray(signal), flipped, [(k // 2, (k - 1) // 2) for k in flipped.shape], edges, stride)


def _slide(x: np.ndarray, kernel: np.ndarray, pads: list[tuple[int, int]], edges: Edges, stride: int) -> np.ndarray:
    if x.ndim != kernel.ndim:
        raise UserError(f"a kernel of {kernel.ndim} axes cannot slide over a signal of {x.ndim}: reshape one of them")
    if edges != "valid":
        x = np.pad(x, pads, mode="constant" if edges == "zero" else "edge")
    shape = [output_size(n, k, stride, rounding="floor") for n, k in zip(x.shape, kernel.shape, strict=True)]
    if min(shape) < 1:
        raise UserError(f"a kernel of shape {kernel.shape} does not fit a signal of shape {x.shape}: pad the signal")
    y = np.zeros(shape, np.result_type(x, kernel))
    for k in np.ndindex(kernel.shape):
        y += kernel[k] * x[tuple(slice(i, i + stride * (n - 1) + 1, stride) for i, n in zip(k, shape, strict=True))]
    return y


def match_template(image: Any, template: Any) -> np.ndarray:
    """Mean product of the template and each window of an image: for ±1 values, 1 if they are equal, -1 if opposite.

    >>> match_template([[1, -1, 1], [-1, 1, -1]], [[1, -1], [-1, 1]]).tolist()
    [[1.0, -1.0]]
    """
    return cross_correlate(image, template) / np.size(template)


# The backward pass by hand, for maps of many channels and a batch of images. Only the forward `conv` is called below.


def conv(x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolution layer without bias: cross-correlation summed over the input maps; returns (B, H', W', F)."""
    pads = ((padding, padding),) * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_BxHxWxC, kernel_HxWxCxF, (stride, stride), pads, dimension_numbers=numbers)


def conv_input_gradient(
    dy_BxHxWxF: jax.Array, kernel_HxWxCxF: jax.Array, size: tuple[int, int], stride: int = 1, padding: int = 0
) -> jax.Array:
    """dL/dx of `conv` from dL/dy: a convolution with the kernel rotated by 180° and its inputs and outputs swapped.

    dL/dy is dilated by `stride` - 1 zeros between its elements, and padded so that all overlaps with the kernel count.

    Args:
        dy_BxHxWxF: gradient of the output.
        kernel_HxWxCxF: the layer's kernel.
        size: rows and columns of the layer's input.
        stride: the layer's stride.
        padding: the layer's padding.
    """
    rotated = kernel_HxWxCxF[::-1, ::-1].swapaxes(2, 3)
    spread = [(0, 0, 0)]
    for n, k, outputs in zip(size, kernel_HxWxCxF.shape[:2], dy_BxHxWxF.shape[1:3], strict=True):
        before = k - 1 - padding
        spread.append((before, n + k - 1 - before - (stride * (outputs - 1) + 1), stride - 1))
    return conv(lax.pad(dy_BxHxWxF, jnp.zeros((), dy_BxHxWxF.dtype), [*spread, (0, 0, 0)]), rotated)


def conv_kernel_gradient(
    x_BxHxWxC: jax.Array, dy_BxHxWxF: jax.Array, filter_size: tuple[int, int], stride: int = 1, padding: int = 0
) -> jax.Array:
    """dL/dW of `conv` from dL/dy: the input convolved with dL/dy, dW[i, j] = sum x[i + S·a, j + S·b]·dy[a, b].

    The sum runs over the batch, as it runs over the maps in the forward pass.

    Args:
        x_BxHxWxC: input of the layer.
        dy_BxHxWxF: gradient of its output.
        filter_size: rows and columns of its filters.
        stride: the layer's stride.
        padding: the layer's padding.
    """
    gaps = (0, 0, stride - 1)
    spread = lax.pad(dy_BxHxWxF, jnp.zeros((), dy_BxHxWxF.dtype), [(0, 0, 0), gaps, gaps, (0, 0, 0)])
    dw_CxHxWxF = conv(x_BxHxWxC.transpose(3, 1, 2, 0), spread.transpose(1, 2, 0, 3), padding=padding)
    # Longer than the filter if the stride ignored part of the input.
    return dw_CxHxWxF[:, : filter_size[0], : filter_size[1]].transpose(1, 2, 0, 3)


def max_pool_gradient(x_BxHxWxC: jax.Array, dy_BxHxWxC: jax.Array, window: int = 2, stride: int = 2) -> jax.Array:
    """dL/dx of max pooling from dL/dy: each gradient goes to its window's first maximum, in row-major order."""
    slices = _window_slices(dy_BxHxWxC.shape, window, stride)
    y = jnp.stack([x_BxHxWxC[s] for s in slices]).max(0)
    dx, taken = jnp.zeros_like(x_BxHxWxC), jnp.zeros(y.shape, bool)
    for s in slices:
        first = (x_BxHxWxC[s] == y) & ~taken
        dx, taken = dx.at[s].add(jnp.where(first, dy_BxHxWxC, 0)), taken | first
    return dx


def avg_pool_gradient(dy_BxHxWxC: jax.Array, size: tuple[int, int], window: int = 2, stride: int = 2) -> jax.Array:
    """dL/dx of average pooling, for x of this `size`, from dL/dy: each gradient is spread evenly over its window."""
    dx = jnp.zeros((len(dy_BxHxWxC), *size, dy_BxHxWxC.shape[-1]), dy_BxHxWxC.dtype)
    for s in _window_slices(dy_BxHxWxC.shape, window, stride):
        dx = dx.at[s].add(dy_BxHxWxC / window**2)
    return dx


def _window_slices(y_shape: tuple[int, ...], window: int, stride: int) -> list[tuple[slice, ...]]:
    """Slices that select the first, second, … element of every window."""
    rows, columns = (stride * (n - 1) + 1 for n in y_shape[1:3])
    return [
        (slice(None), slice(i, i + rows, stride), slice(j, j + columns, stride))
        for i in range(window)
        for j in range(window)
    ]
