"""torchvision's and timm's names of the weights of MobileNet-v2 of any width (timm's `mobilenetv2_100` and others)."""

import re

from cnn_jax.models.mobilenet import STAGES

_BLOCK = re.compile(r"stage(\d+)_block(\d+)/(.+)")
_TORCHVISION = {
    "stem_conv": "features.0.0",
    "stem_bn": "features.0.1",
    "head_conv": f"features.{sum(stage.blocks for stage in STAGES) + 1}.0",
    "head_bn": f"features.{sum(stage.blocks for stage in STAGES) + 1}.1",
    "output": "classifier.1",
}
_TIMM = {
    "stem_conv": "conv_stem",
    "stem_bn": "bn1",
    "head_conv": "conv_head",
    "head_bn": "bn2",
    "output": "classifier",
}
_TIMM_LAYERS = {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "depthwise_conv": "conv_dw",
    "depthwise_bn": "bn2",
    "se/reduce": "se.conv_reduce",
    "se/expand": "se.conv_expand",
    "project_conv": "conv_pwl",
    "project_bn": "bn3",
}
# Blocks of the first stage do not expand, so timm numbers their norms differently and renames their last convolution.
_TIMM_FIRST_LAYERS = {**_TIMM_LAYERS, "depthwise_bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.mobilenet`.

    >>> torchvision("stage1_block1/depthwise_bn"), torchvision("stage2_block2/project_conv"), torchvision("output")
    ('features.1.conv.0.1', 'features.3.conv.2', 'classifier.1')
    """
    block = _BLOCK.fullmatch(path)
    if not block:
        return _TORCHVISION[path]
    stage, number, layer = int(block[1]), int(block[2]), block[3]
    before = sum(stage.blocks for stage in STAGES[: stage - 1])
    first = 0 if stage == 1 else 1
    layers = {
        "expand_conv": "0.0",
        "expand_bn": "0.1",
        "depthwise_conv": f"{first}.0",
        "depthwise_bn": f"{first}.1",
        "project_conv": f"{first + 1}",
        "project_bn": f"{first + 2}",
    }
    return f"features.{before + number}.conv.{layers[layer]}"


def timm(path: str) -> str:
    """Returns timm's name of a module of `cnn_jax.models.mobilenet` or `cnn_jax.models.efficientnet`.

    >>> timm("stage1_block1/project_bn"), timm("stage2_block2/se/reduce"), timm("output")
    ('blocks.0.0.bn2', 'blocks.1.1.se.conv_reduce', 'classifier')
    """
    block = _BLOCK.fullmatch(path)
    if not block:
        return _TIMM[path]
    stage, number, layer = block.groups()
    layers = _TIMM_FIRST_LAYERS if stage == "1" else _TIMM_LAYERS
    return f"blocks.{int(stage) - 1}.{int(number) - 1}.{layers[layer]}"
