"""Procedural data sets: `xo`, and `synthetic` for timing and tests.

Example i depends only on the split, i and the arguments: each example has its own random generator, Philox keyed by
(split, i). Its label is i mod K.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any

import numpy as np

from cnn_jax.data.sources import Example, parse_split
from cnn_jax.errors import UserError, unknown

_SPLIT_KEYS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class ProceduralSource:
    """The `rows` of a split; each image comes from `draw(label, generator) -> uint8 HxWxC`."""

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    part: str
    rows: range
    draw: Callable[[int, np.random.Generator], np.ndarray]
    fingerprint: None = None

    @property
    def labels(self) -> np.ndarray:
        """The label of every example."""
        return np.array(self.rows) % len(self.class_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Example:
        row = self.rows[index]
        label = row % len(self.class_names)
        return {"image": self.draw(label, _generator(_SPLIT_KEYS[self.part], row)), "label": label}


def _generator(split_key: int, row: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([split_key, row], np.uint64)))


def _split_sizes(train: int) -> dict[str, int]:
    return {"train": train, "validation": max(1, train // 4), "test": max(1, train // 4)}


@dataclass(frozen=True)
class XO:
    """Arguments of `xo`. The nuisances are those of the lecture: translation, scale, rotation, stroke weight, noise.

    Each nuisance but `noise` is drawn per image, uniformly between minus and plus its value.
    """

    size: int = 28
    """Height and width of the image in pixels, at least 8."""
    translation: float = 0.15
    """Shift of the centre along each axis, as a fraction of the size, in [0, 0.5]."""
    scale: float = 0.3
    """Relative change of the letter's size, in [0, 0.9]."""
    rotation: float = 30.0
    """Rotation in degrees, in [0, 180]."""
    weight: float = 0.5
    """Relative change of the stroke width, in [0, 0.9]."""
    noise: float = 0.05
    """Standard deviation of Gaussian pixel noise, in [0, 1], where full ink is 1."""
    train: int = 4000
    """Number of training examples; validation and test have a quarter as many each."""

    def __post_init__(self):
        limits = {
            "size": (8, 4096),
            "translation": (0, 0.5),
            "scale": (0, 0.9),
            "rotation": (0, 180),
            "weight": (0, 0.9),
            "noise": (0, 1),
            "train": (8, 10**9),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}={getattr(self, name)} for xo: set it between {low} and {high}")


def open_xo(argument: str, split: str, image_size: int | None) -> ProceduralSource:
    """Opens `xo`: grey images of the letters X and O, white on black.

    Args:
      argument: comma-separated `key=value` pairs for fields of `XO`; empty for the defaults.
      split: the split, in split syntax.
      image_size: same as the argument `size`.
    """
    arguments = _parse_xo(argument, image_size)
    part, rows = parse_split(split, _split_sizes(arguments.train))
    name = f"xo:{argument}" if argument else "xo"
    shape = (arguments.size, arguments.size, 1)
    return ProceduralSource(name, split, ("X", "O"), shape, part, rows, partial(draw_letter, arguments))


def _parse_xo(argument: str, image_size: int | None) -> XO:
    kinds = {field.name: type(field.default) for field in fields(XO)}
    values: dict[str, Any] = {} if image_size is None else {"size": image_size}
    for pair in filter(None, argument.split(",")):
        key, _, text = pair.partition("=")
        if key not in kinds:
            raise unknown("argument of xo", key, kinds)
        try:
            value = kinds[key](text)
        except ValueError as error:
            raise UserError(
                f"{pair!r} for xo is not {key}= and a number: write it like {key}={getattr(XO, key)}"
            ) from error
        if values.setdefault(key, value) != value:
            raise UserError(f"{key} of xo is given as both {values[key]} and {value}: drop one")
    return XO(**values)


def draw_letter(arguments: XO, label: int, generator: np.random.Generator) -> np.ndarray:
    """Draws an anti-aliased X (label 0) or O (label 1), uint8 (size, size, 1).

    Without nuisances the letter spans 0.6 of the image, and its strokes 0.1. Edges fade over one pixel.
    """
    shift_y, shift_x, scale, turn, weight = generator.uniform(-1, 1, 5)
    radius = 0.3 * arguments.size * (1 + arguments.scale * scale)
    stroke = 0.1 * arguments.size * (1 + arguments.weight * weight)
    angle = np.deg2rad(arguments.rotation * turn)

    grid = np.arange(arguments.size) - (arguments.size - 1) / 2
    y = grid[:, None] - shift_y * arguments.translation * arguments.size
    x = grid[None, :] - shift_x * arguments.translation * arguments.size
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    if label == 0:
        distance = np.minimum(_from_diagonal(y, x, radius), _from_diagonal(y, -x, radius))
    else:
        distance = np.abs(np.hypot(y, x) - radius)
    ink = np.clip((stroke + 1) / 2 - distance, 0, 1)
    ink = ink + arguments.noise * generator.standard_normal(ink.shape)
    return np.rint(255 * ink.clip(0, 1)).astype(np.uint8)[..., None]


def _from_diagonal(y: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """Distance of (y, x) from the segment between (-r, -r) / sqrt 2 and (r, r) / sqrt 2."""
    along, across = (y + x) / np.sqrt(2), (y - x) / np.sqrt(2)
    return np.hypot(np.maximum(np.abs(along) - radius, 0), across)


def open_synthetic(argument: str, split: str, image_size: int | None) -> ProceduralSource:
    """Opens `synthetic:HxWxC:K` or `synthetic:HxWxC:K:N`: a random pattern of 4x4 patches per class, plus noise.

    N is the number of training examples, by default 2,048; validation and test have a quarter as many each.
    """
    advice = "write synthetic:HxWxC:K or synthetic:HxWxC:K:N with positive numbers, such as synthetic:32x32x3:10"
    try:
        shape_text, classes_text, *rest = argument.split(":")
        height, width, channels = (int(size) for size in shape_text.split("x"))
        num_classes, (train,) = int(classes_text), [int(text) for text in rest] or [2048]
    except ValueError as error:
        raise UserError(f"'synthetic:{argument}' cannot be read: {advice}") from error
    if min(height, width, channels, num_classes, train) < 1:
        raise UserError(f"'synthetic:{argument}' cannot be read: {advice}")
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(f"'synthetic:{argument}' sets its own size: leave out `image_size` {image_size}")
    part, rows = parse_split(split, _split_sizes(train))
    shape = (height, width, channels)
    names = tuple(str(label) for label in range(num_classes))
    return ProceduralSource(f"synthetic:{argument}", split, names, shape, part, rows, partial(draw_pattern, shape))


def draw_pattern(image_shape: tuple[int, int, int], label: int, generator: np.random.Generator) -> np.ndarray:
    """Draws class `label`'s pattern (0 to 191) and adds uniform noise (0 to 63); uint8 HxWxC."""
    return _pattern(image_shape, label) + generator.integers(0, 64, image_shape, np.uint8)


@lru_cache(maxsize=1024)
def _pattern(image_shape: tuple[int, int, int], label: int) -> np.ndarray:
    height, width, channels = image_shape
    patches = _generator(len(_SPLIT_KEYS), label).integers(0, 192, (4, 4, channels), np.uint8)
    return patches[np.arange(height) * 4 // height][:, np.arange(width) * 4 // width]
