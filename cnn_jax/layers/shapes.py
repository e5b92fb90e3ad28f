"""Layers without weights that check or rearrange: a model's images, flattening, pixels moved into channels."""

from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError


def images(x_BxHxWxC: jax.Array, dtype: Any) -> jax.Array:
    """Casts a batch of images to the type a model computes in.

    Raises:
        UserError: no batch of images, or raw bytes.
    """
    if x_BxHxWxC.ndim != 4:
        raise UserError(
            f"given images of shape {x_BxHxWxC.shape}; expected (batch, height, width, channels); "
            "add a batch axis to a single image"
        )
    if not jnp.issubdtype(x_BxHxWxC.dtype, jnp.floating):
        raise UserError(f"given {x_BxHxWxC.dtype} images; expected normalized floats; call Preprocess.normalize first")
    return x_BxHxWxC.astype(dtype)


def flatten(x: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, H·W·C), channels fastest."""
    return x.reshape(len(x), -1)


def space_to_depth(x_BxHxWxC: jax.Array, block: int) -> jax.Array:
    """Moves each block×block square of pixels into the channels: (B, H, W, C) → (B, H/block, W/block, block·block·C).

    Rows of the square are slowest, then columns, then channels (TensorFlow's order).

    Raises:
        UserError: `block` does not divide H and W.

    >>> space_to_depth(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0, 0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    batch, height, width, channels = x_BxHxWxC.shape
    if height % block or width % block:
        raise UserError(f"given {height}x{width} maps for space_to_depth; expected sides that {block} divides; resize")
    x = x_BxHxWxC.reshape(batch, height // block, block, width // block, block, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)
