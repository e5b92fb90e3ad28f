"""Residual networks: He, Zhang, Ren and Sun 2015, "Deep residual learning for image recognition".

CIFAR family (§4.2): 6n + 2 layers, three stages of n blocks with 16, 32, 64 filters. Table 6 gives the test errors on
CIFAR-10 with flips and 4-pixel crops: 20 layers 8.75 %, 32 7.51 %, 44 7.17 %, 56 6.97 %, 110 6.43 % (best of five, mean
6.61 ± 0.16). Parameters with shortcut "A": 269,722; 464,154; 658,586; 853,018; 1,727,962. "B" adds 2,752.

ImageNet family (table 1): 18, 34, 50, 101 and 152 layers with 11,689,512; 21,797,672; 25,557,032; 44,549,160 and
60,192,808 parameters for 1000 classes (projection shortcuts where the shape changes, the paper's option B).

ResNeXt: Xie, Girshick, Dollár, Tu and He 2016, "Aggregated residual transformations for deep neural networks", table 1.
The bottleneck's 3×3 convolution has `groups` groups of `base_width` channels (in the first stage): 50 layers 32×4d have
25,028,904 parameters and a published top-1 error of 22.2 %; 101 layers 32×8d, torchvision's form, 88,791,336.

Bottlenecks with twice the inner width: Zagoruyko and Komodakis 2016, "Wide residual networks": 50 layers with
68,883,240 parameters (top-1 error 21.9 %) and 101 with 126,886,696. The wide networks for CIFAR are in `preact_resnet`.

Differences from the paper:
- In bottlenecks the 3×3 convolution is strided, not the first 1×1 ("v1.5": same parameters, slightly more computation
  and accuracy), as in today's frameworks and their published weights.
- Convolutions are He-normal by fan-out, as in those frameworks; the classifier is LeCun-normal.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError
from cnn_jax.layers import Conv, GlobalAvgPool, MaxPool, activation, images, initializer, tap
from cnn_jax.models.base import Entry, NormalizedClassifier


def centered_conv(features: int, size: int, stride: int = 1, groups: int = 1, **kwargs: Any) -> Conv:
    """Returns a convolution without bias (a norm follows), with symmetric padding that keeps the centre in place."""
    pads = ((size // 2, size // 2),) * 2
    return Conv(
        features,
        (size, size),
        (stride, stride),
        padding=pads,
        feature_group_count=groups,
        use_bias=False,
        **kwargs,
    )


def subsample_and_pad(x_BxHxWxC: jax.Array, features: int, stride: int) -> jax.Array:
    """Shortcut "A": takes every `stride`-th pixel and pads with zero channels on both sides to `features` channels."""
    extra = features - x_BxHxWxC.shape[-1]
    pads = ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2))
    return jnp.pad(x_BxHxWxC[:, ::stride, ::stride], pads)


class Block(nn.Module):
    """act(x + F(x)): F is two 3×3 convolutions, or 1×1 – 3×3 – 1×1 in a bottleneck (paper, fig. 5).

    Attributes:
        features: filters of the 3×3 convolutions; a bottleneck outputs four times as many.
        stride: stride of the block.
        bottleneck: whether F is a bottleneck.
        shortcut: where the shape changes, "A" subsamples and pads with zero channels, "B" projects by 1×1 convolution.
        conv: convolution factory.
        norm: batch normalisation factory.
        zero_init: start with F = 0, by zeroing the scale of its last norm.
        groups: groups of a bottleneck's 3×3 convolution.
        base_width: channels per group of a bottleneck's 3×3 convolution, in 64ths of `features`.
        activation: a key of `layers.ACTIVATIONS`, after each convolution; the last one comes after the addition.
    """

    features: int
    stride: int
    bottleneck: bool
    shortcut: str
    conv: Any
    norm: Any
    zero_init: bool
    groups: int = 1
    base_width: int = 64
    activation: str = "relu"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/stride, W/stride, C')."""
        activate = activation(self.activation)
        last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        layers = [(self.features, 3, self.stride, 1), (self.features, 3, 1, 1)]
        if self.bottleneck:
            inner = self.features * self.base_width // 64 * self.groups
            layers = [(inner, 1, 1, 1), (inner, 3, self.stride, self.groups), (4 * self.features, 1, 1, 1)]
        y = x_BxHxWxC
        for i, (features, size, stride, groups) in enumerate(layers, start=1):
            y = self.conv(features, size, stride, groups, name=f"conv{i}")(y)
            if i < len(layers):
                y = activate(self.norm(name=f"bn{i}")(y))
        y = self.norm(scale_init=last_scale, name=f"bn{len(layers)}")(y)
        return activate(self._shortcut(x_BxHxWxC, y.shape[-1]) + y)

    def _shortcut(self, x: jax.Array, features: int) -> jax.Array:
        if self.stride == 1 and x.shape[-1] == features:
            return x
        if self.shortcut == "B":
            return self.norm(name="shortcut_bn")(self.conv(features, 1, self.stride, name="shortcut_conv")(x))
        return subsample_and_pad(x, features, self.stride)


