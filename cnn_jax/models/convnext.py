"""ConvNeXt: Liu, Mao, Wu, Feichtenhofer, Darrell and Xie 2022, "A ConvNet for the 2020s".

Figure 4 and appendix A: a residual network that borrows from vision transformers: a stem of 4×4 patches, 7×7 depthwise
convolutions, layer normalisation, one GELU (exact, by erf) per block, layer scale 1e-6, separate downsampling layers.
Parameters for 1000 classes: tiny 28,589,128, small 50,223,688, base 88,591,464; published top-1 accuracy 82.1 %, 83.1 %
and 83.8 % (table 1). `drop_path` is the paper's for each size, trained on ImageNet-1k.

Initialised as in the authors' code: normal with standard deviation 0.02 (their truncation at ±2 is a hundred standard
deviations out), biases 0.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from cnn_jax.layers import Conv, DropPath, GlobalAvgPool, Initializer, activation, images, tap
from cnn_jax.models.base import Classifier, Entry

_normal = nn.initializers.normal(0.02)


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm` over the channels; also works in bfloat16 under strict type promotion."""

    epsilon: float = 1e-6

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Normalises each pixel. Flax deliberately mixes activations of any type with float32 statistics."""
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, *args, **kwargs)


class ConvNeXtBlock(nn.Module):
    """x + scale·F(x): F is a 7×7 depthwise convolution, norm, 4·C units with GELU, C units (paper, fig. 4).

    Attributes:
        layer_scale: initial value of the per-channel scale.
        activation: activation of the 4·C units, a key of `layers.ACTIVATIONS`.
        kernel_init: initialiser of all layers.
        drop_path: probability that an example skips the block in training.
        train: whether this is training.
        dtype: computation type.
        param_dtype: parameter type.
    """

    layer_scale: float
    activation: str
    kernel_init: Initializer
    drop_path: float
    train: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        maps, pads = x_BxHxWxC.shape[-1], ((3, 3), (3, 3))
        init, dense = self.kernel_init, partial(nn.Dense, kernel_init=self.kernel_init, **types)
        conv = Conv(maps, (7, 7), padding=pads, feature_group_count=maps, kernel_init=init, name="conv", **types)
        y = LayerNorm(name="norm", **types)(conv(x_BxHxWxC))
        y = activation(self.activation)(dense(4 * maps, name="fc1")(y))
        y = dense(maps, name="fc2")(y)
        scale = self.param("layer_scale", nn.initializers.constant(self.layer_scale), (maps,), self.param_dtype)
        y = scale.astype(self.dtype).reshape(1, 1, 1, -1) * y
        return x_BxHxWxC + DropPath(self.drop_path, name="drop_path")(y, deterministic=not self.train)


class ConvNeXt(Classifier):
    """Stem of 4×4 patches, stages of blocks with downsampling between them, global average pooling, norm, classifier.

    Attributes:
        blocks: number of blocks of each stage.
        widths: channels of each stage.
        layer_scale: initial value of the scale of the residual branches.
        activation: a key of `layers.ACTIVATIONS`, once per block.
        drop_path: stochastic depth rate of the last block; grows linearly from 0 in the first.
        remat: recompute block activations in the backward pass: less memory, more time.
        input_shape: (H, W, C) of the paper; any other from 32×32 works.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    layer_scale: float = 1e-6
    activation: str = "gelu"
    drop_path: float = 0.1
    remat: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training draws from the rng stream "dropout"."""
        types, init = self.types, self.kernel_initializer(_normal)
        conv = self.conv(_normal, padding="VALID")
        make_block: Any = nn.remat(ConvNeXtBlock) if self.remat else ConvNeXtBlock
        before, last = 0, max(1, sum(self.blocks) - 1)
        x = conv(self.widths[0], (4, 4), (4, 4), name="stem_conv")(images(x_BxHxWxC, self.dtype))
        x = tap(self, "stem", LayerNorm(name="stem_norm", **types)(x))
        for s, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            if s > 1:
                x = LayerNorm(name=f"stage{s}_norm", **types)(x)
                x = tap(self, f"stage{s}_conv", conv(width, (2, 2), (2, 2), name=f"stage{s}_conv")(x))
            for b in range(1, count + 1):
                rate = self.drop_path * before / last
                name = f"stage{s}_block{b}"
                block = make_block(self.layer_scale, self.activation, init, rate, train, name=name, **types)
                x, before = tap(self, name, block(x)), before + 1
        x = LayerNorm(name="norm", **types)(tap(self, "pool", GlobalAvgPool(name="pool")(x)))
        return self.head(x, _normal)


convnext_tiny = ConvNeXt
convnext_small = partial(ConvNeXt, blocks=(3, 3, 27, 3), drop_path=0.4)
convnext_base = partial(ConvNeXt, blocks=(3, 3, 27, 3), widths=(128, 256, 512, 1024), drop_path=0.5)

MODELS = {
    "convnext_tiny": Entry(convnext_tiny, "Liu et al. 2022, section 3"),
    "convnext_small": Entry(convnext_small, "Liu et al. 2022, section 3"),
    "convnext_base": Entry(convnext_base, "Liu et al. 2022, section 3"),
}
