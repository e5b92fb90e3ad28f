"""The layer table: counts, and receptive fields against the actual dependence of outputs on inputs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.arithmetic import conv_flops, conv_parameters, locally_connected_parameters
from cnn_jax.inspect.summary import LayerRow, layer_table
from cnn_jax.inspect.tracer import trace_layers
from cnn_jax.layers import (
    AvgPool,
    BatchNorm,
    Conv,
    GlobalAvgPool,
    L2Pool,
    LocallyConnected,
    LocalResponseNorm,
    MaxPool,
    MinPool,
    SqueezeExcite,
    space_to_depth,
)
from cnn_jax.models import build
from cnn_jax.models.alexnet import alexnet
from cnn_jax.models.inception_v3 import inception_v3
from cnn_jax.models.vgg import vgg16

SIZE = 33


def table(model: nn.Module, size: int = SIZE) -> dict[str, LayerRow]:
    return {row.name: row for row in layer_table(model, (size, size, 2))}


class Net(nn.Module):
    """Applies a function whose layers become children of this module."""

    body: Any

    @nn.compact
    def __call__(self, x, *, train):
        return self.body(x)


def branches(x):
    wide = Conv(3, (5, 5), name="wide")(x)
    narrow = Conv(3, (1, 1), name="narrow")(x)
    pooled = Conv(3, (1, 1), name="project")(MaxPool((3, 3), (1, 1), ((1, 1), (1, 1)), name="pool")(x))
    return Conv(2, (3, 3), name="joined")(jnp.concatenate([wide, narrow, pooled], -1))


def residual(x):
    x = Conv(2, (3, 3), name="stem")(x)
    y = nn.relu(BatchNorm(use_running_average=True, name="norm")(Conv(2, (3, 3), (2, 2), name="conv1")(x)))
    y = Conv(2, (3, 3), name="conv2")(y)
    return Conv(1, (1, 1), name="after")(y + Conv(2, (1, 1), (2, 2), name="shortcut")(x))


def oblong(x):
    x = Conv(2, (1, 7), name="row")(x)
    x = Conv(2, (3, 1), name="column")(x)
    return Conv(2, (3, 3), kernel_dilation=2, name="holes")(x)


def pools(x):
    x = MaxPool(ceil_mode=True, name="max")(x)
    x = AvgPool((3, 3), (2, 2), ceil_mode=True, count_include_pad=False, name="average")(x)
    x = MinPool((2, 2), (1, 1), name="min")(x)
    x = L2Pool((2, 2), (2, 2), ((1, 1), (1, 1)), name="l2")(x)
    return LocalResponseNorm(name="norm")(x)


def local(x):
    x = LocallyConnected(3, (3, 3), (2, 2), padding="VALID", name="local")(x)
    return nn.Dense(4, name="pointwise")(nn.LayerNorm(name="norm")(x))


def blocks(x):
    x = space_to_depth(jnp.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0))), 4)
    return Conv(2, (3, 3), name="conv")(Conv(2, (1, 1), name="patches")(x))


def gated(x):
    x = Conv(4, (3, 3), (2, 2), name="before")(x)
    x = SqueezeExcite(2, name="gate")(x)
    return Conv(4, (3, 3), name="after")(x)


def rematerialised(x):
    x = nn.remat(Conv)(2, (3, 3), (2, 2), name="first")(x)
    return nn.remat(Conv)(2, (3, 3), name="second")(nn.gelu(x))


BODIES = [
    (branches, "joined", {"wide": 5, "narrow": 1, "pool": 3, "project": 3, "joined": 7}),
    (residual, "after", {"stem": 3, "norm": 5, "conv1": 5, "conv2": 9, "shortcut": 3, "after": 9}),
    (oblong, "holes", {"row": 7, "column": 7, "holes": 11}),
    (pools, "norm", {"max": 2, "average": 6, "min": 10, "l2": 14, "norm": 14}),
    (local, "pointwise", {"local": 3, "pointwise": 3, "norm": 3}),
    (blocks, "conv", {"patches": 4, "conv": 12}),
    (rematerialised, "second", {"first": 3, "second": 7}),
]


@pytest.mark.parametrize(("body", "last", "fields"), BODIES, ids=[body.__name__ for body, _, _ in BODIES])
def test_receptive_field_is_the_side_of_what_an_output_depends_on(body, last, fields):
    model = Net(body)
    assert {name: row.receptive_field for name, row in table(model).items()} == fields
    x = jax.random.normal(jax.random.key(0), (8, SIZE, SIZE, 2))
    variables = jax.jit(lambda: model.init(jax.random.key(1), x, train=False))()

    def middle(x):
        y: Any = model.apply(variables, x, train=False)
        return jnp.sum(y[:, y.shape[1] // 2, y.shape[2] // 2])

    depends = np.abs(jax.jit(jax.grad(middle))(x)).sum((0, 3))
    sides = [np.ptp(np.flatnonzero(depends.sum(axis))) + 1 for axis in (0, 1)]
    assert max(sides) == fields[last]


def test_gates_see_everything_and_are_not_counted():
    rows = table(Net(gated))
    assert {name: row.receptive_field for name, row in rows.items()} == {
        "before": 3,
        "gate/reduce": None,
        "gate/expand": None,
        "after": 7,
    }
    assert [row.kind for row in rows.values()] == ["Conv"] * 4
    assert rows["gate/reduce"].output_shape == (1, 1, 2)
    assert rows["gate/expand"].parameters == 2 * 4 + 4


def everything(x):
    return nn.Dense(3, name="dense")(GlobalAvgPool(name="pool")(Conv(4, (3, 3), name="conv")(x)))


def flattened(x):
    x = Conv(4, (3, 3), name="conv")(x)
    return nn.Dense(3, name="dense")(x.reshape(len(x), -1))


@pytest.mark.parametrize("body", [everything, flattened])
def test_what_follows_a_mean_or_a_flattening_sees_everything(body):
    fields = {name: row.receptive_field for name, row in table(Net(body)).items()}
    assert fields.pop("conv") == 3
    assert set(fields.values()) == {None}


def test_locally_connected_layers_count_weights_per_position():
    row = table(Net(local))["local"]
    assert row.kind == "LocallyConnected" and row.output_shape == (16, 16, 3)
    assert row.parameters == locally_connected_parameters((16, 16), (3, 3), 2, 3)
    assert row.flops == conv_flops((16, 16), (3, 3), 2, 3)


def test_flops_count_filters_that_are_not_parameters():
    row = next(row for row in layer_table(build("speednet94"), (32, 32, 3)) if row.name == "whiten")
    assert (row.parameters, row.flops) == (24, conv_flops((31, 31), (2, 2), 3, 24))


def test_grouped_and_overhanging_layers_are_counted():
    def body(x):
        return Conv(4, (3, 3), feature_group_count=2, name="grouped")(MaxPool(ceil_mode=True, name="pool")(x))

    rows = table(Net(body))
    assert rows["pool"].output_shape == (17, 17, 2) and rows["pool"].parameters == rows["pool"].flops == 0
    assert rows["grouped"].parameters == conv_parameters((3, 3), 2, 4, groups=2)
    assert rows["grouped"].flops == conv_flops((17, 17), (3, 3), 2, 4, groups=2)


def test_table_of_vgg16_is_that_of_the_slides():
    # Sides and filters match the lectures' table. Its parameter column is shifted from the third row on, and its total
    # of 138,423,208 does not add up; the paper (table 2) says 138 million.
    rows = layer_table(vgg16(), (224, 224, 3))
    shown = [(row.output_shape, row.parameters) for row in rows if row.parameters or "Pool" in row.kind]
    expected = []
    side, before = 224, 3
    for maps, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            expected.append(((side, side, maps), 9 * before * maps + maps))
            before = maps
        side //= 2
        expected.append(((side, side, maps), 0))
    expected += [((4096,), 25088 * 4096 + 4096), ((4096,), 4096 * 4096 + 4096), ((1000,), 4096 * 1000 + 1000)]
    assert shown == expected
    assert [count for _, count in shown[:2]] == [1792, 36928]
    assert sum(row.parameters for row in rows) == 138_357_544


@pytest.mark.parametrize(
    ("model", "layer", "side"), [(alexnet, "pool5", 195), (vgg16, "pool5", 212), (inception_v3, "mixed7c", 1311)]
)
def test_receptive_fields_are_the_published_ones(model, layer, side):
    # Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks", table 1.
    rows = layer_table(model(), model().input_shape)
    assert max(row.receptive_field or 0 for row in rows if row.name.startswith(layer)) == side


def test_faster_convolutions_change_no_receptive_field(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # the fast convolutions are used on one device
    rows = {row.name: row.receptive_field for row in layer_table(vgg16(), (224, 224, 3))}
    assert (rows["conv1_1"], rows["conv1_2"], rows["pool5"], rows["fc6"]) == (3, 5, 212, None)


def test_table_of_a_deep_network_has_the_field_of_its_deepest_path():
    rows = {row.name: row.receptive_field for row in layer_table(build("resnet20"), (32, 32, 3))}
    # 7 convolutions at step 1: 1 + 2·7. Then one strided at step 1 and 5 at step 2; likewise at steps 2 and 4.
    assert rows["stage1_block3/conv2"] == 15
    assert rows["stage2_block3/conv2"] == 15 + 2 + 5 * 4
    assert rows["stage3_block3/conv2"] == 37 + 4 + 5 * 8
    assert rows["output"] is None


def test_calls_are_listed_after_those_inside_them():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(2, (3, 3), name="conv")(BatchNorm(use_running_average=True, name="norm")(x))

    def layers(x):
        block = Block(name="block")
        return nn.Dense(4, name="dense")(block(block(x)).mean((1, 2)))

    calls = trace_layers(Net(layers), (6, 6, 2))
    first, second = [("block/norm", 0), ("block/conv", 0), ("block", 2)], [("dense", 0)]
    assert [(call.name, call.inner) for call in calls] == [*first, *first, *second]
    assert [call.receptive_field for call in calls] == [1, 3, 3, 3, 5, 5, None]
    dense = calls[-1]
    assert (dense.kind, dense.input_shape, dense.output_shape) == (nn.Dense, (1, 2), (1, 4))
    assert dense.own == {"params": {"kernel": (2, 4), "bias": (4,)}}
