"""All-CNN: Springenberg, Dosovitskiy, Brox and Riedmiller 2014, "Striving for simplicity: the all convolutional net".

No dense layer, and no pooling but the mean over the last maps: a 3×3 convolution of stride 2 does what a pooling did.

    name        parameters   test error on CIFAR-10 in % (table 3, without augmentation)
    all_cnn_a    1,254,250   10.30
    all_cnn_b    1,300,618    9.10
    all_cnn_c    1,369,738    9.08; with flips and shifts 7.25

Filters of `all_cnn_c` (tables 1 and 2): 3×3 96, 3×3 96, 3×3/2 96 → 3×3 192, 3×3 192, 3×3/2 192 → 3×3 192, 1×1 192,
1×1 10, mean; maps 32×32 → 16×16 → 8×8 → 6×6. A has one 5×5 convolution in place of each pair of 3×3, B a 5×5 and a 1×1.
Training drops a fifth of the image, and half of the activations after each convolution of stride 2 (§3.1). As in the
table, a rectifier also follows the last convolution: logits are never negative.

Differences:
- The paper says neither how weights start nor how maps are padded. Ours start He-normal, biases 0; all convolutions
  keep the size of the maps, or halve it, but the seventh (`all_cnn_c`), which yields the table's 6×6.
- The paper's counts, "about" 1.28, 1.35 and 1.4 million, are rounded up.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import GlobalAvgPool, activation, images, tap
from cnn_jax.models.base import Classifier, Entry


class AllCnn(Classifier):
    """Stages that end with a convolution of stride 2; then a 3×3 and two 1×1 convolutions, and the mean of each map.

    Attributes:
        sizes: side in pixels of the filters of stride 1 in each stage.
        features: filters of each convolution of each stage; the last layers have as many as the last stage.
        input_dropout: share of the image's numbers dropped in training.
        dropout: share of the activations dropped after each stage.
        activation: after each convolution, also the last, a key of `layers.ACTIVATIONS`.
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
