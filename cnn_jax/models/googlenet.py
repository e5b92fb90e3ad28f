"""GoogLeNet: Szegedy et al. 2014, "Going deeper with convolutions", table 1. Top-5 error on the validation set of
ILSVRC-2014 (table 3): 10.07 % with one network and one crop, 6.67 % with seven networks and 144 crops.

`googlenet` is the paper's: biases, local response normalisation, no batch normalisation. 13,378,280 parameters, of
which 6,379,728 belong to the two auxiliary heads of §5, which are dropped after training: 6,998,552 without them
(`aux_heads=false`). Choices where the paper is silent:
- The constants of the response normalisation are AlexNet's (§3.3 there).
- Weights start uniform with standard deviation 1/sqrt(fan-in), biases of convolutions at 0.2, as in the Caffe model
  zoo's replica.

`googlenet_torchvision` fits PyTorch's public weights: 13,004,888 parameters, 6,624,904 without the heads; 30.22 /
10.47 % top-1 / top-5 error. Besides batch normalisation, it differs in other ways, hence the name: the "5×5" filters
are 3×3, the last max pooling is 2×2, the heads pool to 4×4 maps from any image size, and dropout is 0.2 instead of 0.4.
Weights start normal with standard deviation 0.01, as there.

Max pooling windows extend past the edge, as in Caffe and PyTorch, so that 112×112 maps become 56×56.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import (
    AvgPool,
    GlobalAvgPool,
    LocalResponseNorm,
    MaxPool,
    activation,
    auxiliary,
    flatten,
    images,
    initializer,
    tap,
)
from cnn_jax.layers.pooling import adaptive_avg_pool
from cnn_jax.models.base import Entry, NormalizedClassifier

# Paper, table 1: filters of #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj.
TABLE = {
    3: {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    4: {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    5: {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}
AUX_WEIGHT = 0.3  # §5


class Filters(NamedTuple):
    """A convolution's filters.

    Attributes:
        count: number of filters.
        height: height in pixels.
        width: width in pixels.
        stride: along both axes.
        padded: whether to pad by half a filter at each edge, which keeps the centre; otherwise not at all.
    """

    count: int
    height: int
    width: int
    stride: int = 1
    padded: bool = True


class Branch(NamedTuple):
    """A path through an inception block: pooling, then convolutions in sequence, then convolutions in parallel.

    Attributes:
        name: name of its layers, which are numbered if there are several: NAME_1, NAME_2, a fork NAME_3a, NAME_3b.
        chain: convolutions in sequence.
        fork: parallel convolutions on the output of the chain; their outputs are concatenated.
        pool: pooling factory.
    """

    name: str
    chain: tuple[Filters, ...] = ()
    fork: tuple[Filters, ...] = ()
    pool: Any = None


class ConvUnit(nn.Module):
    """act(norm(conv(x))), or act(conv(x) + bias) without a norm.

    Attributes:
        filters: filters of the convolution.
        conv: convolution factory.
        norm: batch normalisation factory; None for a bias instead.
        activation: a key of `layers.ACTIVATIONS`.
    """

    filters: Filters
    conv: Any
    norm: Any = None
    activation: str = "relu"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/stride, W/stride, count)."""
        count, height, width, stride, padded = self.filters
        pads = ((height // 2,) * 2, (width // 2,) * 2) if padded else "VALID"
        use_bias = self.norm is None
        conv = self.conv(count, (height, width), (stride, stride), padding=pads, use_bias=use_bias, name="conv")
        x = conv(x_BxHxWxC)
        return activation(self.activation)(x if self.norm is None else self.norm(name="bn")(x))


class Inception(nn.Module):
    """Parallel branches whose outputs are concatenated (paper, figure 2b).

    Attributes:
        branches: the branches, in the order of their outputs.
        unit: `ConvUnit` factory, takes `Filters`.
    """

    branches: tuple[Branch, ...]
    unit: Any

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/stride, W/stride, filters of all branches)."""
        return jnp.concatenate([self._through(branch, x_BxHxWxC) for branch in self.branches], axis=-1)

    def _through(self, branch: Branch, x: jax.Array) -> jax.Array:
        if branch.pool is not None:
            x = branch.pool(name="pool")(x)
        several = len(branch.chain) + len(branch.fork) > 1
        for i, filters in enumerate(branch.chain, start=1):
            x = self.unit(filters, name=f"{branch.name}_{i}" if several else branch.name)(x)
        if not branch.fork:
            return x
        prefix = f"{branch.name}_{len(branch.chain) + 1}"
        sides = [self.unit(filters, name=prefix + letter)(x) for letter, filters in zip("ab", branch.fork, strict=True)]
        return jnp.concatenate(sides, axis=-1)


class AuxiliaryHead(nn.Module):
    """Auxiliary head: pooling to 4×4 maps, 128 1×1 filters, dense layer of 1024 units, dropout, classifier (§5).

    Attributes:
        num_classes: K.
        adaptive: pool maps of any size to 4×4; otherwise use 5×5 windows of stride 3, which reduce 14×14 to 4×4.
        unit: `ConvUnit` factory, takes `Filters`.
        dense: dense layer factory.
        train: whether to apply dropout, at a rate of 0.7.
        activation: activation of the dense layer, a key of `layers.ACTIVATIONS`.
    """

    num_classes: int
    adaptive: bool
    unit: Any
    dense: Any
    train: bool
    activation: str = "relu"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Returns logits (B, K), float32."""
        x = adaptive_avg_pool(x_BxHxWxC, 4) if self.adaptive else AvgPool((5, 5), (3, 3), name="pool")(x_BxHxWxC)
        x = self.unit(Filters(128, 1, 1), name="conv")(x)
        x = activation(self.activation)(self.dense(1024, name="fc")(flatten(x)))
        x = nn.Dropout(0.7, deterministic=not self.train, name="drop")(x)
        return self.dense(self.num_classes, name="output")(x).astype(jnp.float32)


def _branches(widths: tuple[int, ...], largest: int) -> tuple[Branch, ...]:
    """Builds the branches of a row of the table; `largest` is the side of the filters that the table calls 5×5."""
    single, reduce3, count3, reduce5, count5, projection = widths
    return (
        Branch("branch1x1", (Filters(single, 1, 1),)),
        Branch("branch3x3", (Filters(reduce3, 1, 1), Filters(count3, 3, 3))),
        Branch("branch5x5", (Filters(reduce5, 1, 1), Filters(count5, largest, largest))),
        Branch("branch_pool", (Filters(projection, 1, 1),), pool=partial(MaxPool, (3, 3), (1, 1), ((1, 1), (1, 1)))),
    )


class GoogLeNet(NormalizedClassifier):
    """Stem, nine inception blocks, global average pooling, dropout, classifier; in training also two auxiliary heads.

    Attributes:
        form: "paper" or "torchvision", see the module docstring.
        aux_heads: whether to have the auxiliary heads. The paper's need images of at least 79×79.
        remat: recompute block activations in the backward pass: less memory, more time.
        input_shape: (H, W, C) of the paper; any other that fits works, but in the paper's form the image size sets the
            number of parameters of the auxiliary heads.
    """

    num_classes: int = 1000
    form: Literal["paper", "torchvision"] = "paper"
    aux_heads: bool = True
    remat: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training draws from "dropout" and exposes the auxiliary logits."""
        paper = self.form == "paper"
        published = initializer("lecun_uniform" if paper else "normal_0.01")
        dense = self.fully_connected(published)
        conv = self.conv(published, bias_init=nn.initializers.constant(0.2))
        norm = self.norm(train, epsilon=1e-3)
        unit = partial(ConvUnit, conv=conv, norm=None if paper else norm, activation=self.activation)
        block = nn.remat(Inception) if self.remat else Inception
        heads = {"inception4a": "aux1", "inception4d": "aux2"} if self.aux_heads else {}
        side_head = partial(AuxiliaryHead, self.num_classes, not paper, unit, dense, train, self.activation)

        x = images(x_BxHxWxC, self.dtype)
        x = tap(self, "conv1", unit(Filters(64, 7, 7, stride=2), name="conv1")(x))
        x = self._halve(x, 1)
        x = tap(self, "norm1", LocalResponseNorm(name="norm1")(x)) if paper else x
        x = unit(Filters(64, 1, 1), name="conv2_reduce")(x)
        x = tap(self, "conv2", unit(Filters(192, 3, 3), name="conv2")(x))
        x = tap(self, "norm2", LocalResponseNorm(name="norm2")(x)) if paper else x
        x = self._halve(x, 2)
        for stage, rows in TABLE.items():
            for letter, widths in rows.items():
                name = f"inception{stage}{letter}"
                x = tap(self, name, block(_branches(widths, 5 if paper else 3), unit, name=name)(x))
                if name in heads and (train or self.is_initializing()):
                    auxiliary(self, heads[name], side_head(name=heads[name])(x), AUX_WEIGHT)
            if stage < 5:
                x = self._halve(x, stage, size=3 if paper or stage < 4 else 2)
        x = tap(self, "pool", GlobalAvgPool(name="pool")(x))
        x = nn.Dropout(0.4 if paper else 0.2, deterministic=not train, name="drop")(x)
        return self.head(x, published)

    def _halve(self, x: jax.Array, number: int, size: int = 3) -> jax.Array:
        name = f"pool{number}"
        return tap(self, name, MaxPool((size, size), (2, 2), ceil_mode=True, name=name)(x))


googlenet = GoogLeNet
googlenet_torchvision = partial(GoogLeNet, form="torchvision")

MODELS = {
    "googlenet": Entry(googlenet, "Szegedy et al. 2014, table 1"),
    "googlenet_torchvision": Entry(googlenet_torchvision, "Szegedy et al. 2014, as torchvision has it"),
}
