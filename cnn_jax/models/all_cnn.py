"""All-CNN: Springenberg, Dosovitskiy, Brox and Riedmiller 2014, "Striving for simplicity: the all convolutional net".

No dense layers, and no pooling except the final mean: 3×3 convolutions of stride 2 replace the other pooling layers.

    name        parameters   test error on CIFAR-10 in % (table 3, without augmentation)
    all_cnn_a    1,254,250   10.30
    all_cnn_b    1,300,618    9.10
    all_cnn_c    1,369,738    9.08; with flips and shifts 7.25

Filters of `all_cnn_c` (tables 1 and 2): 3×3 96, 3×3 96, 3×3/2 96 → 3×3 192, 3×3 192, 3×3/2 192 → 3×3 192, 1×1 192,
1×1 10, mean; maps 32×32 → 16×16 → 8×8 → 6×6. Instead of each pair of 3×3 convolutions, A has one 5×5, B a 5×5 and a
1×1. Training drops a fifth of the input, and half of the activations after each strided convolution (§3.1). As in the
table, a ReLU also follows the last convolution, so logits are never negative.

Differences from the paper:
- The paper specifies neither initialisation nor padding. Weights start He-normal, biases at 0; every convolution keeps
  or halves the map size, except the seventh (in `all_cnn_c`), which yields the table's 6×6.
- The paper rounds its parameter counts up to "about" 1.28, 1.35 and 1.4 million.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import GlobalAvgPool, activation, images, tap
from cnn_jax.models.base import Classifier, Entry


class AllCnn(Classifier):
    """Stages that end with a strided convolution, then one 3×3 and two 1×1 convolutions and global average pooling.

    Attributes:
        sizes: side in pixels of each stride-1 filter of a stage.
        features: filters of the convolutions of each stage; the layers after the stages have as many as the last stage.
        input_dropout: dropout rate of the image.
        dropout: dropout rate after each stage.
        activation: a key of `layers.ACTIVATIONS`, after each convolution, including the last.
        input_shape: (H, W, C) of the paper; any other from 9×9 works.
    """

    sizes: tuple[int, ...] = (3, 3)
    features: tuple[int, ...] = (96, 192)
    input_dropout: float = 0.2
    dropout: float = 0.5
    kernel_init: str = "he_normal"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training draws from the rng stream "dropout"."""
        conv = self.conv()
        activate = activation(self.activation)
        drop = partial(nn.Dropout, deterministic=not train)
        x = drop(self.input_dropout, name="drop0")(images(x_BxHxWxC, self.dtype))
        number = 0
        for s, features in enumerate(self.features, start=1):
            for size, stride in (*((size, 1) for size in self.sizes), (3, 2)):
                number += 1
                layer = conv(features, (size, size), (stride, stride), padding=size // 2, name=f"conv{number}")
                x = tap(self, f"conv{number}", activate(layer(x)))
            x = drop(self.dropout, name=f"drop{s}")(x)
        for size in (3, 1):
            number += 1
            layer = conv(self.features[-1], (size, size), padding="VALID", name=f"conv{number}")
            x = tap(self, f"conv{number}", activate(layer(x)))
        x = tap(self, "class_maps", activate(conv(self.num_classes, (1, 1), name="output")(x)))
        return GlobalAvgPool(name="pool")(x).astype(jnp.float32)


all_cnn_a = partial(AllCnn, sizes=(5,))
all_cnn_b = partial(AllCnn, sizes=(5, 1))
all_cnn_c = partial(AllCnn, sizes=(3, 3))

MODELS = {
    "all_cnn_a": Entry(all_cnn_a, "Springenberg et al. 2014, tables 1 and 2"),
    "all_cnn_b": Entry(all_cnn_b, "Springenberg et al. 2014, tables 1 and 2"),
    "all_cnn_c": Entry(all_cnn_c, "Springenberg et al. 2014, tables 1 and 2"),
}
