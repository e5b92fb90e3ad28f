"""Building blocks of residual networks: stochastic depth, and squeeze and excitation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError
from cnn_jax.layers.activations import activation
from cnn_jax.layers.convolution import Conv
from cnn_jax.layers.initializers import INITIALIZERS, Initializer


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for a random subset of the batch (Huang et al. 2016, §3).

    Kept branches are scaled by 1/(1 - rate), which preserves the mean, so evaluation needs no factor. The paper scales
    in evaluation instead, and draws once per batch. Each layer gets its own key from the rng stream "dropout".

    Attributes:
        rate: probability of dropping the branch, 0 to 1.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """Returns x / (1 - rate) or 0 for each example (leading axis); `x` unchanged if `deterministic`.

        Raises:
            UserError: `rate` is outside [0, 1].
        """
        if not 0 <= self.rate <= 1:
            raise UserError(f"drop-path rate of {self.rate} is out of range: set it from 0 to 1")
        if deterministic or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (len(x), *(1,) * (x.ndim - 1)))
        return jnp.where(keep, x / (1 - self.rate), 0)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from channel means (Hu, Shen and Sun 2017, "Squeeze-and-excitation", §3).

    Attributes:
        squeezed: channels of the bottleneck; C/16 in the paper.
        activation: activation of the bottleneck, a key of `ACTIVATIONS`.
        gate: activation of the output, a key of `ACTIVATIONS`.
        kernel_init: initialiser of both 1×1 convolutions.
        dtype: computation type.
        param_dtype: parameter type.
    """

    squeezed: int
    activation: str = "relu"
    gate: str = "sigmoid"
    kernel_init: Initializer = INITIALIZERS["lecun_normal"]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Returns the scaled input, (B, H, W, C)."""
        types: Any = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.mean(x_BxHxWxC, axis=(1, 2), keepdims=True)
        x = activation(self.activation)(Conv(self.squeezed, (1, 1), name="reduce", **types)(x))
        x = activation(self.gate)(Conv(x_BxHxWxC.shape[-1], (1, 1), name="expand", **types)(x))
        return x_BxHxWxC * x
