"""CIFAR-10 for a contest: images to train on, to score within the clock, and to score outside it."""

from dataclasses import dataclass

import numpy as np

from cnn_jax.data import default_splits, materialize, open_source
from cnn_jax.errors import UserError

TEST_IMAGES = 10_000  # in the complete official test set
SIZES = {"tune": (45_000, 5_000), "full": (50_000, TEST_IMAGES)}  # images to train on and to score

Split = tuple[np.ndarray, np.ndarray]  # images uint8 (N, H, W, 3), labels int32 (N,)


@dataclass(frozen=True)
class Data:
    """Images of a contest.

    Attributes:
        train: images to train on.
        test: images to score, within the clock.
        extra: more images, scored by our program only and outside the clock, or None.
        class_names: name of class k at position k.
    """

    train: Split
    test: Split
    extra: Split | None
    class_names: tuple[str, ...]


def load_data(
    split: str, data_dir: str | None, train_images: int | None = None, test_images: int | None = None
) -> Data:
    """Reads CIFAR-10.

    Args:
        split: "tune" trains on 45,000 training images and scores the other 5,000, with the test images as extra ones;
            "full" trains on all 50,000 and scores the 10,000 test images.
        data_dir: folder of TFDS sets, see `cnn_jax.data.open_source`.
        train_images, test_images: take only this many, the first.

    Raises:
        UserError: the set is not prepared, or for "full" the test set is incomplete.
    """

    def read(name: str) -> Split:
        arrays = materialize(open_source("cifar10", name, data_dir=data_dir))
        return np.asarray(arrays["image"]), np.asarray(arrays["label"])

    def first(part: Split, count: int | None) -> Split:
        return part[0][:count], part[1][:count]

    usual = default_splits("cifar10", data_dir)
    assert usual.test is not None, "the set has a test split"
    class_names = open_source("cifar10", usual.test, data_dir=data_dir).class_names
    official = read(usual.test)
    if split == "full":
        if len(official[0]) < TEST_IMAGES:
            raise UserError(
                f"the test split has {len(official[0]):,} images, and the split full needs {TEST_IMAGES:,}: choose the "
                "split tune, or prepare the complete set"
            )
        return Data(first(read("train"), train_images), first(official, test_images), None, class_names)
    train, validation = first(read(usual.train), train_images), first(read(usual.validation), test_images)
    return Data(train, validation, official, class_names)


def random_data(split: str, train_images: int | None = None, test_images: int | None = None) -> Data:
    """Makes random images and labels of CIFAR-10's shape, for a measurement of time alone. Args as for `load_data`."""
    random = np.random.default_rng(0)

    def draw(usual: int, count: int | None) -> Split:
        images = min(usual, count or usual)
        pixels = random.integers(0, 256, (images, 32, 32, 3), np.uint8)
        return pixels, random.integers(0, 10, images, np.int32)

    train, test = SIZES[split]
    return Data(draw(train, train_images), draw(test, test_images), None, tuple("0123456789"))
