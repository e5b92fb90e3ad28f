"""torchvision's names of the weights of DenseNet of any depth, with the ImageNet stem; timm uses the same names.

torchvision's files still have the old names norm.1 and conv.1 inside a dense layer; its code and timm's files have
norm1 and conv1. `current` renames the old to the new.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

Array = TypeVar("Array")

_LAYER = re.compile(r"block(\d+)_layer(\d+)/(bn|conv)(\d)")
_TRANSITION = re.compile(r"transition(\d+)/(bn|conv)")
_OTHERS = {"conv1": "features.conv0", "bn1": "features.norm0", "last_bn": "features.norm5", "output": "classifier"}
_KINDS = {"bn": "norm", "conv": "conv"}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.densenet`.

    >>> torchvision("block1_layer2/bn1"), torchvision("transition1/conv"), torchvision("last_bn")
    ('features.denseblock1.denselayer2.norm1', 'features.transition1.conv', 'features.norm5')
    """
    if layer := _LAYER.fullmatch(path):
        block, number, kind, which = layer.groups()
        return f"features.denseblock{block}.denselayer{number}.{_KINDS[kind]}{which}"
    if transition := _TRANSITION.fullmatch(path):
        number, kind = transition.groups()
        return f"features.transition{number}.{_KINDS[kind]}"
    return _OTHERS[path]


timm = torchvision


def current(state: Mapping[str, Array]) -> dict[str, Array]:
    """Renames the arrays of an old state dict; those of a new one keep their names.

    >>> list(current({"features.denseblock1.denselayer1.norm.1.weight": 0, "features.norm5.bias": 0}))
    ['features.denseblock1.denselayer1.norm1.weight', 'features.norm5.bias']
    """
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name): array for name, array in state.items()}
