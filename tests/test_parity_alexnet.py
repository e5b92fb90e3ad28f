"""AlexNet and ZFNet match the same layers in PyTorch."""

from collections import OrderedDict
from typing import Any

import pytest
from flax import traverse_util
from torch_nets import TOLERANCE, Case, compare, shapes, torchvision

from cnn_jax.models.alexnet import AlexNet, alexnet_one_tower
from cnn_jax.models.zfnet import ZFNet
from cnn_jax.weights.convert import flattened_maps, torch_name
from cnn_jax.weights.names import alexnet as names

torch = pytest.importorskip("torch")
nn = torch.nn


def one_tower() -> Any:
    """torchvision's AlexNet with fewer units in its dense layers."""
    with torch.device("meta"):
        net = torchvision().models.alexnet(num_classes=7)
        for layer, (inputs, outputs) in {1: (9216, 24), 4: (24, 16), 6: (16, 7)}.items():
            net.classifier[layer] = nn.Linear(inputs, outputs)
    return net.to_empty(device="cpu")


def dense(inputs: int) -> dict[str, Any]:
    return {
        "flatten": nn.Flatten(),
        "fc6": nn.Linear(inputs, 20),
        "relu6": nn.ReLU(),
        "fc7": nn.Linear(20, 12),
        "relu7": nn.ReLU(),
        "output": nn.Linear(12, 5),
    }


def of_2012() -> Any:
    """Krizhevsky et al. 2012, §3, with fewer filters. PyTorch divides alpha by the number of maps, 5."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 11, 4),
            relu1=nn.ReLU(),
            norm1=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
            pool1=nn.MaxPool2d(3, 2),
            conv2=nn.Conv2d(8, 12, 5, padding=2, groups=2),
            relu2=nn.ReLU(),
            norm2=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
            pool2=nn.MaxPool2d(3, 2),
            conv3=nn.Conv2d(12, 16, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(16, 16, 3, padding=1, groups=2),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(16, 10, 3, padding=1, groups=2),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, 2),
            **dense(10 * 2 * 3),
        )
    )


def of_zeiler_and_fergus() -> Any:
    """Zeiler and Fergus 2013, figure 3, with fewer filters."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 7, 2, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            norm1=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
            conv2=nn.Conv2d(8, 12, 5, 2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
            norm2=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
            conv3=nn.Conv2d(12, 16, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(16, 16, 3, padding=1),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(16, 10, 3, padding=1),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, 2, ceil_mode=True),
            **dense(10 * 2 * 3),
        )
    )


def same(path: str) -> str:
    return path


STAGES = {f"{kind}{i}": f"{torch_kind}{i}" for i in (1, 2) for kind, torch_kind in (("conv", "relu"), ("norm", "norm"))}
STAGES |= {"pool1": "pool1", "pool2": "pool2", "conv3": "relu3", "conv4": "relu4", "conv5": "relu5", "pool5": "pool5"}
STAGES |= {"fc6": "relu6", "fc7": "relu7"}
OURS: Any = {"num_classes": 5, "features": (8, 12, 16, 16, 10), "dense": (20, 12)}
TORCHVISION = {f"conv{i}": f"features.{j}" for i, j in enumerate((1, 4, 7, 9, 11), start=1)}
TORCHVISION |= {"pool1": "features.2", "pool2": "features.5", "pool5": "features.12"}
TORCHVISION |= {"fc6": "classifier.2", "fc7": "classifier.5"}
ONE_TOWER = alexnet_one_tower(num_classes=7, dense=(24, 16))
CASES = {
    "one tower": Case(ONE_TOWER, one_tower, names.torchvision, TORCHVISION, image=(224, 224, 3)),
    "one tower, small images": Case(
        ONE_TOWER.clone(head_map=6), one_tower, names.torchvision, TORCHVISION, image=(96, 128, 3)
    ),
    "two groups": Case(AlexNet(**OURS), of_2012, same, STAGES, image=(99, 131, 3)),
    "zfnet": Case(ZFNet(**OURS), of_zeiler_and_fergus, same, STAGES, image=(97, 128, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_same_numbers_as_in_pytorch(name):
    errors = compare(CASES[name])
    assert errors.worst() < TOLERANCE, errors


def test_names_and_sizes_are_those_of_torchvision():
    with torch.device("meta"):
        net = torchvision().models.alexnet()
    leaves: dict[str, Any] = traverse_util.flatten_dict(shapes(alexnet_one_tower(), (224, 224, 3)), sep="/")
    sizes = {torch_name(path, names.torchvision): leaf.size for path, leaf in leaves.items()}
    assert sizes == {name: tensor.numel() for name, tensor in net.state_dict().items()}
    assert flattened_maps(alexnet_one_tower(), (224, 224, 3)) == {"fc6": (256, 6, 6)}
