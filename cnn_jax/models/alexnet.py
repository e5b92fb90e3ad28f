"""AlexNet: Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks".

    name                                  parameters   top-5   description
    alexnet                               60,965,224    18.2   as published: conv2, conv4, conv5 in two groups (§3.2)
    alexnet_ungrouped                     62,378,344           every filter sees all channels, as in most later copies
    alexnet_one_tower                     61,100,840           Krizhevsky 2014, "One weird trick", as in torchvision
    alexnet_no_fc7                        44,183,912    18.4   as published, without the layers named
    alexnet_no_conv3_conv4                59,268,712    22.1
    alexnet_no_fc6_fc7                    11,551,080    22.4
    alexnet_no_conv3_conv4_fc6_fc7         9,854,568    50.1

top-5: error in % on the validation set of ILSVRC-2012. The first row is from the paper (one network, table 2), the rows
with layers removed from Zeiler and Fergus 2013, "Visualizing and understanding convolutional networks", table 3, whose
replica of the whole network has 18.1.

Volumes: 227×227×3 → conv1 55×55×96 → pool1 27×27 → conv2 27×27×256 → pool2 13×13 → conv3, conv4
13×13×384 → conv5 13×13×256 → pool5 6×6×256 → fc6 4096 → fc7 4096 → 1000. Response normalisation follows conv1 and
conv2 (§3.3), before pooling; lecture slides and CaffeNet put it after. Pooling overlaps: 3×3, stride 2 (§3.4).
Weights start normal with standard deviation 0.01; biases at 1 in conv2, conv4, conv5, fc6 and fc7, at 0 elsewhere (§5).

Differences from the paper:
- Images are 227×227. The paper says 224, which does not give its volumes.
- `alexnet_one_tower` is initialised as in the 2012 paper (torchvision: PyTorch's uniform default). As in torchvision,
  it has no response normalisation, and dropout applies to the inputs of fc6 and fc7 rather than to their outputs.
- The dense layers accept whatever pool5 outputs, so the image size sets the input size of fc6. See `head_map`.
"""

from functools import partial

import flax.linen as nn
import jax

from cnn_jax.errors import UserError
from cnn_jax.layers import LocalResponseNorm, MaxPool, activation, flatten, images, tap
from cnn_jax.layers.pooling import AdaptiveAvgPool
from cnn_jax.models.base import Classifier, Entry

REMOVABLE = ("conv3", "conv4", "conv5", "fc6", "fc7")


class AlexNet(Classifier):
    """Five convolutions, three of them pooled, and three dense layers.

    Attributes:
        features: filters of conv1 to conv5.
        dense: units of fc6 and fc7.
        groups: groups of conv2, conv4 and conv5; 2 in the paper.
        first_size: side in pixels of the filters of conv1.
        first_stride: stride of conv1; with 1, conv1 keeps small images large enough for the layers after it.
        first_padding: rows and columns of zeros on each side of the image.
        normalize: whether response normalisation follows conv1 and conv2.
        dropout: dropout rate of fc6 and fc7.
        dropout_inputs: apply dropout to the inputs of these layers instead of their outputs.
        without: layers to leave out, any of `REMOVABLE`.
        head_map: side to which maps are averaged before fc6, so that weights fit images of every size (torchvision: 6);
            None leaves the maps as they are.
    """

    num_classes: int = 1000
    features: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    dense: tuple[int, int] = (4096, 4096)
    groups: int = 2
    first_size: int = 11
    first_stride: int = 4
    first_padding: int = 0
    normalize: bool = True
    dropout: float = 0.5
    dropout_inputs: bool = False
    kernel_init: str = "normal_0.01"
    without: tuple[str, ...] = ()
    head_map: int | None = None
    input_shape: tuple[int, int, int] = (227, 227, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training draws from the rng stream "dropout".

        Raises:
            UserError: a layer that cannot be left out, groups that do not divide the filters, or images too small.
        """
        if not set(self.without) <= set(REMOVABLE):
            raise UserError(
                f"without={'/'.join(self.without)} has layers that cannot be left out: use {'/'.join(REMOVABLE)} only"
            )
        if self.groups < 1 or any(features % self.groups for features in self.features):
            widths = "/".join(map(str, self.features))
            raise UserError(f"groups={self.groups} is not a common divisor of features={widths}: change one of them")
        conv_layer, dense = self.conv(), self.fully_connected()
        activate = activation(self.activation)
        x = images(x_BxHxWxC, self.dtype)
        for i, (features, size) in enumerate(zip(self.features, (self.first_size, 5, 3, 3, 3), strict=True), start=1):
            name = f"conv{i}"
            if name not in self.without:
                conv = conv_layer(
                    features,
                    (size, size),
                    (self.first_stride,) * 2 if i == 1 else (1, 1),
                    padding=self.first_padding if i == 1 else size // 2,
                    feature_group_count=self.groups if i in (2, 4, 5) else 1,
                    bias_init=_ones if i in (2, 4, 5) else _zeros,
                    name=name,
                )
                x = tap(self, name, activate(conv(x)))
            if i <= 2 and self.normalize:
                x = tap(self, f"norm{i}", LocalResponseNorm(name=f"norm{i}")(x))
            if i in (1, 2, 5):
                x = tap(self, f"pool{i}", MaxPool((3, 3), (2, 2), name=f"pool{i}")(x))
        if self.head_map is not None:
            x = AdaptiveAvgPool(self.head_map, name="head_pool")(x)
        x = flatten(x)
        for name, units in zip(("fc6", "fc7"), self.dense, strict=True):
            if name not in self.without:
                drop = nn.Dropout(self.dropout, deterministic=not train, name=f"drop{name[-1]}")
                x = drop(x) if self.dropout_inputs else x
                x = tap(self, name, activate(dense(units, bias_init=_ones, name=name)(x)))
                x = x if self.dropout_inputs else drop(x)
        return self.head(x)


_ones, _zeros = nn.initializers.ones, nn.initializers.zeros

alexnet = AlexNet
alexnet_ungrouped = partial(AlexNet, groups=1)
alexnet_one_tower = partial(
    AlexNet,
    features=(64, 192, 384, 256, 256),
    groups=1,
    first_padding=2,
    normalize=False,
    dropout_inputs=True,
    input_shape=(224, 224, 3),
)
alexnet_no_fc7 = partial(AlexNet, without=("fc7",))
alexnet_no_fc6_fc7 = partial(AlexNet, without=("fc6", "fc7"))
alexnet_no_conv3_conv4 = partial(AlexNet, without=("conv3", "conv4"))
alexnet_no_conv3_conv4_fc6_fc7 = partial(AlexNet, without=("conv3", "conv4", "fc6", "fc7"))

MODELS = {
    "alexnet": Entry(alexnet, "Krizhevsky et al. 2012"),
    "alexnet_ungrouped": Entry(alexnet_ungrouped, "Krizhevsky et al. 2012, without groups"),
    "alexnet_one_tower": Entry(alexnet_one_tower, "Krizhevsky 2014, One weird trick, torchvision's"),
    "alexnet_no_fc7": Entry(alexnet_no_fc7, "Zeiler and Fergus 2013, table 3"),
    "alexnet_no_fc6_fc7": Entry(alexnet_no_fc6_fc7, "Zeiler and Fergus 2013, table 3"),
    "alexnet_no_conv3_conv4": Entry(alexnet_no_conv3_conv4, "Zeiler and Fergus 2013, table 3"),
    "alexnet_no_conv3_conv4_fc6_fc7": Entry(alexnet_no_conv3_conv4_fc6_fc7, "Zeiler and Fergus 2013, table 3"),
}
