"""VGG matches torchvision's with the same weights; timm's names map to the same arrays."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from torch_nets import TOLERANCE, Case, compare, numpy_state, randomise, shapes, torchvision

from cnn_jax.models import vgg as vggs
from cnn_jax.weights.convert import flattened_maps, from_torch, to_torch, torch_name
from cnn_jax.weights.names import vgg as names

torch = pytest.importorskip("torch")

NETS = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
SMALL_HEAD: Any = {"num_classes": 7, "dense": (24, 16)}


def small_head(name: str) -> Any:
    """torchvision's network with fewer units in its dense layers."""
    with torch.device("meta"):
        net = getattr(torchvision().models, name)(num_classes=7)
        for layer, (inputs, outputs) in {0: (512 * 7 * 7, 24), 3: (24, 16), 6: (16, 7)}.items():
            net.classifier[layer] = torch.nn.Linear(inputs, outputs)
    return net.to_empty(device="cpu")


def naming(model: Any, source: Any = names.torchvision) -> Any:
    return partial(source, convolutions=model.convolutions, batch_norm=model.batch_norm)


def case(name: str, image: tuple[int, int, int], head_map: int | None) -> Case:
    model = getattr(vggs, name)(**SMALL_HEAD, head_map=head_map)
    per_conv, number, stages = 3 if model.batch_norm else 2, 0, {"fc6": "classifier.1", "fc7": "classifier.4"}
    for s, count in enumerate(model.convolutions, start=1):
        for i in range(1, count + 1):
            number += per_conv
            stages[f"conv{s}_{i}"] = f"features.{number - 1}"
        stages[f"pool{s}"] = f"features.{number}"
        number += 1
    return Case(model, partial(small_head, name), naming(model), stages, image)


CASES = {
    "vgg11, 224x224": case("vgg11", (224, 224, 3), None),
    "vgg11, 8x9 maps averaged to 7x7": case("vgg11", (256, 288, 3), 7),
    "vgg16, 2x3 maps averaged to 7x7": case("vgg16", (64, 96, 3), 7),
    "vgg13_bn, 64x64": case("vgg13_bn", (64, 64, 3), 7),
    "vgg19_bn, 64x64": case("vgg19_bn", (64, 64, 3), 7),
}


@pytest.mark.parametrize("name", CASES)
def test_same_numbers_as_in_torchvision(name):
    errors = compare(CASES[name])
    assert errors.worst() < TOLERANCE, errors


@pytest.mark.parametrize("name", NETS)
def test_names_and_sizes_are_those_of_torchvision(name):
    with torch.device("meta"):
        net = getattr(torchvision().models, name)()
    model = getattr(vggs, name)()
    leaves: dict[str, Any] = traverse_util.flatten_dict(shapes(model, (224, 224, 3)), sep="/")
    sizes = {torch_name(path, naming(model)): leaf.size for path, leaf in leaves.items()}
    theirs = {n: tensor.numel() for n, tensor in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert sizes == theirs


def test_the_flattened_map_is_found_with_and_without_averaging():
    assert flattened_maps(vggs.vgg16(), (224, 224, 3)) == {"fc6": (512, 7, 7)}
    assert flattened_maps(vggs.vgg16(head_map=7), (64, 96, 3)) == {"fc6": (512, 7, 7)}


def test_timms_convolutional_head_has_the_same_weights():
    """timm keeps torchvision's features and stores the dense layers as pre_logits.fc1, pre_logits.fc2 and head.fc."""
    model = vggs.vgg16(**SMALL_HEAD)
    state = numpy_state(randomise(small_head("vgg16")))
    renamed = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    timm_state = {
        f"{renamed.get(module, module)}.{leaf}": array
        for (module, _, leaf), array in ((name.rpartition("."), array) for name, array in state.items())
    }
    timm_state["pre_logits.fc1.weight"] = timm_state["pre_logits.fc1.weight"].reshape(24, 512, 7, 7)
    timm_state["pre_logits.fc2.weight"] = timm_state["pre_logits.fc2.weight"].reshape(16, 24, 1, 1)
    like, flattened = shapes(model, (224, 224, 3)), flattened_maps(model, (224, 224, 3))
    ours = from_torch(state, like, naming(model), flattened=flattened)
    from_timm = from_torch(timm_state, like, naming(model, names.timm), flattened=flattened)
    jax.tree.map(np.testing.assert_array_equal, from_timm, ours)
    again = to_torch(ours, naming(model), flattened=flattened)
    assert set(again) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)
