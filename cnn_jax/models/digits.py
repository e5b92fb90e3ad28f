"""Networks for MNIST with elastic distortions: [CONV → act → POOL?]·N → [dense → act]·K → dense, on 29×29 images.

    name           layers                                          parameters   test error on MNIST in %
    simard_cnn     5C5/2 - 50C5/2 - 100N - 10N                        132,540   0.4    Simard et al. 2003
    ciresan_cnn    20C3 - 40C3 - MP2 - 60C3 - 80C3 - MP2 - 100C3 -    212,260   0.35   Cireşan et al. 2011
                   120C2 - 150N - 10N
    mcdnn_column   20C4 - MP2 - 40C5 - MP3 - 150N - 10N                76,040   0.23   Cireşan et al. 2012, 35 columns

5C5/2: five filters of 5×5, stride 2, no padding; MP2: 2×2 max pooling; 100N: 100 units.

- P. Simard, D. Steinkraus, J. Platt 2003, "Best practices for convolutional neural networks applied to visual document
  analysis", §3 and figure 3. Weights start normal with standard deviation 0.05. The activation is not stated there.
- D. Cireşan, U. Meier, J. Masci, L. Gambardella, J. Schmidhuber 2011, "Flexible, high performance convolutional neural
  networks for image classification": 20M-40M-60M-80M-100M-120M-150N. The paper gives the number of maps, not the size
  of the filters or the place of pooling, and connects maps at random. Filters, pooling, full connection are our guess.
- D. Cireşan, U. Meier, J. Schmidhuber 2012, "Multi-column deep neural networks for image classification", §3.1. The
  papers' activation is 1.7159·tanh(0.6666x), and initial weights are uniform in ±0.05.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from cnn_jax.layers import MaxPool, activation, flatten, images, tap
from cnn_jax.models.base import Classifier, Entry


class Maps(NamedTuple):
    """A convolution without padding: number of filters, their side and stride; and the side of max pooling, 1: none."""

    count: int
    size: int
    stride: int = 1
    pool: int = 1


class DigitCnn(Classifier):
    """Convolutions, some with max pooling, then dense layers.

    Attributes:
        maps: the convolutions.
        dense: units of each hidden dense layer.
        input_shape: published (H, W, C); any other that fits works.
    """

    maps: tuple[Maps, ...] = ()
    dense: tuple[int, ...] = ()
    activation: str = "scaled_tanh"
    kernel_init: str = "uniform_0.05"
    input_shape: tuple[int, int, int] = (29, 29, 1)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32."""
        del train  # training and evaluation are the same
        conv, dense, activate = self.conv(), self.fully_connected(), activation(self.activation)
        x = images(x_BxHxWxC, self.dtype)
        for i, (count, size, stride, pool) in enumerate(self.maps, start=1):
            layer = conv(count, (size, size), (stride, stride), padding="VALID", name=f"conv{i}")
            x = tap(self, f"conv{i}", activate(layer(x)))
            if pool > 1:
                x = tap(self, f"pool{i}", MaxPool((pool, pool), name=f"pool{i}")(x))
        x = flatten(x)
        for i, units in enumerate(self.dense, start=1):
            x = tap(self, f"fc{i}", activate(dense(units, name=f"fc{i}")(x)))
        return self.head(x)


simard_cnn = partial(DigitCnn, maps=(Maps(5, 5, 2), Maps(50, 5, 2)), dense=(100,), kernel_init="normal_0.05")
ciresan_cnn = partial(
    DigitCnn,
    maps=(Maps(20, 3), Maps(40, 3, pool=2), Maps(60, 3), Maps(80, 3, pool=2), Maps(100, 3), Maps(120, 2)),
    dense=(150,),
)
mcdnn_column = partial(DigitCnn, maps=(Maps(20, 4, pool=2), Maps(40, 5, pool=3)), dense=(150,))

MODELS = {
    "simard_cnn": Entry(simard_cnn, "Simard et al. 2003, figure 3"),
    "ciresan_cnn": Entry(ciresan_cnn, "Cireşan et al. 2011, filter sizes guessed"),
    "mcdnn_column": Entry(mcdnn_column, "Cireşan et al. 2012, section 3.1"),
}
