"""Histograms of oriented gradients (Dalal and Triggs 2005), as in scikit-image, but on batches and jitted."""

import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError

_EPSILON = 1e-5  # under the root of the block's norm
_CLIPPED = 0.2  # L2-Hys: largest value of a normalised histogram (Lowe 2004, §6.1)
_ROUNDING = 4e-6  # of a bin: angles on the border of two bins belong to the upper one, whatever atan2's last bit


def hog(images_BxHxWxC: jax.Array, *, cell: int = 8, block: int = 2, bins: int = 9) -> jax.Array:
    """Returns the features of images: histograms of the gradient's direction in cells, normalised in blocks.

    The gradient is the central difference along each axis, and 0 on the border of the image; of several channels, the
    one where it is longest counts (§6.2). Each pixel adds its length to one bin of directions without sign, [0°, 180°)
    in `bins` equal parts (§6.3); 0° is horizontal. Histograms are means over the cells, which fill the image from the
    top left; pixels left over count only for gradients. Blocks of neighbouring cells overlap by all but one cell and
    are normalised by L2-Hys: v/√(‖v‖² + ε²), clipped to 0.2, and once again (§6.4). Without the paper's interpolation
    between bins and cells, as in scikit-image.

    Args:
        images_BxHxWxC: of any range and type; with whole numbers, channels of equal length tie exactly, and the first
            one counts.
        cell: side of a cell in pixels.
        block: side of a block in cells.
        bins: number of directions.

    Returns:
        float32 (B, rows, columns, block, block, bins) for blocks at (rows, columns).

    Raises:
        UserError: an argument is below 1, or the images are smaller than a block.

    >>> edge = jnp.zeros((1, 16, 16, 1)).at[:, :, 8:].set(1.0)  # vertical, so its gradient is horizontal
    >>> jax.jit(hog)(edge)[0, 0, 0].sum((0, 1)).round(3)
    Array([2., 0., 0., 0., 0., 0., 0., 0., 0.], dtype=float32)
    """
    check_hog(images_BxHxWxC.shape[1:], cell, block, bins)
    length_BxHxW, bin_BxHxW = _gradients(images_BxHxWxC.astype(jnp.float32), bins)
    rows, columns = images_BxHxWxC.shape[1] // cell, images_BxHxWxC.shape[2] // cell
    votes = jax.nn.one_hot(bin_BxHxW, bins) * length_BxHxW[..., None]
    votes = votes[:, : rows * cell, : columns * cell].reshape(-1, rows, cell, columns, cell, bins)
    cells_BxRxCxK = votes.mean(axis=(2, 4))
    down, across = rows - block + 1, columns - block + 1
    blocks = jnp.stack(
        [
            jnp.stack([cells_BxRxCxK[:, i : i + down, j : j + across] for j in range(block)], axis=3)
            for i in range(block)
        ],
        axis=3,
    )
    return _normalized(jnp.minimum(_normalized(blocks), _CLIPPED))


def check_hog(image_shape: tuple[int, ...], cell: int, block: int, bins: int) -> None:
    """Rejects sizes that do not suit images of shape (H, W, C).

    Raises:
        UserError: an argument is below 1, or the images are smaller than a block.
    """
    if min(cell, block, bins) < 1:
        raise UserError(f"cell={cell}, block={block} and bins={bins} for HOG: set each to at least 1")
    height, width = image_shape[:2]
    if min(height, width) < max(cell * block, 2):
        raise UserError(
            f"images of {height}x{width} pixels are smaller than a block of HOG, {block}x{block} cells of {cell} "
            f"pixels: set cell to at most {max(min(height, width) // block, 1)}, or a larger `image_size`"
        )


def _gradients(images_BxHxWxC: jax.Array, bins: int) -> tuple[jax.Array, jax.Array]:
    """Length and bin of the gradient at each pixel, of the channel where it is longest."""
    inner = ((0, 0), (1, 1), (0, 0), (0, 0))
    down = jnp.pad(images_BxHxWxC[:, 2:] - images_BxHxWxC[:, :-2], inner)
    across = jnp.pad(images_BxHxWxC[:, :, 2:] - images_BxHxWxC[:, :, :-2], (inner[0], inner[2], inner[1], inner[3]))
    longest = jnp.argmax(down**2 + across**2, axis=-1, keepdims=True)
    down, across = (jnp.take_along_axis(part, longest, axis=-1)[..., 0] for part in (down, across))
    turns = jnp.arctan2(down, across) / jnp.pi % 1.0
    return jnp.hypot(down, across), jnp.floor(turns * bins + _ROUNDING).astype(jnp.int32) % bins


def _normalized(blocks: jax.Array) -> jax.Array:
    """Divides each block, the last three axes, by its norm."""
    return blocks / jnp.sqrt((blocks**2).sum(axis=(-3, -2, -1), keepdims=True) + _EPSILON**2)
