"""CIFAR-10 for a contest: what to train on, what to be scored on, and what is scored beside."""

from dataclasses import dataclass

import numpy as np

from cnn_jax.data import default_splits, materialize, open_source
from cnn_jax.errors import UserError

TEST_IMAGES = 10_000  # of the whole official set

Split = tuple[np.ndarray, np.ndarray]  # images uint8 (N, H, W, 3), labels int32 (N,)


@dataclass(frozen=True)
class Data:
    """Images of a contest.

    Attributes:
        train: to train on.
        test: to be scored on, within the clock.
        beside: more of them, scored by our program only, outside the clock; None for none.
        class_names: name of class k at position k.
    """

    train: Split
    test: Split
    beside: Split | None
    class_names: tuple[str, ...]


def load_data(
    split: str, data_dir: str | None, train_images: int | None = None, test_images: int | None = None
) -> Data:
    """Reads CIFAR-10.

    Args:
        split: "tune": 45,000 training images, scored on the other 5,000, and beside on the test images there are;
            "full": all 50,000, scored on the 10,000 test images.
        data_dir: folder of TFDS sets, see `cnn_jax.data.open_source`.
        train_images, test_images: take only the first so many.

    Raises:
        UserError: the set is not there, or for "full" not whole.
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
                f"given --split full, but the test split there has {len(official[0]):,} images; expected "
                f"{TEST_IMAGES:,}; give --split tune, or prepare the whole set"
            )
        return Data(first(read("train"), train_images), first(official, test_images), None, class_names)
    train, validation = first(read(usual.train), train_images), first(read(usual.validation), test_images)
    return Data(train, validation, official, class_names)
