"""The user's own data: arrays, sources, and `package.module:attribute` on the command line."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn_jax.arguments import load_attribute
from cnn_jax.data.memory import check_memory
from cnn_jax.data.preprocess import fit_images
from cnn_jax.data.sources import (
    ArraySource,
    DerivedSource,
    Example,
    ImageSource,
    Source,
    Splits,
    example_spec,
    parse_split,
)
from cnn_jax.errors import UserError

# Images are uint8 NxHxWxC or NxHxW, labels integer N; a task without labels takes an array of images.
OwnData = Source | tuple[Any, Any] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Subset(DerivedSource):
    """The examples of a source at `rows`, in that order."""

    rows: Sequence[int] | np.ndarray
    part: str

    @property
    def split(self) -> str:
        """Split as given by the user."""
        return self.part

    @property
    def fingerprint(self) -> str | None:
        """The source's fingerprint and a hash of the rows."""
        own = self.source.fingerprint
        return None if own is None else f"{own} {hashlib.sha256(np.asarray(self.rows).tobytes()).hexdigest()}"

    @property
    def contents(self) -> str | None:
        """That of the source and of the choice of rows."""
        own = getattr(self.source, "contents", None)
        return None if own is None else f"{own} {hashlib.sha256(np.asarray(self.rows).tobytes()).hexdigest()}"

    @property
    def labels(self) -> np.ndarray | None:
        """Those of the source at the rows, see `read_labels`."""
        own = super().labels
        return None if own is None else own[np.asarray(self.rows)]

    @property
    def groups(self) -> np.ndarray | None:
        """Those of the source at the rows."""
        own = super().groups
        return None if own is None else own[np.asarray(self.rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Example:
        return self.source[int(self.rows[index])]


def as_source(
    data: OwnData, *, name: str = "arrays", split: str = "train", class_names: Sequence[str] | None = None
) -> Source:
    """Wraps arrays in a source; returns a source unchanged.

    Args:
        data: a `Source`, or images uint8 (N, H, W, C), grey ones also (N, H, W), and labels, integers (N,) or (N, 1);
            or the images alone.
        name: used in messages and in the record of the run.
        split: likewise.
        class_names: K names; default: "0" to the largest label.

    Raises:
        UserError: wrong array type, rank or length, or labels out of range.

    >>> as_source((np.zeros((3, 8, 8), np.uint8), [0, 1, 1])).image_shape
    (8, 8, 1)
    """
    if not isinstance(data, tuple | list):
        if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
            return ImageSource(name, split, _checked_images(np.asarray(data), name))
        if not all(hasattr(data, part) for part in ("__getitem__", "__len__", "class_names", "image_shape")):
            raise UserError(f"{name}: {type(data).__name__} is not a data set: pass (images, labels) or a Source")
        return data
    if len(data) != 2:
        raise UserError(f"{name}: got {len(data)} arrays: pass two, (images, labels)")
    images, labels = _checked_images(np.asarray(data[0]), name), np.asarray(data[1])
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{name}: labels are {labels.dtype} of shape {labels.shape}: pass one integer per image, shape "
            f"({len(images)},); for one-hot labels, pass labels.argmax(-1)"
        )
    if len(labels) != len(images):
        raise UserError(f"{name}: {len(images)} images but {len(labels)} labels: pass one label per image")
    names = tuple(str(label) for label in range(int(labels.max()) + 1)) if class_names is None else tuple(class_names)
    if labels.min() < 0 or labels.max() >= len(names):
        raise UserError(
            f"{name}: labels go from {labels.min()} to {labels.max()}: "
            f"pass labels from 0 to {len(names) - 1}, one for each of the {len(names)} classes"
        )
    return ArraySource(name, split, names, images, labels.astype(np.int32))


def _checked_images(images: np.ndarray, name: str) -> np.ndarray:
    """Returns images (N, H, W, C).

    Raises:
        UserError: wrong array type or rank.
    """
    if images.dtype != np.uint8:
        advice = ""
        if images.dtype.kind == "f" and images.size:
            factor = "images * 255" if float(np.nanmax(images)) <= 1.0 else "images"
            advice = f", by np.round({factor}).astype(np.uint8)"
        raise UserError(f"{name}: images are {images.dtype}: convert them to uint8 in [0, 255]{advice}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"{name}: images have shape {images.shape}: pass (N, H, W, C), or (N, H, W) for grey ones")
    return images


def resized(source: Source, size: int) -> Source:
    """Returns the source resized in memory to `size` x `size` (see `fit_images`), or itself if it has that size."""
    height, width, channels = source.image_shape
    if (height, width) == (size, size):
        return source
    shape = (size, size, channels)
    check_memory(len(source) * math.prod(shape), f"{source.name} of {size} pixels", "lower `image_size`")
    images = fit_images((source[index]["image"] for index in range(len(source))), len(source), shape)
    if "label" not in example_spec(source):
        return ImageSource(source.name, source.split, images)
    labels = np.asarray([source[index]["label"] for index in range(len(source))], np.int32)
    return ArraySource(source.name, source.split, source.class_names, images, labels)


def split_off(source: Source, share: float) -> tuple[Subset, Subset]:
    """Splits a source at random, the same way each time, into (the rest, a `share` of it).

    If the source has an attribute `groups`, integers (N,), examples of one group stay together, and the share is the
    nearest that whole groups make.

    Raises:
        UserError: `share` is not in (0, 1), or leaves one part empty.
    """
    groups = getattr(source, "groups", None)
    names, members, sizes = np.unique(
        np.arange(len(source)) if groups is None else groups, return_inverse=True, return_counts=True
    )
    words = np.random.Philox(key=np.array([0, 0], np.uint64)).random_raw(len(names))
    rank = np.argsort(np.argsort(words, kind="stable"))  # of each group
    ends = np.append(0, np.cumsum(sizes[np.argsort(rank)]))
    first = np.abs(ends - round(len(source) * share)).argmin()  # groups that are split off
    if not 0 < share < 1 or not 0 < first < len(names):
        what = "examples" if groups is None else f"examples in {len(names)} groups"
        raise UserError(
            f"a validation share of {share} of {len(source)} {what} leaves one part empty: set it between 0 and 1"
        )
    order, count = np.argsort(rank[members], kind="stable"), ends[first]
    return Subset(source, np.sort(order[count:]), "train"), Subset(source, np.sort(order[:count]), "validation")


def fingerprint(sources: Mapping[str, Source]) -> str:
    """Returns eight hex digits that change with the examples of the sources, their order and their classes."""
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(f"{name} {len(source)} {source.image_shape} {tuple(source.class_names)}".encode())
        # A source says what is in it, or at least how it is decoded; if it says nothing, look.
        told = getattr(source, "contents", None) or getattr(source, "fingerprint", None)
        digest.update(_sample(source) if told is None else str(told).encode(errors="surrogateescape"))
    return digest.hexdigest()[:8]


def _sample(source: Source, count: int = 8) -> bytes:
    """The contents of a few examples from all over a source."""
    rows = np.unique(np.linspace(0, len(source) - 1, count, dtype=int))
    examples = [source[int(row)] for row in rows]
    return b"".join(np.asarray(value).tobytes() for example in examples for _, value in sorted(example.items()))


def is_attribute(dataset: str) -> bool:
    """Whether the name of a data set is `package.module:attribute`.

    >>> is_attribute("mydata:photos"), is_attribute("svhn_cropped:3.1.0")
    (True, False)
    """
    module, _, attribute = dataset.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


@functools.lru_cache(maxsize=2)  # the user's function may be slow or random: all splits must come from one call
def own_splits(dataset: str) -> dict[str, Source]:
    """Opens `package.module:attribute`: data, a mapping from split names to data, or a function that returns one.

    Raises:
        UserError: it is something else, or its arrays cannot be used.
    """
    found: Any = load_attribute(dataset)
    if callable(found):
        found = found()
    if not isinstance(found, Mapping):
        found = {"train": found}
    if "train" not in found:
        raise UserError(f"{dataset} has the splits {', '.join(map(str, found)) or 'none'}: name one of them train")
    train = as_source(found["train"], name=dataset, split="train")
    names = train.class_names
    return {split: as_source(data, name=dataset, split=split, class_names=names) for split, data in found.items()}


def open_own(dataset: str, split: str, image_size: int | None = None) -> Source:
    """Opens one split, such as `train[:90%]`, of `own_splits`."""
    sources = own_splits(dataset)
    name, rows = parse_split(split, {split: len(source) for split, source in sources.items()})
    source = sources[name]
    part = source if len(rows) == len(source) else Subset(source, rows, split)
    return part if image_size is None else resized(part, image_size)


def default_splits(dataset: str) -> Splits:
    """Returns the splits of `own_splits`; without a validation split, the last tenth of train validates."""
    sources = own_splits(dataset)
    test = "test" if "test" in sources else None
    if "validation" in sources:
        return Splits("train", "validation", test)
    return Splits("train[:90%]", "train[90%:]", test)
