"""BN-Inception: Ioffe and Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal
covariate shift", figure 5. ImageNet top-1 accuracy of one network on one crop (figure 3): 73.0 % (BN-x5), 74.8 %
(BN-x30, trained longer); an ensemble of six has 4.9 % top-5 error (validation), 4.8 % (test).

11,278,528 parameters, with the filter counts as printed in the figure. Its column of output sizes contradicts them: the
four branches of 4c and 4d have 608 filters in total, not 576, and 4e outputs 1056 maps, not 1024. With 96 filters after
the pooling of 4c and 4d (`projection_4cd=96`; 11,188,288 parameters) that column is right, as in Google's own code.
The replicas in Caffe and MXNet use the printed filters, and a plain first convolution (`separable_stem=false`).

Differences from the paper:
- All padding is symmetric. Average pooling excludes padding, as in Google's code.
- Weights are He-normal, as in Google's code except for its 1×1 reductions; convolutions before a norm have no bias.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from cnn_jax.layers import AvgPool, GlobalAvgPool, MaxPool, images, initializer, tap
from cnn_jax.models.base import Entry, NormalizedClassifier
from cnn_jax.models.googlenet import Branch, ConvUnit, Filters, Inception

# Figure 5: filters of #1×1, #3×3 reduce, #3×3, double #3×3 reduce, double #3×3, pool proj. 3c and 4e have stride 2.
TABLE = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
_PADS = ((1, 1), (1, 1))
_average = partial(AvgPool, (3, 3), (1, 1), _PADS, count_include_pad=False)
_maximum = partial(MaxPool, (3, 3), (1, 1), _PADS)
_halve = partial(MaxPool, (3, 3), (2, 2), _PADS)


def _branches(widths: tuple[int, ...], pool: Any) -> tuple[Branch, ...]:
    """Builds the branches of a row of the figure; a row without 1×1 filters has stride 2 and no pool projection."""
    single, reduce3, count3, reduce_double, double, projection = widths
    stride = 1 if single else 2
    chain3 = (Filters(reduce3, 1, 1), Filters(count3, 3, 3, stride))
    chain_double = (Filters(reduce_double, 1, 1), Filters(double, 3, 3), Filters(double, 3, 3, stride))
    inner = (Branch("branch3x3", chain3), Branch("branch3x3dbl", chain_double))
    if not single:
        return (*inner, Branch("branch_pool", pool=_halve))
    first, last = (Filters(single, 1, 1),), (Filters(projection, 1, 1),)
    return (Branch("branch1x1", first), *inner, Branch("branch_pool", last, pool=pool))


class BNInception(NormalizedClassifier):
    """Stem, ten inception blocks with batch normalisation after every convolution, global average pooling, classifier.

    There is no dropout and no local response normalisation: batch normalisation makes them unnecessary (§4.2.1).

    Attributes:
        separable_stem: start as in the paper, with eight 7×7 filters per input channel, then 1×1; if false, plain 7×7.
        projection_4cd: filters after the pooling of 4c and 4d; 96 gives the figure's output sizes.
        activation: a key of `layers.ACTIVATIONS`, after each normalisation.
        remat: recompute block activations in the backward pass: less memory, more time.
        input_shape: (H, W, C) of the paper; any other works.
    """

    num_classes: int = 1000
    separable_stem: bool = True
    projection_4cd: int = 128
    remat: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training updates the collection "batch_stats"."""
        conv = self.conv(initializer("he_normal"))
        norm = self.norm(train, epsilon=1e-3)
        unit = partial(ConvUnit, conv=conv, norm=norm, activation=self.activation)
        block = nn.remat(Inception) if self.remat else Inception

        x = images(x_BxHxWxC, self.dtype)
        stem = Filters(64, 7, 7, stride=2)
        if self.separable_stem:
            channels = x.shape[-1]
            depthwise = conv(
                8 * channels,
                (7, 7),
                (2, 2),
                padding=((3, 3), (3, 3)),
                feature_group_count=channels,
                use_bias=False,
                name="conv1_depthwise",
            )
            x, stem = depthwise(x), Filters(64, 1, 1)
        x = tap(self, "conv1", unit(stem, name="conv1")(x))
        x = tap(self, "pool1", _halve(name="pool1")(x))
        x = unit(Filters(64, 1, 1), name="conv2_reduce")(x)
        x = tap(self, "conv2", unit(Filters(192, 3, 3), name="conv2")(x))
        x = tap(self, "pool2", _halve(name="pool2")(x))
        for row, widths in TABLE.items():
            if row in ("4c", "4d"):
                widths = (*widths[:-1], self.projection_4cd)
            branches = _branches(widths, _maximum if row == "5b" else _average)
            x = tap(self, f"inception{row}", block(branches, unit, name=f"inception{row}")(x))
        x = tap(self, "pool", GlobalAvgPool(name="pool")(x))
        return self.head(x, initializer("lecun_normal"))


bn_inception = BNInception

MODELS = {
    "bn_inception": Entry(bn_inception, "Ioffe and Szegedy 2015, figure 5"),
}
