"""DenseNet matches torchvision's stage by stage; old names of its weights are accepted."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from torch_nets import TOLERANCE, Case, compare, numpy_state, shapes, torchvision

from cnn_jax.models import densenet
from cnn_jax.models.densenet import DenseNet
from cnn_jax.weights.convert import from_torch, torch_name
from cnn_jax.weights.names import densenet as naming

torch = pytest.importorskip("torch")
models: Any = torchvision().models


def stages_of(blocks: int) -> dict[str, str]:
    return {
        "conv1": "features.relu0",
        "pool1": "features.pool0",
        **{f"block{b}": f"features.denseblock{b}" for b in range(1, blocks + 1)},
        **{f"transition{b}": f"features.transition{b}" for b in range(1, blocks)},
        "pool": "classifier:input",
    }


def their_tiny() -> Any:
    return models.DenseNet(growth_rate=6, block_config=(2, 3, 1, 2), num_init_features=12, num_classes=7)


CASES = {"densenet121": Case(densenet.densenet121(), models.densenet121, naming.torchvision, stages_of(4))}
TINY = DenseNet(7, blocks=(2, 3, 1, 2), growth=6, remat=True)


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_stages_as_torchvision(name):
    assert compare(CASES[name]).worst() < TOLERANCE


def test_same_on_maps_of_odd_sizes_and_rematerialised():
    case = Case(TINY, their_tiny, naming.torchvision, stages_of(4), image=(75, 94, 3))
    assert compare(case).worst() < TOLERANCE


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_every_name_is_torchvisions(name):
    with torch.device("meta"):
        theirs = {key for key in getattr(models, name)().state_dict() if not key.endswith("num_batches_tracked")}
    ours = traverse_util.flatten_dict(shapes(getattr(densenet, name)(), (64, 64, 3)), sep="/")
    assert {torch_name(path, naming.torchvision) for path in ours} == theirs


def test_old_names_of_the_published_files_are_understood():
    new = numpy_state(their_tiny())
    old = {name.replace(".norm1", ".norm.1").replace(".norm2", ".norm.2"): array for name, array in new.items()}
    old = {name.replace(".conv1", ".conv.1").replace(".conv2", ".conv.2"): array for name, array in old.items()}
    assert "features.denseblock2.denselayer3.conv.2.weight" in old
    assert naming.current(old).keys() == naming.current(new).keys() == new.keys()
    like = shapes(TINY, (64, 64, 3))
    converted, expected = (from_torch(naming.current(s), like, naming.torchvision) for s in (old, new))
    jax.tree.map(np.testing.assert_array_equal, converted, expected)
