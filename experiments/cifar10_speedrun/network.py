"""The network of a recipe, and the normalization of its inputs."""

import math
from typing import Any

import jax.numpy as jnp

from cnn_jax.data import Preprocess
from cnn_jax.models import build
from cnn_jax.models.speednet import SpeedNet
from experiments.cifar10_speedrun.recipe import MEAN, STD, Recipe

NUM_CLASSES = 10

normalize = Preprocess((32, 32, 3), MEAN, STD).normalize  # takes images of any size


def network(recipe: Recipe) -> SpeedNet:
    """Builds the model of a recipe."""
    dtype = jnp.dtype(recipe.precision)
    model: Any = build(recipe.model, NUM_CLASSES, dtype=dtype, args=recipe.model_args)
    widths = tuple(math.ceil(recipe.width_factor * width) for width in model.widths)
    # If the classifier's weights start with standard deviation 1, its logits are divided by the number of inputs.
    return model.clone(widths=widths, logit_scale=1 / widths[-1] if model.unit_output else model.logit_scale)
