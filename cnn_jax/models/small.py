"""Small networks from lectures and tutorials: [[conv → act]·N → pool → drop]·M → [dense → act → drop]·K → dense.

    name              blocks (filters·size)   dense     parameters   source
    mnist_cnn         32·5 | 64·5, SAME       1024       3,274,634   TensorFlow tutorial "Deep MNIST for experts"
    tf_cnn            32·5 | 64·3, VALID      1024       1,669,002   lectures, after TensorFlow-Examples
    keras_cifar_cnn   32·3 32·3 | 64·3 64·3   512        1,250,858   Keras example cifar10_cnn.py (32×32×3)
    kaggle_lenet      12·5 | 25·5, VALID      180 100       99,127   kaggle.com/ftence/keras-cnn-inspired-by-lenet-5
    xo_cnn            8·3 | 16·3, SAME        none           2,818   this project: tells X from O (28×28, two classes)

As in the lectures, `tf_cnn` has no activation after its dense layer. `mnist_cnn` starts with Glorot-uniform weights and
zero biases; the tutorial uses normal weights of standard deviation 0.1 and biases of 0.1.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from cnn_jax.layers import MaxPool, activation, flatten, images, tap
from cnn_jax.models.base import Classifier, Entry


class Filters(NamedTuple):
    """A convolution: number of filters, their side in pixels, and their padding."""

    count: int
    size: int
    padding: str


class SmallCnn(Classifier):
    """Blocks of convolutions, each followed by 2×2 max pooling, then dense layers.

    Attributes:
        blocks: convolutions of each block.
        dense: units of each hidden dense layer.
        activation: a key of `layers.ACTIVATIONS`, after each convolution.
        dense_activation: a key of `layers.ACTIVATIONS`, after each hidden dense layer.
        block_dropout: dropout rate after each pooling.
        dense_dropout: dropout rate after each hidden dense layer.
        input_shape: published (H, W, C); any other that fits works.
    """

    blocks: tuple[tuple[Filters, ...], ...] = ()
    dense: tuple[int, ...] = ()
    dense_activation: str = "relu"
    kernel_init: str = "glorot_uniform"
    block_dropout: float = 0.0
    dense_dropout: float = 0.0
    input_shape: tuple[int, int, int] = (28, 28, 1)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. With dropout, training draws from the rng stream "dropout"."""
        conv_layer, dense, number = self.conv(), self.fully_connected(), 0
        x = images(x_BxHxWxC, self.dtype)
        for b, block in enumerate(self.blocks, start=1):
            for filters in block:
                number += 1
                size = (filters.size, filters.size)
                conv = conv_layer(filters.count, size, padding=filters.padding, name=f"conv{number}")
                x = tap(self, f"conv{number}", activation(self.activation)(conv(x)))
            x = tap(self, f"pool{b}", MaxPool(name=f"pool{b}")(x))
            if self.block_dropout:
                x = nn.Dropout(self.block_dropout, deterministic=not train, name=f"block_drop{b}")(x)
        x = flatten(x)
        for i, units in enumerate(self.dense, start=1):
            x = activation(self.dense_activation)(dense(units, name=f"fc{i}")(x))
            tap(self, f"fc{i}", x)
            if self.dense_dropout:
                x = nn.Dropout(self.dense_dropout, deterministic=not train, name=f"drop{i}")(x)
        return self.head(x)


mnist_cnn = partial(
    SmallCnn, blocks=((Filters(32, 5, "SAME"),), (Filters(64, 5, "SAME"),)), dense=(1024,), dense_dropout=0.5
)
tf_cnn = partial(
    SmallCnn,
    blocks=((Filters(32, 5, "VALID"),), (Filters(64, 3, "VALID"),)),
    dense=(1024,),
    dense_activation="linear",
)
keras_cifar_cnn = partial(
    SmallCnn,
    blocks=((Filters(32, 3, "SAME"), Filters(32, 3, "VALID")), (Filters(64, 3, "SAME"), Filters(64, 3, "VALID"))),
    dense=(512,),
    block_dropout=0.25,
    dense_dropout=0.5,
    input_shape=(32, 32, 3),
)
kaggle_lenet = partial(
    SmallCnn,
    blocks=((Filters(12, 5, "VALID"),), (Filters(25, 5, "VALID"),)),
    dense=(180, 100),
    kernel_init="he_normal",
    dense_dropout=0.5,
)
xo_cnn = partial(SmallCnn, blocks=((Filters(8, 3, "SAME"),), (Filters(16, 3, "SAME"),)), num_classes=2)

MODELS = {
    "mnist_cnn": Entry(mnist_cnn, "TensorFlow tutorial, deep MNIST for experts"),
    "tf_cnn": Entry(tf_cnn, "TensorFlow-Examples, convolutional_network"),
    "keras_cifar_cnn": Entry(keras_cifar_cnn, "Keras example cifar10_cnn"),
    "kaggle_lenet": Entry(kaggle_lenet, "kaggle.com/ftence/keras-cnn-inspired-by-lenet-5"),
    "xo_cnn": Entry(xo_cnn, "this project"),
}
