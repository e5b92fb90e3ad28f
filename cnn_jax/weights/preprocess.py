"""Preprocessing for published weights: resize with Pillow, centre crop, normalise."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cnn_jax.data.image_file import open_image
from cnn_jax.data.preprocess import Preprocess, fit_image, reading
from cnn_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class PublishedPreprocess(Preprocess):
    """Preprocessing of a published evaluation: resize the shorter side to `resize`, then crop the centre.

    torchvision and timm evaluate with Pillow's filters; those of other libraries cost up to 1 % of accuracy.

    Attributes:
      resize: pixels of the shorter side before the crop; at least the larger side of `image_shape`.
      interpolation: "bilinear" or "bicubic".

    Raises:
      UserError: `resize` is too small, or the interpolation unknown; also as `Preprocess`.

    >>> preprocess = PublishedPreprocess((4, 4, 3), IMAGENET_MEAN, IMAGENET_STD, resize=5)
    >>> preprocess.fit(Image.new("L", (10, 20), 128)).shape
    (4, 4, 3)
    """

    resize: int = 256
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolation not in _FILTERS or self.resize < max(self.image_shape[:2]):
            raise UserError(
                f"resize is {self.resize} and interpolation {self.interpolation!r} for {self.image_shape} images: "
                f"resize must be at least {max(self.image_shape[:2])}, interpolation one of {', '.join(_FILTERS)}"
            )

    def read(self, path: str | Path) -> np.ndarray:
        """Reads, resizes and crops an image file; returns uint8 HxWxC.

        Raises:
          UserError: the file cannot be read; names it.
        """
        with reading(path), open_image(path, self.resize) as image:
            return self.fit(ImageOps.exif_transpose(image))

    def fit(self, image: Image.Image) -> np.ndarray:
        """Resizes and crops one image; returns uint8 HxWxC."""
        height, width, channels = self.image_shape
        pixels = fit_image(image, (image.height, image.width, channels), self.levels)  # colours and transparency only
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        # The shorter side is exact, the longer one rounded down, as in torchvision.
        width_of, height_of = (self.resize * side // min(image.size) for side in image.size)
        resized = np.asarray(image.resize((width_of, height_of), _FILTERS[self.interpolation]))
        top, left = round((height_of - height) / 2), round((width_of - width) / 2)
        return resized[top : top + height, left : left + width].reshape(height, width, channels)

    @classmethod
    def from_json(cls, text: str, file: str | Path = "preprocessing") -> Preprocess:
        """Reads the output of `to_json`, of this class or of `Preprocess`.

        Args:
          text: the JSON.
          file: where it was read from, for the error.

        Raises:
          UserError: `text` is something else.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            own = {name: fields.pop(name) for name in ("resize", "interpolation") if name in fields}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): save it again with to_json") from error
        plain = Preprocess.from_json(json.dumps(fields), file)
        try:
            return cls(plain.image_shape, plain.mean, plain.std, **own) if own else plain
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{file} has {own} for {plain.image_shape} images: resize must be at least their larger side, "
                f"interpolation one of {', '.join(_FILTERS)}"
            ) from error


def from_timm(config: Mapping[str, Any], given: str = "weights") -> PublishedPreprocess:
    """Converts the `pretrained_cfg` of a timm model: timm's own evaluation, at the image size of training.

    Args:
        config: the `pretrained_cfg`.
        given: name of the model in messages.

    Raises:
        UserError: a value is missing or not supported.
    """
    try:
        channels, height, width = config["input_size"]
        if config.get("crop_mode", "center") != "center" or height != width:
            raise ValueError(f"crop_mode {config.get('crop_mode')} of {height}x{width}")
        return PublishedPreprocess(
            (height, width, channels),
            tuple(config["mean"]),
            tuple(config["std"]),
            resize=math.floor(height / config["crop_pct"]),
            interpolation=config["interpolation"],
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).partition(": ")[0] if isinstance(error, UserError) else error  # without its advice
        raise UserError(
            f"the pretrained_cfg of {given} cannot be used ({reason}): it needs input_size, crop_pct, "
            f"interpolation ({', '.join(_FILTERS)}), mean, std and a centre crop"
        ) from error
