"""Published weights by name: their architecture, location and preprocessing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn

from cnn_jax.models.alexnet import alexnet_one_tower
from cnn_jax.models.convnext import convnext_base, convnext_small, convnext_tiny
from cnn_jax.models.densenet import densenet121, densenet161, densenet169, densenet201
from cnn_jax.models.efficientnet import efficientnet_b0
from cnn_jax.models.googlenet import googlenet_torchvision
from cnn_jax.models.inception_v3 import inception_v3
from cnn_jax.models.mobilenet import mobilenet_v2
from cnn_jax.models.resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from cnn_jax.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from cnn_jax.weights.names.googlenet import MEAN as HALF
from cnn_jax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, PublishedPreprocess

# Architectures with published weights, by their source's name. `head_map` allows images of any size, as in PyTorch;
# auxiliary heads are used only to train from scratch.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "alexnet": partial(alexnet_one_tower, head_map=6),
    "vgg11": partial(vgg11, head_map=7),
    "vgg13": partial(vgg13, head_map=7),
    "vgg16": partial(vgg16, head_map=7),
    "vgg19": partial(vgg19, head_map=7),
    "vgg11_bn": partial(vgg11_bn, head_map=7),
    "vgg13_bn": partial(vgg13_bn, head_map=7),
    "vgg16_bn": partial(vgg16_bn, head_map=7),
    "vgg19_bn": partial(vgg19_bn, head_map=7),
    "googlenet": partial(googlenet_torchvision, aux_heads=False),
    "inception_v3": partial(inception_v3, aux_heads=False),
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnext50_32x4d": resnext50_32x4d,
    "resnext101_32x8d": resnext101_32x8d,
    "wide_resnet50_2": wide_resnet50_2,
    "wide_resnet101_2": wide_resnet101_2,
    "densenet121": densenet121,
    "densenet161": densenet161,
    "densenet169": densenet169,
    "densenet201": densenet201,
    "mobilenet_v2": mobilenet_v2,
    "mobilenetv2_050": partial(mobilenet_v2, width=0.5),
    "mobilenetv2_100": mobilenet_v2,
    "mobilenetv2_140": partial(mobilenet_v2, width=1.4),
    "efficientnet_b0": efficientnet_b0,
    "convnext_tiny": convnext_tiny,
    "convnext_small": convnext_small,
    "convnext_base": convnext_base,
}


@dataclass(frozen=True)
class TorchvisionFile:
    """Weights published by torchvision; the file name holds the first eight digits of its SHA-256.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        file: name at download.pytorch.org/models.
        top1, top5: accuracy on ImageNet's 50,000 validation images in %, as torchvision reports it.
        preprocess: used in that evaluation.
    """

    architecture: str
    file: str
    top1: float
    top5: float
    preprocess: PublishedPreprocess

    @property
    def url(self) -> str:
        """Download address."""
        return f"https://download.pytorch.org/models/{self.file}"


def _imagenet(resize: int = 256, size: int = 224, interpolation: str = "bilinear") -> PublishedPreprocess:
    return PublishedPreprocess((size, size, 3), IMAGENET_MEAN, IMAGENET_STD, resize, interpolation)


def _half(resize: int = 256, size: int = 224) -> PublishedPreprocess:
    """torchvision's Inceptions rescale their input to [-1, 1] inside the network, ours before it."""
    return PublishedPreprocess((size, size, 3), HALF, HALF, resize)


