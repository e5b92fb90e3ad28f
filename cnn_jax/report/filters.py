"""Extracts the first layer's filters from a model's parameters, as small pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Filters:
    """Weights of a first layer: `weights` is float (N, height, width, C), one filter for each of N outputs."""

    layer: str
    kind: str
    """"convolution" or "dense"."""
    weights: np.ndarray


def first_layer(params: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Filters | None:
    """Finds the layer that reads the image: a convolution, otherwise a dense layer on the flattened image.

    Args:
        params: nested dictionary of the model's parameters; kernels are (height, width, in, out) or (in, out).
        image_shape: (height, width, channels) of the model's input.

    Returns:
        Its filters. Of several layers with matching input, the one nearest to the top of the tree, then the one with
        the largest window; None if there is none, or its window is a single pixel.
    """
    height, width, channels = image_shape
    kernels = [(path, np.asarray(leaf)) for path, leaf in _kernels(params)]
    windows = [(p, k) for p, k in kernels if k.ndim == 4 and k.shape[0] * k.shape[1] > 1]
    convolutions = [(p, k) for p, k in windows if k.shape[2] == channels]
    denses = [(p, k) for p, k in kernels if k.ndim == 2 and k.shape[0] == height * width * channels]
    if convolutions:
        path, kernel = min(convolutions, key=lambda item: (len(item[0]), -item[1][..., 0, 0].size, item[0]))
        return Filters("/".join(path), "convolution", kernel.transpose(3, 0, 1, 2))
    if denses:
        path, kernel = min(denses, key=lambda item: (len(item[0]), item[0]))
        return Filters("/".join(path), "dense", kernel.T.reshape(-1, height, width, channels))
    return None


def pictures(filters: Filters) -> np.ndarray:
    """Returns the filters as float pictures for display.

    Colour filters (C = 3) become RGB in [0, 1], each stretched to its own range. Others become (N, height, width) in
    [-1, 1]: the sum over their channels, divided by the largest magnitude of all, so that 0 stays 0.
    """
    weights = filters.weights.astype(np.float64)
    if weights.shape[-1] == 3:
        low, high = weights.min(axis=(1, 2, 3), keepdims=True), weights.max(axis=(1, 2, 3), keepdims=True)
        return (weights - low) / np.maximum(high - low, 1e-12)
    grey = weights.sum(axis=-1)
    return grey / max(float(np.abs(grey).max()), 1e-12)


def _kernels(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _kernels(value, (*path, name))
        elif name == "kernel":
            yield path, value
