"""Parts of residual blocks: stochastic depth, squeeze and excitation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError
from cnn_jax.layers.activations import activation
from cnn_jax.layers.convolution import Conv
from cnn_jax.layers.initializers import INITIALIZERS, Initializer


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
