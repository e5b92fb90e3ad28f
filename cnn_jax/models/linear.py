"""Models without convolutions: softmax regression and dense networks, as baselines for CNNs.

Softmax regression is the "linear classifier" row of the MNIST table (LeCun et al. 1998, §III-C.1, 12.0 % error with
another loss; the TensorFlow beginners' tutorial reaches 92 % accuracy): 784·10 + 10 = 7,850 parameters.
With `--loss mse` it is that row's linear layer with squared error.
The 500-500 sigmoid network is the first one of the Keras lectures: 785·500 + 501·500 + 501·10 = 648,010 parameters.
`mlp_300` is the table's "2-layer net, 300 hidden units": 785·300 + 301·10 = 238,510 parameters, 4.7 % error (LeCun et
al. 1998, §III-C.4, with `--loss mse`). `ciresan_mlp` has 12,115,010 parameters and 0.35 % error: Cireşan, Meier,
Gambardella and Schmidhuber 2010, "Deep, big, simple neural nets for handwritten digit recognition",
841-2500-2000-1500-1000-500-10 with 1.7159·tanh(0.6666x); weights start uniform in ±0.05.
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
mlp_300 = partial(Mlp, hidden=(300,), activation="scaled_tanh", kernel_init="lecun_uniform")
ciresan_mlp = partial(
    Mlp,
    hidden=(2500, 2000, 1500, 1000, 500),
    activation="scaled_tanh",
    kernel_init="uniform_0.05",
    input_shape=(29, 29, 1),
)

MODELS = {
    "softmax_regression": Entry(softmax_regression, "TensorFlow tutorial, MNIST for beginners"),
    "mlp": Entry(mlp, "any dense network: --model-args hidden=500/500"),
    "mlp_500_500": Entry(mlp_500_500, "Keras lectures"),
    "mlp_300": Entry(mlp_300, "LeCun et al. 1998, section III-C.4"),
    "ciresan_mlp": Entry(ciresan_mlp, "Cireşan et al. 2010"),
}
