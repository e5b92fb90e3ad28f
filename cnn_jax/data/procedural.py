"""Data sets that are drawn, not read: `xo`, and `synthetic` for timing and for tests.

Example i of a split depends on the split, on i and on the arguments, and on nothing else: each has a random generator
of its own, Philox with (split, i) for its key. Labels take turns: example i is of class i mod K.
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
    """`rows` of a split whose images come from `draw(label, generator) -> uint8 HxWxC`."""

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    part: str
    rows: range
    draw: Callable[[int, np.random.Generator], np.ndarray]
    fingerprint: None = None

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
    """Arguments of `xo`, with the nuisances of the lecture: translation, scale, rotation, stroke weight, noise.

    Each nuisance is drawn anew for every image, uniformly between minus and plus its value (but `noise`).
    """

    size: int = 28
    """Height and width of the image, in pixels, at least 8."""
    translation: float = 0.15
    """Shift of the centre, as a fraction of the size, along each axis, in [0, 0.5]."""
    scale: float = 0.3
    """Change of the letter's size, as a fraction of it, in [0, 0.9]."""
    rotation: float = 30.0
    """Turn, in degrees, in [0, 180]."""
    weight: float = 0.5
    """Change of the stroke's width, as a fraction of it, in [0, 0.9]."""
    noise: float = 0.05
    """Standard deviation of normal noise on every pixel, on the scale where ink is 1, in [0, 1]."""
    train: int = 4000
    """Number of training examples; validation and test have a quarter of it each."""

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
                raise UserError(f"given xo {name}={getattr(self, name)}; expected {low} to {high}; change it")


def open_xo(argument: str, split: str, image_size: int | None) -> ProceduralSource:
    """Opens `xo`: grey images of class X or O, ink white on black.

    Args:
      argument: `key=value` pairs with commas between, of the fields of `XO`; empty for the defaults.
      split: in split syntax.
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
                f"given xo {pair!r}; expected {key}= and a number; write {key}={getattr(XO, key)}"
            ) from error
        if values.setdefault(key, value) != value:
            raise UserError(f"given xo {key} both as {values[key]} and as {value}; expected one; leave one out")
    return XO(**values)


def draw_letter(arguments: XO, label: int, generator: np.random.Generator) -> np.ndarray:
    """Draws one X (label 0) or O (label 1), uint8 size x size x 1, anti-aliased: ink fades over one pixel at the edge.

    Untouched by nuisances the letter spans 0.6 of the image, in strokes of 0.1 of it.
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
    """Distance of (y, x) from the stroke between (-r, -r) / sqrt 2 and (r, r) / sqrt 2."""
    along, across = (y + x) / np.sqrt(2), (y - x) / np.sqrt(2)
    return np.hypot(np.maximum(np.abs(along) - radius, 0), across)


def open_synthetic(argument: str, split: str, image_size: int | None) -> ProceduralSource:
    """Opens `synthetic:HxWxC:K` or `synthetic:HxWxC:K:N`: a pattern of 4x4 patches for each of K classes, and noise.

    N is the number of training examples, 2,048 unless given; validation and test have a quarter of it each.
    """
    expected = "expected synthetic:HxWxC:K or synthetic:HxWxC:K:N with positive numbers; write synthetic:32x32x3:10"
    try:
        shape_text, classes_text, *rest = argument.split(":")
        height, width, channels = (int(size) for size in shape_text.split("x"))
        num_classes, (train,) = int(classes_text), [int(text) for text in rest] or [2048]
    except ValueError as error:
        raise UserError(f"given 'synthetic:{argument}'; {expected}") from error
    if min(height, width, channels, num_classes, train) < 1:
        raise UserError(f"given 'synthetic:{argument}'; {expected}")
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(f"given 'synthetic:{argument}' and image size {image_size}; expected one size; leave one out")
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