class ResNet(NormalizedClassifier):
    """Stem, stages of residual blocks, global average pooling, classifier.

    Attributes:
        blocks: residual blocks of each stage; each stage after the first halves the maps and doubles the filters.
        width: filters of the first stage.
        bottleneck: whether blocks are bottlenecks.
        shortcut: "A" or "B", see `Block`.
        groups: groups of each bottleneck's 3×3 convolution (ResNeXt's cardinality).
        base_width: channels per group in the first stage, for a `width` of 64.
        imagenet_stem: 7×7 stride 2 and 3×3 max pooling stride 2, instead of one 3×3 convolution.
        zero_init_residual: start every block as the identity (Goyal et al. 2017, §5.1).
        remat: recompute block activations in the backward pass: less memory, more time.
    """

    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 16
    bottleneck: bool = False
    shortcut: Literal["A", "B"] = "A"
    groups: int = 1
    base_width: int = 64
    imagenet_stem: bool = False
    zero_init_residual: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training updates the collection "batch_stats"."""
        conv = self.conv(initializer("he_normal_fan_out"), centered_conv)
        norm = self.norm(train)
        if self.shortcut not in ("A", "B"):
            raise UserError(f"shortcut is {self.shortcut!r}: it must be A or B")
        if self.shortcut == "A" and self.bottleneck:
            raise UserError("shortcut=A does not work with bottleneck blocks: use shortcut=B, as in the paper")
        if not self.bottleneck and (self.groups, self.base_width) != (1, 64):
            raise UserError(
                f"groups={self.groups} and base_width={self.base_width} only work with bottleneck blocks: "
                "set bottleneck=true, or groups=1 and base_width=64"
            )
        if self.groups < 1 or self.width * self.base_width < 64:
            raise UserError(
                f"groups={self.groups}, base_width={self.base_width} and width={self.width} leave a bottleneck without "
                "channels: groups and width*base_width/64 must be at least 1"
            )
        make_block: Any = nn.remat(Block) if self.remat else Block
        x = images(x_BxHxWxC, self.dtype)
        x = conv(self.width, 7, 2, name="conv1")(x) if self.imagenet_stem else conv(self.width, 3, name="conv1")(x)
        x = tap(self, "conv1", activation(self.activation)(norm(name="bn1")(x)))
        if self.imagenet_stem:
            x = tap(self, "pool1", MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), name="pool1")(x))
        for s, count in enumerate(self.blocks, start=1):
            for b in range(1, count + 1):
                name = f"stage{s}_block{b}"
                block = make_block(
                    features=self.width * 2 ** (s - 1),
                    stride=2 if s > 1 and b == 1 else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    conv=conv,
                    norm=norm,
                    zero_init=self.zero_init_residual,
                    groups=self.groups,
                    base_width=self.base_width,
                    activation=self.activation,
                    name=name,
                )
                x = tap(self, name, block(x))
        x = tap(self, "pool", GlobalAvgPool(name="pool")(x))
        return self.head(x, initializer("lecun_normal"))


def _cifar(depth: int) -> partial[ResNet]:
    return partial(ResNet, blocks=((depth - 2) // 6,) * 3)


def _imagenet(blocks: Sequence[int], bottleneck: bool, groups: int = 1, base_width: int = 64) -> partial[ResNet]:
    return partial(
        ResNet,
        num_classes=1000,
        blocks=tuple(blocks),
        width=64,
        bottleneck=bottleneck,
        shortcut="B",
        groups=groups,
        base_width=base_width,
        imagenet_stem=True,
        input_shape=(224, 224, 3),
    )


resnet20, resnet32, resnet44, resnet56, resnet110 = map(_cifar, (20, 32, 44, 56, 110))
resnet18 = _imagenet((2, 2, 2, 2), bottleneck=False)
resnet34 = _imagenet((3, 4, 6, 3), bottleneck=False)
resnet50 = _imagenet((3, 4, 6, 3), bottleneck=True)
resnet101 = _imagenet((3, 4, 23, 3), bottleneck=True)
resnet152 = _imagenet((3, 8, 36, 3), bottleneck=True)
resnext50_32x4d = _imagenet((3, 4, 6, 3), bottleneck=True, groups=32, base_width=4)
resnext101_32x8d = _imagenet((3, 4, 23, 3), bottleneck=True, groups=32, base_width=8)
wide_resnet50_2 = _imagenet((3, 4, 6, 3), bottleneck=True, base_width=128)
wide_resnet101_2 = _imagenet((3, 4, 23, 3), bottleneck=True, base_width=128)

MODELS = {
    "resnet20": Entry(resnet20, "He et al. 2015, Deep residual learning, table 6"),
    "resnet32": Entry(resnet32, "He et al. 2015, Deep residual learning, table 6"),
    "resnet44": Entry(resnet44, "He et al. 2015, Deep residual learning, table 6"),
    "resnet56": Entry(resnet56, "He et al. 2015, Deep residual learning, table 6"),
    "resnet110": Entry(resnet110, "He et al. 2015, Deep residual learning, table 6"),
    "resnet18": Entry(resnet18, "He et al. 2015, Deep residual learning, table 1"),
    "resnet34": Entry(resnet34, "He et al. 2015, Deep residual learning, table 1"),
    "resnet50": Entry(resnet50, "He et al. 2015, Deep residual learning, table 1"),
    "resnet101": Entry(resnet101, "He et al. 2015, Deep residual learning, table 1"),
    "resnet152": Entry(resnet152, "He et al. 2015, Deep residual learning, table 1"),
    "resnext50_32x4d": Entry(resnext50_32x4d, "Xie et al. 2016, table 1"),
    "resnext101_32x8d": Entry(resnext101_32x8d, "Xie et al. 2016, table 1"),
    "wide_resnet50_2": Entry(wide_resnet50_2, "Zagoruyko and Komodakis 2016, as torchvision has it"),
    "wide_resnet101_2": Entry(wide_resnet101_2, "Zagoruyko and Komodakis 2016, as torchvision has it"),
}
