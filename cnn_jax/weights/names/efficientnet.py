"""torchvision's and timm's names of the weights of EfficientNet of any size.

timm's models with "tf_" in the name do not fit: they pad asymmetrically, and ours does not.
"""

import re

from cnn_jax.weights.names.mobilenet import timm

__all__ = ["timm", "torchvision"]

_BLOCK = re.compile(r"stage(\d+)_block(\d+)/(.+)")
_OTHERS = {
    "stem_conv": "features.0.0",
    "stem_bn": "features.0.1",
    "head_conv": "features.8.0",
    "head_bn": "features.8.1",
    "output": "classifier.1",
}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.efficientnet`.

    >>> torchvision("stage1_block1/se/reduce"), torchvision("stage2_block2/project_bn"), torchvision("head_bn")
    ('features.1.0.block.1.fc1', 'features.2.1.block.3.1', 'features.8.1')
    """
    block = _BLOCK.fullmatch(path)
    if not block:
        return _OTHERS[path]
    stage, number, layer = int(block[1]), int(block[2]), block[3]
    first = 0 if stage == 1 else 1  # the blocks of the first stage do not expand
    layers = {
        "expand_conv": "0.0",
        "expand_bn": "0.1",
        "depthwise_conv": f"{first}.0",
        "depthwise_bn": f"{first}.1",
        "se/reduce": f"{first + 1}.fc1",
        "se/expand": f"{first + 1}.fc2",
        "project_conv": f"{first + 2}.0",
        "project_bn": f"{first + 2}.1",
    }
    return f"features.{stage}.{number - 1}.block.{layers[layer]}"
