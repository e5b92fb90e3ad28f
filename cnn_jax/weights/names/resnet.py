"""torchvision's names of the weights of ResNet and ResNeXt of any depth; timm uses the same names."""

import re

_BLOCK = re.compile(r"stage(\d+)_block(\d+)/(.+)")
_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.resnet`.

    >>> torchvision("stage1_block1/conv1"), torchvision("stage2_block1/shortcut_bn"), torchvision("output")
    ('layer1.0.conv1', 'layer2.0.downsample.1', 'fc')
    """
    if path == "output":
        return "fc"
    if block := _BLOCK.fullmatch(path):
        stage, number, layer = block.groups()
        return f"layer{stage}.{int(number) - 1}.{_SHORTCUT.get(layer, layer)}"
    return path  # conv1, bn1


timm = torchvision
