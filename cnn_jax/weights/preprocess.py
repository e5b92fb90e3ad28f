"""Preprocessing for published weights: resize with Pillow, centre crop, normalise."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cnn_jax.data.preprocess import Preprocess, fit_image
from cnn_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class PublishedPreprocess(Preprocess):
    """Preprocessing of a published evaluation: the shorter side to `resize`, then the middle of the image.

    Pillow's filters are what torchvision and timm evaluate with; those of other libraries cost up to 1 % of accuracy.

    Attributes:
      resize: pixels of the shorter side before the middle is cut out; at least the larger side of `image_shape`.
      interpolation: "bilinear" or "bicubic".

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
                f"given resize {self.resize} and interpolation {self.interpolation!r} for {self.image_shape} images; "
                f"expected at least their larger side, and one of {', '.join(_FILTERS)}; correct them"
            )

    def read(self, path: str | Path) -> np.ndarray:
        """Reads an image file; returns uint8 HxWxC. Otherwise as `cnn_jax.data.preprocess.read_image`."""
        try:
            with Image.open(path) as image:
                return self.fit(ImageOps.exif_transpose(image))
        except Exception as error:  # Pillow raises a dozen kinds on damaged files
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"given image {str(path)!r} that cannot be read ({reason}); expected a whole JPEG, PNG, WebP, BMP or "
                "PGM file; replace it, or leave it out"
            ) from error

    def fit(self, image: Image.Image) -> np.ndarray:
        """Resizes and crops one image; returns uint8 HxWxC."""
        height, width, channels = self.image_shape
        pixels = fit_image(image, (image.height, image.width, channels))  # colours and transparency only
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        # The shorter side exactly; the longer one rounded down, as torchvision does.
        width_of, height_of = (self.resize * side // min(image.size) for side in image.size)
        resized = np.asarray(image.resize((width_of, height_of), _FILTERS[self.interpolation]))
        top, left = round((height_of - height) / 2), round((width_of - width) / 2)
        return resized[top : top + height, left : left + width].reshape(height, width, channels)

    @classmethod
    def from_json(cls, text: str, file: str | Path = "preprocessing") -> Preprocess:
        """Reads what `to_json` of this class, or of `Preprocess`, gave.

        Raises:
          UserError: naming `file`, when `text` is something else.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            own = {name: fields.pop(name) for name in ("resize", "interpolation") if name in fields}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"given {file} that cannot be read ({error}); expected what to_json gives; write it again"
            ) from error
        plain = Preprocess.from_json(json.dumps(fields), file)
        try:
            return cls(plain.image_shape, plain.mean, plain.std, **own) if own else plain
        except (TypeError, ValueError) as error:
            raise UserError(
                f"given {file} with {own} for {plain.image_shape} images; expected a resize of at least their larger "
                f"side, and one of {', '.join(_FILTERS)}; write it again"
            ) from error


def from_timm(config: Mapping[str, Any], given: str = "weights") -> PublishedPreprocess:
    """Reads the `pretrained_cfg` of a timm model on the hub, as timm's own evaluation at the size of training does.

    Raises:
        UserError: a value is missing or not known here.
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
        reason = str(error).partition(";")[0].removeprefix("given ")  # of a UserError: what was given
        raise UserError(
            f"given {given}, whose pretrained_cfg cannot be used ({reason}); expected input_size, crop_pct, "
            f"interpolation ({', '.join(_FILTERS)}), mean, std and a central crop; correct config.json"
        ) from error
