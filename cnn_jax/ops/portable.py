"""Convolution in pure JAX, faster than XLA's on a CPU, for machines without a C++ compiler.

XLA's CPU backend is fast where a convolution is one large matrix product, and slow elsewhere. Three other forms of the
same sum are faster there, each for certain shapes:

- Few input maps: each matrix row computes a tile of several neighbouring outputs instead of one (`conv_tiled`).
- The kernel's gradient is Pᵀ·dL/dy, where the rows of P are the input's patches: a `lax.scan` over chunks of a few
  images (`conv_chunked`). XLA computes it as a convolution whose "kernel" is the whole output gradient. That is faster
  for few maps that fit the cache, but only behind an optimization barrier: if XLA fuses it with the producers of its
  operands, it writes its input transposed, one number at a time.
- The input's gradient of a strided convolution is that of the same convolution without a stride, on the input folded by
  space-to-depth. XLA computes it as a convolution over a gradient interleaved with zeros.

Only values and tangents are written by hand; JAX transposes them into gradients. So every transformation works:
`grad`, `grad` of `grad`, `jvp`, `vmap`, `jit`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from cnn_jax.ops.pool import Pads

_NHWC = ("NHWC", "HWIO", "NHWC")
_MAX_CHUNK = 8  # images; 4 to 8 was best for 3×3 and 5×5 kernels at 8×8 to 32×32
_MAX_PATCH_BYTES = 6 * 2**20  # patches of a chunk; beyond this they leave the cache, and XLA's own gradient is faster
_MIN_FEATURES = 16  # with fewer output channels the matrix product is too thin to win
_MAX_WHOLE_MAPS = 64  # input and output channels up to which XLA's own gradient is as fast as chunks
_MAX_WHOLE_BYTES = 20 * 2**20  # input and output together; beyond the cache XLA's gradient is far slower
_WHOLE = jax.__version_info__ >= (0, 11)  # in older versions chunks are always faster
_TILE = 4  # minimum output columns per tile; more widen the matrix product, but pad it with zeros
_MAX_FOLDED_MAPS = 16  # input channels; folding pads the kernel's matrix with zeros, which pays only for few
_MAX_TILED_MAPS = 8  # input channels; with more, the matrix product is wide enough without tiles
_MAX_TILES_BYTES = 32 * 2**20  # all tiles together; more do not fit the cache


def convolve(x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array | None:
    """Convolves in the fastest form for these shapes, or returns None if that is XLA's. Args as for `conv_chunked`."""
    if _fits_tiles(x_BxHxWxC.shape, kernel_HxWxCxF.shape, strides, pads):
        return conv_tiled(x_BxHxWxC, kernel_HxWxCxF, strides, pads)
    chunk = _chunk_size(x_BxHxWxC.shape, kernel_HxWxCxF.shape, strides, pads)
    return conv_chunked(x_BxHxWxC, kernel_HxWxCxF, strides, pads, chunk) if chunk > 0 else None


