"""Normalisation layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError
from cnn_jax.layers.initializers import Initializer
from cnn_jax.ops.norm import batch_moments, normalize


class BatchNorm(nn.Module):
    """Normalises each channel by batch statistics, or by running ones (Ioffe and Szegedy 2015).

    Parameters, statistics and values match `flax.linen.BatchNorm`, whose derivatives are slower. Input and statistics
    may differ in type even under strict type promotion.

    Attributes:
        use_running_average: normalise by the running statistics, as in evaluation; otherwise by the batch's, and update
            the running ones.
        momentum: running = momentum·running + (1 - momentum)·batch. The variance is not corrected by n/(n - 1).
        epsilon: added to the variance.
        dtype: result type; None promotes input and parameters. Statistics are at least float32.
        param_dtype: parameter type.
        use_bias, use_scale: whether to add a parameter "bias" and multiply by a parameter "scale".
        bias_init, scale_init: their initialisers.
        axis_name: axis of `pmap`, `vmap` or `shard_map` over which statistics are also taken.
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
        """Normalises over all axes but the last; in training, updates the collection "batch_stats".

        Raises:
            UserError: the statistics would be of a single value, which normalizes to 0 whatever it is.
        """
        size = x_BxHxWxC.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, size, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, size, jnp.float32)
        scale = self.param("scale", self.scale_init, size, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, size, self.param_dtype) if self.use_bias else None
        with jax.numpy_dtype_promotion("standard"):
            if self.use_running_average:
                moments = mean.value, variance.value
            else:
                self._check_count(x_BxHxWxC)
                moments = batch_moments(x_BxHxWxC, None if self.is_initializing() else self.axis_name)
                if not self.is_initializing():
                    for running, batch in zip((mean, variance), moments):
                        running.value = self.momentum * running.value + (1 - self.momentum) * batch
            return normalize(x_BxHxWxC, *moments, scale, bias, self.epsilon, self.dtype)

    def _check_count(self, x_BxHxWxC: jax.Array) -> None:
        count = x_BxHxWxC.size // max(1, x_BxHxWxC.shape[-1])
        if count == 1 and not self.is_initializing():
            parts = 1 if self.axis_name is None else jax.lax.psum(1, self.axis_name)
            if parts == 1:
                raise UserError(
                    f"{'/'.join(self.path) or 'BatchNorm'}: the batch statistics would be of a single value per "
                    "channel, so nothing would be learned: use larger batches or images, or a smaller `accumulate`"
                )


class LocalResponseNorm(nn.Module):
    """Divides by the activity of neighbouring channels, b = a / (k + alpha·sum a²)^beta (AlexNet 2012, §3.3).

    The sum covers `size` channels centred on the current one, fewer at the ends. Computed in float32.

    Attributes:
        size: number of channels; an even window has one more below the centre than above, as in PyTorch.
        alpha: factor of the sum; frameworks that write alpha/size (Caffe, PyTorch) take the mean instead.
        beta: exponent.
        k: constant that keeps the denominator above 0.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Normalises; keeps shape and type."""
        x = x_BxHxWxC.astype(jnp.float32)
        maps, below = x.shape[-1], self.size // 2
        squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(below, self.size - 1 - below)])
        total = sum(squares[..., i : i + maps] for i in range(self.size))
        return (x / (self.k + self.alpha * total) ** self.beta).astype(x_BxHxWxC.dtype)
