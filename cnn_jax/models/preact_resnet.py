"""Residual networks with pre-activation, deep and thin or shallow and wide.

`preact_resnet…`: He, Zhang, Ren and Sun 2016, "Identity mappings in deep residual networks": norm and ReLU precede each
convolution, and nothing follows the addition (fig. 4e). Test errors on CIFAR-10: 110 layers 6.37 %, 164 5.46 %, 1001
4.92 % (4.62 % with smaller batches). Parameters: 1,727,962; 1,703,258; 10,327,706. As in the authors' released code,
a bottleneck's first convolution is the strided one, and where the shape changes the shortcut is a 1×1 convolution of
the activated input, without a norm. The 110-layer network has blocks of two 3×3 convolutions and shortcut "A", as in
the 2015 paper. ImageNet: 18 and 50 layers with 11,687,720 and 25,549,352 parameters.

`wrn…`: Zagoruyko and Komodakis 2016, "Wide residual networks", §2: blocks of two 3×3 convolutions, `widen` times as
wide, with optional dropout between the two. On CIFAR-10, WRN-28-10 has 36,479,194 parameters and a test error of
4.00 %, 3.89 % with dropout (the authors' code, median of five). WRN-16-4 has 2,748,890 parameters, WRN-40-2 2,243,546.

Differences from the papers:
- The ImageNet stem pools before the first norm. The paper activates right after its first convolution.
- The wide networks' He-normal is truncated at two standard deviations, with the variance preserved.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax

from cnn_jax.errors import UserError
from cnn_jax.layers import GlobalAvgPool, MaxPool, activation, images, initializer, tap
from cnn_jax.models.base import Entry, NormalizedClassifier
from cnn_jax.models.resnet import centered_conv, subsample_and_pad

_uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1/sqrt(fan-in)


class PreActBlock(nn.Module):
    """x + F(x), where F is norm, activation, convolution, twice or in a bottleneck three times (eq. 1 and fig. 4e).

    Attributes:
        features: filters of the 3×3 convolutions; a bottleneck outputs four times as many.
        stride: stride of the block.
        bottleneck: F is 1×1 – 3×3 – 1×1 instead of 3×3 – 3×3.
        shortcut: where the shape changes, "A" subsamples and pads with zero channels, "B" projects by 1×1 convolution.
        activate_both: the shortcut also starts from the activated input, as it always does where the shape changes.
        activation: a key of `layers.ACTIVATIONS`, before each convolution.
        dropout: dropout rate before the last convolution.
        train: whether this is training.
        conv: convolution factory.
        norm: batch normalisation factory.
    """

    features: int
    stride: int
    bottleneck: bool
    shortcut: str
    activate_both: bool
    activation: str
    dropout: float
    train: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/stride, W/stride, C')."""
        activate = activation(self.activation)
        layers = [(self.features, 3, self.stride), (self.features, 3, 1)]
        if self.bottleneck:
            layers = [(self.features, 1, self.stride), (self.features, 3, 1), (4 * self.features, 1, 1)]
        outputs = layers[-1][0]
        changes = self.stride != 1 or x_BxHxWxC.shape[-1] != outputs
        y = activate(self.norm(name="bn1")(x_BxHxWxC))
        shortcut = y if changes or self.activate_both else x_BxHxWxC
        if changes and self.shortcut == "A":
            shortcut = subsample_and_pad(shortcut, outputs, self.stride)
        elif changes:
            shortcut = self.conv(outputs, 1, self.stride, name="shortcut_conv")(shortcut)
        for i, (features, size, stride) in enumerate(layers, start=1):
            if i > 1:
                y = activate(self.norm(name=f"bn{i}")(y))
            if i == len(layers) and self.dropout:
                y = nn.Dropout(self.dropout, deterministic=not self.train, name="drop")(y)
            y = self.conv(features, size, stride, name=f"conv{i}")(y)
        return shortcut + y


