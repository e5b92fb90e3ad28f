"""ResNet, ResNeXt and Wide ResNet match torchvision's stage by stage."""

from typing import Any

import pytest
from flax import traverse_util
from torch_nets import TOLERANCE, Case, check_stages, compare, numpy_state, randomise, shapes, torchvision

from cnn_jax.models import resnet
from cnn_jax.models.resnet import ResNet
from cnn_jax.weights.convert import from_torch, to_torch, torch_name
from cnn_jax.weights.names import resnet as naming

torch = pytest.importorskip("torch")
models: Any = torchvision().models

NETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
NETS += ["resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"]


def stages_of(model: Any) -> dict[str, str]:
    """Maps our stages to torchvision's modules: stem, every block, and the classifier's input."""
    blocks = {f"stage{s}_block{b + 1}": f"layer{s}.{b}" for s, n in enumerate(model.blocks, start=1) for b in range(n)}
    return {"conv1": "relu", "pool1": "maxpool", **blocks, "pool": "avgpool"}


def published(name: str) -> Case:
    model = getattr(resnet, name)()
    return Case(model, getattr(models, name), naming.torchvision, stages_of(model))


def small(bottleneck: bool, **kwargs: Any) -> Case:
    """A network with few blocks, on images of uneven size."""
    model = ResNet(7, blocks=(1, 2, 1, 1), width=64, bottleneck=bottleneck, shortcut="B", imagenet_stem=True, **kwargs)
    block = models.resnet.Bottleneck if bottleneck else models.resnet.BasicBlock

    def net() -> Any:
        return models.ResNet(block, [1, 2, 1, 1], 7, groups=model.groups, width_per_group=model.base_width)

    return Case(model, net, naming.torchvision, stages_of(model), image=(75, 94, 3))


CASES = {
    "basic blocks": small(False),
    "bottlenecks": small(True, remat=True),
    "ResNeXt": small(True, groups=32, base_width=4),
    "twice as wide": small(True, base_width=128),
}
# For the table of `benchmarks.parity`; too slow for the tests.
WHOLE = {name: published(name) for name in ("resnet18", "resnet50", "resnext50_32x4d")}


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_stages_as_torchvision(name):
    errors = compare(CASES[name])
    assert errors.worst() < TOLERANCE, errors


@pytest.mark.parametrize("name", NETS)
def test_every_name_and_size_is_torchvisions(name):
    with torch.device("meta"):
        state = getattr(models, name)().state_dict()
    theirs = {key: tensor.numel() for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    leaves: Any = traverse_util.flatten_dict(shapes(getattr(resnet, name)(), (64, 64, 3)), sep="/")
    assert {torch_name(path, naming.torchvision): leaf.size for path, leaf in leaves.items()} == theirs


def test_pytorch_loads_what_we_write():
    case: Any = CASES["basic blocks"]
    net = randomise(case.net())
    variables = from_torch(numpy_state(net), shapes(case.model, case.image), naming.torchvision)
    state = to_torch(variables, naming.torchvision)
    other = randomise(case.net(), seed=1)
    other.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()}, strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), net(x))


def test_a_mixed_up_layer_would_show():
    case: Any = CASES["basic blocks"]

    def mixed_up(path: str) -> str:
        swapped = {"stage1_block1/bn1": "stage1_block1/bn2", "stage1_block1/bn2": "stage1_block1/bn1"}
        return naming.torchvision(swapped.get(path, path))

    errors = compare(Case(case.model, case.net, mixed_up, case.stages, case.image))
    assert errors.stages["conv1"] < TOLERANCE < 0.01 < errors.stages["stage1_block1"]


def test_a_missed_stage_would_show():
    every = stages_of(resnet.resnet18())
    check_stages(every, every)
    with pytest.raises(AssertionError, match=r"not compared: \['stage2_block1'\]"):
        check_stages(set(every) - {"stage2_block1"}, every)
    with pytest.raises(AssertionError, match=r"not recorded: \['stage9'\]"):
        check_stages({*every, "stage9"}, every)
