"""Layers that the models share, and how a model exposes what happens inside.

Activations, initialisers, normalisations and poolings are in modules of their own; all of them can be had from here.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax import ops
from cnn_jax.errors import UserError
from cnn_jax.layers.activations import ACTIVATIONS, Activation, activation, hard_sigmoid, linear, scaled_tanh
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
from cnn_jax.layers.sizes import check_fits, pair

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


class Conv(nn.Conv):
    """`flax.linen.Conv` with the fast gradient of `cnn_jax.ops`; it names itself when an image is too small for it."""

    conv_general_dilated: Any = ops.conv_general_dilated

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves (B, H, W, C) maps; raises UserError if the filter does not fit into them."""
        _check_fits(self, inputs)
        return super().__call__(inputs)


class LocallyConnected(nn.ConvLocal):
    """Convolution whose weights are not shared: every output position has filters of its own (DeepFace 2014, §3.1).

    The kernel is (H', W', C·kh·kw, F), input maps slowest, and the bias (H', W', F): the layer takes maps of the size
    that it was initialised for only. A `kernel_init` that scales by the fan-in must leave out the two axes of
    positions, as the default does; otherwise the weights start far too small.
    """

    kernel_init: Initializer = nn.initializers.lecun_normal(batch_axis=(0, 1))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H', W', F); raises UserError if the filter does not fit."""
        _check_fits(self, inputs)
        return super().__call__(inputs)


def _check_fits(conv: nn.Conv | nn.ConvLocal, inputs: jax.Array) -> None:
    dilated = ((k - 1) * d + 1 for k, d in zip(pair(conv.kernel_size), pair(conv.kernel_dilation), strict=True))
    rows, columns = dilated
    check_fits(conv, inputs.shape[1:3], (rows, columns), pair(conv.strides), conv.padding)


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of a residual block, for some examples (Huang et al. 2016, §3).

    What is kept grows by 1/(1 - rate), so that the mean stays and evaluation needs no factor; the paper scales in
    evaluation instead, and draws once a batch. Keys come from the rng stream "dropout", another one for each layer.

    Attributes:
        rate: share of examples dropped, from 0 to 1.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """Returns x / (1 - rate) or 0 for each example (leading axis); x itself if `deterministic`.

        Raises:
            UserError: a rate outside [0, 1].
        """
        if not 0 <= self.rate <= 1:
            raise UserError(f"given a drop-path rate of {self.rate}; expected a number from 0 to 1; change it")
        if deterministic or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (len(x), *(1,) * (x.ndim - 1)))
        return jnp.where(keep, x / (1 - self.rate), 0)


class SqueezeExcite(nn.Module):
    """Scales each map by a gate computed from the means of all (Hu, Shen and Sun 2017, "Squeeze-and-excitation", §3).

    Attributes:
        squeezed: maps of the bottleneck; the paper's is C/16.
        activation: after it, a name of `ACTIVATIONS`.
        gate: on its output, a name of `ACTIVATIONS`.
        kernel_init: of both 1×1 convolutions.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    squeezed: int
    activation: str = "relu"
    gate: str = "sigmoid"
    kernel_init: Initializer = INITIALIZERS["lecun_normal"]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Returns the maps, scaled."""
        types: Any = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.mean(x_BxHxWxC, axis=(1, 2), keepdims=True)
        x = activation(self.activation)(Conv(self.squeezed, (1, 1), name="reduce", **types)(x))
        x = activation(self.gate)(Conv(x_BxHxWxC.shape[-1], (1, 1), name="expand", **types)(x))
        return x_BxHxWxC * x


def space_to_depth(x_BxHxWxC: jax.Array, block: int) -> jax.Array:
    """Moves each block×block square of pixels into the channels: (B, H, W, C) → (B, H/block, W/block, block·block·C).

    Rows of the square are slowest, then columns, then channels (TensorFlow's order).

    Raises:
        UserError: `block` does not divide H and W.

    >>> space_to_depth(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0, 0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    batch, height, width, channels = x_BxHxWxC.shape
    if height % block or width % block:
        raise UserError(f"given {height}x{width} maps for space_to_depth; expected sides that {block} divides; resize")
    x = x_BxHxWxC.reshape(batch, height // block, block, width // block, block, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)


def flatten(x: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, H·W·C), channels fastest."""
    return x.reshape(len(x), -1)


def images(x_BxHxWxC: jax.Array, dtype: Any) -> jax.Array:
    """Casts a batch of images to the type a model computes in.

    Raises:
        UserError: no batch of images, or raw bytes.
    """
    if x_BxHxWxC.ndim != 4:
        raise UserError(
            f"given images of shape {x_BxHxWxC.shape}; expected (batch, height, width, channels); "
            "add a batch axis to a single image"
        )
    if not jnp.issubdtype(x_BxHxWxC.dtype, jnp.floating):
        raise UserError(f"given {x_BxHxWxC.dtype} images; expected normalized floats; call Preprocess.normalize first")
    return x_BxHxWxC.astype(dtype)


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Exposes `x` as the stage `name` to `cnn_jax.models.stages`, and returns it. Costs nothing in any other call."""
    # Not `sow`: it refuses a stage that is named as a layer.
    if module.is_mutable_collection("stages") and not module.is_initializing():
        module.put_variable("stages", name, x)
    return x


def auxiliary(module: nn.Module, name: str, logits_BxK: jax.Array, weight: float) -> None:
    """Offers the logits of a side head: training adds `weight` times their loss (Szegedy et al. 2014, §5)."""
    if module.is_mutable_collection("auxiliary") and not module.is_initializing():
        module.put_variable("auxiliary", name, {"logits": logits_BxK, "weight": jnp.float32(weight)})
