"""`digits`: 1,797 real handwritten digits of 8x8 pixels that ship with the package, so that everything runs offline.

They are the test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, under the Creative Commons Attribution 4.0 licence (CC BY 4.0), in
the order in which scikit-learn ships them. The only change: grey levels 0 to 16 are scaled to 0 to 255.

The splits are fixed and stratified: 18 examples per digit are `validation` (180), 36 are `test` (360), and the rest are
`train` (1,257). They are drawn at random, so all three share writers: results on `digits` show that the code works, not
how well a model reads unseen writers.
"""

from pathlib import Path

import numpy as np

from cnn_jax.data.memory import check_memory
from cnn_jax.data.preprocess import fit_images
from cnn_jax.data.sources import ArraySource, parse_split
from cnn_jax.errors import UserError

_VALIDATION, _TEST = 18, 36  # examples per digit


def open_digits(argument: str, split: str, image_size: int | None) -> ArraySource:
    """Opens a split; `image_size`, such as 28, enlarges the 8x8 images (bilinear). See `cnn_jax.data.open_source`."""
    if argument:
        raise UserError(f"digits takes no argument, but was given {argument!r}: write digits")
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        images, labels = arrays["images"][..., None], arrays["labels"].astype(np.int32)
    members = _members(labels)
    part, rows = parse_split(split, {name: len(indices) for name, indices in members.items()})
    chosen = members[part][rows.start : rows.stop]
    count, images, labels = len(labels), images[chosen], labels[chosen]
    if image_size is not None:
        shape = (image_size, image_size, 1)
        every = f"digits of {image_size} x {image_size} pixels"
        check_memory(count * image_size**2, every, "lower `image_size`")  # an experiment opens all splits
        images = fit_images(images, len(images), shape)
    return ArraySource("digits", split, tuple("0123456789"), images, labels)


def _members(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of each split in ascending order."""
    words = np.random.Philox(key=0).random_raw(len(labels))  # the same in every version of NumPy
    place = np.empty(len(labels), int)  # rank of each example within its class, in random order
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        place[rows[np.argsort(words[rows])]] = np.arange(len(rows))
    return {
        "train": np.flatnonzero(place >= _VALIDATION + _TEST),
        "validation": np.flatnonzero(place < _VALIDATION),
        "test": np.flatnonzero((place >= _VALIDATION) & (place < _VALIDATION + _TEST)),
    }
