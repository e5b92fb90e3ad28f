"""MobileNet-v2 and EfficientNet match torchvision's block by block; weights map to the public names."""

import re
from functools import partial
from typing import Any

import pytest
from flax import traverse_util
from torch_nets import TOLERANCE, Case, compare, numpy_state, shapes, torchvision

from cnn_jax.models.efficientnet import STAGES as EFFICIENTNET
from cnn_jax.models.efficientnet import efficientnet_b0
from cnn_jax.models.mobilenet import STAGES as MOBILENET
from cnn_jax.models.mobilenet import mobilenet_v2
from cnn_jax.weights.convert import from_torch, to_torch, torch_name
from cnn_jax.weights.names import efficientnet as efficientnet_names
from cnn_jax.weights.names import mobilenet as mobilenet_names

torch = pytest.importorskip("torch")
models: Any = torchvision().models


def mobilenet_stages() -> dict[str, str]:
    blocks = [f"stage{s}_block{b}" for s, stage in enumerate(MOBILENET, start=1) for b in range(1, stage.blocks + 1)]
    names = {name: f"features.{i}" for i, name in enumerate(blocks, start=1)}
    return {"stem": "features.0", **names, "head": "features.18", "pool": "classifier:input"}


def efficientnet_stages() -> dict[str, str]:
    names = {
        f"stage{s}_block{b}": f"features.{s}.{b - 1}"
        for s, stage in enumerate(EFFICIENTNET, start=1)
        for b in range(1, stage.blocks + 1)
    }
    return {"stem": "features.0", **names, "head": "features.8", "pool": "classifier:input"}


CASES = {
    "mobilenet_v2": Case(mobilenet_v2(), models.mobilenet_v2, mobilenet_names.torchvision, mobilenet_stages()),
    "efficientnet_b0": Case(
        efficientnet_b0(), models.efficientnet_b0, efficientnet_names.torchvision, efficientnet_stages()
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_blocks_as_torchvision(name):
    assert compare(CASES[name]).worst() < TOLERANCE


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (partial(mobilenet_v2, width=1.4), partial(models.mobilenet_v2, width_mult=1.4), mobilenet_names.torchvision),
        (partial(efficientnet_b0, depth=1.1), models.efficientnet_b1, efficientnet_names.torchvision),
        (partial(efficientnet_b0, width=1.4, depth=1.8), models.efficientnet_b4, efficientnet_names.torchvision),
    ],
    ids=["mobilenet_v2, width 1.4", "efficientnet_b1", "efficientnet_b4"],
)
def test_other_sizes_have_torchvisions_names_and_shapes(ours, theirs, names):
    like = shapes(ours(), (64, 64, 3))
    with torch.device("meta"):
        state = {name: tensor.shape for name, tensor in theirs().state_dict().items() if tensor.ndim}
    leaves: dict[str, Any] = traverse_util.flatten_dict(like, sep="/")
    assert {torch_name(path, names) for path in leaves} == set(state)
    for path, leaf in leaves.items():
        assert sorted(leaf.shape) == sorted(state[torch_name(path, names)])


def timm_block(found: re.Match[str]) -> str:
    return f"blocks.{int(found[1]) - 1}.{int(found[2]) - 1}"


@pytest.mark.parametrize(
    ("timm_name", "case", "names"),
    [
        ("mobilenetv2_100", CASES["mobilenet_v2"], mobilenet_names.timm),
        ("efficientnet_b0", CASES["efficientnet_b0"], efficientnet_names.timm),
    ],
)
def test_timms_names_are_for_the_same_weights(timm_name, case, names):
    timm: Any = pytest.importorskip("timm")
    blocks = {name: re.sub(r"stage(\d+)_block(\d+)", timm_block, name) for name in case.stages if "_" in name}
    stages = {"stem": "bn1", **blocks, "head": "bn2", "pool": "global_pool"}
    assert compare(Case(case.model, partial(timm.create_model, timm_name), names, stages)).worst() < TOLERANCE


def test_our_weights_round_trip():
    case = CASES["mobilenet_v2"]
    state = numpy_state(case.net())
    variables = from_torch(state, shapes(case.model, case.image), case.names)  # type: ignore[arg-type]
    back = to_torch(variables, case.names)
    assert set(back) == {name for name in state if not name.endswith("num_batches_tracked")}
    assert all((array == state[name]).all() for name, array in back.items())
