"""MobileNet-v2 and EfficientNet match the published networks in their counts, maps and initialisation."""

from functools import partial

import jax
import numpy as np
import pytest
from model_checks import drawn, drop_paths, evaluated, initialised, shapes, some_images, trained, volumes

from cnn_jax.inspect.summary import count_parameters
from cnn_jax.models.efficientnet import efficientnet_b0
from cnn_jax.models.mobilenet import InvertedResidualNet, Stage, mobilenet_v2, scaled_width

pytestmark = pytest.mark.usefixtures("one_device")

# Parameter counts for 1000 classes, from torchvision and timm.
SCALED = {
    "mobilenet_v2, width 0.5": (partial(mobilenet_v2, width=0.5), 1_968_680),
    "mobilenet_v2, width 1.4": (partial(mobilenet_v2, width=1.4), 6_108_776),
    "efficientnet_b1": (partial(efficientnet_b0, depth=1.1), 7_794_184),
    "efficientnet_b7": (partial(efficientnet_b0, width=2.0, depth=3.1), 66_347_960),
}
# Covers every kind of block: without expansion, with stride, with shortcut.
TINY_STAGES = (Stage(1, 8, 3, 1, 1), Stage(2, 16, 5, 2, 2))
TINY = efficientnet_b0(3, stages=TINY_STAGES, stem_features=8, head_features=16, drop_path=0.6)


@pytest.mark.parametrize("name", SCALED)
def test_parameters_of_the_scaled_networks_are_the_published_ones(name):
    make, parameters = SCALED[name]
    assert count_parameters(shapes(make(), 224, 224, 3)["params"]) == parameters


def test_maps_of_mobilenet_are_those_of_table_2():
    seen = volumes(mobilenet_v2(), 224, 224, 3)
    ends = ("stem", *(f"stage{s}_block{b}" for s, b in enumerate((1, 2, 3, 4, 3, 3, 1), start=1)), "head", "pool")
    assert [seen[name] for name in ends] == [
        (112, 112, 32),
        (112, 112, 16),
        (56, 56, 24),
        (28, 28, 32),
        (14, 14, 64),
        (14, 14, 96),
        (7, 7, 160),
        (7, 7, 320),
        (7, 7, 1280),
        (1280,),
    ]


def test_maps_of_efficientnet_are_those_of_table_1_also_for_other_images():
    features = (16, 24, 40, 80, 112, 192, 320)
    for shape, sides in [
        ((224, 224, 3), (112, 56, 28, 14, 14, 7, 7)),
        ((33, 33, 1), (17, 9, 5, 3, 3, 2, 2)),
    ]:
        seen = volumes(efficientnet_b0(7), *shape)
        ends = [f"stage{s}_block{b}" for s, b in enumerate((1, 2, 2, 3, 3, 4, 1), start=1)]
        assert [seen[name] for name in ends] == [(side, side, f) for side, f in zip(sides, features)]
    params = shapes(efficientnet_b0(7), 32, 32, 3)["params"]
    assert params["output"]["kernel"].shape == (1280, 7)
    # The gate squeezes to a quarter of the block's 112 input maps, not of the 672 inside; 5×5 depthwise filters.
    assert params["stage6_block1"]["se"]["reduce"]["kernel"].shape == (1, 1, 672, 28)
    assert params["stage6_block1"]["depthwise_conv"]["kernel"].shape == (5, 5, 1, 672)


def test_width_rounds_to_eights_but_not_far_down():
    assert [scaled_width(f, 0.35) for f in (16, 24, 32, 64, 320)] == [8, 8, 16, 24, 112]
    assert [scaled_width(f, 1.0) for f in (16, 24, 1280)] == [16, 24, 1280]


def test_drop_path_grows_linearly():
    rates = drop_paths(efficientnet_b0(3), 32, 32, 3)
    # Sixteen blocks; those that change the map shape have no shortcut and cannot be dropped.
    order = [f"stage{s}_block{b}" for s, n in enumerate((1, 2, 2, 3, 3, 4, 1), start=1) for b in range(1, n + 1)]
    expected = {name: 0.2 * i / 16 for i, name in enumerate(order) if not name.endswith("block1")}
    assert rates == pytest.approx(expected)
    assert set(drop_paths(mobilenet_v2(3), 32, 32, 3).values()) == {0.0}


def test_a_dropped_block_is_its_shortcut():
    model = TINY.clone(drop_path=1.5, dropout=0.0)  # rates of the three blocks: 0, 0.5, 1
    x, variables = some_images(), drawn(TINY, 16, 16, 3)
    kernel = variables["params"]["stage2_block2"]["project_conv"]["kernel"]
    changed = jax.tree.map(lambda a: a, variables)
    changed["params"]["stage2_block2"]["project_conv"]["kernel"] = 2 * kernel
    (_, (dropped, _)), (_, (still, _)) = trained(model, variables, x), trained(model, changed, x)
    np.testing.assert_array_equal(dropped, still)
    assert not np.allclose(evaluated(model, variables, x), evaluated(model, changed, x))


def test_weights_start_as_torchvisions():
    stage = Stage(4, 64, 3, 1, 1)
    mobile, efficient = (
        initialised(m, 8, 8, 3)["params"]
        for m in (
            InvertedResidualNet(400, stages=(stage,), stem_features=64, head_features=64),
            efficientnet_b0(400, stages=(stage,), stem_features=64, head_features=64),
        )
    )
    expand = np.asarray(mobile["stage1_block1"]["expand_conv"]["kernel"])
    assert expand.std() == pytest.approx(np.sqrt(2 / 256), rel=0.03)  # fan-out: 256 maps
    assert np.abs(expand).max() > 3 * expand.std()  # not truncated
    assert np.asarray(mobile["output"]["kernel"]).std() == pytest.approx(0.01, rel=0.03)
    assert np.asarray(efficient["stage1_block1"]["se"]["expand"]["kernel"]).std() == pytest.approx(
        np.sqrt(2 / 256), rel=0.05
    )
    head = np.abs(efficient["output"]["kernel"])
    assert 0.98 / np.sqrt(400) < head.max() <= 1 / np.sqrt(400)
