"""MobileNet-v2: Sandler, Howard, Zhu, Zhmoginov, Chen 2018, "MobileNetV2: inverted residuals and linear bottlenecks".

Table 2: seven stages of blocks that expand by a 1×1 convolution, filter depthwise (3×3), and project back without an
activation. 3,504,872 parameters for 1000 classes; published top-1 accuracy 72.0 % (table 4). `width` is the paper's
multiplier: 0.5 gives 1,968,680 parameters, 1.4 gives 6,108,776.

As in torchvision: symmetric padding (TensorFlow's is not); dropout 0.2 before the classifier; convolutions He-normal by
fan-out, not truncated; classifier normal(0, 0.01).

`InvertedResidualNet` is also the EfficientNet of `cnn_jax.models.efficientnet`.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from cnn_jax.layers import (
    DropPath,
    GlobalAvgPool,
    Initializer,
    SqueezeExcite,
    activation,
    images,
    initializer,
    tap,
)
from cnn_jax.models.base import Entry, NormalizedClassifier
from cnn_jax.models.resnet import centered_conv


class Stage(NamedTuple):
    """Blocks of one width: expansion factor, filters, filter size in pixels, number of blocks, first block's stride."""

    expansion: int
    features: int
    size: int
    blocks: int
    stride: int


# Paper, table 2.
STAGES = (
    Stage(1, 16, 3, 1, 1),
    Stage(6, 24, 3, 2, 2),
    Stage(6, 32, 3, 3, 2),
    Stage(6, 64, 3, 4, 2),
    Stage(6, 96, 3, 3, 1),
    Stage(6, 160, 3, 3, 2),
    Stage(6, 320, 3, 1, 1),
)


def scaled_width(features: int, width: float) -> int:
    """Returns filters times `width`, rounded to a multiple of 8, losing at most a tenth, as in the authors' code.

    >>> scaled_width(24, 0.5), scaled_width(24, 1.4)
    (16, 32)
    """
    exact = features * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


class InvertedResidual(nn.Module):
    """1×1 convolution to `expansion` times the channels, depthwise convolution, 1×1 convolution to `features` channels.

    The input is added if shape and channels are unchanged. With an expansion of 1 there is no first convolution.

    Attributes:
        features: output channels.
        expansion: ratio of inner channels to input channels.
        size: size of the depthwise filters in pixels.
        stride: stride of the depthwise filters.
        activation: a key of `layers.ACTIVATIONS`, after the first two convolutions.
        squeezed: units of the squeeze and excitation after the depthwise convolution; 0 for none.
        drop_path: probability that an example skips the block in training.
        train: whether this is training.
        conv: convolution factory.
        norm: batch normalisation factory.
        squeeze: squeeze and excitation factory.
    """

    features: int
    expansion: int
    size: int
    stride: int
    activation: str
    squeezed: int
    drop_path: float
    train: bool
    conv: Any
    norm: Any
    squeeze: Any

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/stride, W/stride, features)."""
        act, inside = activation(self.activation), self.expansion * x_BxHxWxC.shape[-1]
        y = x_BxHxWxC
        if self.expansion > 1:
            y = act(self.norm(name="expand_bn")(self.conv(inside, 1, name="expand_conv")(y)))
        y = self.conv(inside, self.size, self.stride, groups=inside, name="depthwise_conv")(y)
        y = act(self.norm(name="depthwise_bn")(y))
        if self.squeezed:
            y = self.squeeze(self.squeezed, activation=self.activation, name="se")(y)
        y = self.norm(name="project_bn")(self.conv(self.features, 1, name="project_conv")(y))
        if self.stride > 1 or y.shape[-1] != x_BxHxWxC.shape[-1]:
            return y
        return x_BxHxWxC + DropPath(self.drop_path, name="drop_path")(y, deterministic=not self.train)


class InvertedResidualNet(NormalizedClassifier):
    """Strided stem, stages of inverted residuals, 1×1 convolution, global average pooling, dropout, classifier.

    Attributes:
        stages: stages of blocks; default: the seven of MobileNet-v2.
        stem_features: filters of the first convolution.
        head_features: filters of the last convolution; a `width` below 1 does not reduce them.
        width: multiplies the filters, see `scaled_width`.
        depth: multiplies the blocks of each stage, rounded up.
        activation: a key of `layers.ACTIVATIONS`, after each convolution but the last of a block.
        squeeze: whether blocks have squeeze and excitation, to a quarter of the block's input channels.
        dropout: dropout rate before the classifier.
        drop_path: stochastic depth rate: grows linearly from 0 in the first block to this in the one after the last.
        output_init: published initialiser of the classifier.
        bn_epsilon: epsilon of batch normalisation.
        remat: recompute block activations in the backward pass: less memory, more time.
        input_shape: (H, W, C) of the paper; any other works.
    """

    num_classes: int = 1000
    stages: tuple[Stage, ...] = STAGES
    stem_features: int = 32
    head_features: int = 1280
    width: float = 1.0
    depth: float = 1.0
    activation: str = "relu6"
    squeeze: bool = False
    dropout: float = 0.2
    drop_path: float = 0.0
    output_init: Initializer = nn.initializers.normal(0.01)
    bn_epsilon: float = 1e-5
    remat: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training updates "batch_stats" and draws from the rng stream "dropout"."""
        act = activation(self.activation)
        published = initializer("he_normal_fan_out")
        conv = self.conv(published, centered_conv)
        squeeze = self.conv(published, SqueezeExcite)
        norm = self.norm(train, epsilon=self.bn_epsilon)
        make_block: Any = nn.remat(InvertedResidual) if self.remat else InvertedResidual
        counts = [math.ceil(self.depth * stage.blocks) for stage in self.stages]
        before = 0
        x = conv(scaled_width(self.stem_features, self.width), 3, 2, name="stem_conv")(images(x_BxHxWxC, self.dtype))
        x = tap(self, "stem", act(norm(name="stem_bn")(x)))
        for s, (stage, count) in enumerate(zip(self.stages, counts), start=1):
            for b in range(1, count + 1):
                block = make_block(
                    features=scaled_width(stage.features, self.width),
                    expansion=stage.expansion,
                    size=stage.size,
                    stride=stage.stride if b == 1 else 1,
                    activation=self.activation,
                    squeezed=max(1, x.shape[-1] // 4) if self.squeeze else 0,
                    drop_path=self.drop_path * before / sum(counts),
                    train=train,
                    conv=conv,
                    norm=norm,
                    squeeze=squeeze,
                    name=f"stage{s}_block{b}",
                )
                x, before = tap(self, f"stage{s}_block{b}", block(x)), before + 1
        x = conv(scaled_width(self.head_features, max(1.0, self.width)), 1, name="head_conv")(x)
        x = tap(self, "head", act(norm(name="head_bn")(x)))
        x = tap(self, "pool", GlobalAvgPool(name="pool")(x))
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)
        return self.head(x, self.output_init)


mobilenet_v2 = InvertedResidualNet

MODELS = {
    "mobilenet_v2": Entry(mobilenet_v2, "Sandler et al. 2018, table 2"),
}
