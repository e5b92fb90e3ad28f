"""Functions without weights that check or rearrange arrays: input images, flattening, space to depth."""

from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError


def images(x_BxHxWxC: jax.Array, dtype: Any) -> jax.Array:
    """Checks a batch of images and casts it to the computation type.

    Raises:
        UserError: `x_BxHxWxC` does not have four axes, or is not floating-point.
    """
    if x_BxHxWxC.ndim != 4:
        raise UserError(
            f"images have shape {x_BxHxWxC.shape} instead of (batch, height, width, channels): "
            "add a batch axis to a single image"
        )
    if not jnp.issubdtype(x_BxHxWxC.dtype, jnp.floating):
        raise UserError(f"images are {x_BxHxWxC.dtype}, not normalized floats: call Preprocess.normalize first")
    return x_BxHxWxC.astype(dtype)


def flatten(x: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, H·W·C), channels fastest."""
    return x.reshape(len(x), -1)


def space_to_depth(x_BxHxWxC: jax.Array, block: int) -> jax.Array:
    """Moves each block×block square of pixels into the channels: (B, H, W, C) → (B, H/block, W/block, block·block·C).

    Within a square, rows are slowest, then columns, then channels (TensorFlow's order).

    Raises:
        UserError: `block` does not divide H and W.

    >>> space_to_depth(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0, 0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    batch, height, width, channels = x_BxHxWxC.shape
    if height % block or width % block:
        raise UserError(f"space_to_depth cannot split {height}x{width} maps: resize them to sides that {block} divides")
    x = x_BxHxWxC.reshape(batch, height // block, block, width // block, block, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)
