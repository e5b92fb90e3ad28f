"""The VGG networks match the published networks and accept images of any size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_checks import drawn, shapes, some_images, trained, volumes

from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_flops, layer_table
from cnn_jax.layers.pooling import adaptive_avg_pool
from cnn_jax.models import vgg as vggs
from cnn_jax.models.vgg import VGG

pytestmark = pytest.mark.usefixtures("one_device")

# Layers with weights in configurations A, B, D and E of table 1.
LAYERS = {"vgg11": 11, "vgg13": 13, "vgg16": 16, "vgg19": 19}
TINY = VGG(3, convolutions=(1, 2), features=(4, 6), dense=(8, 10))
TINY_BN = TINY.clone(batch_norm=True)


@pytest.mark.parametrize("name", LAYERS)
def test_number_of_layers_is_in_the_name(name):
    rows = layer_table(getattr(vggs, name)(), (32, 32, 3))
    assert sum(row.parameters > 0 for row in rows) == LAYERS[name]


def test_layers_of_vgg16_are_the_table_of_the_lectures():
    rows = {row.name: (row.output_shape, row.parameters) for row in layer_table(vggs.vgg16(), (224, 224, 3))}
    assert rows["conv1_1"] == ((224, 224, 64), 1_792)
    assert rows["conv1_2"] == ((224, 224, 64), 36_928)
    assert rows["conv3_1"] == ((56, 56, 256), 3 * 3 * 128 * 256 + 256)
    assert rows["conv5_3"] == ((14, 14, 512), 3 * 3 * 512 * 512 + 512)
    assert rows["pool5"] == ((7, 7, 512), 0)
    assert rows["fc6"] == ((4096,), 25_088 * 4096 + 4096)
    assert rows["output"] == ((1000,), 4_097_000)
    assert count_flops(vggs.vgg16(), (224, 224, 3)) / 2e9 == pytest.approx(15.47, abs=5e-3)


def test_stages_are_named_as_in_the_released_weights():
    seen = volumes(vggs.vgg19(), 96, 64, 1)
    convs = [f"conv{s}_{i}" for s, n in enumerate((2, 2, 4, 4, 4), start=1) for i in range(1, n + 1)]
    assert set(seen) == {*convs, *(f"pool{s}" for s in range(1, 6)), "fc6", "fc7"}
    assert [seen[f"pool{s}"] for s in range(1, 6)] == [
        (48, 32, 64),
        (24, 16, 128),
        (12, 8, 256),
        (6, 4, 512),
        (3, 2, 512),
    ]


def test_other_images_change_fc6_only_and_with_head_map_nothing():
    usual, small = (shapes(vggs.vgg11(), size, size, 3)["params"] for size in (224, 32))
    averaged = shapes(vggs.vgg11(head_map=7), 32, 32, 3)["params"]
    assert averaged == usual
    assert (usual.pop("fc6")["kernel"].shape, small.pop("fc6")["kernel"].shape) == ((25_088, 4096), (512, 4096))
    assert small == usual


def test_head_map_leaves_a_map_of_that_size_as_it_is():
    x = some_images(size=8)
    variables = drawn(TINY, *x.shape[1:])
    plain, averaged = (m.apply(variables, x, train=False) for m in (TINY, TINY.clone(head_map=2)))
    np.testing.assert_allclose(plain, averaged, rtol=1e-6)  # type: ignore[arg-type]


def test_adaptive_average_pooling_covers_the_map_with_windows():
    x = jnp.arange(2 * 5 * 6 * 1.0).reshape(2, 5, 6, 1)
    np.testing.assert_allclose(adaptive_avg_pool(x, 1)[:, 0, 0], x.mean((1, 2)), rtol=1e-6)
    rows = adaptive_avg_pool(x, 3)
    # Three windows over five rows: 0-1, 1-3, 3-4; over six columns: 0-1, 2-3, 4-5.
    expected = [[x[0, a:b, c : c + 2].mean() for c in (0, 2, 4)] for a, b in ((0, 2), (1, 4), (3, 5))]
    np.testing.assert_allclose(rows[0, ..., 0], expected, rtol=1e-6)
    square = x[:, :, :5]
    np.testing.assert_array_equal(adaptive_avg_pool(square, 5), square)
    np.testing.assert_array_equal(adaptive_avg_pool(square, 10), square.repeat(2, axis=1).repeat(2, axis=2))


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="convolutions has 2 stages but features has 5"):
        shapes(VGG(convolutions=(1, 1)), 32, 32, 3)
    for size in (0, 2.5):
        with pytest.raises(UserError, match=f"cannot average maps to side {size}"):
            shapes(TINY.clone(head_map=size), 8, 8, 3)


def test_smallest_image():
    shapes(vggs.vgg11(), 32, 32, 3)
    with pytest.raises(UserError, match=r"VGG\.pool5: a 1x1 map is too small"):
        shapes(vggs.vgg11(), 31, 31, 3)


def test_batch_statistics_move_in_training_only():
    x = some_images(size=8)
    variables = drawn(TINY_BN, *x.shape[1:])
    _, (_, updates) = trained(TINY_BN, variables, x)
    old, new = (tree["batch_stats"]["bn1_1"]["mean"] for tree in (variables, updates))
    kernel, bias = (variables["params"]["conv1_1"][leaf] for leaf in ("kernel", "bias"))
    maps = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * (maps.mean((0, 1, 2)) + bias), rtol=1e-4)
    _, evaluated = TINY_BN.apply(variables, x, train=False, mutable=["batch_stats"])  # type: ignore[misc]
    jax.tree.map(np.testing.assert_array_equal, evaluated["batch_stats"], variables["batch_stats"])


def test_axis_name_joins_the_statistics_of_all_devices():
    x = some_images(size=8)
    variables, halves = drawn(TINY_BN, *x.shape[1:]), TINY_BN.clone(axis_name="data", dropout=0.0)

    def train(model: nn.Module, x: jax.Array) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, _ = jax.jit(lambda x: train(TINY_BN.clone(dropout=0.0), x))(x)
    split_logits, _ = jax.jit(jax.vmap(lambda x: train(halves, x), axis_name="data"))(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(split_logits.reshape(logits.shape), logits, rtol=1e-3, atol=1e-4)


def test_dropout_acts_in_training_only():
    x = some_images(size=8)
    variables = drawn(TINY, *x.shape[1:])
    train = jax.jit(lambda seed: TINY.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    assert not np.array_equal(train(0), train(1))
    TINY.apply(variables, x, train=False)  # needs no random key
    all_dropped = TINY.clone(dropout=1.0).apply(variables, x, train=True)
    np.testing.assert_allclose(all_dropped, jnp.tile(variables["params"]["output"]["bias"], (4, 1)), rtol=1e-6)  # type: ignore[arg-type]


def test_weights_start_as_torchvisions():
    params = jax.jit(
        lambda: VGG(10, convolutions=(1, 1), features=(32, 64), dense=(64, 64)).init(
            jax.random.key(0), some_images(size=8), train=False
        )
    )()
    params = params["params"]
    deviation = {name: float(np.std(layer["kernel"])) for name, layer in params.items()}
    assert deviation["conv2_1"] == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)  # fan-out, not fan-in
    assert deviation["fc6"] == pytest.approx(0.01, rel=0.05)
    assert not any(np.any(layer["bias"]) for layer in params.values())