class PreActResNet(NormalizedClassifier):
    """Stem, stages of pre-activation blocks, norm, activation, global average pooling, classifier.

    Attributes:
        blocks: residual blocks of each stage; each stage after the first halves the maps and doubles the filters.
        width: filters of the stem.
        widen: filters of the first stage as a multiple of `width` (the paper's k).
        bottleneck: whether blocks are bottlenecks.
        shortcut: "A" or "B", see `PreActBlock`.
        dropout: dropout rate before each block's last convolution.
        imagenet_stem: 7×7 stride 2 and 3×3 max pooling stride 2, instead of one 3×3 convolution.
        activation: a key of `layers.ACTIVATIONS`, before each convolution and before the pooling.
        kernel_init: a key of `layers.INITIALIZERS` for every layer, or "published": convolutions He-normal by fan-out
            (by fan-in in wide networks), classifier uniform within ±1/sqrt(fan-in).
        remat: recompute block activations in the backward pass: less memory, more time.
    """

    blocks: tuple[int, ...] = (18, 18, 18)
    width: int = 16
    widen: int = 1
    bottleneck: bool = False
    shortcut: Literal["A", "B"] = "B"
    dropout: float = 0.0
    imagenet_stem: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training updates "batch_stats" and, with dropout, draws from "dropout"."""
        if self.shortcut == "A" and (self.bottleneck or self.widen > 1):
            raise UserError(
                "shortcut=A does not work with bottleneck or widened blocks: use shortcut=B, as in the papers"
            )
        he_normal = initializer("he_normal" if self.widen > 1 else "he_normal_fan_out")
        conv = self.conv(he_normal, centered_conv)
        norm = self.norm(train)
        make_block: Any = nn.remat(PreActBlock) if self.remat else PreActBlock
        x = images(x_BxHxWxC, self.dtype)
        x = conv(self.width, 7, 2, name="conv1")(x) if self.imagenet_stem else conv(self.width, 3, name="conv1")(x)
        x = tap(self, "conv1", x)
        if self.imagenet_stem:
            x = tap(self, "pool1", MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), name="pool1")(x))
        for s, count in enumerate(self.blocks, start=1):
            for b in range(1, count + 1):
                name = f"stage{s}_block{b}"
                block = make_block(
                    features=self.width * self.widen * 2 ** (s - 1),
                    stride=2 if s > 1 and b == 1 else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    activate_both=s == b == 1,
                    activation=self.activation,
                    dropout=self.dropout,
                    train=train,
                    conv=conv,
                    norm=norm,
                    name=name,
                )
                x = tap(self, name, block(x))
        x = activation(self.activation)(norm(name="bn")(x))
        x = tap(self, "pool", GlobalAvgPool(name="pool")(x))
        return self.head(x, _uniform_fan_in)


def _deep(depth: int) -> partial[PreActResNet]:
    return partial(PreActResNet, blocks=((depth - 2) // 9,) * 3, bottleneck=True)


def _wide(depth: int, widen: int) -> partial[PreActResNet]:
    return partial(PreActResNet, blocks=((depth - 4) // 6,) * 3, widen=widen)


def _imagenet(blocks: tuple[int, ...], bottleneck: bool) -> partial[PreActResNet]:
    return partial(
        PreActResNet,
        num_classes=1000,
        blocks=blocks,
        width=64,
        bottleneck=bottleneck,
        imagenet_stem=True,
        input_shape=(224, 224, 3),
    )


preact_resnet110 = partial(PreActResNet, blocks=(18, 18, 18), shortcut="A")
preact_resnet164, preact_resnet1001 = _deep(164), _deep(1001)
preact_resnet18 = _imagenet((2, 2, 2, 2), bottleneck=False)
preact_resnet50 = _imagenet((3, 4, 6, 3), bottleneck=True)
wrn16_4, wrn28_10, wrn40_2 = _wide(16, 4), _wide(28, 10), _wide(40, 2)

MODELS = {
    "preact_resnet110": Entry(preact_resnet110, "He et al. 2016, Identity mappings"),
    "preact_resnet164": Entry(preact_resnet164, "He et al. 2016, Identity mappings"),
    "preact_resnet1001": Entry(preact_resnet1001, "He et al. 2016, Identity mappings"),
    "preact_resnet18": Entry(preact_resnet18, "He et al. 2016, Identity mappings"),
    "preact_resnet50": Entry(preact_resnet50, "He et al. 2016, Identity mappings"),
    "wrn16_4": Entry(wrn16_4, "Zagoruyko and Komodakis 2016, table 4"),
    "wrn28_10": Entry(wrn28_10, "Zagoruyko and Komodakis 2016, table 4"),
    "wrn40_2": Entry(wrn40_2, "Zagoruyko and Komodakis 2016, table 4"),
}
