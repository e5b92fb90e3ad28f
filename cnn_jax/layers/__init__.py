"""Layers shared by the models, all importable from here."""

from cnn_jax.layers.activations import ACTIVATIONS, Activation, activation, hard_sigmoid, linear, scaled_tanh
from cnn_jax.layers.blocks import DropPath, SqueezeExcite
from cnn_jax.layers.convolution import Conv, LocallyConnected
from cnn_jax.layers.initializers import INITIALIZERS, Initializer, dirac, initializer
from cnn_jax.layers.normalization import BatchNorm, LocalResponseNorm
from cnn_jax.layers.pooling import (
    POOLS,
    AvgPool,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool,
    L2Pool,
    MaxPool,
    MinPool,
    Pool,
)
from cnn_jax.layers.shapes import flatten, images, space_to_depth
from cnn_jax.layers.sizes import check_fits
from cnn_jax.layers.stages import auxiliary, tap

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "POOLS",
    "Activation",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "DropPath",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GlobalPool",
    "Initializer",
    "L2Pool",
    "LocalResponseNorm",
    "LocallyConnected",
    "MaxPool",
    "MinPool",
    "Pool",
    "SqueezeExcite",
    "activation",
    "auxiliary",
    "check_fits",
    "dirac",
    "flatten",
    "hard_sigmoid",
    "images",
    "initializer",
    "linear",
    "scaled_tanh",
    "space_to_depth",
    "tap",
]
