"""Normalisation layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers.initializers import Initializer
from cnn_jax.ops.norm import batch_moments, normalize


class BatchNorm(nn.Module):
    """Normalises each channel by the statistics of the batch, or by running ones (Ioffe and Szegedy 2015).

    Parameters, statistics and values are those of `flax.linen.BatchNorm`, whose derivatives take more time; the types
    of maps and statistics may differ even where promotion is strict.

    Attributes:
        use_running_average: normalise by the running statistics, as in evaluation; training updates them.
        momentum: running = momentum·running + (1 - momentum)·batch. The variance is not corrected by n/(n - 1).
        epsilon: added to the variance.
        dtype: of the result; None: of the maps and the parameters together. Statistics are float32 at least.
        param_dtype: of the parameters.
        use_bias, use_scale: whether a parameter "bias" is added, and one called "scale" multiplied.
        bias_init, scale_init: of the parameters.
        axis_name: of `pmap`, `vmap` or `shard_map`, over which the statistics are taken, too.
    """

    use_running_average: bool
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Normalises over all axes but the last; training updates the collection "batch_stats"."""
        size = x_BxHxWxC.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, size, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, size, jnp.float32)
        scale = self.param("scale", self.scale_init, size, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, size, self.param_dtype) if self.use_bias else None
        with jax.numpy_dtype_promotion("standard"):
            if self.use_running_average:
                moments = mean.value, variance.value
            else:
                moments = batch_moments(x_BxHxWxC, None if self.is_initializing() else self.axis_name)
                if not self.is_initializing():
                    for running, batch in zip((mean, variance), moments):
                        running.value = self.momentum * running.value + (1 - self.momentum) * batch
            return normalize(x_BxHxWxC, *moments, scale, bias, self.epsilon, self.dtype)


class LocalResponseNorm(nn.Module):
    """Divides by the activity of neighbouring maps, b = a / (k + alpha·sum a²)^beta (AlexNet 2012, §3.3).

    The sum goes over `size` maps, the one itself in the middle, fewer at the ends. Computed in float32.

    Attributes:
        size: maps; one of an even number lies below the middle more than above, as in PyTorch.
        alpha: of the sum; frameworks that speak of alpha/size mean the mean instead (Caffe, PyTorch).
        beta: exponent.
        k: keeps the denominator from 0.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Normalizes; shape and type stay."""
        x = x_BxHxWxC.astype(jnp.float32)
        maps, below = x.shape[-1], self.size // 2
        squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(below, self.size - 1 - below)])
        total = sum(squares[..., i : i + maps] for i in range(self.size))
        return (x / (self.k + self.alpha * total) ** self.beta).astype(x_BxHxWxC.dtype)
