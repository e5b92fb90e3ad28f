"""Reads TensorFlow Datasets by name from array_record files on disk, without TensorFlow.

TFDS takes a second to import, so it is imported inside functions only.
"""

import io
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.config import Config
from cnn_jax.data.image_file import open_image
from cnn_jax.data.preprocess import fit_image
from cnn_jax.data.sources import Example, Splits
from cnn_jax.errors import UserError, nearest, unknown

# Validation splits customary in papers; for other sets see `default_splits`.
_DEFAULT_SPLITS = {
    "mnist": Splits("train[:55000]", "train[55000:]", "test"),
    "cifar10": Splits("train[:45000]", "train[45000:]", "test"),
    "cifar100": Splits("train[:45000]", "train[45000:]", "test"),
}
_LISTED = 4  # names spelled out in a message; the rest are counted
_DATASET_FLAGS = ("--dataset", "--data-dir", "--train-split", "--validation-split", "--test-split")  # each with a value


@dataclass(frozen=True)
class TfdsSource:
    """A split of a TFDS set. `records` yields undecoded examples: dicts with the encoded image and the label."""

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str
    contents: str
    records: Any
    image_key: str
    label_key: str

    @property
    def labels(self) -> np.ndarray:
        """The label of every example, read without decoding images."""
        return np.array([int(record[self.label_key]) for record in self.records])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Example:
        try:
            record = self.records[index]
            with open_image(io.BytesIO(record[self.image_key]), max(self.image_shape[:2])) as image:
                pixels = fit_image(image, self.image_shape)
        except (RuntimeError, OSError) as error:  # from array_record and Pillow
            raise _damaged(self.name, self.fingerprint, error) from error
        return {"image": pixels, "label": int(record[self.label_key])}


def _damaged(name: str, where: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"cannot read {name} in {where} ({reason}): move that folder away and prepare the set again with "
        f"python -m cnn_jax data prepare {name}"
    )


