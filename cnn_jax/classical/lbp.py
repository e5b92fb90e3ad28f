"""Uniform local binary patterns (Ojala, Pietikäinen and Mäenpää 2002) of 8 neighbours at distance 1.

Codes of 8-bit images are those of scikit-image's `local_binary_pattern` with P=8, R=1 and the methods "uniform" and
"nri_uniform".
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import UserError

Form = Literal["rotation_invariant", "oriented"]
CODES: dict[Form, int] = {"rotation_invariant": 10, "oriented": 59}

# (rows down, columns to the right) of the neighbours, counter-clockwise from the right.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
# Diagonal neighbours lie at (±√½, ±√½), between four pixels: bilinear weights, rounded as in scikit-image.
_FAR, _NEAR = 0.70711, 0.29289
# Differences below this share of the image's largest value are rounding: three times that of float32, and a quarter of
# the smallest difference between a pixel and an interpolated neighbour of 256 levels, 71·10⁻⁵ of them.
_ROUNDING = 7e-7


def lbp(images_BxHxWxC: jax.Array, *, form: Form = "rotation_invariant") -> jax.Array:
    """Returns the code of each pixel.

    Bit p of a pattern says whether neighbour p is at least as bright as the pixel; neighbours on the diagonals are
    interpolated (§2.1), and 0 outside the image. A pattern is uniform if it changes at most twice around the circle.
    Its rotation-invariant code is the number of its ones, 0 to 8, and 9 if it is not uniform (eq. 9). Its oriented
    code counts the 58 uniform patterns, and is 58 for all others. Neighbours as bright as the pixel never depend on
    rounding: codes are exact for 256 grey levels, and do not change if these are multiplied by a positive number, such
    as 1/255, or, but for the border, if a constant is added.

    Args:
        images_BxHxWxC: of any range and type.
        form: "rotation_invariant", 10 codes, or "oriented", 59.

    Returns:
        int32 (B, H, W, C).

    >>> int(lbp(jnp.full((1, 3, 3, 1), 7, jnp.uint8))[0, 1, 1, 0])  # constant: all eight are at least as bright
    8
    """
    grey = images_BxHxWxC.astype(jnp.float32)
    equal = -_ROUNDING * jnp.abs(grey).max(axis=(1, 2, 3), keepdims=True)
    height, width = grey.shape[1:3]
    padded = jnp.pad(grey, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def difference(down: int, right: int) -> jax.Array:
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width] - grey

    pattern = jnp.zeros(grey.shape, jnp.int32)
    for bit, (down, right) in enumerate(_NEIGHBOURS):
        brighter = difference(down, right)
        if down and right:
            brighter = _FAR * brighter + _NEAR * (difference(down, 0) + difference(0, right))
        pattern += (brighter >= equal).astype(jnp.int32) << bit
    return jnp.asarray(_codes(form))[pattern]


def lbp_histograms(images_BxHxWxC: jax.Array, *, cell: int = 8, form: Form = "oriented") -> jax.Array:
    """Returns the share of each code in each cell of each channel (Ahonen et al. 2006, §2.2).

    Args:
        images_BxHxWxC: as for `lbp`.
        cell: side of a cell in pixels; cells fill the image from the top left.
        form: as for `lbp`.

    Returns:
        float32 (B, rows, columns, C, codes); the last axis sums to 1.

    Raises:
        UserError: `cell` is below 1, or more than a side of the images.
    """
    batch, height, width, channels = images_BxHxWxC.shape
    if not 1 <= cell <= min(height, width):
        raise UserError(f"cell={cell} for LBP: set it to 1 to {min(height, width)} pixels, a side of the images")
    rows, columns = height // cell, width // cell
    codes = lbp(images_BxHxWxC, form=form)[:, : rows * cell, : columns * cell]
    cells = codes.reshape(batch, rows, cell, columns, cell, channels)
    return jax.nn.one_hot(cells, CODES[form]).mean(axis=(2, 4))


def _codes(form: Form) -> np.ndarray:
    """The code of each of the 256 patterns, int32."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    ones = bits.sum(axis=1)
    uniform = (bits != np.roll(bits, -1, axis=1)).sum(axis=1) <= 2
    if form == "rotation_invariant":
        return np.where(uniform, ones, 9).astype(np.int32)
    # By the number of ones, then by turns from the pattern whose ones are its last bits.
    codes = np.full(256, 58, np.int32)
    for count in range(9):
        for turn in range(8 if 0 < count < 8 else 1):
            pattern = sum(1 << (place - turn) % 8 for place in range(count))
            codes[pattern] = 0 if count == 0 else 57 if count == 8 else 1 + (count - 1) * 8 + turn
    return codes
