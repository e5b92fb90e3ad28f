"""Inception-v3: Szegedy et al. 2015, "Rethinking the Inception architecture for computer vision", §6, figures 5 to 10.

27,161,264 parameters, of which 3,326,696 belong to the auxiliary head, which is dropped after training: 23,834,568
without it (`aux_heads=false`). ImageNet error with one network and one 299×299 crop: 21.2 / 5.6 % top-1 / top-5 in the
paper, 22.71 / 6.55 % with torchvision's weights, which came from the authors.

The layers match torchvision's network, which follows the authors' code. Differences from the paper, whose table 1 gives
no widths inside the blocks:
- In the stem, the 80 filters are 1×1, and max pooling halves the maps after the 192 filters. In the table the 80 are
  3×3, the 192 have stride 2, and 288 more follow.
- The auxiliary loss weight of 0.4 is from the authors' code.
Weights start normal with standard deviation 0.1 (0.01 and 0.001 in the auxiliary head), as in torchvision.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import AvgPool, GlobalAvgPool, MaxPool, auxiliary, images, initializer, tap
from cnn_jax.models.base import Entry, NormalizedClassifier
from cnn_jax.models.googlenet import Branch, ConvUnit, Filters, Inception

AUX_WEIGHT = 0.4
_average = partial(AvgPool, (3, 3), (1, 1), ((1, 1), (1, 1)))
_halve = partial(MaxPool, (3, 3), (2, 2))


def _pool_branch(count: int) -> Branch:
    return Branch("branch_pool", (Filters(count, 1, 1),), pool=_average)


def _square(projection: int) -> tuple[Branch, ...]:
    """35×35 maps: GoogLeNet's 5×5 next to two 3×3 convolutions (figure 5)."""
    return (
        Branch("branch1x1", (Filters(64, 1, 1),)),
        Branch("branch5x5", (Filters(48, 1, 1), Filters(64, 5, 5))),
        Branch("branch3x3dbl", (Filters(64, 1, 1), Filters(96, 3, 3), Filters(96, 3, 3))),
        _pool_branch(projection),
    )


def _factorized(inner: int) -> tuple[Branch, ...]:
    """17×17 maps: 7×7 factorised into 1×7 and 7×1, once and twice (figure 6); `inner` filters in all but the last."""
    row, column = Filters(inner, 1, 7), Filters(inner, 7, 1)
    reduce = Filters(inner, 1, 1)
    return (
        Branch("branch1x1", (Filters(192, 1, 1),)),
        Branch("branch7x7", (reduce, row, Filters(192, 7, 1))),
        Branch("branch7x7dbl", (reduce, column, row, column, Filters(192, 1, 7))),
        _pool_branch(192),
    )


def _expanded() -> tuple[Branch, ...]:
    """8×8 maps: 1×3 and 3×1 filters side by side (figure 7)."""
    fork = (Filters(384, 1, 3), Filters(384, 3, 1))
    return (
        Branch("branch1x1", (Filters(320, 1, 1),)),
        Branch("branch3x3", (Filters(384, 1, 1),), fork),
        Branch("branch3x3dbl", (Filters(448, 1, 1), Filters(384, 3, 3)), fork),
        _pool_branch(192),
    )


def _reduction(*chains: Branch) -> tuple[Branch, ...]:
    """Halves the maps: strided convolutions in parallel with pooling, which avoids a bottleneck (figure 10)."""
    return (*chains, Branch("branch_pool", pool=_halve))


def _last(count: int) -> Filters:
    return Filters(count, 3, 3, stride=2, padded=False)


BLOCKS: dict[str, tuple[Branch, ...]] = {
    "mixed5b": _square(32),
    "mixed5c": _square(64),
    "mixed5d": _square(64),
    "mixed6a": _reduction(
        Branch("branch3x3", (_last(384),)),
        Branch("branch3x3dbl", (Filters(64, 1, 1), Filters(96, 3, 3), _last(96))),
    ),
    "mixed6b": _factorized(128),
    "mixed6c": _factorized(160),
    "mixed6d": _factorized(160),
    "mixed6e": _factorized(192),
    "mixed7a": _reduction(
        Branch("branch3x3", (Filters(192, 1, 1), _last(320))),
        Branch("branch7x7x3", (Filters(192, 1, 1), Filters(192, 1, 7), Filters(192, 7, 1), _last(192))),
    ),
    "mixed7b": _expanded(),
    "mixed7c": _expanded(),
}


