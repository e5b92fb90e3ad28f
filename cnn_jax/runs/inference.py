"""Runs a model on any number of uint8 images with one compilation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.models.ensembles import Network


def predict_outputs(
    model: Network,
    variables: Any,
    preprocess: Preprocess,
    images: np.ndarray,
    batch_size: int = 256,
) -> np.ndarray:
    """Returns the model's outputs for every image, float32 (N, …): logits (N, K) of a classifier.

    The last batch is padded with zeros, so that all batches share one compiled program; the padding is cut off again.
    Evaluation never mixes the images of a batch, so the result does not depend on `batch_size`.

    Args:
        model, variables, preprocess: as from `cnn_jax.weights.trained.load_trained`.
        images: uint8 (N, H, W, C), N at least 1.
        batch_size: images per forward pass; fewer if there are fewer.

    Raises:
        UserError: the images do not have the shape the model was trained on, or `batch_size` is less than 1.
    """
    check_batch_size(batch_size)
    if images.shape[1:] != preprocess.image_shape or images.dtype != np.uint8 or len(images) == 0:
        shape = ", ".join(map(str, preprocess.image_shape))
        raise UserError(f"the images are {images.dtype} {images.shape}: pass uint8 (N, {shape}), N at least 1")
    # Round up to a power of two, so that calls with few images share compiled programs.
    batch_size = min(batch_size, 1 << (len(images) - 1).bit_length())
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    fill = batch_size - len(batches[-1])
    batches[-1] = np.pad(batches[-1], ((0, fill), (0, 0), (0, 0), (0, 0)))
    variables = jax.device_put(variables)
    outputs = np.concatenate([np.asarray(_outputs(model, preprocess, variables, batch)) for batch in batches])
    return outputs[: len(images)]


def check_batch_size(batch_size: int) -> None:
    """Rejects a batch of no images.

    Raises:
        UserError: `batch_size` is not an integer of at least 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UserError(f"`batch_size` is {batch_size!r}: set an integer of at least 1")


@functools.partial(jax.jit, static_argnames=("model", "preprocess"))
def _outputs(model: Network, preprocess: Preprocess, variables: Any, images: jax.Array) -> jax.Array:
    outputs: Any = model.apply(variables, preprocess.normalize(images), train=False)
    return outputs.astype(jnp.float32)
