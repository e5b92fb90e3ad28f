"""2-D convolution with a faster kernel gradient on CPU.

A convolution is linear in its kernel: with the patches P of the input as rows, y = P·W, so dL/dW = Pᵀ·dL/dy. XLA's CPU
backend computes that gradient as a convolution whose "kernel" is the whole output gradient, more slowly than a matrix
product. Here it is a `lax.scan` over chunks of a few images: gather the patches, one matrix product, accumulate.
The chunk is small because its patches must stay in the cache. The value and the input gradient are XLA's.

Only the tangent is written by hand, in forward mode; JAX transposes it into the gradient. So every transformation
works: `grad`, `grad` of `grad`, `jvp`, `vmap`, `jit`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

_NHWC = ("NHWC", "HWIO", "NHWC")
_MAX_CHUNK = 8  # images; 4 to 8 was best for 3×3 and 5×5 kernels at 8×8 to 32×32
_MAX_PATCH_BYTES = 6 * 2**20  # a chunk's patches beyond this fall out of the cache, and XLA's own gradient is faster
_MIN_FEATURES = 16  # with fewer output channels the matrix product is too thin to win

Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **other: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with `conv_chunked` where that is faster; for `nn.Conv(conv_general_dilated=…)`.

    Faster means: a plain float32 NHWC convolution, on CPU, on one device. (Split over several CPU devices, the scan
    would gather the whole batch on each of them.) Decided when traced, from shapes and platform alone.
    """
    unit = (None, 1, (1, 1), [1, 1])
    plain = (
        lhs.ndim == 4
        and lhs_dilation in unit
        and rhs_dilation in unit
        and feature_group_count == batch_group_count == 1
        and precision is preferred_element_type is None
        and not other
        and lhs.dtype == rhs.dtype == jnp.float32
        and _is_nhwc(lhs.shape, rhs.shape, dimension_numbers)
    )
    if plain and jax.default_backend() == "cpu" and jax.device_count() == 1:
        strides = (int(window_strides[0]), int(window_strides[1]))
        pads = _pads(lhs, rhs, strides, padding)
        chunk = _chunk_size(lhs.shape, rhs.shape, strides, pads)
        if chunk > 0:
            return conv_chunked(lhs, rhs, strides, pads, chunk)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **other,
    )


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
        chunk: images a matrix product; any number, `B` need not be a multiple.

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
        dy = dy + conv_chunked(dx, kernel, strides, pads, chunk)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + _patches_times_kernel(x, dkernel, strides, pads, chunk)
    return y, dy


def _patches_times_kernel(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, chunk: int
) -> jax.Array:
    """The same convolution as a matrix product a chunk. Its transpose in `kernel` is what this file is about."""
    size = kernel.shape[:2]

    # Checkpointed, so that the transposed scan gathers each chunk's patches anew instead of reading all of them, nine
    # times the size of the input for a 3×3 kernel, from memory.
    @partial(jax.checkpoint, prevent_cse=False)
    def product(x_chunk: jax.Array, kernel: jax.Array) -> jax.Array:
        patches = _patches(x_chunk, size, strides, pads)
        rows = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
        return rows.reshape(*patches.shape[:3], -1)

    whole = len(x) - len(x) % chunk
    parts = []
    if whole:
        chunks = x[:whole].reshape(-1, chunk, *x.shape[1:])
        _, y = lax.scan(lambda carry, x_chunk: (carry, product(x_chunk, kernel)), None, chunks)
        parts.append(y.reshape(whole, *y.shape[2:]))
    if whole < len(x):
        parts.append(product(x[whole:], kernel))
    return jnp.concatenate(parts)


def _patches(x: jax.Array, size: tuple[int, ...], strides: tuple[int, int], pads: Pads) -> jax.Array:
    """(B, H', W', kh·kw·C): under each output position, the inputs in the order of a flattened HWIO kernel."""
    height, width = _output_size(x.shape, size, strides, pads)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return jnp.concatenate(
        [
            x[:, i : i + strides[0] * (height - 1) + 1 : strides[0], j : j + strides[1] * (width - 1) + 1 : strides[1]]
            for i in range(size[0])
            for j in range(size[1])
        ],
        axis=-1,
    )


def _output_size(
    x_shape: tuple[int, ...], size: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> tuple[int, int]:
    height, width = ((x_shape[1 + a] + sum(pads[a]) - size[a]) // strides[a] + 1 for a in (0, 1))
    return height, width


def _chunk_size(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], strides: tuple[int, int], pads: Pads) -> int:
    """Images a chunk, or 0 where XLA's own gradient is the faster one."""
    height, width = _output_size(x_shape, kernel_shape[:2], strides, pads)
    if min(height, width) < 1 or kernel_shape[3] < _MIN_FEATURES:
        return 0
    image_bytes = 4 * height * width * kernel_shape[0] * kernel_shape[1] * kernel_shape[2]
    chunk = min(_MAX_CHUNK, _MAX_PATCH_BYTES // image_bytes)
    return chunk if x_shape[0] >= 2 * chunk else 0


def _is_nhwc(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], dimension_numbers: Any) -> bool:
    expected = lax.conv_dimension_numbers(x_shape, kernel_shape, _NHWC)
    return lax.conv_dimension_numbers(x_shape, kernel_shape, dimension_numbers) == expected


def _pads(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str | Sequence[tuple[int, int]]) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))
