"""`Source`, the interface of every data set, and split syntax."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from cnn_jax.errors import UserError, unknown


class ArraySpec(NamedTuple):
    """Shape and type of one array of an example, such as ((32, 32, 3), uint8)."""

    shape: tuple[int, ...]
    dtype: Any


class Example(TypedDict):
    """One labelled image: `image` is uint8 HxWxC in [0, 255], `label` is in [0, number of classes)."""

    image: np.ndarray
    label: int


class Source(Protocol):
    """A split of a data set with random access. Reading example `i` twice gives the same pixels.

    A source whose examples are not an image and a label declares their arrays in an attribute `spec`; see
    `example_spec`.
    """

    @property
    def name(self) -> str:
        """Data set name as given by the user."""
        ...

    @property
    def split(self) -> str:
        """Split as given by the user, such as `train[:90%]`."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, indexed by label."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Changes whenever the decoded pixels may change; None if decoding is too cheap to cache."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def example_spec(source: Source) -> dict[str, ArraySpec]:
    """Returns the arrays of one example by name: `source.spec` if it has one, else those of an image and its label.

    >>> example_spec(ArraySource("mine", "train", ("a",), np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, int)))["image"]
    ArraySpec(shape=(8, 8, 1), dtype=dtype('uint8'))
    """
    declared = getattr(source, "spec", None)
    if declared is not None:
        return dict(declared)
    return {"image": ArraySpec(source.image_shape, np.dtype(np.uint8)), "label": ArraySpec((), np.dtype(np.int32))}


def describe_contents(source: Source, arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Describes the examples of a source, so that a resumed run notices if they have changed.

    Args:
        source: the examples.
        arrays: all of them, if they are in memory.

    Returns:
        "examples", their number; and "contents", a checksum of the source's attribute of that name, a text that
        changes with the examples or their order, but not with the place where they are stored. A source without one is
        described by its arrays.
    """
    contents = getattr(source, "contents", None)
    if contents is None and arrays:
        sums = {name: zlib.crc32(np.ascontiguousarray(array).data) for name, array in sorted(arrays.items())}
        contents = str(sums)
    checksum = {} if contents is None else {"contents": f"{zlib.crc32(contents.encode(errors='surrogateescape')):08x}"}
    return {"examples": len(source), **checksum}


def read_labels(source: Source) -> np.ndarray:
    """Returns the label of every example, integers (N,): from the source's attribute `labels` if it has one.

    Otherwise all examples are read, images too.
    """
    labels = getattr(source, "labels", None)
    return np.array([source[i]["label"] for i in range(len(source))]) if labels is None else np.asarray(labels)


@dataclass(frozen=True)
class DerivedSource:
    """A source derived from another; a subclass overrides what differs and implements `__getitem__`."""

    source: Source

    @property
    def name(self) -> str:
        """Data set name as given by the user."""
        return self.source.name

    @property
    def split(self) -> str:
        """Split as given by the user."""
        return self.source.split

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, indexed by label."""
        return self.source.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return self.source.image_shape

    @property
    def spec(self) -> dict[str, ArraySpec]:
        """The arrays of one example."""
        return example_spec(self.source)

    @property
    def levels(self) -> tuple[float, float] | None:
        """As the source's, see `Preprocess`; None for images of 8 bits."""
        return getattr(self.source, "levels", None)

    @property
    def contents(self) -> str | None:
        """As the source's, see `describe_contents`."""
        return getattr(self.source, "contents", None)

    @property
    def labels(self) -> np.ndarray | None:
        """As the source's, see `read_labels`."""
        return getattr(self.source, "labels", None)

    @property
    def groups(self) -> np.ndarray | None:
        """The number of every example's group, integers; None without groups. See `own.split_off`."""
        return getattr(self.source, "groups", None)

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class ArraySource:
    """Examples held in memory: `images` uint8 NxHxWxC, `labels` int32 N.

    >>> source = ArraySource("mine", "train", ("cat", "dog"), np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 0]))
    >>> len(source), source.image_shape, source.labels.tolist()
    (3, (8, 8, 1), [0, 1, 0])
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    fingerprint: None = None

    @property
    def contents(self) -> str:
        """Checksums of images and labels, see `describe_contents`."""
        return " ".join(str(zlib.crc32(np.ascontiguousarray(array).data)) for array in (self.images, self.labels))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Example:
        return {"image": self.images[index], "label": int(self.labels[index])}


@dataclass(frozen=True)
class ImageSource:
    """Images without labels, held in memory, uint8 NxHxWxC; for tasks that need none, such as reconstruction."""

    name: str
    split: str
    images: np.ndarray
    class_names: tuple[str, ...] = ()
    fingerprint: None = None

    @property
    def contents(self) -> str:
        """Checksum of the images, see `describe_contents`."""
        return str(zlib.crc32(np.ascontiguousarray(self.images).data))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @property
    def spec(self) -> dict[str, ArraySpec]:
        """The only array of an example, its image."""
        return {"image": ArraySpec(self.image_shape, np.dtype(np.uint8))}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Any:
        return {"image": self.images[index]}


@dataclass(frozen=True)
class Splits:
    """The three splits of an experiment, in split syntax. The validation split is never the test set."""

    train: str = "train"
    validation: str = "validation"
    test: str | None = "test"


_SPLIT = re.compile(r"(?P<name>\w+)(\[(?P<start>-?\d[\d_]*%?)?:(?P<stop>-?\d[\d_]*%?)?\])?")


def parse_split(split: str, sizes: Mapping[str, int]) -> tuple[str, range]:
    """Parses TFDS's split syntax: a name, optionally with a slice in examples or per cent.

    Args:
      split: such as `train`, `train[:55000]`, `train[-100:]` or `train[90%:]`.
      sizes: number of examples in each available split.

    Returns:
      The split's name and a non-empty range of its examples. Percentages are rounded to the nearest example, so
      `[:90%]` and `[90%:]` are disjoint and together cover the split.

    Raises:
      UserError: the split is unknown, malformed, empty or out of range.

    >>> parse_split("train[90%:]", {"train": 200})
    ('train', range(180, 200))
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(f"split {split!r} is neither a name nor a slice of one: write it like test or train[:90%]")
    name = match["name"]
    if name not in sizes:
        raise unknown("split", name, sizes)
    size = sizes[name]
    start, stop = _boundary(match["start"], size, 0), _boundary(match["stop"], size, size)
    if not 0 <= start < stop <= size:
        raise UserError(f"split {split!r} is empty or out of range: {name!r} has {size} examples, so change the slice")
    return name, range(start, stop)


def _boundary(text: str | None, size: int, default: int) -> int:
    if text is None:
        return default
    value = round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)
    return value + size if text.startswith("-") else value
