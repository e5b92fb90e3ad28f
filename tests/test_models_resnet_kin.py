"""ResNeXt, wide and pre-activation residual networks match the published networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_checks import drawn, evaluated, shapes, some_images, trained, volumes

from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import layer_table
from cnn_jax.models import preact_resnet, resnet, stages
from cnn_jax.models.catalogue import read_table
from cnn_jax.models.preact_resnet import PreActResNet
from cnn_jax.models.resnet import ResNet

pytestmark = pytest.mark.usefixtures("one_device")


def wide(depth: int, k: int) -> int:
    """Parameter count of WRN-depth-k for CIFAR-10, layer by layer from table 1 of the paper."""
    blocks, widths = (depth - 4) // 6, (16, 16 * k, 32 * k, 64 * k)
    total = 27 * 16
    for before, width in zip(widths, widths[1:]):
        first = 2 * before + 9 * before * width + 2 * width + 9 * width * width + before * width  # norms, shortcut
        total += first + (blocks - 1) * (4 * width + 18 * width * width)
    return total + 2 * widths[3] + 10 * widths[3] + 10


def deep(depth: int) -> int:
    """Parameter count of a pre-activation bottleneck network for CIFAR-10, layer by layer from the released code."""
    blocks, total, before = (depth - 2) // 9, 27 * 16, 16
    for inner in (16, 32, 64):
        outputs = 4 * inner
        rest = 2 * inner + 9 * inner * inner + 2 * inner + inner * outputs
        total += 2 * before + before * inner + rest + before * outputs  # the last term is the shortcut
        total += (blocks - 1) * (2 * outputs + outputs * inner + rest)
        before = outputs
    return total + 2 * 256 + 10 * 256 + 10


def test_parameters_of_the_cifar_networks_are_those_counted_by_hand():
    listed = {row["model"]: int(row["parameters"]) for row in read_table()}
    by_hand = {"wrn28_10": wide(28, 10), "wrn16_4": wide(16, 4), "wrn40_2": wide(40, 2), "preact_resnet164": deep(164)}
    assert {name: listed[name] for name in by_hand} == by_hand
    assert listed["preact_resnet110"] == listed["resnet110"] == 1_727_962  # same norms in a different order
    assert (by_hand["wrn28_10"], by_hand["wrn16_4"], by_hand["wrn40_2"]) == (36_479_194, 2_748_890, 2_243_546)


def test_preact_resnet1001_has_a_thousand_and_one_layers():
    """Counted from its 111 blocks per stage, because building them all is slow."""
    assert (
        deep(1001)
        == 10_327_706
        == next(int(row["parameters"]) for row in read_table() if row["model"] == "preact_resnet1001")
    )
    assert preact_resnet.preact_resnet1001().blocks == (111, 111, 111)
    assert 9 * 111 + 2 == 1001


@pytest.mark.parametrize(("name", "layers"), [("wrn28_10", 28), ("wrn16_4", 16), ("wrn40_2", 40)])
def test_number_of_layers_is_in_the_name(name, layers):
    rows = [row for row in layer_table(getattr(preact_resnet, name)(), (8, 8, 3)) if row.flops]
    # The depth of a wide network, 6n + 4, counts its three projections but not its classifier.
    assert len(rows) - 1 == layers


def test_maps_of_wide_networks_at_two_sizes():
    for side in (32, 20):
        seen = volumes(preact_resnet.wrn28_10(), side, side, 3)
        ends = ("conv1", "stage1_block4", "stage2_block4", "stage3_block4", "pool")
        assert [seen[name] for name in ends] == [
            (side, side, 16),
            (side, side, 160),
            (side // 2, side // 2, 320),
            (side // 4, side // 4, 640),
            (640,),
        ]


def test_maps_of_resnext_at_two_sizes():
    for shape, sides in [((224, 224, 3), (56, 28, 14, 7)), ((65, 65, 1), (17, 9, 5, 3))]:
        seen = volumes(resnet.resnext50_32x4d(), *shape)
        ends = [f"stage{s}_block{count}" for s, count in enumerate((3, 4, 6, 3), start=1)]
        assert [seen[name] for name in ends] == [(s, s, 256 * 2**i) for i, s in enumerate(sides)]


def test_groups_of_resnext_do_not_see_each_other():
    params = shapes(resnet.resnext50_32x4d(), 64, 64, 3)["params"]
    for stage, width in enumerate((128, 256, 512, 1024), start=1):
        assert params[f"stage{stage}_block2"]["conv2"]["kernel"].shape == (3, 3, width // 32, width)
        assert params[f"stage{stage}_block2"]["conv1"]["kernel"].shape[-1] == width


def test_axis_name_joins_the_statistics_of_all_devices():
    model, x = PreActResNet(3, blocks=(2, 1), width=4, shortcut="A"), some_images()
    variables = drawn(model, 16, 16, 3)
    halves = model.clone(axis_name="data")

    def train(model: PreActResNet, x: jax.Array) -> jax.Array:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[0]  # type: ignore[return-value]

    whole = jax.jit(lambda x: train(model, x))(x)
    split = jax.jit(jax.vmap(lambda x: train(halves, x), axis_name="data"))(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(split.reshape(whole.shape), whole, rtol=1e-3, atol=1e-4)


def test_blocks_with_silent_convolutions_are_their_shortcuts():
    """Nothing lies between the additions of consecutive blocks (paper, eq. 4)."""
    model, x = PreActResNet(3, blocks=(2, 2), width=4, shortcut="A"), some_images()
    variables = drawn(model, 16, 16, 3)
    for name, block in variables["params"].items():
        if name.startswith("stage"):
            block["conv2"]["kernel"] = jnp.zeros_like(block["conv2"]["kernel"])
    _, seen = jax.jit(lambda: stages(model, variables, x))()
    np.testing.assert_array_equal(seen["stage1_block2"], seen["stage1_block1"])
    np.testing.assert_array_equal(seen["stage2_block2"], seen["stage2_block1"])
    assert np.min(seen["stage1_block1"]) == 0.0 and np.min(seen["conv1"]) < 0  # activated before both branches
    assert not np.any(seen["stage2_block1"][..., :2]) and np.any(seen["stage2_block1"][..., 2:6])  # shortcut A


def test_dropout_acts_in_training_only():
    model, x = PreActResNet(3, blocks=(1, 1), width=4, widen=2, dropout=0.2), some_images()
    variables = drawn(model, 16, 16, 3)
    (_, (one, _)), (_, (other, _)) = (trained(model, variables, x, seed) for seed in (0, 1))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(evaluated(model, variables, x), evaluated(model.clone(dropout=0.9), variables, x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ResNet(groups=2), "groups=2 and base_width=64 only work with bottleneck blocks: set bottleneck=true"),
        (ResNet(bottleneck=True, shortcut="B", groups=0), "groups=0, .* groups and .* must be at least 1"),
        (ResNet(bottleneck=True, shortcut="B", base_width=2), r"width\*base_width/64 must be at least 1"),
        (PreActResNet(bottleneck=True, shortcut="A"), "shortcut=A does not work with bottleneck"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(model, message):
    with pytest.raises(UserError, match=message):
        shapes(model, 32, 32, 3)
