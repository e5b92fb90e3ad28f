"""ConvNeXt matches torchvision's block by block; weights map to torchvision's and timm's names."""

from functools import partial
from typing import Any

import pytest
from flax import traverse_util
from torch_nets import TOLERANCE, Case, compare, numpy_state, shapes, torchvision

from cnn_jax.models import convnext
from cnn_jax.models.convnext import convnext_tiny
from cnn_jax.weights.convert import from_torch, to_torch, torch_name
from cnn_jax.weights.names import convnext as naming

torch = pytest.importorskip("torch")
models: Any = torchvision().models

BLOCKS = (3, 3, 9, 3)
STAGES = {
    "stem": "features.0",
    **{f"stage{s}_conv": f"features.{2 * s - 2}" for s in (2, 3, 4)},
    **{
        f"stage{s}_block{b}": f"features.{2 * s - 1}.{b - 1}"
        for s, count in enumerate(BLOCKS, start=1)
        for b in range(1, count + 1)
    },
    "pool": "avgpool",
}
CASES = {"convnext_tiny": Case(convnext_tiny(), models.convnext_tiny, naming.torchvision, STAGES)}


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_blocks_as_torchvision(name):
    assert compare(CASES[name]).worst() < TOLERANCE


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_small", "convnext_base"])
def test_every_name_is_torchvisions(name):
    with torch.device("meta"):
        theirs = set(getattr(models, name)().state_dict())
    ours = traverse_util.flatten_dict(shapes(getattr(convnext, name)(), (64, 64, 3)), sep="/")
    assert {torch_name(path, naming.torchvision) for path in ours} == theirs


def test_timms_names_are_for_the_same_weights():
    timm: Any = pytest.importorskip("timm")
    make = partial(timm.create_model, "convnext_tiny")
    stages = {"stem": "stem", "pool": "head.global_pool"}
    stages |= {f"stage{s}_conv": f"stages.{s - 1}.downsample" for s in (2, 3, 4)}
    stages |= {
        f"stage{s}_block{b}": f"stages.{s - 1}.blocks.{b - 1}"
        for s, count in enumerate(BLOCKS, start=1)
        for b in range(1, count + 1)
    }
    assert compare(Case(convnext_tiny(), make, naming.timm, stages)).worst() < TOLERANCE


def test_our_weights_round_trip():
    state = numpy_state(models.ConvNeXt([models.convnext.CNBlockConfig(8, None, 2)], num_classes=3))
    like = shapes(convnext.ConvNeXt(3, blocks=(2,), widths=(8,)), (32, 32, 3))
    back = to_torch(from_torch(state, like, naming.torchvision), naming.torchvision)
    assert set(back) == set(state)
    assert all((array == state[name]).all() for name, array in back.items())
