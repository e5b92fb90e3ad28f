"""Transfer learning: pretrained weights, and learning rates per layer."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from cnn_jax.config import Config, OptimConfig
from cnn_jax.data import Preprocess
from cnn_jax.data.channels import KINDS
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import layer_table
from cnn_jax.models.named import variable_shapes
from cnn_jax.optim.optimizers import get_optimizer_spec
from cnn_jax.storage.weights_file import check_same_structure
from cnn_jax.weights.convert import flattened_maps
from cnn_jax.weights.pretrained import open_pretrained

HEAD = "output"  # the classifier's name in every model


class Origin(NamedTuple):
    """What a run starts from.

    Attributes:
        variables: those of `init_from`; None without it.
        preprocess: the preprocessing they were trained with, if known.
        told: what was taken from where, in words; empty without `init_from`.
    """

    variables: dict[str, Any] | None = None
    preprocess: Preprocess | None = None
    told: str = ""


def initial_variables(
    config: Config, model: nn.Module, image_shape: tuple[int, int, int], class_names: Sequence[str]
) -> Origin:
    """Loads the variables of `init_from` for this model, and the preprocessing they were trained with, if known.

    Several members are rejected: all would start from the same weights and new classifier and see the same batches, so
    without dropout or augmentation they would stay identical.

    Raises:
        UserError: the weights cannot be loaded, or belong to another model, image size or number of channels, or there
            are several members.
    """
    source = config.model.init_from
    if source is None:
        if config.model.init_weights != "auto":
            raise UserError("`init_weights` chooses among the weights of `init_from`: set that, too, or drop it")
        return Origin()
    if config.train.members > 1:
        raise UserError(
            f"with `init_from`, the {config.train.members} `members` would all start from the same weights: train one "
            "run per `seed` and join them with python -m cnn_jax committee RUN …"
        )
    classes = getattr(model, "num_classes", None)
    loaded = open_pretrained(
        source,
        model=model,
        num_classes=classes,
        class_names=class_names,
        classifier="keep" if classes is None else config.model.init_head,
        weights=config.model.init_weights,
        seed=config.train.seed,
        image_shape=image_shape,
    )
    variables, preprocess = loaded.variables, loaded.preprocess
    expected = variable_shapes(model, image_shape)
    if _shapes(variables) != _shapes(expected):
        _check_channels(source, variables, model, image_shape)
        _check_head_map(source, variables, model, image_shape)
    size = "x".join(map(str, image_shape))
    check_same_structure(variables, expected, given=source, wanted=f"weights of {config.model.model} for {size} images")
    if preprocess is not None:
        # Keep only mean and deviation: a published resize and crop suit photographs, not the images of this data set.
        preprocess = Preprocess(image_shape, preprocess.mean, preprocess.std)
    return Origin(variables, preprocess, "; ".join(filter(None, (source, loaded.weights, loaded.classifier))))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _check_channels(source: str, variables: Any, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Rejects weights that would fit if the images were colour instead of grey, or vice versa."""
    height, width, channels = image_shape
    other = 4 - channels
    if channels in KINDS and _shapes(variables) == _shapes(variable_shapes(model, (height, width, other))):
        raise UserError(
            f"`init_from` {source} has weights for {KINDS[other]} images, but the images are {KINDS[channels]}: set "
            f"`channels` to {other}"
        )


def _check_head_map(source: str, variables: Any, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Rejects weights that would fit if the maps before the dense layers were averaged to the size they were made for.

    VGG and AlexNet read a flattened map, whose size depends on that of the images.
    """
    if getattr(model, "head_map", 0) is not None:
        return
    for layer, (channels, _, _) in flattened_maps(model, model.input_shape).items():  # type: ignore[attr-defined]
        side = math.isqrt(variables["params"][layer]["kernel"].shape[0] // channels)
        if side and _shapes(variables) == _shapes(variable_shapes(model.clone(head_map=side), image_shape)):
            size = "x".join(map(str, image_shape[:2]))
            raise UserError(
                f"`init_from` {source} has weights for maps of {side}x{side} before the dense layers, which {size} "
                f"images do not give: add head_map={side} to `model_args`"
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
