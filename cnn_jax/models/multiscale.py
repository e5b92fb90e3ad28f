"""The multi-scale convolutional network of Sermanet and LeCun, "Traffic sign recognition with multi-scale convolutional
networks" (IJCNN 2011).

    input 32×32×1 → stage 1: 108 filters of 5×5, |tanh|, normalisation, 2×2 average → 14×14×108
                  → stage 2: 200 filters of 5×5, |tanh|, normalisation, 2×2 average → 5×5×200
    the classifier reads both stages, the first averaged once more (7×7×108): 10,292 features → 100 units → 43 classes

Known from the paper: grey images of 32×32; two stages of filters, rectified non-linearity, local normalisation and
subsampling; the first stage also feeds the classifier, subsampled once more. Not verified: the widths 108-200 and the
100 hidden units of its best network. Guesses of ours: filters of 5×5, windows of 2×2, every map of stage 1 connected to
every map of stage 2, tanh as the squashing function of the hidden units. Different by choice: BatchNorm replaces local
contrast normalisation.

Parameters for 43 classes: 25·108 + 108 · 2 (norm) + 25·108·200 + 200 · 2 + 10,292·100 + 100 + 100·43 + 43 = 1,576,959.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import AvgPool, activation, flatten, images, tap
from cnn_jax.models.base import Entry, NormalizedClassifier


class MultiScaleCnn(NormalizedClassifier):
    """Two stages of convolution, rectified tanh and average pooling, both of which feed the classifier.

    Attributes:
        features: filters of each of the two stages.
        hidden: units of the hidden layer of the classifier.
        activation: a key of `layers.ACTIVATIONS`; the stages take its absolute value.
        input_shape: published (H, W, C); any other that fits works.
    """

    features: tuple[int, int] = (108, 200)
    hidden: int = 100
    num_classes: int = 43
    activation: str = "tanh"
    kernel_init: str = "glorot_uniform"
    input_shape: tuple[int, int, int] = (32, 32, 1)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32."""
        conv, norm, squash = self.conv(padding="VALID", use_bias=False), self.norm(train), activation(self.activation)
        dense = self.fully_connected()
        x, scales = images(x_BxHxWxC, self.dtype), []
        for stage, features in enumerate(self.features, start=1):
            x = norm(name=f"norm{stage}")(conv(features, (5, 5), name=f"conv{stage}")(x))
            x = tap(self, f"conv{stage}", jnp.abs(squash(x)))
            x = tap(self, f"pool{stage}", AvgPool(name=f"pool{stage}")(x))
            scales.append(x)
        first = tap(self, "skip", AvgPool(name="skip")(scales[0]))
        # A dense layer on both stages' features is the sum of one on each.
        x = dense(self.hidden, name="fc1")(flatten(scales[1]))
        x += dense(self.hidden, use_bias=False, name="fc1_skip")(flatten(first))
        x = tap(self, "fc1", squash(x))
        return self.head(x)


multiscale_cnn = MultiScaleCnn

MODELS = {"multiscale_cnn": Entry(multiscale_cnn, "Sermanet and LeCun 2011")}
