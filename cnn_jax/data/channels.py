"""Converts between grey and colour images (`channels`), to match what the weights were trained on."""

from dataclasses import dataclass

import numpy as np

from cnn_jax.data.sources import ArraySpec, DerivedSource, Example, Source
from cnn_jax.errors import UserError

KINDS = {1: "grey", 3: "colour"}
_LUMA = np.array([19595, 38470, 7471])  # 0.299, 0.587 and 0.114 of ITU-R BT.601, in units of 2**-16


@dataclass(frozen=True)
class ConvertedSource(DerivedSource):
    """`source`, which has 1 or 3 channels, converted to `channels`."""

    channels: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        height, width, _ = self.source.image_shape
        return height, width, self.channels

    @property
    def spec(self) -> dict[str, ArraySpec]:
        """The arrays of one example."""
        return {**super().spec, "image": ArraySpec(self.image_shape, np.dtype(np.uint8))}

    @property
    def fingerprint(self) -> str | None:
        """The source's fingerprint and the number of channels."""
        own = self.source.fingerprint
        return None if own is None else f"{own} in {self.channels} channels"

    def __getitem__(self, index: int, /) -> Example:
        example = self.source[index]
        return {**example, "image": convert(example["image"], self.channels)}


def with_channels(source: Source, channels: int) -> Source:
    """Returns the source converted to 1 (grey) or 3 (colour) channels, or itself if it already has them.

    Raises:
      UserError: its images have neither 1 nor 3 channels.
    """
    given = source.image_shape[-1]
    if given == channels:
        return source
    if given not in KINDS:
        raise UserError(
            f"{source.name} has {given} channels, and only grey (1) and colour (3) images can be converted: leave out "
            f"`channels` {channels}"
        )
    return ConvertedSource(source, channels)


def convert(image_HxWxC: np.ndarray, channels: int) -> np.ndarray:
    """Converts uint8 HxWx1 to HxWx3 by repeating, or HxWx3 to HxWx1 by ITU-R BT.601 luma, rounded as Pillow does."""
    if channels == 3:
        return np.repeat(image_HxWxC, 3, axis=-1)
    return ((image_HxWxC.astype(np.int64) @ _LUMA + 2**15) >> 16).astype(np.uint8)[..., None]
