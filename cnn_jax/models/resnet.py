"""Residual networks: He, Zhang, Ren and Sun 2015, "Deep residual learning for image recognition".

CIFAR family (§4.2): 6n + 2 layers, three stages of n blocks with 16, 32, 64 filters; table 6 gives the test errors on
CIFAR-10 with flips and 4-pixel crops: 20 layers 8.75 %, 32 7.51 %, 44 7.17 %, 56 6.97 %, 110 6.43 % (best of five, mean
6.61 ± 0.16). Parameters with shortcut "A": 269,722; 464,154; 658,586; 853,018; 1,727,962. "B" adds 2,752.

ImageNet family (table 1): 18, 34, 50, 101 and 152 layers with 11,689,512; 21,797,672; 25,557,032; 44,549,160 and
60,192,808 parameters for 1000 classes (projection shortcuts where the shape changes, the paper's option B).
Where ours differs:
- The bottleneck's stride is on its 3×3 convolution, not on the first 1×1 ("v1.5": same parameters, a little more
  computation and accuracy), as in today's frameworks and the weights they publish.
- Convolutions are He-normal from the fan-out, as in those frameworks; the classifier is LeCun-normal.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError
from cnn_jax.layers import BatchNorm, Conv, GlobalAvgPool, MaxPool, images, initializer, record

_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(features: int, size: int, stride: int = 1, **kwargs: Any) -> Conv:
    """Convolution without bias (the norm after it has one), padded explicitly so that the centre stays the centre."""
    pads = ((size // 2, size // 2),) * 2
    return Conv(features, (size, size), (stride, stride), padding=pads, use_bias=False, **kwargs)


class Block(nn.Module):
    """relu(x + F(x)): F is two 3×3 convolutions, or 1×1 – 3×3 – 1×1 if `bottleneck` (paper, fig. 5).

    Attributes:
        features: filters of the 3×3 convolutions; a bottleneck puts out four times as many.
        stride: of the block.
        bottleneck: which F.
        shortcut: where the shape changes, "A" sub-samples and pads with zero maps, "B" projects by a 1×1 convolution.
        conv: makes a convolution.
        norm: makes a batch normalisation.
        zero_init: start with F = 0, by the scale of its last norm.
    """

    features: int
    stride: int
    bottleneck: bool
    shortcut: str
    conv: Any
    norm: Any
    zero_init: bool

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/stride, W/stride, C')."""
        last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        layers = [(self.features, 3, self.stride), (self.features, 3, 1)]
        if self.bottleneck:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (4 * self.features, 1, 1)]
        y = x_BxHxWxC
        for i, (features, size, stride) in enumerate(layers, start=1):
            y = self.conv(features, size, stride, name=f"conv{i}")(y)
            if i < len(layers):
                y = nn.relu(self.norm(name=f"bn{i}")(y))
        y = self.norm(scale_init=last_scale, name=f"bn{len(layers)}")(y)
        return nn.relu(self._shortcut(x_BxHxWxC, y.shape[-1]) + y)

    def _shortcut(self, x: jax.Array, features: int) -> jax.Array:
        if self.stride == 1 and x.shape[-1] == features:
            return x
        if self.shortcut == "B":
            return self.norm(name="shortcut_bn")(self.conv(features, 1, self.stride, name="shortcut_conv")(x))
        extra = features - x.shape[-1]
        pads = ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2))
        return jnp.pad(x[:, :: self.stride, :: self.stride], pads)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, mean over the maps, classifier.

    Attributes:
        num_classes: K.
        blocks: residual blocks of each stage; each stage after the first halves the maps and doubles the filters.
        width: filters of the first stage.
        bottleneck: kind of block.
        shortcut: "A" or "B", see `Block`.
        imagenet_stem: 7×7 stride 2 and 3×3 max pooling stride 2, instead of one 3×3 convolution.
        zero_init_residual: start every block as the identity (Goyal et al. 2017, §5.1).
        axis_name: name of the `pmap` or `shard_map` axis over which batch normalisation takes its statistics.
        input_shape: (H, W, C) of the paper; any other that fits works.
        dtype: of the computation (batch statistics are float32 in any case).
        param_dtype: of the parameters.
    """

    num_classes: int = 10
    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 16
    bottleneck: bool = False
    shortcut: Literal["A", "B"] = "A"
    imagenet_stem: bool = False
    zero_init_residual: bool = False
    axis_name: str | None = None
    input_shape: tuple[int, int, int] = (32, 32, 3)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training updates the collection "batch_stats"."""
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(_conv, kernel_init=_he_fan_out, **types)
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.axis_name,
            **types,
        )
        if self.shortcut == "A" and self.bottleneck:
            raise UserError("given shortcut=A with bottleneck blocks; expected B, as in the paper")
        x = images(x_BxHxWxC, self.dtype)
        x = conv(self.width, 7, 2, name="conv1")(x) if self.imagenet_stem else conv(self.width, 3, name="conv1")(x)
        x = record(self, "conv1", nn.relu(norm(name="bn1")(x)))
        if self.imagenet_stem:
            x = record(self, "pool1", MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), name="pool1")(x))
        for s, count in enumerate(self.blocks, start=1):
            for b in range(1, count + 1):
                name = f"stage{s}_block{b}"
                block = Block(
                    features=self.width * 2 ** (s - 1),
                    stride=2 if s > 1 and b == 1 else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    conv=conv,
                    norm=norm,
                    zero_init=self.zero_init_residual,
                    name=name,
                )
                x = record(self, name, block(x))
        x = record(self, "pool", GlobalAvgPool(name="pool")(x))
        head = nn.Dense(self.num_classes, kernel_init=initializer("lecun_normal"), name="output", **types)
        return head(x).astype(jnp.float32)


def _cifar(depth: int) -> partial[ResNet]:
    return partial(ResNet, blocks=((depth - 2) // 6,) * 3)


def _imagenet(blocks: Sequence[int], bottleneck: bool) -> partial[ResNet]:
    return partial(
        ResNet,
        num_classes=1000,
        blocks=tuple(blocks),
        width=64,
        bottleneck=bottleneck,
        shortcut="B",
        imagenet_stem=True,
        input_shape=(224, 224, 3),
    )


resnet20, resnet32, resnet44, resnet56, resnet110 = map(_cifar, (20, 32, 44, 56, 110))
resnet18 = _imagenet((2, 2, 2, 2), bottleneck=False)
resnet34 = _imagenet((3, 4, 6, 3), bottleneck=False)
resnet50 = _imagenet((3, 4, 6, 3), bottleneck=True)
resnet101 = _imagenet((3, 4, 23, 3), bottleneck=True)
resnet152 = _imagenet((3, 8, 36, 3), bottleneck=True)
