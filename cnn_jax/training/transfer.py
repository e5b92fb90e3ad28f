"""Transfer learning: weights to start from, rates and freezing by layer."""

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
    """The variables of `--init-from` for this model, and the preprocessing that they were trained with, if known.

    Without the flag both are None. Members are refused: all would start from the same weights and see the same batches,
    and so without dropout or augmentation stay one network; their new classifiers would be the same, too.

    Raises:
        UserError: they cannot be had, are of another model, image size or number of channels, or there is more than one
            member to start.
    """
    source = config.model.init_from
    if source is None:
        return None, None
    if config.train.members > 1:
        raise UserError(
            f"given --init-from with --members {config.train.members}, which would all start from the same weights; "
            "expected one of the two; train a run for each --seed and join them by python -m cnn_jax committee RUN …"
        )
    _, variables, preprocess = load_pretrained(
        source, model=model, num_classes=model.num_classes, classifier=config.model.init_head, seed=config.train.seed
    )
    expected = _expected(model, image_shape)
    if _shapes(variables) != _shapes(expected):
        _check_channels(source, variables, model, image_shape)
    size = "x".join(map(str, image_shape))
    check_same_structure(variables, expected, given=source, wanted=f"weights of {config.model.model} for {size} images")
    if preprocess is None:
        return variables, None
    # Mean and deviation only: a published resize and crop are for photographs, not for the images of this data set.
    return variables, Preprocess(image_shape, preprocess.mean, preprocess.std)


def _expected(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _check_channels(source: str, variables: Any, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Refuses weights that would fit if the images were colour instead of grey, or the reverse."""
    height, width, channels = image_shape
    other = 4 - channels
    if channels in KINDS and _shapes(variables) == _shapes(_expected(model, (height, width, other))):
        raise UserError(
            f"given --init-from {source}, weights for {KINDS[other]} images, and {KINDS[channels]} images; expected "
            f"images of the same kind; give --channels {other}"
        )


def rate_groups(optim: OptimConfig, model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """regex=multiplier pairs of `--head-learning-rate`, `--rate-groups` and `--layer-decay`, the first to match counts.

    A layer is what the model calls at its top level, such as conv1 or stage1_block1. With layer decay d, the last of n
    layers has the whole rate and the first d^(n-1) of it (Howard & Ruder 2018, §3.2, with one factor for all).

    Raises:
        UserError: a rate for the head of an optimizer without a usual one.
    """
    groups = []
    if optim.head_learning_rate is not None:
        peak = optim.learning_rate or get_optimizer_spec(optim.optimizer).learning_rate
        if peak is None:
            raise UserError(
                f"given --head-learning-rate with {optim.optimizer}, which has no usual rate; expected one for the "
                "other layers; give --learning-rate"
            )
        groups.append(f"^{HEAD}/={optim.head_learning_rate / peak}")
    groups += optim.rate_groups
    if optim.layer_decay is not None:
        rows = [row for row in layer_table(model, image_shape) if row.parameters]
        layers = list(dict.fromkeys(row.name.split("/")[0] for row in rows))
        rates = {layer: optim.layer_decay ** (len(layers) - 1 - depth) for depth, layer in enumerate(layers)}
        groups += [f"^{re.escape(layer)}/={rate}" for layer, rate in rates.items()]
    return groups
