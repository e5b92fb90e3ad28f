"""VGG: Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition", table 1.

    name                configuration   parameters   top-1 / top-5 error in %
    vgg11, vgg11_bn     A               132,863,336   29.6 / 10.4
    vgg13, vgg13_bn     B               133,047,848   28.7 / 9.9
    vgg16, vgg16_bn     D               138,357,544   27.0 / 8.8; trained at varying scale 25.6 / 8.1
    vgg19, vgg19_bn     E               143,667,240   27.3 / 9.0; trained at varying scale 25.5 / 8.0

Errors (table 3): validation set of ILSVRC-2012, tested at one scale, without batch normalisation.

Five stages of 3×3 convolutions with 64, 128, 256, 512 and 512 filters, each followed by 2×2 max pooling, and three
dense layers. Layers are named as in the authors' released weights: conv1_1 … conv5_3, fc6, fc7.

Differences from the paper:
- The _bn variants, which are not in the paper, normalise after each convolution (Ioffe and Szegedy 2015), as in
  torchvision. As there, the convolutions keep their biases: 132,868,840; 133,053,736; 138,365,992; 143,678,248
  parameters.
- Weights are initialised as in torchvision: convolutions He-normal by fan-out, dense layers normal with standard
  deviation 0.01, biases 0. The paper starts deeper networks from A's trained layers, and notes that Glorot's
  initialisation makes that unnecessary.
- The dense layers accept whatever the last pooling outputs: 7×7 maps from 224×224 images, 1×1 from 32×32, with a
  correspondingly smaller fc6. `head_map=7` averages maps of any size to 7×7 (torchvision's adaptive pooling; no effect
  at 224×224), so that every image size has the parameter shapes, and can use the weights, of 224×224.
"""

from functools import partial

import flax.linen as nn
import jax

from cnn_jax.errors import UserError
from cnn_jax.layers import MaxPool, activation, flatten, images, initializer, tap
from cnn_jax.layers.pooling import AdaptiveAvgPool
from cnn_jax.models.base import Entry, NormalizedClassifier


class VGG(NormalizedClassifier):
    """Stages of 3×3 convolutions and pooling, then dense layers.

    Attributes:
        convolutions: number of convolutions of each stage.
        features: filters of each stage.
        batch_norm: whether to normalise after each convolution.
        dense: units of fc6 and fc7.
        dropout: dropout rate of fc6 and fc7.
        head_map: side to which maps are averaged before fc6; None leaves them as they are.
        remat: store only the output of each stage and recompute the rest in the backward pass: less memory, more time.
    """

    num_classes: int = 1000
    convolutions: tuple[int, ...] = (2, 2, 3, 3, 3)
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    batch_norm: bool = False
    dense: tuple[int, int] = (4096, 4096)
    dropout: float = 0.5
    head_map: int | None = None
    remat: bool = False
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training draws from the rng stream "dropout".

        Raises:
            UserError: `convolutions` and `features` differ in length, or images are too small.
        """
        if len(self.convolutions) != len(self.features):
            raise UserError(
                f"convolutions has {len(self.convolutions)} stages but features has {len(self.features)}: "
                "give both the same length"
            )
        x = images(x_BxHxWxC, self.dtype)
        for s in range(1, len(self.convolutions) + 1):
            stage = partial(_stage, number=s, train=train)
            x = nn.remat(stage)(self, x) if self.remat else stage(self, x)
        if self.head_map is not None:
            x = AdaptiveAvgPool(self.head_map, name="head_pool")(x)
        x = flatten(x)
        published = initializer("normal_0.01")
        dense, activate = self.fully_connected(published), activation(self.activation)
        for i, units in enumerate(self.dense, start=6):
            x = tap(self, f"fc{i}", activate(dense(units, name=f"fc{i}")(x)))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"drop{i}")(x)
        return self.head(x, published)


def _stage(model: VGG, x_BxHxWxC: jax.Array, *, number: int, train: bool) -> jax.Array:
    """Applies one stage's convolutions and pooling as layers of `model`: (B, H, W, C) → (B, H/2, W/2, features)."""
    x = x_BxHxWxC
    conv, norm = model.conv(initializer("he_normal_fan_out")), model.norm(train)
    for i in range(1, model.convolutions[number - 1] + 1):
        name = f"{number}_{i}"
        x = conv(model.features[number - 1], (3, 3), padding=1, name=f"conv{name}")(x)
        if model.batch_norm:
            x = norm(name=f"bn{name}")(x)
        x = tap(model, f"conv{name}", activation(model.activation)(x))
    return tap(model, f"pool{number}", MaxPool(name=f"pool{number}")(x))


vgg11 = partial(VGG, convolutions=(1, 1, 2, 2, 2))
vgg13 = partial(VGG, convolutions=(2, 2, 2, 2, 2))
vgg16 = partial(VGG, convolutions=(2, 2, 3, 3, 3))
vgg19 = partial(VGG, convolutions=(2, 2, 4, 4, 4))
vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = (partial(net, batch_norm=True) for net in (vgg11, vgg13, vgg16, vgg19))

MODELS = {
    "vgg11": Entry(vgg11, "Simonyan and Zisserman 2014, table 1 A"),
    "vgg13": Entry(vgg13, "Simonyan and Zisserman 2014, table 1 B"),
    "vgg16": Entry(vgg16, "Simonyan and Zisserman 2014, table 1 D"),
    "vgg19": Entry(vgg19, "Simonyan and Zisserman 2014, table 1 E"),
    "vgg11_bn": Entry(vgg11_bn, "Simonyan and Zisserman 2014, table 1 A, with BN"),
    "vgg13_bn": Entry(vgg13_bn, "Simonyan and Zisserman 2014, table 1 B, with BN"),
    "vgg16_bn": Entry(vgg16_bn, "Simonyan and Zisserman 2014, table 1 D, with BN"),
    "vgg19_bn": Entry(vgg19_bn, "Simonyan and Zisserman 2014, table 1 E, with BN"),
}
