"""Our arrays and timm's state dicts match one to one in name and size. Does not need timm.

`timm_names/MODEL.txt` lists the state dict of timm's MODEL without its counters: each line has names, with
alternatives in braces, and the shape they share.
"""

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from torch_nets import shapes

from cnn_jax.weights.catalog import ARCHITECTURES
from cnn_jax.weights.convert import flattened_maps, to_torch, torch_name
from cnn_jax.weights.naming import namings, recognise

TESTS = Path(__file__).parent
LISTED = sorted(path.stem for path in (TESTS / "timm_names").glob("*.txt"))


def timm_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name from `timm_names/MODEL.txt`."""
    found: dict[str, tuple[int, ...]] = {}
    for line in (TESTS / "timm_names" / f"{model}.txt").read_text().splitlines():
        names, shape = line.split()
        parts = [part.strip("{}").split(",") for part in names.split(".")]
        found |= dict.fromkeys(map(".".join, itertools.product(*parts)), tuple(map(int, shape.split("x"))))
    return found


@cache
def our_sizes(model: str) -> dict[str, int]:
    """Sizes of our arrays by path, auxiliary heads included."""
    network: Any = ARCHITECTURES[model]()
    if model == "inception_v3":
        network = network.clone(aux_heads=True)
    return {path: leaf.size for path, leaf in our_shapes(network).items()}


def our_shapes(network: Any) -> dict[str, Any]:
    leaves: Any = traverse_util.flatten_dict(shapes(network, network.input_shape), sep="/")
    return leaves


@pytest.mark.parametrize("model", LISTED)
def test_our_names_for_timm_are_timms(model):
    naming = namings(ARCHITECTURES[model]())["timm"]
    ours = our_sizes(model)
    named = {torch_name(path, naming.names): size for path, size in ours.items()}
    assert len(named) == len(ours), "two of our arrays share a name"
    assert named == {name: math.prod(shape) for name, shape in timm_shapes(model).items()}


@pytest.mark.parametrize("model", ["vgg16", "efficientnet_b0", "convnext_tiny", "resnet18"])
def test_exports_have_the_shapes_of_timm(model):
    network: Any = ARCHITECTURES[model]()
    naming = namings(network)["timm"]
    leaves = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in our_shapes(network).items()}
    state = to_torch(
        traverse_util.unflatten_dict(leaves, sep="/"),
        naming.names,
        flattened=flattened_maps(network, network.input_shape),
        convolutions=naming.convolutions,
        flat_scales=naming.flat_scales,
    )
    assert {name: array.shape for name, array in state.items()} == timm_shapes(model)


def test_every_family_that_timm_has_is_listed():
    without = {"alexnet", "googlenet"}  # not in timm
    for name, make in ARCHITECTURES.items():
        assert ("timm" in namings(make())) == (name not in without), name
    families = {type(ARCHITECTURES[name]()) for name in LISTED}
    assert families == {type(make()) for name, make in ARCHITECTURES.items() if name not in without}


@pytest.mark.parametrize("model", ["vgg16", "mobilenetv2_100", "efficientnet_b0", "convnext_tiny"])
def test_timms_names_are_recognised_where_they_differ_from_torchvisions(model):
    network, paths, state = ARCHITECTURES[model](), list(our_sizes(model)), timm_shapes(model)
    names = recognise(network, paths, state).names
    assert {torch_name(path, names) for path in paths} == set(state)


@pytest.mark.parametrize("model", LISTED)
def test_the_lists_are_those_of_timm_where_it_is_installed(model):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    with torch.device("meta"):
        net = timm.create_model(model, **({"aux_logits": True} if model == "inception_v3" else {}))
    theirs = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items() if tensor.ndim}
    assert timm_shapes(model) == theirs
