"""The networks of `benchmarks.versus_torch` in PyTorch, written from the papers' tables of layers.

Layers have the names of ours, so weights need no table of names. Maps are flattened channels last, as ours: for
channels_last tensors that is a view, where PyTorch's `Flatten` copies.

LeNet-5: LeCun et al. 1998, in its modern form. ResNet: He et al. 2015, tables 1 and 6; a bottleneck has its stride on
the 3×3 convolution. VGG: Simonyan and Zisserman 2014, table 1 A; without dropout, because the two frameworks draw
different masks.
"""

import importlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

torch: Any = importlib.import_module("torch")  # not a dependency, so the type checker does not know it
nn: Any = torch.nn
Image = tuple[int, int, int]  # height, width, channels


class Flatten(nn.Module):
    """(B, C, H, W) → (B, H·W·C), channels fastest."""

    def forward(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1).flatten(1)


class Block(nn.Module):
    """relu(x + F(x)), where F is two 3×3 convolutions, or 1×1 – 3×3 – 1×1 if `bottleneck`.

    Where the shape changes, x is projected by a 1×1 convolution if `project`, else subsampled and padded with zeros.
    """

    def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool, project: bool):
        super().__init__()
        layers = [(features, 3, stride), (features, 3, 1)]
        if bottleneck:
            layers = [(features, 1, 1), (features, 3, stride), (4 * features, 1, 1)]
        outputs = layers[-1][0]
        changes = stride > 1 or inputs != outputs
        self.count, self.stride, self.extra = len(layers), stride, outputs - inputs
        self.projects, self.pads = changes and project, changes and not project
        before = inputs
        for i, (maps, size, step) in enumerate(layers, start=1):
            self.add_module(f"conv{i}", _conv(before, maps, size, step))
            self.add_module(f"bn{i}", nn.BatchNorm2d(maps))
            before = maps
        if self.projects:
            self.shortcut_conv = _conv(inputs, outputs, 1, stride)
            self.shortcut_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Any) -> Any:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = nn.functional.relu(y, inplace=True)
        if self.projects:
            x = self.shortcut_bn(self.shortcut_conv(x))
        elif self.pads:
            maps = (self.extra // 2, self.extra - self.extra // 2)
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *maps))
        y += x
        return nn.functional.relu(y, inplace=True)


def _conv(inputs: int, outputs: int, size: int, stride: int) -> Any:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _relu() -> Any:
    return nn.ReLU(inplace=True)


def lenet5(image: Image, classes: int) -> Any:
    """6·5×5, pool, 16·5×5, pool, 120, 84; images below 32×32 are padded by 2."""
    height, width, channels = image
    padding = 2 if min(height, width) < 32 else 0
    rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=padding),
            relu1=_relu(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=_relu(),
            pool2=nn.MaxPool2d(2),
            flatten=Flatten(),
            fc1=nn.Linear(16 * rows * columns, 120),
            relu3=_relu(),
            fc2=nn.Linear(120, 84),
            relu4=_relu(),
            output=nn.Linear(84, classes),
        )
    )


def lenet_like(image: Image, classes: int) -> Any:
    """32·5×5, pool, 64·3×3, pool, 256; convolutions keep the size of the maps."""
    height, width, channels = image
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            relu1=_relu(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=_relu(),
            pool2=nn.MaxPool2d(2),
            flatten=Flatten(),
            fc1=nn.Linear(64 * (height // 4) * (width // 4), 256),
            relu3=_relu(),
            output=nn.Linear(256, classes),
        )
    )


def resnet(image: Image, classes: int, blocks: Sequence[int], width: int, bottleneck: bool, imagenet: bool) -> Any:
    """Stem, stages of blocks, global mean, classifier; `imagenet` uses ImageNet's stem and projection shortcuts."""
    stem, stride = (7, 2) if imagenet else (3, 1)
    layers: OrderedDict[str, Any] = OrderedDict(
        conv1=_conv(image[2], width, stem, stride), bn1=nn.BatchNorm2d(width), relu1=_relu()
    )
    if imagenet:
        layers["pool1"] = nn.MaxPool2d(3, 2, padding=1)
    before = width
    for stage, count in enumerate(blocks, start=1):
        features = width * 2 ** (stage - 1)
        for b in range(1, count + 1):
            stride = 2 if stage > 1 and b == 1 else 1
            layers[f"stage{stage}_block{b}"] = Block(before, features, stride, bottleneck, imagenet)
            before = 4 * features if bottleneck else features
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": Flatten(), "output": nn.Linear(before, classes)}
    return nn.Sequential(layers)


def vgg11(image: Image, classes: int) -> Any:
    """Stages of 1, 1, 2, 2, 2 convolutions 3×3, each followed by a pooling; 4096, 4096."""
    height, width, before = image
    layers: OrderedDict[str, Any] = OrderedDict()
    for stage, (count, features) in enumerate(((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)), start=1):
        for i in range(1, count + 1):
            layers[f"conv{stage}_{i}"] = nn.Conv2d(before, features, 3, padding=1)
            layers[f"relu{stage}_{i}"] = _relu()
            before = features
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = Flatten()
    layers |= {"fc6": nn.Linear(512 * (height // 32) * (width // 32), 4096), "relu6": _relu()}
    layers |= {"fc7": nn.Linear(4096, 4096), "relu7": _relu(), "output": nn.Linear(4096, classes)}
    return nn.Sequential(layers)


NETWORKS: dict[str, Callable[[Image, int], Any]] = {
    "lenet5": lenet5,
    "lenet_like": lenet_like,
    "resnet20": partial(resnet, blocks=(3, 3, 3), width=16, bottleneck=False, imagenet=False),
    "resnet18": partial(resnet, blocks=(2, 2, 2, 2), width=64, bottleneck=False, imagenet=True),
    "vgg11": vgg11,
    "resnet50": partial(resnet, blocks=(3, 4, 6, 3), width=64, bottleneck=True, imagenet=True),
}
