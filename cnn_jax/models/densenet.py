"""DenseNet: Huang, Liu, van der Maaten and Weinberger 2016, "Densely connected convolutional networks".

DenseNet-BC: a 1×1 convolution of 4k maps before each 3×3 of k maps, and half of the maps after each transition (§3).

ImageNet family (table 1): 121, 169, 201 layers with k = 32, 161 with k = 48; 7,978,856; 14,149,480; 20,013,928 and
28,681,000 parameters. Top-1 / top-5 error, one crop (table 3): 121 25.02 / 7.71 %, 169 23.80 / 6.85 %, 201 22.58 /
6.34 %.

CIFAR family (§3, §4.1), three blocks: `densenet_bc100` has 100 layers, k = 12 and 769,162 parameters for ten classes;
4.51 % error on CIFAR-10 with flips and crops, 5.92 % without, then with `dropout=0.2` (table 2).

Initialised as in torchvision: convolutions He-normal from the fan-in, the classifier uniform within 1/sqrt(fan-in).
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
    """k new maps from all maps so far: norm, activation, 1×1 convolution, and norm, activation, 3×3 (§3).

    Attributes:
        growth: k.
        conv: makes a convolution.
        norm: makes a batch normalisation.
        drop: makes a dropout, or the identity.
        activation: after each norm, a name of `layers.ACTIVATIONS`.
    """

    growth: int
    conv: Any
    norm: Any
    drop: Any
    activation: str

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...]) -> jax.Array:
        """Each (B, H, W, any number) → (B, H, W, k).

        The maps come one by one and are joined here, so that with `nn.remat` the joint maps of all layers, whose memory
        grows with the square of their number, are not kept (Pleiss et al. 2017, "Memory-efficient implementation of
        DenseNets").
        """
        x, activate = jnp.concatenate(maps, axis=-1), activation(self.activation)
        x = activate(self.norm(name="bn1")(x))
        x = self.drop(name="drop1")(self.conv(4 * self.growth, (1, 1), name="conv1")(x))
        x = activate(self.norm(name="bn2")(x))
        return self.drop(name="drop2")(self.conv(self.growth, (3, 3), padding=((1, 1), (1, 1)), name="conv2")(x))


class Transition(nn.Module):
    """Norm, activation, 1×1 convolution to half of the maps, 2×2 mean (paper, §3).

    Attributes:
        conv: makes a convolution.
        norm: makes a batch normalisation.
        drop: makes a dropout, or the identity.
        activation: after each norm, a name of `layers.ACTIVATIONS`.
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
    """Stem of 2k filters, dense blocks with transitions between them, norm, mean over the maps, classifier.

    Attributes:
        blocks: layers of each dense block.
        growth: k, new maps of a layer.
        imagenet_stem: 7×7 stride 2, norm, relu and 3×3 max pooling stride 2, instead of one 3×3 convolution.
        dropout: share of activations dropped after each convolution but the first; 0.2 in the paper, which has it where
            it does not augment.
        activation: after each norm, a name of `layers.ACTIVATIONS`.
        remat: compute the inside of each layer anew in the backward pass instead of keeping it, see `DenseLayer`.
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
        """Returns logits (B, K), float32. Training updates "batch_stats", and draws from "dropout" if there is any."""
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
