"""Transfer learning: pretrained weights, and learning rates per layer."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.config import Config, OptimConfig
from cnn_jax.data import Preprocess
from cnn_jax.data.channels import KINDS
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import layer_table
from cnn_jax.optim.optimizers import get_optimizer_spec
from cnn_jax.storage.weights_file import check_same_structure
from cnn_jax.weights import load_pretrained

HEAD = "output"  # the classifier's name in every model


def initial_variables(
    config: Config, model: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[dict[str, Any] | None, Preprocess | None]:
    """Loads the variables of `init_from` for this model, and the preprocessing they were trained with, if known.

    Without `init_from` both are None. Several members are rejected: all would start from the same weights and new
    classifier and see the same batches, so without dropout or augmentation they would stay identical.

    Raises:
        UserError: the weights cannot be loaded, or belong to another model, image size or number of channels, or there
            are several members.
    """
    source = config.model.init_from
    if source is None:
        return None, None
    if config.train.members > 1:
        raise UserError(
            f"with `init_from`, the {config.train.members} `members` would all start from the same weights: train one "
            "run per `seed` and join them with python -m cnn_jax committee RUN …"
        )
    classes = getattr(model, "num_classes", None)
    head = "keep" if classes is None else config.model.init_head
    _, variables, preprocess = load_pretrained(
        source, model=model, num_classes=classes, classifier=head, seed=config.train.seed
    )
    expected = _expected(model, image_shape)
    if _shapes(variables) != _shapes(expected):
        _check_channels(source, variables, model, image_shape)
    size = "x".join(map(str, image_shape))
    check_same_structure(variables, expected, given=source, wanted=f"weights of {config.model.model} for {size} images")
    if preprocess is None:
        return variables, None
    # Keep only mean and deviation: a published resize and crop suit photographs, not the images of this data set.
    return variables, Preprocess(image_shape, preprocess.mean, preprocess.std)


def _expected(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _check_channels(source: str, variables: Any, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Rejects weights that would fit if the images were colour instead of grey, or vice versa."""
    height, width, channels = image_shape
    other = 4 - channels
    if channels in KINDS and _shapes(variables) == _shapes(_expected(model, (height, width, other))):
        raise UserError(
            f"`init_from` {source} has weights for {KINDS[other]} images, but the images are {KINDS[channels]}: set "
            f"`channels` to {other}"
        )


def rate_groups(optim: OptimConfig, model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Returns regex=multiplier pairs for `head_learning_rate`, `rate_groups` and `layer_decay`; the first match counts.

    A layer is a top-level submodule of the model, such as conv1 or stage1_block1. With layer decay d, the last of n
    layers has the full rate and the first d^(n-1) of it (Howard & Ruder 2018, §3.2, with one factor for all).

    Raises:
        UserError: `head_learning_rate` is set, and the other layers have no rate.
    """
    groups = []
    if optim.head_learning_rate is not None:
        peak = optim.learning_rate or get_optimizer_spec(optim.optimizer).learning_rate
        if peak is None:
            raise UserError(
                f"{optim.optimizer} has no usual learning rate for the layers beside `head_learning_rate`: set "
                "`learning_rate`"
            )
        groups.append(f"^{HEAD}/={optim.head_learning_rate / peak}")
    groups += optim.rate_groups
    if optim.layer_decay is not None:
        rows = [row for row in layer_table(model, image_shape) if row.parameters]
        layers = list(dict.fromkeys(row.name.split("/")[0] for row in rows))
        rates = {layer: optim.layer_decay ** (len(layers) - 1 - depth) for depth, layer in enumerate(layers)}
        groups += [f"^{re.escape(layer)}/={rate}" for layer, rate in rates.items()]
    return groups
