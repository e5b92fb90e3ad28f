"""DenseNet: Huang, Liu, van der Maaten and Weinberger 2016, "Densely connected convolutional networks".

DenseNet-BC: a 1×1 convolution to 4k channels before each 3×3 to k channels; each transition halves the channels (§3).

ImageNet family (table 1): 121, 169, 201 layers with k = 32, 161 with k = 48; 7,978,856; 14,149,480; 20,013,928 and
28,681,000 parameters. Top-1 / top-5 error, one crop (table 3): 121 25.02 / 7.71 %, 169 23.80 / 6.85 %, 201 22.58 /
6.34 %.

CIFAR family (§3, §4.1), three blocks: `densenet_bc100` has 100 layers, k = 12 and 769,162 parameters for ten classes;
4.51 % error on CIFAR-10 with flips and crops, 5.92 % without them but with `dropout=0.2` (table 2).

Initialised as in torchvision: convolutions He-normal by fan-in, classifier uniform within ±1/sqrt(fan-in).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import AvgPool, GlobalAvgPool, MaxPool, activation, images, tap
from cnn_jax.models.base import Entry, NormalizedClassifier

_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_within_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class DenseLayer(nn.Module):
    """k new channels from all previous ones: norm, activation, 1×1 convolution; norm, activation, 3×3 (§3).

    Attributes:
        growth: k.
        conv: convolution factory.
        norm: batch normalisation factory.
        drop: dropout factory.
        activation: a key of `layers.ACTIVATIONS`, after each norm.
    """

    growth: int
    conv: Any
    norm: Any
    drop: Any
    activation: str

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...]) -> jax.Array:
        """Each (B, H, W, any number of channels) → (B, H, W, k).

        The layer concatenates its inputs itself, so that `nn.remat` does not store the concatenations of all layers,
        whose memory grows with the square of the depth (Pleiss et al. 2017, "Memory-efficient implementation of
        DenseNets").
        """
        x, activate = jnp.concatenate(maps, axis=-1), activation(self.activation)
        x = activate(self.norm(name="bn1")(x))
        x = self.drop(name="drop1")(self.conv(4 * self.growth, (1, 1), name="conv1")(x))
        x = activate(self.norm(name="bn2")(x))
        return self.drop(name="drop2")(self.conv(self.growth, (3, 3), padding=((1, 1), (1, 1)), name="conv2")(x))


class Transition(nn.Module):
    """Norm, activation, 1×1 convolution to half the channels, 2×2 average pooling (paper, §3).

    Attributes:
        conv: convolution factory.
        norm: batch normalisation factory.
        drop: dropout factory.
        activation: a key of `layers.ACTIVATIONS`, after the norm.
    """

    conv: Any
    norm: Any
    drop: Any
    activation: str

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/2, W/2, C/2)."""
        x = activation(self.activation)(self.norm(name="bn")(x_BxHxWxC))
        x = self.drop(name="drop")(self.conv(x.shape[-1] // 2, (1, 1), name="conv")(x))
        return AvgPool(name="pool")(x)


class DenseNet(NormalizedClassifier):
    """Stem of 2k filters, dense blocks separated by transitions, norm, activation, global average pooling, classifier.

    Attributes:
        blocks: layers of each dense block.
        growth: k, the new channels per layer.
        imagenet_stem: 7×7 stride 2, norm, activation and 3×3 max pooling stride 2, instead of one 3×3 convolution.
        dropout: dropout rate after each convolution but the first; the paper uses 0.2 where it does not augment.
        activation: a key of `layers.ACTIVATIONS`, after each norm.
        remat: recompute each layer's activations in the backward pass, see `DenseLayer`.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    imagenet_stem: bool = True
    dropout: float = 0.0
    remat: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training updates "batch_stats" and, with dropout, draws from "dropout"."""
        conv = self.conv(_he_normal, use_bias=False)
        norm = self.norm(train)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        layer = nn.remat(DenseLayer) if self.remat else DenseLayer
        activate = activation(self.activation)

        x = images(x_BxHxWxC, self.dtype)
        if self.imagenet_stem:
            x = conv(2 * self.growth, (7, 7), (2, 2), padding=((3, 3), (3, 3)), name="conv1")(x)
            x = tap(self, "conv1", activate(norm(name="bn1")(x)))
            x = tap(self, "pool1", MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), name="pool1")(x))
        else:
            x = conv(2 * self.growth, (3, 3), padding=((1, 1), (1, 1)), name="conv1")(x)
            x = tap(self, "conv1", x)
        for b, count in enumerate(self.blocks, start=1):
            maps = (x,)
            for i in range(1, count + 1):
                maps += (layer(self.growth, conv, norm, drop, self.activation, name=f"block{b}_layer{i}")(maps),)
            x = tap(self, f"block{b}", jnp.concatenate(maps, axis=-1))
            if b < len(self.blocks):
                transition = Transition(conv, norm, drop, self.activation, name=f"transition{b}")
                x = tap(self, f"transition{b}", transition(x))
        x = activate(norm(name="last_bn")(x))
        x = tap(self, "pool", GlobalAvgPool(name="pool")(x))
        return self.head(x, _within_fan_in)


densenet121 = DenseNet
densenet161 = partial(DenseNet, blocks=(6, 12, 36, 24), growth=48)
densenet169 = partial(DenseNet, blocks=(6, 12, 32, 32))
densenet201 = partial(DenseNet, blocks=(6, 12, 48, 32))
densenet_bc100 = partial(
    DenseNet, num_classes=10, blocks=(16, 16, 16), growth=12, imagenet_stem=False, input_shape=(32, 32, 3)
)

MODELS = {
    "densenet121": Entry(densenet121, "Huang et al. 2016, table 1"),
    "densenet161": Entry(densenet161, "Huang et al. 2016, table 1"),
    "densenet169": Entry(densenet169, "Huang et al. 2016, table 1"),
    "densenet201": Entry(densenet201, "Huang et al. 2016, table 1"),
    "densenet_bc100": Entry(densenet_bc100, "Huang et al. 2016, table 2"),
}