def data_folder(data_dir: str | None) -> Path:
    """Returns the folder of TFDS sets: the argument, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_tfds(name: str, split: str, data_dir: str | None, image_size: int | None) -> TfdsSource:
    """Opens a split of the set `name`, `name:version` or `name/config`. See `cnn_jax.data.open_source`.

    Raises:
      UserError: the set is unknown, not prepared, not in array_record format or not for classification, or there is no
        such split.
    """
    import tensorflow_datasets as tfds

    builder = _find(name, data_dir)
    features = builder.info.features
    image_key, label_key = _image_and_label(name, features, builder.info.supervised_keys)
    if features[image_key].np_dtype.kind == "f":  # stored in a way of its own
        raise UserError(f"{name} has images of floats, which are not supported: choose another data set")
    try:
        records = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise UserError(
            f"{name} in {builder.data_path} is stored as {builder.info.file_format}, not array_record: move that "
            f"folder away and run {_prepare_command(name, data_folder(data_dir))}"
        ) from error
    except ValueError as error:
        parts = ", ".join(f"{part} ({info.num_examples} examples)" for part, info in builder.info.splits.items())
        raise UserError(f"{name} has no split {split!r}, only {parts}: write it like test or train[:90%]") from error
    except RuntimeError as error:
        raise _damaged(name, str(builder.data_path), error) from error
    label = features[label_key]
    return TfdsSource(
        name=name,
        split=split,
        class_names=tuple(label.names or map(str, range(label.num_classes))),
        image_shape=_image_shape(name, features[image_key].shape, image_size),
        fingerprint=f"{builder.info.full_name} {builder.data_path} {builder.info.splits.total_num_examples}",
        contents=f"{builder.info.full_name} {builder.info.splits.total_num_examples} {split}",
        records=records,
        image_key=image_key,
        label_key=label_key,
    )


def default_splits(name: str, data_dir: str | None) -> Splits:
    """Returns the set's own splits; tenths of `train` replace missing ones.

    For MNIST the last 5,000 of 60,000 training images validate, for CIFAR the last 5,000 of 50,000.

    Raises:
      UserError: the set is unknown or not prepared (except MNIST and CIFAR), or has no train split.
    """
    if known := _DEFAULT_SPLITS.get(name.partition(":")[0].lower()):  # TFDS accepts MNIST for mnist
        return known
    parts = set(_find(name, data_dir).info.splits)
    if "train" not in parts:
        raise UserError(f"{name} has no train split, only {', '.join(sorted(parts))}: name the splits to use")
    validation = "validation" if "validation" in parts else None
    test = "test" if "test" in parts else None
    if validation and test:
        return Splits()
    if test:
        return Splits("train[:90%]", "train[90%:]", test)
    if validation:  # as on ImageNet, where papers test on the validation set
        return Splits("train[:90%]", "train[90%:]", validation)
    return Splits("train[:80%]", "train[80%:90%]", "train[90%:]")


def _find(name: str, data_dir: str | None) -> Any:
    folder = data_folder(data_dir)
    builder = find_prepared(name, folder)
    if builder is None:
        raise absent(name, folder)
    return builder


def find_prepared(name: str, folder: Path) -> Any | None:
    """Returns TFDS's builder of a set prepared in `folder`, or None if it is not prepared.

    Raises:
      UserError: `name` is malformed.
    """
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(name, data_dir=str(folder))
    except registered.DatasetNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"data set {name!r} is not a name, name:version or name/config: write it like mnist") from error


def absent(name: str, folder: Path) -> UserError:
    """Returns the error for a set that is not in `folder`, whether TFDS knows it or not."""
    import tensorflow_datasets as tfds

    base = name.partition(":")[0].partition("/")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        ours = ["digits", "xo", "synthetic:32x32x3:10", "folder:PATH"]
        if nearest(base, [*known, *ours]):
            return unknown("data set", name, [*known, *ours])
        return UserError(f"unknown data set {name!r}: choose {', '.join(ours)}, mnist, cifar10 or another name of TFDS")
    versions = sorted(path.name for path in (folder / base).glob("*") if path.is_dir())
    found = f" (found: {', '.join(versions)})" if versions else ""
    if name != base:
        try:
            tfds.builder(name, data_dir=str(folder))
        except (AssertionError, ValueError):
            return cannot_prepare(name, found)
    return UserError(
        f"data set {name!r} is not in {folder}{found}: run {_prepare_command(name, folder)}; or use data that ships "
        f"with the package: {_command_on_digits()}"
    )


def cannot_prepare(name: str, found: str = "") -> UserError:
    """Returns the error for a set that TFDS knows, but not in this config or version; `found` tells what is on disk."""
    import tensorflow_datasets as tfds

    base = name.partition(":")[0].partition("/")[0]
    kind: Any = tfds.builder_cls(base)
    known = [f"{base}/{config.name}" for config in kind.BUILDER_CONFIGS] or [base]
    return UserError(
        f"TFDS cannot prepare data set {name!r}{found}: choose {listed(known)}, version {kind.VERSION or 'left out'}"
    )


def listed(names: Iterable[str]) -> str:
    """Joins names with commas; beyond the first few it gives their number."""
    all_names = list(names)
    rest = f" and {len(all_names) - _LISTED} more" if len(all_names) > _LISTED else ""
    return ", ".join(all_names[:_LISTED]) + rest


def _prepare_command(name: str, folder: Path) -> str:
    return f"python -m cnn_jax data prepare {name} --data-dir {shlex.quote(str(folder))}"


def _command_on_digits() -> str:
    """Returns the experiment's command as typed, but on digits; outside an experiment, one that works.

    An experiment is a program with a `CONFIG`.
    """
    main = sys.modules["__main__"]
    module, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if (module is None and file is None) or not isinstance(getattr(main, "CONFIG", None), Config):
        return "python -m experiments.digits_lenet5"
    program = f"python -m {module.name}" if module is not None else shlex.join(["python", sys.argv[0]])
    return f"{program} {shlex.join([*_drop_flags(sys.argv[1:], _DATASET_FLAGS), '--dataset', 'digits'])}"


def _drop_flags(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Removes flags and their values, `--flag value` or `--flag=value`, from the words of a command."""
    kept, rest = [], iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag.replace("_", "-") not in flags:
            kept.append(word)
        elif not equals:
            next(rest, None)
    return kept


def _image_and_label(name: str, features: Any, supervised_keys: Any) -> tuple[str, str]:
    """Returns the names of the image and label features: the set's supervised keys, or its only image and label."""
    import tensorflow_datasets as tfds

    images, labels = (
        [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    if supervised_keys and supervised_keys[0] in images and supervised_keys[1] in labels:
        return supervised_keys[0], supervised_keys[1]
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise UserError(
        f"{name} has the features {', '.join(sorted(features))}, not one image and one class label: choose an image "
        "classification set"
    )


def _image_shape(name: str, shape: tuple[int | None, ...], image_size: int | None) -> tuple[int, int, int]:
    height, width, channels = shape
    height, width = (image_size or height), (image_size or width)
    if height is None or width is None:
        raise UserError(f"images of {name} differ in size: set `image_size`, for example to 64")
    return height, width, channels or 3
