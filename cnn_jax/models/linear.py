"""Models without convolutions: the two ends of the ladder that CNNs climb.

Softmax regression is the "linear classifier" row of the MNIST table (LeCun et al. 1998, §III-C.1, 12.0 % error with
another loss; the TensorFlow beginners' tutorial reaches 92 % accuracy): 784·10 + 10 = 7,850 parameters.
The 500-500 sigmoid network is the lectures' first one in Keras: 785·500 + 501·500 + 501·10 = 648,010.
"""

from functools import partial

import flax.linen as nn
import jax

from cnn_jax.layers import activation, flatten, images, tap
from cnn_jax.models.base import Classifier, Entry


class Mlp(Classifier):
    """Dense layers on the flattened image.

    Attributes:
        hidden: units of each hidden layer; none of them makes it softmax regression.
        activation: a name of `layers.ACTIVATIONS`, after each hidden layer.
        input_shape: (H, W, C) it was published with; any other works.
    """

    hidden: tuple[int, ...] = (500, 500)
    kernel_init: str = "glorot_uniform"
    input_shape: tuple[int, int, int] = (28, 28, 1)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32."""
        del train  # nothing behaves differently in training
        dense, activate = self.fully_connected(), activation(self.activation)
        x = flatten(images(x_BxHxWxC, self.dtype))
        for i, units in enumerate(self.hidden, start=1):
            x = tap(self, f"fc{i}", activate(dense(units, name=f"fc{i}")(x)))
        return self.head(x)


mlp = Mlp
# The loss is convex: from zero every run takes the same path.
softmax_regression = partial(Mlp, hidden=(), kernel_init="zeros")
# Keras 1's Dense was glorot_uniform too.
mlp_500_500 = partial(Mlp, hidden=(500, 500), activation="sigmoid")

MODELS = {
    "softmax_regression": Entry(softmax_regression, "TensorFlow tutorial, MNIST for beginners"),
    "mlp": Entry(mlp, "any dense network: --model-args hidden=500/500"),
    "mlp_500_500": Entry(mlp_500_500, "Keras lectures"),
}
