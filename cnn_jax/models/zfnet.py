"""ZFNet: Zeiler and Fergus 2013, "Visualizing and understanding convolutional networks", figure 3.

AlexNet with 7×7 filters of stride 2 in the first layer, instead of 11×11 and stride 4, a choice made by visualising
AlexNet's filters: fewer are dead, and the second layer shows no aliasing (§4.1). 62,357,608 parameters. Top-1 and top-5
error of one network on the validation set of ILSVRC-2012 (table 3; table 2 has 0.1 less): 38.4 % and 16.5 %; their
replica of AlexNet 40.5 % and 18.1 %; with `features=96/256/512/1024/512` 37.5 % and 16.0 %.

Volumes: 224×224×3 → conv1 110×110×96 → pool1 55×55 → conv2 26×26×256 → pool2 13×13 → conv3, conv4 13×13×384 → conv5
13×13×256 → pool5 6×6×256 → fc6 4096 → fc7 4096 → 1000. Response normalisation follows pooling, the reverse of AlexNet's
order. Weights start normal with standard deviation 0.01, biases at 0 (§3.1).

Differences from the paper:
- The figure gives no padding. Here it is 1 before conv1 and 0 before conv2, and pooling windows may extend past the
  bottom and right edges, which reproduces the figure's volumes.
- The paper's training rescales filters whose root mean square exceeds 0.1 (§3.1), which is not part of the network.
"""

from functools import partial

import flax.linen as nn
import jax

from cnn_jax.layers import LocalResponseNorm, MaxPool, activation, flatten, images, tap
from cnn_jax.models.base import Classifier, Entry


class ZFNet(Classifier):
    """Five convolutions, three of them pooled, and three dense layers.

    Attributes:
        features: filters of conv1 to conv5.
        dense: units of fc6 and fc7.
        dropout: dropout rate of fc6 and fc7.
        input_shape: (H, W, C) of the paper; any other that fits works, and changes the input size of fc6.
    """

    num_classes: int = 1000
    features: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    dense: tuple[int, int] = (4096, 4096)
    dropout: float = 0.5
    kernel_init: str = "normal_0.01"
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training draws from the rng stream "dropout"."""
        conv_layer, dense = self.conv(), self.fully_connected()
        activate = activation(self.activation)
        pool = partial(MaxPool, (3, 3), (2, 2), ceil_mode=True)
        sizes_strides_pads = ((7, 2, 1), (5, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        x = images(x_BxHxWxC, self.dtype)
        for i, (features, (size, stride, pad)) in enumerate(zip(self.features, sizes_strides_pads, strict=True), 1):
            conv = conv_layer(features, (size, size), (stride, stride), padding=pad, name=f"conv{i}")
            x = tap(self, f"conv{i}", activate(conv(x)))
            if i <= 2:
                x = tap(self, f"pool{i}", pool(name=f"pool{i}")(x))
                x = tap(self, f"norm{i}", LocalResponseNorm(name=f"norm{i}")(x))
        x = flatten(tap(self, "pool5", pool(name="pool5")(x)))
        for i, units in enumerate(self.dense, start=6):
            x = tap(self, f"fc{i}", activate(dense(units, name=f"fc{i}")(x)))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"drop{i}")(x)
        return self.head(x)


zfnet = ZFNet

MODELS = {
    "zfnet": Entry(zfnet, "Zeiler and Fergus 2013, figure 3"),
}
