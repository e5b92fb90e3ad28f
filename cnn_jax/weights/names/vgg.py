"""torchvision's and timm's names of the weights of VGG.

Both number all layers of `features` in order, including activations and pooling, so the names depend on the network's
fields: bind them with `functools.partial`. timm stores dense layers as equivalent convolutions. Images other than
224×224 need `head_map=7`.

Top-1 / top-5 accuracy of torchvision's public weights in %, images resized to 256 and cropped to 224:

    vgg11   69.020 / 88.628    vgg11_bn   70.370 / 89.810
    vgg13   69.928 / 89.246    vgg13_bn   71.586 / 90.374
    vgg16   71.592 / 90.382    vgg16_bn   73.360 / 91.516
    vgg19   72.376 / 90.876    vgg19_bn   74.218 / 91.842
"""

import re
from collections.abc import Sequence

_LAYER = re.compile(r"(conv|bn)(\d+)_(\d+)")
_TORCHVISION = {"fc6": "classifier.0", "fc7": "classifier.3", "output": "classifier.6"}
_TIMM = {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "output": "head.fc"}


def torchvision(path: str, *, convolutions: Sequence[int], batch_norm: bool = False) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.vgg`.

    Args:
        path: our path of the module.
        convolutions: number of convolutions in each stage of the network.
        batch_norm: whether the network has batch normalization.

    >>> torchvision("conv2_1", convolutions=(2, 2, 3, 3, 3)), torchvision("output", convolutions=(2, 2, 3, 3, 3))
    ('features.5', 'classifier.6')
    """
    return _TORCHVISION.get(path) or _feature(path, convolutions, batch_norm)


def timm(path: str, *, convolutions: Sequence[int], batch_norm: bool = False) -> str:
    """Returns timm's name; see `torchvision`.

    >>> timm("bn2_1", convolutions=(2, 2, 3, 3, 3), batch_norm=True), timm("fc6", convolutions=(2, 2, 3, 3, 3))
    ('features.8', 'pre_logits.fc1')
    """
    return _TIMM.get(path) or _feature(path, convolutions, batch_norm)


def _feature(path: str, convolutions: Sequence[int], batch_norm: bool) -> str:
    layer = _LAYER.fullmatch(path)
    assert layer is not None, f"not a module of a VGG: {path}"
    kind, stage, number = layer[1], int(layer[2]), int(layer[3])
    layers = 3 if batch_norm else 2  # convolution, normalization, activation
    before = sum(layers * count + 1 for count in convolutions[: stage - 1])  # each stage ends with a pooling
    return f"features.{before + layers * (number - 1) + (kind == 'bn')}"
