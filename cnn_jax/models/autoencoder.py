"""Convolutional auto-encoder: Masci, Meier, Cireşan and Schmidhuber 2011, "Stacked convolutional auto-encoders for
hierarchical feature extraction"; auto-encoders in general: Hinton and Salakhutdinov 2006.

Differences from the paper: strided convolutions replace pooling, all layers are trained jointly, and the decoder
upsamples, then convolves, because transposed convolutions leave checkerboard artefacts (Odena, Dumoulin and Olah 2016).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import Conv, activation, images, initializer, tap
from cnn_jax.models.base import Entry


class ConvAutoencoder(nn.Module):
    """Encoder of 3×3 convolutions with stride 2, a code of few channels, and a mirrored decoder.

    Attributes:
        features: filters of each encoder convolution; each halves height and width, rounded up.
        code: channels of the code, at the lowest resolution.
        activation: a key of `layers.ACTIVATIONS`, after each convolution except the code and the output.
        kernel_init: a key of `layers.INITIALIZERS`.
        input_shape: (H, W, C) in the catalogue; any other works.
        dtype: computation type.
        param_dtype: parameter type.
    """

    features: tuple[int, ...] = (16, 32)
    code: int = 8
    activation: str = "relu"
    kernel_init: str = "he_normal"
    input_shape: tuple[int, int, int] = (28, 28, 1)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns the reconstruction (B, H, W, C) on the scale of the input, float32."""
        act = activation(self.activation)
        settings: Any = {
            "kernel_init": initializer(self.kernel_init),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        x, sizes = images(x_BxHxWxC, self.dtype), []
        for i, count in enumerate(self.features, start=1):
            sizes.append(x.shape[1:3])
            # One pixel of padding on each side halves sizes, rounded up.
            conv = Conv(count, (3, 3), (2, 2), padding=((1, 1), (1, 1)), name=f"encoder{i}", **settings)
            x = tap(self, f"encoder{i}", act(conv(x)))
        x = tap(self, "code", Conv(self.code, (3, 3), padding="SAME", name="code", **settings)(x))
        for i, (count, size) in enumerate(zip(reversed(self.features), reversed(sizes), strict=True), start=1):
            x = jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "nearest")
            x = tap(self, f"decoder{i}", act(Conv(count, (3, 3), padding="SAME", name=f"decoder{i}", **settings)(x)))
        channels = x_BxHxWxC.shape[-1]
        return Conv(channels, (3, 3), padding="SAME", name="output", **settings)(x).astype(jnp.float32)


conv_autoencoder = ConvAutoencoder  # 14,217 parameters with one input channel

MODELS = {
    "conv_autoencoder": Entry(conv_autoencoder, "Masci et al. 2011, stacked convolutional auto-encoders; no classes"),
}
