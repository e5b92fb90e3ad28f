"""Opens image files with Pillow, and reduces values of more than 8 bits.

This module imports no JAX because the loader's worker processes import it.
"""

import functools
import os
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cnn_jax.errors import UserError

Levels = tuple[float, float]  # the values that become 0 and 255
MAX_PIXELS = "CNN_JAX_MAX_PIXELS"  # environment variable


def open_image(file: Path | str | BinaryIO, side: int | None = None) -> Image.Image:
    """Opens an image without decoding it.

    Args:
      file: a path or an open file.
      side: pixels of each side that are needed. A JPEG file of too many pixels is then decoded at a fraction of its
        size, down to an eighth. None for headers: nothing will be decoded.

    Raises:
      DecompressionBombError: the image has more pixels than Pillow reads without being asked to (twice
        `PIL.Image.MAX_IMAGE_PIXELS`), or than $CNN_JAX_MAX_PIXELS.
      OSError, SyntaxError, …: the file is damaged.
    """
    limit = pixel_limit()
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        image = _open_jpeg(file, limit)
    if limit is not None and side is not None and image.width * image.height > limit:
        image.draft(image.mode, (side, side))  # of JPEG; other kinds have no smaller form
        if image.width * image.height > limit:
            image.close()
            raise _too_many_pixels(limit)
    _correct_transparency(image)
    return image


def _open_jpeg(file: Path | str | BinaryIO, limit: int | None) -> Image.Image:
    """Opens a JPEG file, unlike `Image.open` of any size, and no other kind."""
    if not isinstance(file, Path | str):
        file.seek(0)
    try:
        return JpegImageFile(file)
    except SyntaxError:
        raise _too_many_pixels(limit) from None


def _too_many_pixels(limit: int | None) -> Image.DecompressionBombError:
    return Image.DecompressionBombError(
        f"it has more than {limit:,} pixels, the limit unless {MAX_PIXELS} sets another"
    )


def pixel_limit() -> int | None:
    """Returns the number of pixels above which an image is not decoded; if the user sets it, Pillow's is lifted.

    Raises:
        UserError: what the user has set is no number.
    """
    text = os.environ.get(MAX_PIXELS)
    if not text:
        return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{MAX_PIXELS} is {text!r}: set it to a number of pixels, such as 1000000000")
    Image.MAX_IMAGE_PIXELS = None
    return int(text)


def _correct_transparency(image: Image.Image) -> None:
    """Scales the transparent value of a PNG file as Pillow scales its pixels."""
    value, coded = image.info.get("transparency"), coding(image)
    if coded in ("L;2", "L;4") and isinstance(value, int):
        image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[coded]
    if coded == "RGB;16B" and isinstance(value, tuple):  # Pillow keeps the upper byte
        image.info["transparency"] = tuple(part >> 8 for part in value)


def coding(image: Image.Image) -> str:
    """How the pixels of a file that is not decoded yet are coded, in Pillow's terms, such as RGB;16B; "" if unknown."""
    tiles = getattr(image, "tile", None)
    found = tiles[0].args if tiles else ""
    return str(found[0] if isinstance(found, tuple) and found else found)


def is_deep(image: Image.Image) -> bool:
    """Whether values have more than 8 bits: integers (modes I, I;16, …) or floats (F)."""
    return image.mode.startswith("I") or image.mode == "F"


def to_8_bits(image: Image.Image, levels: Levels | None) -> Image.Image:
    """Scales a `is_deep` image linearly to grey values of 8 bits; NaN becomes black, transparent values stay so.

    Args:
      image: mode I, I;16, … or F.
      levels: the values that become 0 and 255; those outside are clipped. None for the whole range of 16 bits, or
        [0, 1] for floats, with a warning, as nothing says which range is in use.
    """
    if levels is None:
        levels = (0.0, 1.0) if image.mode == "F" else (0.0, 65535.0)
        _warn_of_levels(levels)
    black, white = levels
    values = np.asarray(image)
    scaled = np.nan_to_num((values.astype(np.float64) - black) * (255.0 / (white - black)), nan=0.0)
    grey = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


@functools.cache
def _warn_of_levels(levels: Levels) -> None:
    """Prints a warning, once per process."""
    print(
        f"warning: images of more than 8 bits are read as {describe(levels)}, as nothing says which range is in use",
        file=sys.stderr,
    )


def levels_in_use(kind: str, low: float, high: float) -> Levels:
    """Returns the values to show as black and white, given the smallest and largest value of a set of images.

    Integers that are not negative keep 0 as black, and white is the largest value of the fewest bits, at least 8, that
    hold all of them: 4095 for 12-bit values in 16-bit files. For others, the smallest value is black and the largest
    white.

    >>> levels_in_use("integer", 17, 3980), levels_in_use("float", 0.25, 0.75), levels_in_use("integer", -1000, 2000)
    ((0.0, 4095.0), (0.25, 0.75), (-1000.0, 2000.0))
    """
    if kind == "integer" and low >= 0:
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    return float(low), float(high) if high > low else float(low) + 1.0


def describe(levels: Levels) -> str:
    """Says in words which values become black and white.

    >>> describe((0.0, 4095.0))
    '0 (black) to 4095 (white)'
    """
    return f"{levels[0]:.6g} (black) to {levels[1]:.6g} (white)"
