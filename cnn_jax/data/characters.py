"""Normalizes the slant and the width of written characters: bright strokes on a dark background.

Pure functions on batches, for use inside and outside `jax.jit`. Images are uint8 in [0, 255] or floats in [0, 1], and
keep their type. What training images are given, test images must be given, too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError


def deskew(images_BxHxWxC: jax.Array) -> jax.Array:
    """Removes the slant by shifting each row sideways (LeCun et al. 1998, §III-A, "deslanted" images).

    The slant is the slope of the regression of columns on rows, both weighted by brightness: the covariance of row and
    column over the variance of the row. Row i moves by −slant·(i − mean row), so the centre of mass stays where it is.
    Between pixels, values are interpolated linearly; outside the image they are 0.

    Args:
        images_BxHxWxC: uint8 in [0, 255] or float in [0, 1]. All channels of an image are shifted alike.

    Returns:
        Images of the same shape and type. An empty image, or one with a single bright row, is not changed.

    >>> slanted = jnp.eye(3)[None, :, :, None]
    >>> jax.jit(deskew)(slanted)[0, :, :, 0]
    Array([[0., 1., 0.],
           [0., 1., 0.],
           [0., 1., 0.]], dtype=float32)
    """
    return _in_floats(jax.vmap(_deskew), images_BxHxWxC)


def _deskew(image_HxWxC: jax.Array) -> jax.Array:
    height, width, _ = image_HxWxC.shape
    mass_HxW = image_HxWxC.sum(axis=-1)
    total = jnp.maximum(mass_HxW.sum(), jnp.finfo(jnp.float32).tiny)
    rows_H, columns_W = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    row, column = mass_HxW.sum(1) @ rows_H / total, mass_HxW.sum(0) @ columns_W / total
    variance = mass_HxW.sum(1) @ (rows_H - row) ** 2 / total
    covariance = (rows_H - row) @ mass_HxW @ (columns_W - column) / total
    slant = jnp.where(variance > 1e-6, covariance / jnp.maximum(variance, 1e-6), 0.0)
    return jax.vmap(_shift_row)(image_HxWxC, slant * (rows_H - row))


def _shift_row(row_WxC: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns the row whose pixel j is the given one at j + shift."""
    whole = jnp.floor(shift)
    left_W = jnp.arange(row_WxC.shape[0]) + whole.astype(jnp.int32)

    def read(index_W: jax.Array) -> jax.Array:
        return row_WxC.at[index_W].get(mode="fill", fill_value=0.0, wrap_negative_indices=False)

    share = shift - whole
    return (1.0 - share) * read(left_W) + share * read(left_W + 1)


def normalize_width(images_BxHxWxC: jax.Array, width: int) -> jax.Array:
    """Stretches or narrows each character to a width of its own (Ciresan, Meier and Schmidhuber 2012, §3.1).

    The columns from the first to the last one that is not black are resampled to `width` columns, linearly and
    anti-aliased, as Pillow's `resize` does, and put into the middle. The height does not change.

    Args:
        images_BxHxWxC: uint8 in [0, 255] or float in [0, 1].
        width: in pixels, 1 to W; the paper uses 10, 12, …, 20 of 28.

    Returns:
        Images of the same shape and type; an empty image stays empty.

    Raises:
        UserError: `width` is less than 1 or more than W.

    >>> bar = jnp.zeros((1, 1, 6, 1)).at[:, :, :2].set(1.0)
    >>> jax.jit(normalize_width, static_argnums=1)(bar, 4).ravel()
    Array([0., 1., 1., 1., 1., 0.], dtype=float32)
    """
    if not 1 <= width <= images_BxHxWxC.shape[2]:
        raise UserError(f"width {width} of characters: set 1 to {images_BxHxWxC.shape[2]}, the images' width in pixels")
    return _in_floats(jax.vmap(lambda image: _normalize_width(image, width)), images_BxHxWxC)


def _normalize_width(image_HxWxC: jax.Array, width: int) -> jax.Array:
    columns = image_HxWxC.shape[1]
    used_W = (image_HxWxC > 0).any(axis=(0, 2))
    first = jnp.argmax(used_W).astype(jnp.float32)
    end = columns - jnp.argmax(used_W[::-1]).astype(jnp.float32)
    step = (end - first) / width  # old columns per new one
    column_W, left = jnp.arange(columns, dtype=jnp.float32), (columns - width) // 2
    centre_W = first + (column_W - left + 0.5) * step - 0.5
    distance_WxW = jnp.abs(column_W[None, :] - centre_W[:, None]) / jnp.maximum(step, 1.0)
    inside_W = (column_W >= first) & (column_W < end)
    weights_WxW = jnp.where(inside_W[None, :], jnp.maximum(0.0, 1.0 - distance_WxW), 0.0)
    weights_WxW /= jnp.maximum(weights_WxW.sum(axis=1, keepdims=True), 1e-6)
    made_W = (column_W >= left) & (column_W < left + width)
    return jnp.einsum("hwc,nw->hnc", image_HxWxC, jnp.where(made_W[:, None], weights_WxW, 0.0))


def _in_floats(change: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Applies a function on floats in [0, 1] to images of either type."""
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8:
        return change(images)
    return jnp.round(255.0 * change(images.astype(jnp.float32) / 255.0)).astype(jnp.uint8)
