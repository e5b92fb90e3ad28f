"""Names of our models' weights in torchvision and timm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn

from cnn_jax.models.alexnet import AlexNet
from cnn_jax.models.convnext import ConvNeXt
from cnn_jax.models.densenet import DenseNet
from cnn_jax.models.googlenet import GoogLeNet
from cnn_jax.models.inception_v3 import InceptionV3
from cnn_jax.models.mobilenet import InvertedResidualNet
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.vgg import VGG
from cnn_jax.weights.convert import Names, torch_name
from cnn_jax.weights.names import (
    alexnet,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    inception_v3,
    mobilenet,
    resnet,
    vgg,
)
from cnn_jax.weights.wrappers import prefixes, without_wrappers


@dataclass(frozen=True)
class Naming:
    """How a source names a model's weights.

    Attributes:
        names: maps our module paths to the source's.
        ignore: regular expressions for arrays of the source that the model may lack, such as auxiliary heads.
        prepare: converts a state dict with outdated names to current ones.
        convolutions, flat_scales: the shapes of its arrays, see `to_torch`.
    """

    names: Names
    ignore: tuple[str, ...] = ()
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    convolutions: tuple[str, ...] = ()
    flat_scales: bool = False


def plain(path: str) -> str:
    """Names a module of a model that torchvision and timm do not have: our own path, with dots.

    >>> plain("block1/conv")
    'block1.conv'
    """
    return path.replace("/", ".")


def namings(model: nn.Module) -> dict[str, Naming]:
    """Returns the namings of a model, preferred first: "torchvision" and "timm" if they have it, then "plain"."""
    match model:
        case AlexNet():
            known = {"torchvision": Naming(alexnet.torchvision)}
        case VGG():
            fields: Any = {"convolutions": model.convolutions, "batch_norm": model.batch_norm}
            known = {
                "torchvision": Naming(partial(vgg.torchvision, **fields)),
                "timm": Naming(partial(vgg.timm, **fields), convolutions=("fc6", "fc7")),
            }
        case GoogLeNet(form="torchvision"):
            known = {"torchvision": Naming(googlenet.torchvision, ignore=(r"^aux[12]\.",))}
        case InceptionV3():
            known = {
                "torchvision": Naming(inception_v3.torchvision, ignore=(r"^AuxLogits\.",)),
                "timm": Naming(inception_v3.timm, ignore=(r"^AuxLogits\.",)),
            }
        case ResNet():
            known = {"torchvision": Naming(resnet.torchvision), "timm": Naming(resnet.timm)}
        case DenseNet():
            known = {
                "torchvision": Naming(densenet.torchvision, prepare=densenet.current),
                "timm": Naming(densenet.timm, prepare=densenet.current),
            }
        case InvertedResidualNet():
            family = efficientnet if model.squeeze else mobilenet
            known = {"torchvision": Naming(family.torchvision), "timm": Naming(family.timm)}
        case ConvNeXt():
            known = {
                "torchvision": Naming(convnext.torchvision),
                "timm": Naming(convnext.timm, flat_scales=True),
            }
        case _:
            known = {}
    return known | {"plain": Naming(plain)}


def recognise(model: nn.Module, paths: list[str], state: Mapping[str, Any]) -> Naming:
    """Returns the naming under which most arrays of `model` are in `state`, less the parts of names of wrappers.

    Args:
        model: ours.
        paths: our paths of its arrays, such as "params/conv1/kernel".
        state: arrays by the source's names, with any prefix.
    """

    def found(naming: Naming) -> int:
        wanted = [torch_name(path, naming.names) for path in paths]
        have = naming.prepare(state)
        prefix = prefixes(have, wanted)[0]
        return sum(prefix + name in have for name in wanted)

    return max((_shortened(naming, paths) for naming in namings(model).values()), key=found)


def _shortened(naming: Naming, paths: list[str]) -> Naming:
    """Removes the parts of names that wrappers add, as `read_state` does: a module of ours may be called "module"."""
    full = [torch_name(path, naming.names) for path in paths]
    short = [without_wrappers(name) for name in full]
    if short == full or len(set(short)) < len(full):
        return naming
    return replace(naming, names=lambda path: without_wrappers(naming.names(path)))
