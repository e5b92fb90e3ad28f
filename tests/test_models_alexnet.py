"""AlexNet, its variants with layers removed, and ZFNet match the published networks."""

import importlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_checks import drawn, shapes

from cnn_jax.arguments import parse_arguments
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_parameters, layer_table
from cnn_jax.models import stages
from cnn_jax.models.alexnet import AlexNet
from cnn_jax.models.zfnet import ZFNet, zfnet

pytestmark = pytest.mark.usefixtures("one_device")

alexnets = importlib.import_module("cnn_jax.models.alexnet")  # the package re-exports a function of this name

WIDTHS: Any = {"num_classes": 3, "features": (4, 8, 12, 8, 4), "dense": (16, 10)}
TINY = {"alexnet": AlexNet(**WIDTHS), "zfnet": ZFNet(**WIDTHS)}


def volumes(model: nn.Module, *input_shape: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the recorded stages and the logits, without the batch axis."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    logits, seen = jax.eval_shape(lambda v, x: stages(model, v, x), shapes(model, *input_shape), x)
    return {name: a.shape[1:] for name, a in {**seen, "output": logits}.items()}


def conv(size: int, inputs: int, filters: int, groups: int = 1) -> int:
    return size * size * (inputs // groups) * filters + filters


def dense(inputs: int, units: int) -> int:
    return inputs * units + units


def initialised(model: nn.Module, size: int, ends: tuple[str, ...]) -> dict[str, Any]:
    """Initial parameters whose path ends with one of `ends`; the others are not even compiled."""

    def init() -> dict[str, Any]:
        params = model.init(jax.random.key(0), some_images(size), train=False)["params"]
        return {path: a for path, a in traverse_util.flatten_dict(params, sep="/").items() if path.endswith(ends)}

    return jax.jit(init)()


def some_images(size: int, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


FC6, FC7, OUTPUT = dense(6 * 6 * 256, 4096), dense(4096, 4096), dense(4096, 1000)
CONV12 = conv(11, 3, 96) + conv(5, 96, 256, groups=2)
CONV34 = conv(3, 256, 384) + conv(3, 384, 384, groups=2)
CONV5 = conv(3, 384, 256, groups=2)
# Without conv3 and conv4, conv5 reads the 256 maps of conv2.
WIDE_CONV5 = conv(3, 256, 256, groups=2)
COUNTS = {
    "alexnet": (60_965_224, CONV12 + CONV34 + CONV5 + FC6 + FC7 + OUTPUT),
    "alexnet_ungrouped": (
        62_378_344,
        conv(11, 3, 96)
        + conv(5, 96, 256)
        + conv(3, 256, 384)
        + conv(3, 384, 384)
        + conv(3, 384, 256)
        + FC6
        + FC7
        + OUTPUT,
    ),
    "alexnet_one_tower": (
        61_100_840,
        conv(11, 3, 64)
        + conv(5, 64, 192)
        + conv(3, 192, 384)
        + conv(3, 384, 256)
        + conv(3, 256, 256)
        + FC6
        + FC7
        + OUTPUT,
    ),
    "alexnet_no_fc7": (44_183_912, CONV12 + CONV34 + CONV5 + FC6 + OUTPUT),
    "alexnet_no_fc6_fc7": (11_551_080, CONV12 + CONV34 + CONV5 + dense(6 * 6 * 256, 1000)),
    "alexnet_no_conv3_conv4": (59_268_712, CONV12 + WIDE_CONV5 + FC6 + FC7 + OUTPUT),
    "alexnet_no_conv3_conv4_fc6_fc7": (9_854_568, CONV12 + WIDE_CONV5 + dense(6 * 6 * 256, 1000)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_counted_by_hand(name):
    model = getattr(alexnets, name)()
    assert {count_parameters(shapes(model, *model.input_shape)["params"])} == set(COUNTS[name])


def test_what_the_lectures_say_of_the_removed_layers():
    total = {name: count for name, (count, _) in COUNTS.items()}
    assert total["alexnet"] - total["alexnet_no_fc7"] == pytest.approx(17e6, rel=0.02)
    assert total["alexnet"] - total["alexnet_no_fc6_fc7"] == pytest.approx(50e6, rel=0.02)
    rows = layer_table(AlexNet(), (227, 227, 3))
    assert sum(row.name.startswith(("conv", "fc", "output")) for row in rows) == 8


def test_volumes_are_those_of_the_lectures():
    assert volumes(AlexNet(), 227, 227, 3) == {
        "conv1": (55, 55, 96),
        "norm1": (55, 55, 96),
        "pool1": (27, 27, 96),
        "conv2": (27, 27, 256),
        "norm2": (27, 27, 256),
        "pool2": (13, 13, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "output": (1000,),
    }


def test_removed_layers_leave_the_other_volumes():
    whole = volumes(AlexNet(), 227, 227, 3)
    for name in COUNTS:
        model = getattr(alexnets, name)()
        if model.without:
            assert volumes(model, 227, 227, 3) == {k: v for k, v in whole.items() if k not in model.without}


def test_removed_layers_are_named_on_the_command_line():
    values = parse_arguments("alexnet", AlexNet, ["without=conv3/fc7", "head_map=6"])
    assert values == {"without": ("conv3", "fc7"), "head_map": 6}
    assert "conv3" not in volumes(AlexNet(**values), 227, 227, 3)
    with pytest.raises(UserError, match=r"^without=fc7/conv1 has layers .*: use conv3/conv4/conv5/fc6/fc7 only"):
        shapes(AlexNet(without=("fc7", "conv1")), 227, 227, 3)


def test_other_images_change_the_width_of_fc6_only():
    small = shapes(AlexNet(num_classes=7), 99, 131, 1)["params"]
    usual = shapes(AlexNet(num_classes=7), 227, 227, 1)["params"]
    assert volumes(AlexNet(), 99, 131, 1)["pool5"] == (2, 3, 256)
    assert small.pop("fc6")["kernel"].shape == (2 * 3 * 256, 4096)
    assert usual.pop("fc6")["kernel"].shape == (6 * 6 * 256, 4096)
    assert small == usual
    averaged = shapes(alexnets.alexnet_one_tower(head_map=6), 96, 96, 3)["params"]
    assert count_parameters(averaged) == 61_100_840


def test_smallest_image():
    assert volumes(AlexNet(), 67, 67, 3)["pool5"] == (1, 1, 256)
    with pytest.raises(UserError, match=r"AlexNet\.pool5: a 2x2 map is too small"):
        shapes(AlexNet(), 66, 66, 3)


def test_weights_start_as_published():
    params = initialised(TINY["alexnet"], 67, ("bias", "conv2/kernel", "fc6/kernel"))
    ones = {name for name, a in params.items() if name.endswith("bias") and np.all(np.asarray(a) == 1)}
    zeros = {name for name, a in params.items() if name.endswith("bias") and np.all(np.asarray(a) == 0)}
    assert ones == {"conv2/bias", "conv4/bias", "conv5/bias", "fc6/bias", "fc7/bias"}
    assert zeros == {"conv1/bias", "conv3/bias", "output/bias"}
    weights = np.concatenate([np.ravel(a) for name, a in params.items() if name.endswith("kernel")])
    assert weights.std() == pytest.approx(0.01, rel=0.05)
    assert abs(weights.mean()) < 0.001


def test_zfnet_starts_with_zero_biases():
    params = initialised(TINY["zfnet"], 64, ("bias",))
    assert len(params) == 8
    assert not any(np.any(a) for a in params.values())


def test_normalization_comes_before_pooling_in_alexnet_and_after_it_in_zfnet():
    def order(model: nn.Module) -> list[str]:
        return [row.name for row in layer_table(model, (67, 67, 3))][:6]

    assert order(TINY["alexnet"]) == ["conv1", "norm1", "pool1", "conv2", "norm2", "pool2"]
    assert order(TINY["zfnet"]) == ["conv1", "pool1", "norm1", "conv2", "pool2", "norm2"]


def test_groups_see_their_half_of_the_maps():
    # No response normalization: it reaches across the boundary between the groups.
    model, x = TINY["alexnet"].clone(normalize=False), some_images(67, batch=1)
    params = drawn(model, *x.shape[1:])["params"]
    assert params["conv2"]["kernel"].shape == (5, 5, 2, 8)
    # Filters of conv1 in the first group do not affect the second half of conv2.
    louder = {**params, "conv1": {**params["conv1"], "bias": params["conv1"]["bias"] + jnp.array([1.0, 1.0, 0.0, 0.0])}}
    before, after = (stages(model, {"params": p}, x)[1]["conv2"] for p in (params, louder))
    changed = np.asarray(jnp.any(before != after, axis=(0, 1, 2)))
    assert changed.tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_filters_are_refused(groups):
    with pytest.raises(UserError, match=f"groups={groups} is not a common divisor of features=4/8/12/8/4"):
        shapes(TINY["alexnet"].clone(groups=groups), 67, 67, 3)


@pytest.mark.parametrize("name", ["alexnet", "zfnet"])
def test_dropout_acts_in_training_only(name):
    model, x = TINY[name], some_images(67)
    variables = drawn(model, *x.shape[1:])
    train = jax.jit(lambda seed: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    evaluate = jax.jit(lambda: model.apply(variables, x, train=False))  # needs no random key
    assert not np.array_equal(train(0), train(1))
    np.testing.assert_array_equal(evaluate(), evaluate())


def test_dropout_acts_on_the_outputs_or_the_inputs_of_fc6_and_fc7():
    """Drops everything, so that nothing after a dropout layer depends on the image."""
    x = some_images(67)

    def logits(**fields: Any) -> tuple[Any, Any]:
        model = AlexNet(**WIDTHS, dropout=1.0, **fields)
        params = drawn(model, *x.shape[1:])["params"]
        params["output"]["bias"] = jnp.array([1.0, 2.0, 3.0])
        return params, model.apply({"params": params}, x, train=True)

    _, outputs_dropped = logits()
    np.testing.assert_array_equal(outputs_dropped, [[1, 2, 3]] * 2)
    params, inputs_dropped = logits(dropout_inputs=True)
    fc7 = params["fc7"]["bias"]  # all that is left of fc7's output; positive
    expected = fc7 @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(inputs_dropped, [expected] * 2, rtol=1e-5)
    assert np.asarray(logits(without=("fc6", "fc7"))[1]).std() > 0, "no dense layer, no dropout"


def test_zfnet_is_the_published_one():
    assert count_parameters(shapes(zfnet(), 224, 224, 3)["params"]) == 62_357_608
    assert volumes(zfnet(), 224, 224, 3) == {
        "conv1": (110, 110, 96),
        "pool1": (55, 55, 96),
        "norm1": (55, 55, 96),
        "conv2": (26, 26, 256),
        "pool2": (13, 13, 256),
        "norm2": (13, 13, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "output": (1000,),
    }


def test_zfnet_with_more_maps_and_other_images():
    more = zfnet(features=(96, 256, 512, 1024, 512))
    convs = conv(7, 3, 96) + conv(5, 96, 256) + conv(3, 256, 512) + conv(3, 512, 1024) + conv(3, 1024, 512)
    assert count_parameters(shapes(more, 224, 224, 3)["params"]) == convs + dense(6 * 6 * 512, 4096) + FC7 + OUTPUT
    small = volumes(zfnet(num_classes=7), 64, 96, 1)
    assert (small["pool5"], small["output"]) == ((1, 2, 256), (7,))