def conv_tiled(x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    """Cross-correlates images with a kernel; each matrix row computes a tile of neighbouring outputs of a row.

    A patch of one input map has as many numbers as the kernel, 25 for 5×5, and yields F outputs: the matrices are too
    thin to be fast, and gathering costs more than multiplying. A tile of t outputs needs kh·((t - 1)·stride + kw)·C
    numbers, in a few long pieces, and yields t·F. Its matrix holds a shifted copy of the kernel per output, and zeros.

    Args and result as for `conv_chunked`.
    """
    (height, width, channels, features), batch = kernel_HxWxCxF.shape, len(x_BxHxWxC)
    rows, columns = _output_size(x_BxHxWxC.shape, (height, width), strides, pads)
    tiles, outputs, inputs = _tiling(columns, width, strides[1])
    step = outputs * strides[1]  # input columns from one tile to the next; a tile reads `inputs` columns
    used_rows = (rows - 1) * strides[0] + height
    x = lax.pad(
        x_BxHxWxC,
        jnp.zeros((), x_BxHxWxC.dtype),
        (
            (0, 0, 0),
            (pads[0][0], used_rows - x_BxHxWxC.shape[1] - pads[0][0], 0),
            (pads[1][0], (tiles + 1) * step - x_BxHxWxC.shape[2] - pads[1][0], 0),
            (0, 0, 0),
        ),
    )
    x = x.reshape(batch, used_rows, tiles + 1, step * channels)
    own, shared = min(step, inputs) * channels, max(0, inputs - step) * channels
    pieces = []
    for i in range(height):
        row = x[:, i : i + (rows - 1) * strides[0] + 1 : strides[0]]
        pieces += [row[:, :, :-1, :own], row[:, :, 1:, :shared]]
    tiles_NxD = jnp.concatenate(pieces, axis=-1).reshape(batch * rows * tiles, -1)
    shifts = np.zeros((inputs, width, outputs), x.dtype)  # 1 where input column = output's first column + kernel's
    for output in range(outputs):
        shifts[output * strides[1] + np.arange(width), np.arange(width), output] = 1
    matrix_DxE = jnp.einsum("ujt,ijcf->iuctf", shifts, kernel_HxWxCxF).reshape(tiles_NxD.shape[1], -1)
    y = (tiles_NxD @ matrix_DxE).reshape(batch, rows, tiles * outputs, features)
    return y[:, :, :columns]


def _tiling(columns: int, width: int, stride: int) -> tuple[int, int, int]:
    """Returns tiles per row, output columns per tile, and the input columns that a tile reads: at most two tiles'."""
    least = max(_TILE, -(-(width - stride) // stride))
    tiles = max(1, columns // least)
    outputs = max(least, -(-columns // tiles))
    return tiles, outputs, (outputs - 1) * stride + width


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def conv_chunked(
    x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array, strides: tuple[int, int], pads: Pads, chunk: int = _MAX_CHUNK
) -> jax.Array:
    """Cross-correlates images with a kernel; the kernel's gradient is accumulated over `chunk` images at a time.

    Args:
        x_BxHxWxC: images or maps, float.
        kernel_HxWxCxF: filters, of the same type.
        strides: rows and columns between neighbouring outputs.
        pads: zeros added (above, below) and (left, right).
        chunk: images per matrix product; B need not be a multiple of it. From B on the gradient is XLA's own, behind
            optimization barriers.

    Returns:
        Maps of shape (B, (H + pads - kernel) // stride + 1, …, F).
    """
    return lax.conv_general_dilated(x_BxHxWxC, kernel_HxWxCxF, strides, pads, dimension_numbers=_NHWC)


@partial(conv_chunked.defjvp, symbolic_zeros=True)
def _conv_chunked_jvp(
    strides: tuple[int, int], pads: Pads, chunk: int, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = conv_chunked(x, kernel, strides, pads, chunk)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        # `conv_chunked` in both, so that a second derivative is as fast.
        folded = strides != (1, 1) and kernel.shape[2] <= _MAX_FOLDED_MAPS
        convolve = _conv_folded if folded else conv_chunked
        dy = dy + convolve(dx, kernel, strides, pads, chunk)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + _patches_times_kernel(x, dkernel, strides, pads, chunk)
    return y, dy


def _patches_times_kernel(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, chunk: int
) -> jax.Array:
    """The same convolution as one matrix product per chunk, whose transpose in `kernel` is the fast gradient."""
    if chunk >= len(x):
        y = lax.conv_general_dilated(lax.optimization_barrier(x), kernel, strides, pads, dimension_numbers=_NHWC)
        return lax.optimization_barrier(y)  # in the transpose, this is the barrier for dL/dy
    size, features = kernel.shape[:2], kernel.shape[3]
    output = _output_size(x.shape, size, strides, pads)
    matrix_DxF = kernel.reshape(-1, features)
    # The transpose multiplies patches and dL/dy, one of them transposed; which one follows from the choice here.
    transpose_patches = features < len(matrix_DxF)
    matrix = matrix_DxF.T if transpose_patches else matrix_DxF
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))  # once: inside the loop it would take as long as the products

    # Checkpointed, so that the transposed scan gathers each chunk's patches again instead of reading all of them from
    # memory: for a 3×3 kernel they are nine times the size of the input.
    @partial(jax.checkpoint, prevent_cse=False)
    def product(x_chunk: jax.Array, matrix: jax.Array) -> jax.Array:
        patches_NxD = _patches(x_chunk, size, strides, output)
        rows_NxF = (matrix @ patches_NxD.T).T if transpose_patches else patches_NxD @ matrix
        return rows_NxF.reshape(-1, *output, features)

    whole = len(x) - len(x) % chunk
    chunks = x[:whole].reshape(-1, chunk, *x.shape[1:])
    _, y = lax.scan(lambda carry, x_chunk: (carry, product(x_chunk, matrix)), None, chunks)
    parts = [y.reshape(whole, *output, features)]
    if whole < len(x):
        parts.append(product(x[whole:], matrix))
    return jnp.concatenate(parts)


def _conv_folded(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, chunk: int) -> jax.Array:
    """The same convolution without a stride: each stride×stride block of pixels becomes the channels of one pixel."""
    (height, width, channels, features), (rows, columns) = kernel.shape, strides
    output = _output_size(x.shape, (height, width), strides, pads)
    # Output i sums x[i·stride + k - pad]·kernel[k] over k. With k - pad = q·stride + r, 0 <= r < stride, q is the block
    # and r the position in it.
    first = [-before // stride for (before, _), stride in zip(pads, strides, strict=True)]
    last = [(k - 1 - pads[a][0]) // strides[a] for a, k in enumerate((height, width))]
    blocks = [-(-n // stride) for n, stride in zip(x.shape[1:3], strides, strict=True)]
    x = jnp.pad(x, ((0, 0), *((0, blocks[a] * strides[a] - x.shape[1 + a]) for a in (0, 1)), (0, 0)))
    x = x.reshape(len(x), blocks[0], rows, blocks[1], columns, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(len(x), *blocks, rows * columns * channels)
    sizes = [q1 - q0 + 1 for q0, q1 in zip(first, last, strict=True)]
    before = [-q0 * strides[a] - pads[a][0] for a, q0 in enumerate(first)]
    zeros = [(before[a], sizes[a] * strides[a] - before[a] - k) for a, k in enumerate((height, width))]
    kernel = jnp.pad(kernel, (*zeros, (0, 0), (0, 0)))
    kernel = kernel.reshape(sizes[0], rows, sizes[1], columns, channels, features).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(*sizes, -1, features)
    (top, bottom), (left, right) = ((-first[a], output[a] + last[a] - blocks[a]) for a in (0, 1))
    return conv_chunked(x, kernel, (1, 1), ((top, bottom), (left, right)), chunk)


def _patches(x: jax.Array, size: tuple[int, ...], strides: tuple[int, int], output: tuple[int, int]) -> jax.Array:
    """Patches of a padded input, (B·H'·W', kh·kw·C): one row per output position, in the order of an HWIO kernel."""
    rows, columns = ((n - 1) * stride + 1 for n, stride in zip(output, strides, strict=True))
    pieces = [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]] for i in range(size[0]) for j in range(size[1])
    ]
    return jnp.concatenate(pieces, axis=-1).reshape(len(x) * output[0] * output[1], -1)


def _output_size(
    x_shape: tuple[int, ...], size: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> tuple[int, int]:
    height, width = ((x_shape[1 + a] + sum(pads[a]) - size[a]) // strides[a] + 1 for a in (0, 1))
    return height, width


def _chunk_size(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], strides: tuple[int, int], pads: Pads) -> int:
    """Returns images per chunk: all of them for XLA's own gradient behind barriers, 0 for XLA's plain convolution."""
    height, width = _output_size(x_shape, kernel_shape[:2], strides, pads)
    if min(height, width) < 1:
        return 0
    all_bytes = 4 * x_shape[0] * (x_shape[1] * x_shape[2] * kernel_shape[2] + height * width * kernel_shape[3])
    few = max(kernel_shape[2:]) <= _MAX_WHOLE_MAPS and max(kernel_shape[:2]) > 1
    if _WHOLE and few and all_bytes <= _MAX_WHOLE_BYTES:
        return x_shape[0]
    if kernel_shape[3] < _MIN_FEATURES:
        return 0
    image_bytes = 4 * height * width * kernel_shape[0] * kernel_shape[1] * kernel_shape[2]
    chunk = min(_MAX_CHUNK, _MAX_PATCH_BYTES // image_bytes)
    return chunk if x_shape[0] >= 2 * chunk else 0


def _fits_tiles(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], strides: tuple[int, int], pads: Pads) -> bool:
    """Whether `conv_tiled` is faster: few maps, and the tiles of the whole batch fit the cache."""
    rows, columns = _output_size(x_shape, kernel_shape[:2], strides, pads)
    if rows < 1 or columns < _TILE or kernel_shape[2] > _MAX_TILED_MAPS:
        return False
    tiles, _, inputs = _tiling(columns, kernel_shape[1], strides[1])
    return 4 * x_shape[0] * rows * tiles * kernel_shape[0] * inputs * kernel_shape[2] <= _MAX_TILES_BYTES
