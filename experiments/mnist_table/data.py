"""MNIST on 29×29 pixels, as data sets that `--dataset` names: `experiments.mnist_table.data:padded`, `…:width_10`, …

Simard et al. 2003 and Cireşan et al. 2010 to 2012 place the digits in 29×29 pixels. The committee's columns see digits
of six widths besides (Cireşan et al. 2012, §3.1); training, validation and test images are changed alike.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from cnn_jax.data import default_splits, materialize, open_source
from cnn_jax.data.characters import normalize_width
from cnn_jax.data.sources import ArraySource, Source

SIDE = 29
WIDTHS = (10, 12, 14, 16, 18, 20)


def pad(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """Adds background (0) below and to the right, to 29×29 pixels."""
    height, width = images_NxHxWxC.shape[1:3]
    return np.pad(images_NxHxWxC, ((0, 0), (0, SIDE - height), (0, SIDE - width), (0, 0)))


def _splits(change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Source]:
    """Opens MNIST's usual splits with every image changed."""
    usual, changed = default_splits("mnist"), {}
    for name in ("train", "validation", "test"):
        source = open_source("mnist", getattr(usual, name))
        arrays = materialize(source)
        images = pad(change(np.asarray(arrays["image"])))
        changed[name] = ArraySource("mnist", name, source.class_names, images, np.asarray(arrays["label"]))
    return changed


def _of_width(width: int) -> dict[str, Source]:
    narrow = jax.jit(partial(normalize_width, width=width))
    return _splits(lambda images: np.concatenate([narrow(images[i : i + 1000]) for i in range(0, len(images), 1000)]))


def padded() -> dict[str, Source]:
    """MNIST, padded to 29×29 pixels."""
    return _splits(lambda images: images)


width_10, width_12, width_14, width_16, width_18, width_20 = (partial(_of_width, width) for width in WIDTHS)
