"""Geometric augmentations that resample the image: affine, elastic, random resized crop.

Pure functions `f(key, image_HxWxC, *, …) -> image_HxWxC` on float32 images in [0, 1], for use in `jit` and `vmap`.
Interpolation is bilinear; pixels outside the image are 0.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from cnn_jax.errors import UserError


def warp(image_HxWxC: jax.Array, rows_HxW: jax.Array, columns_HxW: jax.Array) -> jax.Array:
    """Resamples an image: output pixel (i, j) is the input at (rows[i, j], columns[i, j]), in pixels.

    >>> image = jnp.array([[0.0, 1.0], [0.5, 0.0]])[..., None]
    >>> warp(image, jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 5.0]]))[..., 0]  # between two pixels; outside
    Array([[0.5, 0. ]], dtype=float32)
    """

    def channel(image_HxW: jax.Array) -> jax.Array:
        return map_coordinates(image_HxW, [rows_HxW, columns_HxW], order=1, mode="constant", cval=0.0)

    image_HxWxC = jax.lax.optimization_barrier(image_HxWxC)  # else each of the four reads recomputes the image
    return jnp.clip(jax.vmap(channel, in_axes=-1, out_axes=-1)(image_HxWxC), 0.0, 1.0)


def affine_warp(image_HxWxC: jax.Array, matrix_2x2: jax.Array, shift_2: jax.Array) -> jax.Array:
    """Moves each point p to matrix·p + shift, where p = (x, y) in pixels from the centre, x to the right, y down."""
    height, width, _ = image_HxWxC.shape
    x_HxW, y_HxW = jnp.meshgrid(_centred(width) - shift_2[0], _centred(height) - shift_2[1])
    (a, b), (c, d) = matrix_2x2
    determinant = a * d - b * c
    columns_HxW = (d * x_HxW - b * y_HxW) / determinant + (width - 1) / 2
    rows_HxW = (a * y_HxW - c * x_HxW) / determinant + (height - 1) / 2
    return warp(image_HxWxC, rows_HxW, columns_HxW)


def _centred(size: int) -> jax.Array:
    return jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2


def affine(
    key: jax.Array,
    image_HxWxC: jax.Array,
    *,
    degrees: float = 10.0,
    scale: tuple[float, float] = (0.9, 1.1),
    translate: float = 0.1,
    shear: float = 0.0,
) -> jax.Array:
    """Scales, shears, rotates about the centre, then translates; every amount is drawn uniformly.

    Args:
        key: random key for this image.
        image_HxWxC: in [0, 1].
        degrees: rotation in [−degrees, degrees], counter-clockwise.
        scale: smallest and largest magnification.
        translate: shift along each axis in [−translate, translate] of that side.
        shear: angle by which verticals lean, in [−shear, shear] degrees.
    """
    if not 0 < scale[0] <= scale[1]:
        raise UserError(
            f"scale={scale[0]}/{scale[1]} for affine: set the smallest and the largest magnification, both above 0"
        )
    height, width, _ = image_HxWxC.shape
    angle, lean, right, down, size = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    angle, lean = angle * math.radians(degrees), lean * math.radians(shear)
    factor = scale[0] + (scale[1] - scale[0]) * 0.5 * (1.0 + size)
    cos, sin, slope = jnp.cos(angle), jnp.sin(angle), jnp.tan(lean)
    rotation = jnp.array([[cos, sin], [-sin, cos]])
    matrix = factor * rotation @ jnp.array([[1.0, slope], [0.0, 1.0]])
    return affine_warp(image_HxWxC, matrix, translate * jnp.stack([right * width, down * height]))


def elastic(key: jax.Array, image_HxWxC: jax.Array, *, alpha: float = 34.0, sigma: float = 4.0) -> jax.Array:
    """Elastic distortion (Simard et al. 2003, §2): every pixel is displaced by a smooth random field.

    For each axis, independent uniform draws from [−1, 1], one per pixel and 0 outside the image, are smoothed by a
    Gaussian whose weights sum to 1 and multiplied by `alpha`. Far from the edges the displacement then has a standard
    deviation of about alpha / (2·√(3π)·sigma) pixels: 1.4 for the defaults, which are the paper's for MNIST. The field
    is not normalised. The paper's text can also be read as a field of norm 1 times alpha; with the defaults on 28×28
    pixels that is almost as strong: a root mean square of 34/28 = 1.2 pixels over the image, and 1.3 here.

    Args:
        key: random key for this image.
        image_HxWxC: in [0, 1].
        alpha: strength, in pixels.
        sigma: standard deviation of the Gaussian, in pixels.
    """
    if sigma <= 0:
        raise UserError(f"sigma={sigma} for elastic: set it above 0 pixels")
    height, width, _ = image_HxWxC.shape
    noise_2xHxW = jax.random.uniform(key, (2, height, width), minval=-1.0, maxval=1.0)
    smooth_rows, smooth_columns = _gaussian(height, sigma), _gaussian(width, sigma)
    field_2xHxW = alpha * jnp.einsum("ih,nhw,jw->nij", smooth_rows, noise_2xHxW, smooth_columns)
    rows_HxW, columns_HxW = jnp.indices((height, width)).astype(jnp.float32) + field_2xHxW
    return warp(image_HxWxC, rows_HxW, columns_HxW)


def _gaussian(size: int, sigma: float) -> np.ndarray:
    """Matrix that smooths a signal of `size` samples, taken as 0 beyond its ends."""
    reach = max(size, math.ceil(6 * sigma))
    total = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2)).sum()
    offset = np.arange(size)[:, None] - np.arange(size)[None, :]
    return (np.exp(-(offset**2) / (2 * sigma**2)) / total).astype(np.float32)


def random_resized_crop(
    key: jax.Array,
    image_HxWxC: jax.Array,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Crops a rectangle of random area, aspect and position and resizes it to full size (Szegedy et al. 2015, §6).

    A rectangle wider or taller than the image is clipped to it. Downscaling is anti-aliased.

    Args:
        key: random key for this image.
        image_HxWxC: in [0, 1].
        scale: smallest and largest area, as fractions of the image's; drawn uniformly.
        ratio: smallest and largest width / height; drawn log-uniformly.
    """
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise UserError(
            f"scale={scale[0]}/{scale[1]} and ratio={ratio[0]}/{ratio[1]} for random_resized_crop: set both to "
            "smallest/largest, above 0, and scale to at most 1"
        )
    height, width, channels = image_HxWxC.shape
    area, aspect, top, left = jax.random.uniform(key, (4,))
    area = (scale[0] + (scale[1] - scale[0]) * area) * height * width
    aspect = jnp.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * aspect)
    size_2 = jnp.minimum(jnp.sqrt(area * jnp.stack([1.0 / aspect, aspect])), jnp.array([height, width], jnp.float32))
    sides_2 = jnp.array([height, width], jnp.float32)
    corner_2 = jnp.stack([top, left]) * (sides_2 - size_2)
    zoom_2 = sides_2 / size_2
    resized = jax.image.scale_and_translate(
        image_HxWxC, (height, width, channels), (0, 1), zoom_2, -corner_2 * zoom_2, method="linear"
    )
    return jnp.clip(resized, 0.0, 1.0)