class AuxiliaryHead(nn.Module):
    """Auxiliary head on the 17×17 maps: 5×5 mean pooling of stride 3, 1×1 and 5×5 filters, classifier (§4, figure 8).

    Attributes:
        num_classes: K.
        conv: convolution factory.
        norm: batch normalisation factory.
        dense: dense layer factory.
        activation: a key of `layers.ACTIVATIONS`.
        kernel_init: initialiser of the last two layers, a key of `layers.INITIALIZERS` or "published".
    """

    num_classes: int
    conv: Any
    norm: Any
    dense: Any
    activation: str = "relu"
    kernel_init: str = "published"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Returns logits (B, K), float32."""
        init = partial(initializer, self.kernel_init)
        unit = partial(ConvUnit, norm=self.norm, activation=self.activation)
        small = partial(self.conv, kernel_init=init(nn.initializers.normal(0.01)))
        x = AvgPool((5, 5), (3, 3), name="pool1")(x_BxHxWxC)
        x = unit(Filters(128, 1, 1), self.conv, name="conv1")(x)
        x = unit(Filters(768, 5, 5, padded=False), small, name="conv2")(x)
        x = GlobalAvgPool(name="pool2")(x)
        head = self.dense(self.num_classes, kernel_init=init(nn.initializers.normal(0.001)), name="output")
        return head(x).astype(jnp.float32)


class InceptionV3(NormalizedClassifier):
    """Stem, eleven inception blocks, global average pooling, dropout, classifier; in training also an auxiliary head.

    Attributes:
        aux_heads: whether to have the auxiliary head. It needs images of at least 299×299; the rest needs 75×75.
        activation: a key of `layers.ACTIVATIONS`, after each normalisation.
        remat: recompute block activations in the backward pass: less memory, more time.
    """

    num_classes: int = 1000
    aux_heads: bool = True
    remat: bool = False
    input_shape: tuple[int, int, int] = (299, 299, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training draws from "dropout" and exposes the auxiliary logits."""
        published = nn.initializers.normal(0.1)
        conv, dense = self.conv(published), partial(nn.Dense, **self.types)
        norm = self.norm(train, epsilon=1e-3)
        unit = partial(ConvUnit, conv=conv, norm=norm, activation=self.activation)
        block = nn.remat(Inception) if self.remat else Inception

        x = images(x_BxHxWxC, self.dtype)
        x = tap(self, "conv1a", unit(Filters(32, 3, 3, stride=2, padded=False), name="conv1a")(x))
        x = tap(self, "conv2a", unit(Filters(32, 3, 3, padded=False), name="conv2a")(x))
        x = tap(self, "conv2b", unit(Filters(64, 3, 3), name="conv2b")(x))
        x = tap(self, "pool1", _halve(name="pool1")(x))
        x = tap(self, "conv3b", unit(Filters(80, 1, 1), name="conv3b")(x))
        x = tap(self, "conv4a", unit(Filters(192, 3, 3, padded=False), name="conv4a")(x))
        x = tap(self, "pool2", _halve(name="pool2")(x))
        for name, branches in BLOCKS.items():
            x = tap(self, name, block(branches, unit, name=name)(x))
            if name == "mixed6e" and self.aux_heads and (train or self.is_initializing()):
                head = AuxiliaryHead(self.num_classes, conv, norm, dense, self.activation, self.kernel_init, name="aux")
                auxiliary(self, "aux", head(x), AUX_WEIGHT)
        x = tap(self, "pool", GlobalAvgPool(name="pool")(x))
        x = nn.Dropout(0.5, deterministic=not train, name="drop")(x)
        return self.head(x, published)


inception_v3 = InceptionV3

MODELS = {
    "inception_v3": Entry(inception_v3, "Szegedy et al. 2015, as torchvision has it"),
}
