"""Activations, initialisers, size checks and stage recording, against their definitions."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.layers import (
    ACTIVATIONS,
    INITIALIZERS,
    AvgPool,
    Conv,
    GlobalAvgPool,
    MaxPool,
    activation,
    flatten,
    images,
    initializer,
    output_size,
    record,
)

DEFINITIONS = {
    "relu": lambda x: max(x, 0),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "softplus": lambda x: math.log(1 + math.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "hard_sigmoid": lambda x: min(1, max(0, 0.2 * x + 0.5)),
    "linear": lambda x: x,
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "scaled_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_activation_is_its_definition(name):
    x = [-4.0, -1.0, -0.3, 0.0, 0.2, 1.0, 3.0]
    tolerance = 1e-3 if name == "gelu" else 1e-6  # Flax's gelu is the tanh approximation
    np.testing.assert_allclose(activation(name)(jnp.array(x)), [DEFINITIONS[name](v) for v in x], atol=tolerance)


def test_softmax_is_over_the_last_axis_and_completes_the_list():
    x = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(
        activation("softmax")(jnp.asarray(x)), np.exp(x) / np.exp(x).sum(1, keepdims=True), rtol=1e-6
    )
    assert set(ACTIVATIONS) == {*DEFINITIONS, "softmax"}


def test_scaled_tanh_is_one_at_one():
    np.testing.assert_allclose(activation("scaled_tanh")(jnp.array([-1.0, 1.0])), [-1.0, 1.0], atol=1e-4)


# Variance of each initialiser for a 5×5 kernel of 20 → 40 maps: fan-in 500, fan-out 1000.
VARIANCES = {
    "zeros": 0.0,
    "normal_0.05": 0.05**2,
    "glorot_normal": 2 / 1500,
    "glorot_uniform": 2 / 1500,
    "he_normal": 2 / 500,
    "he_uniform": 2 / 500,
    "lecun_normal": 1 / 500,
    "lecun_uniform": 1 / 500,
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initialiser_has_the_variance_of_its_paper(name):
    kernel = initializer(name)(jax.random.key(0), (5, 5, 20, 40), jnp.float32)
    assert float(jnp.mean(kernel)) == pytest.approx(0, abs=2e-3)
    assert float(jnp.var(kernel)) == pytest.approx(VARIANCES[name], rel=0.05)
    if name.endswith("uniform"):
        assert float(jnp.abs(kernel).max()) <= math.sqrt(3 * VARIANCES[name])


@pytest.mark.parametrize(("lookup", "name", "nearest"), [(activation, "rellu", "relu"), (initializer, "he", "zeros")])
def test_unknown_name_is_refused_with_the_known_ones(lookup, name, nearest):
    with pytest.raises(UserError, match=f"{name}.*{nearest}"):
        lookup(name)


def test_output_size_of_the_lecture_examples():
    assert output_size(7, 3) == 5
    assert output_size(7, 3, stride=2) == 3
    assert output_size(32, 5, padding=4) == 32
    assert output_size(227, 11, stride=4) == 55
    assert output_size(4, 5) == 0


class Two(nn.Module):
    """A net of two layers, whose second has 5×5 filters."""

    @nn.compact
    def __call__(self, x):
        x = record(self, "first", Conv(2, (3, 3), padding="SAME", name="first")(x))
        return record(self, "second", Conv(3, (5, 5), (2, 2), padding=1, name="second")(x))


def test_too_small_map_names_the_layer_and_shows_the_arithmetic():
    with pytest.raises(UserError) as error:
        Two().init(jax.random.key(0), jnp.zeros((1, 2, 6, 1)))
    expected = (
        "Two.second: given a 2x6 map; a 5x5 filter with stride 2 and padding 2 in all needs (2 + 2 - 5)/2 + 1 >= 1"
    )
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_smallest_map_that_fits_is_taken(size):
    y = Two().init_with_output(jax.random.key(0), jnp.zeros((1, size, size, 1)))[0]
    assert isinstance(y, jax.Array)
    assert y.shape == (1, output_size(size, 5, 2, 2), output_size(size, 5, 2, 2), 3)


@pytest.mark.parametrize("pool", [MaxPool, AvgPool])
def test_pooling_layers_refuse_maps_smaller_than_their_window(pool):
    with pytest.raises(UserError, match="given a 1x4 map; a 2x2 filter"):
        pool(name="pool").apply({}, jnp.zeros((1, 1, 4, 3)))


def test_pooling_layers_pool():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    windows = np.arange(32.0).reshape(2, 2, 2, 2, 2).transpose(0, 2, 1, 3, 4).reshape(2, 2, 4, 2)
    np.testing.assert_array_equal(MaxPool().apply({}, x), windows.max(2)[None])
    np.testing.assert_array_equal(AvgPool().apply({}, x), windows.mean(2)[None])
    np.testing.assert_array_equal(GlobalAvgPool().apply({}, x), [[15.0, 16.0]])
    overlapping = MaxPool((3, 3), (2, 2), ((1, 1), (1, 1))).apply({}, x)
    np.testing.assert_array_equal(overlapping, [[[[10, 11], [14, 15]], [[26, 27], [30, 31]]]])


def test_flatten_keeps_the_batch():
    np.testing.assert_array_equal(flatten(jnp.arange(12).reshape(2, 1, 3, 2)), np.arange(12).reshape(2, 6))


def test_images_refuses_what_is_no_batch_of_floats():
    with pytest.raises(UserError, match=r"shape \(28, 28, 1\).*add a batch axis"):
        images(jnp.zeros((28, 28, 1)), jnp.float32)
    with pytest.raises(UserError, match="given uint8 images.*normalize"):
        images(jnp.zeros((1, 28, 28, 1), jnp.uint8), jnp.float32)
    assert images(jnp.zeros((1, 2, 2, 1)), jnp.bfloat16).dtype == jnp.bfloat16


def test_recorded_stages_are_seen_only_when_asked_for():
    x = jnp.ones((2, 5, 5, 1))
    variables = Two().init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    y, state = Two().apply(variables, x, mutable=["stages"])
    assert set(state["stages"]) == {"first", "second"}
    np.testing.assert_array_equal(state["stages"]["second"], y)
    np.testing.assert_array_equal(Two().apply(variables, x), y)
