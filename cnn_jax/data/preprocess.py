"""Turns an image into a model's input. One object, saved with the weights, keeps training, evaluation, prediction and
export consistent. This module imports no JAX because the loader's worker processes import it.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cnn_jax.data import image_file
from cnn_jax.data.decoded import MAX_DECODED_BYTES, materialize
from cnn_jax.data.image_file import Levels, open_image
from cnn_jax.data.sources import Source
from cnn_jax.errors import UserError, unknown
from cnn_jax.storage.file_names import readable

NORMALIZE = ("dataset", "half", "none")
_COUNTED = 2**22  # values counted at a time, each of which takes 8 bytes meanwhile
_SAMPLE = 10_000  # sample size for statistics of a source too large for memory


@dataclass(frozen=True)
class Preprocess:
    """Shape and normalisation of a model's input.

    Attributes:
      image_shape: (height, width, channels) in pixels; 1 channel is grey, 3 are red, green, blue.
      mean: per channel, subtracted from pixels scaled to [0, 1].
      std: per channel, divides the difference; positive.
      levels: values of images of more than 8 bits that become 0 and 255, as found in the training images; None if those
        had 8 bits.

    Raises:
      UserError: a size is not positive, there is not one finite mean and one finite positive std per channel, or the
        levels are not finite and ascending.

    >>> preprocess = Preprocess((1, 2, 1), mean=(0.5,), std=(0.5,))
    >>> preprocess.normalize(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)).ravel().tolist()
    [-1.0, 1.0]
    >>> Preprocess.from_json(preprocess.to_json()) == preprocess
    True
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: Levels | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        shaped = len(self.image_shape) == 3 and min(self.image_shape) > 0
        matching = shaped and len(self.mean) == len(self.std) == self.image_shape[-1]
        if not matching or not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UserError(
                f"image shape {self.image_shape}, mean {self.mean} and std {self.std} are invalid: use positive "
                "height, width and channels, and one finite mean and one positive, finite std per channel"
            )
        if self.levels is not None and not (
            len(self.levels) == 2 and all(map(math.isfinite, self.levels)) and self.levels[0] < self.levels[1]
        ):
            raise UserError(f"levels {self.levels} are invalid: use two finite values, the first below the second")

    def normalize(self, images: Any) -> Any:
        """Scales images to [0, 1] and standardises each channel, inside or outside `jax.jit`.

        Args:
          images: JAX or NumPy array, ...xHxWxC, uint8 in [0, 255] or float in [0, 1].

        Returns:
          float32 array of the same shape and kind: (image in [0, 1] - mean) / std.
        """
        scale = np.float32(255.0 if images.dtype == np.uint8 else 1.0)
        channel = (1,) * (images.ndim - 1) + (-1,)
        mean, std = (np.asarray(values, np.float32).reshape(channel) for values in (self.mean, self.std))
        return (images.astype(np.float32) / scale - mean) / std

    def normalize_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Normalizes the images of a batch; other arrays pass through unchanged."""
        return {**batch, "image": self.normalize(batch["image"])}

    def denormalize(self, images: np.ndarray) -> np.ndarray:
        """Converts normalized images, ...xHxWxC, back to uint8."""
        pixels = (images * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)) * 255.0
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)

    def read(self, path: str | Path) -> np.ndarray:
        """Reads an image file as the data pipeline does; returns uint8 HxWxC. See `read_image`."""
        return read_image(path, self.image_shape, self.levels)

    def to_json(self) -> str:
        """Returns the preprocessing as JSON, for `from_json`."""
        fields = {name: value for name, value in asdict(self).items() if name != "levels" or value is not None}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, file: str | Path = "preprocessing") -> "Preprocess":
        """Parses the output of `to_json`.

        Args:
          text: the JSON.
          file: name of its file, for error messages.

        Raises:
          UserError: `text` is not such JSON; the message names `file`.
        """
        try:
            fields = {name: tuple(values) for name, values in json.loads(text).items() if values is not None}
            if not all(type(size) is int for size in fields["image_shape"]):
                raise UserError(f"image_shape {list(fields['image_shape'])} must be whole numbers")
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # the last may be our own UserError
            raise UserError(
                f"{file} is not JSON with image_shape, mean and std ({error}): restore it, or copy that of another run"
            ) from error

    @classmethod
    def fit(cls, images: Source | np.ndarray, normalize: str = "dataset") -> "Preprocess":
        """Returns the preprocessing for a data set.

        Args:
          images: the training source, or its images, uint8 NxHxWxC. If they take over 1 GiB, 10,000 evenly spaced ones
            are used.
          normalize: `dataset` for zero mean and unit variance of each channel over the training images; `half` for
            [-1, 1]; `none` for [0, 1].

        Raises:
          UserError: unknown `normalize`, or (`dataset`) an image that cannot be read.
        """
        shape = images.shape[1:] if isinstance(images, np.ndarray) else images.image_shape
        height, width, channels = (int(size) for size in shape)
        match normalize:
            case "none":
                mean, std = (0.0,) * channels, (1.0,) * channels
            case "half":
                mean, std = (0.5,) * channels, (0.5,) * channels
            case "dataset":
                mean, std = _statistics(_sample(images))
            case _:
                raise unknown("normalisation", normalize, NORMALIZE)
        return cls((height, width, channels), mean, std, levels=getattr(images, "levels", None))


def _sample(images: Source | np.ndarray) -> np.ndarray:
    shape = images.shape[1:] if isinstance(images, np.ndarray) else images.image_shape
    few = len(images) * math.prod(shape) <= MAX_DECODED_BYTES
    chosen = np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(int)
    if isinstance(images, np.ndarray):
        return images if few else images[chosen]
    return materialize(images)["image"] if few else np.stack([images[int(index)]["image"] for index in chosen])


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1] units; computed from counts, so exact for any size."""
    channels = images.shape[-1]
    counts_Cx256 = np.zeros((channels, 256), np.int64)  # counting grey levels is faster than summing squares
    at_a_time = max(1, _COUNTED // math.prod(images.shape[1:]))
    for start in range(0, len(images), at_a_time):
        chunk = images[start : start + at_a_time].reshape(-1, channels)
        counts_Cx256 += [np.bincount(chunk[:, c], minlength=256) for c in range(channels)]
    levels, count = np.arange(256), counts_Cx256[0].sum()
    mean = counts_Cx256 @ levels / count
    std = np.sqrt(counts_Cx256 @ levels**2 / count - mean**2)
    std[std == 0] = 255.0  # a constant channel carries no information; leave its scale alone
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def read_image(path: str | Path, image_shape: tuple[int, int, int], levels: Levels | None = None) -> np.ndarray:
    """Reads a JPEG, PNG, WebP, AVIF, TIFF, BMP or PGM file as uint8 HxWxC.

    Applies the EXIF orientation, puts transparent parts on white, scales values of more than 8 bits by `levels`, and
    converts to the channels and size of `image_shape`; see `fit_image`.

    Raises:
      UserError: the file cannot be read; the message names it.
    """
    with reading(path), open_image(path, max(image_shape[:2])) as image:
        return fit_image(ImageOps.exif_transpose(image), image_shape, levels)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Context in which errors of Pillow become UserErrors that name the file."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"image {readable(path)!r} cannot be read ({error}): shrink it, or set the environment variable "
            f"{image_file.MAX_PIXELS} to a larger number"
        ) from error
    except Exception as error:  # Pillow raises a dozen kinds of error on damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"image {readable(path)!r} cannot be read ({reason}): replace it with a complete JPEG, PNG, WebP, AVIF, "
            "TIFF, BMP or PGM file, or leave it out (`skip_bad_images` does)"
        ) from error


def fit_image(image: Image.Image, image_shape: tuple[int, int, int], levels: Levels | None = None) -> np.ndarray:
    """Resizes an image to cover (height, width), bilinear with antialiasing, and crops the centre.

    Values of more than 8 bits are first scaled by `levels`, see `image_file.to_8_bits`.

    Returns uint8 HxWxC. An image that already has this size keeps its pixels.

    Raises:
      UserError: `image_shape` has neither 1 nor 3 channels.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise UserError(f"images have {channels} channels: convert them to 1 (grey) or 3 (colour)")
    if image_file.is_deep(image):
        image = image_file.to_8_bits(image, levels)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode == "LAB":  # Pillow converts it to nothing else
        image = image.convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels)


def fit_images(images: Iterable[np.ndarray], count: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Resizes `count` images, uint8 HxWxC with 1 or 3 channels, by `fit_image`; returns uint8 NxHxWxC."""
    fitted = np.empty((count, *image_shape), np.uint8)
    for i, image in enumerate(images):
        fitted[i] = fit_image(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), image_shape)
    return fitted
