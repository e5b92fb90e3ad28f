"""Models without convolutions: softmax regression and dense networks, as baselines for CNNs.

Softmax regression is the "linear classifier" row of the MNIST table (LeCun et al. 1998, §III-C.1, 12.0 % error with
another loss; the TensorFlow beginners' tutorial reaches 92 % accuracy): 784·10 + 10 = 7,850 parameters.
The 500-500 sigmoid network is the first one of the Keras lectures: 785·500 + 501·500 + 501·10 = 648,010 parameters.
"""

from functools import partial

import flax.linen as nn
import jax

from cnn_jax.layers import activation, flatten, images, tap
from cnn_jax.models.base import Classifier, Entry


class Mlp(Classifier):
    """Dense layers on the flattened image.

    Attributes:
        hidden: units of each hidden layer; empty for softmax regression.
        activation: a key of `layers.ACTIVATIONS`, after each hidden layer.
        input_shape: published (H, W, C); any other works.
    """

    hidden: tuple[int, ...] = (500, 500)
    kernel_init: str = "glorot_uniform"
    input_shape: tuple[int, int, int] = (28, 28, 1)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32."""
        del train  # training and evaluation are the same
        dense, activate = self.fully_connected(), activation(self.activation)
        x = flatten(images(x_BxHxWxC, self.dtype))
        for i, units in enumerate(self.hidden, start=1):
            x = tap(self, f"fc{i}", activate(dense(units, name=f"fc{i}")(x)))
        return self.head(x)


mlp = Mlp
# The loss is convex, so starting from zero loses nothing and makes runs independent of the seed.
softmax_regression = partial(Mlp, hidden=(), kernel_init="zeros")
# glorot_uniform was also the default of Keras 1's Dense.
mlp_500_500 = partial(Mlp, hidden=(500, 500), activation="sigmoid")

MODELS = {
    "softmax_regression": Entry(softmax_regression, "TensorFlow tutorial, MNIST for beginners"),
    "mlp": Entry(mlp, "any dense network: --model-args hidden=500/500"),
    "mlp_500_500": Entry(mlp_500_500, "Keras lectures"),
}