_CLASSIC, _NEW = _imagenet(256), _imagenet(232)
_ROWS: tuple[tuple[str, str, float, float, PublishedPreprocess], ...] = (
    ("alexnet", "alexnet-owt-7be5be79.pth", 56.522, 79.066, _CLASSIC),
    ("vgg11", "vgg11-8a719046.pth", 69.020, 88.628, _CLASSIC),
    ("vgg13", "vgg13-19584684.pth", 69.928, 89.246, _CLASSIC),
    ("vgg16", "vgg16-397923af.pth", 71.592, 90.382, _CLASSIC),
    ("vgg19", "vgg19-dcbb9e9d.pth", 72.376, 90.876, _CLASSIC),
    ("vgg11_bn", "vgg11_bn-6002323d.pth", 70.370, 89.810, _CLASSIC),
    ("vgg13_bn", "vgg13_bn-abd245e5.pth", 71.586, 90.374, _CLASSIC),
    ("vgg16_bn", "vgg16_bn-6c64b313.pth", 73.360, 91.516, _CLASSIC),
    ("vgg19_bn", "vgg19_bn-c79401a0.pth", 74.218, 91.842, _CLASSIC),
    ("googlenet", "googlenet-1378be20.pth", 69.778, 89.530, _half()),
    ("inception_v3", "inception_v3_google-0cc3c7bd.pth", 77.294, 93.450, _half(342, 299)),
    ("resnet18", "resnet18-f37072fd.pth", 69.758, 89.078, _CLASSIC),
    ("resnet34", "resnet34-b627a593.pth", 73.314, 91.420, _CLASSIC),
    ("resnet50.v1", "resnet50-0676ba61.pth", 76.130, 92.862, _CLASSIC),
    ("resnet50", "resnet50-11ad3fa6.pth", 80.858, 95.434, _NEW),
    ("resnet101.v1", "resnet101-63fe2227.pth", 77.374, 93.546, _CLASSIC),
    ("resnet101", "resnet101-cd907fc2.pth", 81.886, 95.780, _NEW),
    ("resnet152.v1", "resnet152-394f9c45.pth", 78.312, 94.046, _CLASSIC),
    ("resnet152", "resnet152-f82ba261.pth", 82.284, 96.002, _NEW),
    ("resnext50_32x4d.v1", "resnext50_32x4d-7cdf4587.pth", 77.618, 93.698, _CLASSIC),
    ("resnext50_32x4d", "resnext50_32x4d-1a0047aa.pth", 81.198, 95.340, _NEW),
    ("resnext101_32x8d.v1", "resnext101_32x8d-8ba56ff5.pth", 79.312, 94.526, _CLASSIC),
    ("resnext101_32x8d", "resnext101_32x8d-110c445d.pth", 82.834, 96.228, _NEW),
    ("wide_resnet50_2.v1", "wide_resnet50_2-95faca4d.pth", 78.468, 94.086, _CLASSIC),
    ("wide_resnet50_2", "wide_resnet50_2-9ba9bcbe.pth", 81.602, 95.758, _NEW),
    ("wide_resnet101_2.v1", "wide_resnet101_2-32ee1156.pth", 78.848, 94.284, _CLASSIC),
    ("wide_resnet101_2", "wide_resnet101_2-d733dc28.pth", 82.510, 96.020, _NEW),
    ("densenet121", "densenet121-a639ec97.pth", 74.434, 91.972, _CLASSIC),
    ("densenet161", "densenet161-8d451a50.pth", 77.138, 93.560, _CLASSIC),
    ("densenet169", "densenet169-b2777c0a.pth", 75.600, 92.806, _CLASSIC),
    ("densenet201", "densenet201-c1103571.pth", 76.896, 93.370, _CLASSIC),
    ("mobilenet_v2.v1", "mobilenet_v2-b0353104.pth", 71.878, 90.286, _CLASSIC),
    ("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth", 72.154, 90.822, _NEW),
    ("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth", 77.692, 93.532, _imagenet(256, 224, "bicubic")),
    ("convnext_tiny", "convnext_tiny-983f1562.pth", 82.520, 96.146, _imagenet(236)),
    ("convnext_small", "convnext_small-0c510722.pth", 83.616, 96.650, _imagenet(230)),
    ("convnext_base", "convnext_base-6075fbad.pth", 84.062, 96.870, _NEW),
)

# `torchvision/NAME`: torchvision's current weights; NAME.v1 are the original ones, where they differ. Files, sizes and
# accuracies are those of torchvision 0.29.
TORCHVISION: dict[str, TorchvisionFile] = {
    name: TorchvisionFile(name.removesuffix(".v1"), file, top1, top5, preprocess)
    for name, file, top1, top5, preprocess in _ROWS
}
