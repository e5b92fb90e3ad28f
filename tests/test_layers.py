"""Activations, initialisers, layers, size checks and recorded stages against their definitions."""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.arithmetic import output_size
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_parameters
from cnn_jax.layers import (
    ACTIVATIONS,
    INITIALIZERS,
    BatchNorm,
    Conv,
    DropPath,
    LocallyConnected,
    LocalResponseNorm,
    SqueezeExcite,
    activation,
    flatten,
    images,
    initializer,
    space_to_depth,
    tap,
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
    "gelu_tanh": lambda x: x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu6": lambda x: min(max(x, 0), 6),
    "hard_swish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "scaled_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_activation_is_its_definition(name):
    x = [-4.0, -1.0, -0.3, 0.0, 0.2, 1.0, 3.0, 7.0]
    np.testing.assert_allclose(activation(name)(jnp.array(x)), [DEFINITIONS[name](v) for v in x], atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_keeps_bfloat16(name):
    assert activation(name)(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


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
    "normal_0.01": 0.01**2,
    "normal_0.05": 0.05**2,
    "uniform_0.05": 0.05**2 / 3,
    "he_normal_fan_out": 2 / 1000,
    "glorot_normal": 2 / 1500,
    "glorot_uniform": 2 / 1500,
    "he_normal": 2 / 500,
    "he_uniform": 2 / 500,
    "lecun_normal": 1 / 500,
    "lecun_uniform": 1 / 500,
}


@pytest.mark.parametrize("name", VARIANCES)
def test_initialiser_has_the_variance_of_its_paper(name):
    kernel = initializer(name)(jax.random.key(0), (5, 5, 20, 40), jnp.float32)
    assert float(jnp.mean(kernel)) == pytest.approx(0, abs=2e-3)
    assert float(jnp.var(kernel)) == pytest.approx(VARIANCES[name], rel=0.05)
    if "uniform" in name:
        assert float(jnp.abs(kernel).max()) <= math.sqrt(3 * VARIANCES[name])
    # Fan-in normals are truncated at two standard deviations; fixed-deviation normals and PyTorch's are not.
    cut = {"normal_0.01": False, "normal_0.05": False, "he_normal_fan_out": False, "he_normal": True}
    if name in cut:
        assert (float(jnp.abs(kernel).max()) < 2.5 * math.sqrt(VARIANCES[name])) == cut[name]


@pytest.mark.parametrize("maps", [(4, 4), (3, 5), (5, 3)])
def test_dirac_kernel_copies_the_maps(maps):
    kernel = initializer("dirac")(jax.random.key(0), (3, 3, *maps), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, maps[0]))
    y = Conv(maps[1], (3, 3), padding="SAME", use_bias=False).apply({"params": {"kernel": kernel}}, x)
    expected = np.zeros((2, 5, 6, maps[1]), np.float32)
    expected[..., : min(maps)] = x[..., : min(maps)]
    np.testing.assert_array_equal(np.asarray(y), expected)


def test_every_initialiser_is_tested():
    assert set(INITIALIZERS) == {*VARIANCES, "dirac"}


@pytest.mark.parametrize(("lookup", "name", "nearest"), [(activation, "rellu", "relu"), (initializer, "he", "zeros")])
def test_unknown_name_is_refused_with_the_known_ones(lookup, name, nearest):
    with pytest.raises(UserError, match=f"{name}.*{nearest}"):
        lookup(name)


class Two(nn.Module):
    """Two convolutions, the second with 5×5 filters."""

    @nn.compact
    def __call__(self, x):
        x = tap(self, "first", Conv(2, (3, 3), padding="SAME", name="first")(x))
        return tap(self, "second", Conv(3, (5, 5), (2, 2), padding=1, name="second")(x))


def test_too_small_map_names_the_layer_and_shows_the_arithmetic():
    with pytest.raises(UserError) as error:
        Two().init(jax.random.key(0), jnp.zeros((1, 2, 6, 1)))
    expected = (
        "Two.second: a 2x6 map is too small for a 5x5 filter with stride 2 and total padding 2, "
        "as (2 + 2 - 5)/2 + 1 < 1: use larger images"
    )
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_smallest_map_that_fits_is_taken(size):
    y = Two().init_with_output(jax.random.key(0), jnp.zeros((1, size, size, 1)))[0]
    assert isinstance(y, jax.Array)
    outputs = output_size(size, 5, 2, 1, rounding="floor")
    assert y.shape == (1, outputs, outputs, 3)


def test_dilated_filter_needs_the_room_of_its_holes():
    layer = Conv(1, (3, 3), padding="VALID", kernel_dilation=2, name="holes")
    with pytest.raises(UserError, match="a 5x4 map is too small for a 5x5 filter"):
        layer.init(jax.random.key(0), jnp.zeros((1, 5, 4, 1)))
    assert layer.init_with_output(jax.random.key(0), jnp.zeros((1, 5, 5, 1)))[0].shape == (1, 1, 1, 1)  # type: ignore


def some_maps() -> Any:
    """A (2, 4, 5, 12) array with values large enough for normalisation to matter."""
    return 30 * np.random.default_rng(0).normal(size=(2, 4, 5, 12)).astype(np.float32)


TINY_MAPS = np.random.default_rng(0).normal(1.0, 2.0, (4, 3, 5, 2)).astype(np.float32)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("arguments", [{}, {"use_scale": False}, {"use_bias": False, "epsilon": 1e-3}])
def test_batch_norm_is_that_of_flax(arguments, dtype, train):
    x = jnp.asarray(TINY_MAPS, dtype)
    layers = [
        kind(use_running_average=not train, momentum=0.8, dtype=dtype, **arguments)
        for kind in (BatchNorm, nn.BatchNorm)
    ]
    variables = layers[0].init(jax.random.key(0), x)
    drawn = iter(np.random.default_rng(1).uniform(0.5, 2.0, (4, 2)).astype(np.float32))
    variables = jax.tree.map(lambda _: jnp.asarray(next(drawn)), variables)
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = (layer.apply(variables, x, mutable=["batch_stats"]) for layer in layers)
    assert ours[0].dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, 2 * tolerance), ours, theirs)


def test_derivatives_of_batch_norm_are_those_of_flax():
    rng = np.random.default_rng(2)
    w, dx = (jnp.asarray(rng.normal(size=TINY_MAPS.shape), jnp.float32) for _ in range(2))
    params = {"scale": jnp.array([1.5, -0.5]), "bias": jnp.array([0.3, 0.1])}
    statistics = {"mean": jnp.zeros(2), "var": jnp.ones(2)}

    def derivatives(kind):
        layer = kind(use_running_average=False)

        def loss(x, params):
            y, _ = layer.apply({"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"])
            return jnp.sum(w * jnp.square(y))

        x = jnp.asarray(TINY_MAPS)
        first = jax.grad(loss, argnums=(0, 1))
        return first(x, params), jax.jvp(lambda x: first(x, params), (x,), (dx,))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), derivatives(BatchNorm), derivatives(nn.BatchNorm)
    )


def test_batch_norm_over_an_axis_takes_the_statistics_of_all_parts():
    whole, parts = (BatchNorm(use_running_average=False, axis_name=name) for name in (None, "data"))
    variables = whole.init(jax.random.key(0), TINY_MAPS)
    y, updates = whole.apply(variables, TINY_MAPS, mutable=["batch_stats"])
    apply = jax.vmap(lambda x: parts.apply(variables, x, mutable=["batch_stats"]), axis_name="data")
    y_parts, updates_parts = apply(TINY_MAPS.reshape(2, 2, 3, 5, 2))
    np.testing.assert_allclose(y_parts.reshape(y.shape), y, 1e-5, 1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, 1e-5), updates_parts, updates)


def test_training_step_of_batch_norm_writes_no_more_than_three_maps():
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), TINY_MAPS)

    def step(params, x, g):
        def forward(params, x):
            return nn.relu(layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0])

        y, vjp = jax.vjp(forward, params, x)
        return y, vjp(g)

    text = jax.jit(step).lower(variables["params"], TINY_MAPS, TINY_MAPS).compile().as_text()
    assert text is not None
    body = text[text.index("ENTRY") :]
    written = re.findall(r"= f32\[4,3,5,2\]\S* (?!parameter)", body)
    assert len(written) <= 3, "the output, the gradient before the activation, the gradient of the input"


@pytest.mark.parametrize("size", [5, 4, 1])
def test_local_response_norm_is_the_formula_of_the_paper(size):
    x = some_maps()
    expected = np.empty_like(x)
    for i in range(12):
        seen = x[..., max(0, i - size // 2) : i + (size - 1) // 2 + 1]
        expected[..., i] = x[..., i] / (2 + 1e-4 * (seen.astype(np.float64) ** 2).sum(-1)) ** 0.75
    y = LocalResponseNorm(size).apply({}, jnp.asarray(x))
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5)
    half = LocalResponseNorm(size).apply({}, jnp.asarray(x, jnp.bfloat16))
    assert isinstance(half, jax.Array) and half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2e-2)


@pytest.mark.parametrize("size", [5, 4])
def test_local_response_norm_is_that_of_torch_with_alpha_over_size(size):
    torch = pytest.importorskip("torch")
    x = some_maps()
    ours = LocalResponseNorm(size, alpha=2e-3, beta=0.6, k=1.5)
    theirs = torch.nn.LocalResponseNorm(size, alpha=2e-3 * size, beta=0.6, k=1.5)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = theirs(x_torch)
    np.testing.assert_allclose(
        np.asarray(ours.apply({}, jnp.asarray(x))), y.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-4
    )
    y.square().sum().backward()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(ours.apply({}, x)))))(jnp.asarray(x))  # type: ignore
    np.testing.assert_allclose(gradient, x_torch.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-3)


LOCAL = LocallyConnected(4, (3, 2), (2, 1), padding=((1, 0), (0, 1)))


def test_locally_connected_layer_has_filters_for_every_position():
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)
    variables = jax.jit(LOCAL.init)(jax.random.key(0), jnp.asarray(x))
    variables["params"]["bias"] = jax.random.normal(jax.random.key(1), (3, 5, 4))
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    y = jax.jit(LOCAL.apply)(variables, jnp.asarray(x))
    assert isinstance(y, jax.Array) and y.shape == (2, 3, 5, 4)
    assert kernel.shape == (3, 5, 3 * 2 * 3, 4) and bias.shape == (3, 5, 4)
    assert count_parameters(variables) == 3 * 5 * 4 * (3 * 2 * 3 + 1)
    padded = np.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)))
    for i in range(3):
        for j in range(5):
            patch = padded[:, 2 * i : 2 * i + 3, j : j + 2].transpose(0, 3, 1, 2).reshape(2, -1)  # channels outermost
            expected = patch @ np.asarray(kernel[i, j]) + np.asarray(bias[i, j])
            np.testing.assert_allclose(y[:, i, j], expected, rtol=1e-4, atol=1e-5)


def test_locally_connected_layer_with_equal_filters_is_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    rows = kernel.transpose(2, 0, 1, 3).reshape(27, 4)
    local = LocallyConnected(4, (3, 3), padding="SAME", use_bias=False)
    y = jax.jit(local.apply)({"params": {"kernel": jnp.broadcast_to(rows[None, None], (5, 5, 27, 4))}}, x)
    shared = Conv(4, (3, 3), padding="SAME", use_bias=False).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(np.asarray(y), np.asarray(shared), rtol=1e-4, atol=1e-5)


def test_locally_connected_layer_starts_with_the_variance_of_its_own_fan_in():
    # Each filter sees 3·3·20 inputs; Flax's default would also divide by the number of positions.
    variables = jax.jit(LocallyConnected(30, (3, 3), padding="VALID").init)(jax.random.key(0), jnp.zeros((1, 8, 8, 20)))
    assert float(jnp.var(variables["params"]["kernel"])) == pytest.approx(1 / 180, rel=0.05)


def test_locally_connected_layer_computes_in_bfloat16_and_refuses_small_maps():
    x = jnp.ones((1, 6, 5, 3), jnp.bfloat16)
    y, variables = jax.eval_shape(LOCAL.clone(dtype=jnp.bfloat16).init_with_output, jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16 and variables["params"]["kernel"].dtype == jnp.float32
    with pytest.raises(UserError, match="LocallyConnected.*: a 1x5 map is too small"):
        LOCAL.init(jax.random.key(0), x[:, :1])


def test_space_to_depth_orders_row_column_channel():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    for i, j, c in np.ndindex(4, 6, 3):
        np.testing.assert_array_equal(y[:, i // 2, j // 2, (i % 2 * 2 + j % 2) * 3 + c], x[:, i, j, c])
    np.testing.assert_array_equal(space_to_depth(x, 1), x)
    with pytest.raises(UserError, match="split 4x6 maps.*sides that 4 divides"):
        space_to_depth(x, 4)


def drop(rate: float, x: jax.Array, seed: int = 0, deterministic: bool = False) -> Any:
    rngs = {"dropout": jax.random.key(seed)}
    return DropPath(rate).apply({}, x, deterministic=deterministic, rngs=rngs)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = 1 + jax.random.uniform(jax.random.key(1), (4000, 2, 1, 3))
    y = drop(0.3, x)
    dropped = np.asarray(y == 0).all(axis=(1, 2, 3))
    # Within five standard deviations of a binomial proportion.
    assert dropped.mean() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 4000))
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.7, rtol=1e-6)
    assert not np.array_equal(drop(0.3, x, 1), y)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0_and_needs_no_key():
    x = jnp.ones((3, 2, 2, 1))
    np.testing.assert_array_equal(np.asarray(DropPath(0.5).apply({}, x, deterministic=True)), x)
    np.testing.assert_array_equal(np.asarray(DropPath(0.0).apply({}, x, deterministic=False)), x)
    np.testing.assert_array_equal(drop(1.0, x), 0 * x)
    assert drop(0.5, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(UserError, match="drop-path rate of 1.5"):
        drop(1.5, x)


def test_drop_path_drops_infinite_examples_cleanly():
    kept = np.asarray(drop(0.5, jnp.ones((8, 3))))[:, 0] != 0
    assert 0 < kept.sum() < 8
    x = jnp.where(jnp.asarray(kept)[:, None], jnp.ones((8, 3)), jnp.inf)
    y, gradient = jax.value_and_grad(lambda x: jnp.sum(drop(0.5, x)))(x)
    assert float(y) == 2 * 3 * kept.sum()
    np.testing.assert_array_equal(gradient, np.repeat(2.0 * kept[:, None], 3, axis=1))


def test_every_drop_path_draws_independently():
    class Paths(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [DropPath(0.5, name=f"block{i}")(x, deterministic=False) for i in range(3)]

    blocks: Any = Paths().apply({}, jnp.ones((64, 1)), rngs={"dropout": jax.random.key(0)})
    assert len({np.asarray(block).tobytes() for block in blocks}) == 3


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_squeeze_and_excitation_is_its_definition(gate):
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))
    layer = SqueezeExcite(2, activation="silu", gate=gate)
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(1), x)
    params = variables["params"]
    assert {name: p["kernel"].shape for name, p in params.items()} == {"reduce": (1, 1, 6, 2), "expand": (1, 1, 2, 6)}
    means = np.asarray(x).mean((1, 2))
    squeezed = activation("silu")(jnp.asarray(means @ np.asarray(params["reduce"]["kernel"])[0, 0]))
    gates = activation(gate)(squeezed @ params["expand"]["kernel"][0, 0])
    np.testing.assert_allclose(np.asarray(y), x * gates[:, None, None], rtol=1e-4, atol=1e-5)


def test_squeeze_and_excitation_computes_in_bfloat16():
    x = jnp.ones((1, 3, 3, 8), jnp.bfloat16)
    y, variables = jax.eval_shape(SqueezeExcite(2, dtype=jnp.bfloat16).init_with_output, jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_flatten_keeps_the_batch():
    np.testing.assert_array_equal(flatten(jnp.arange(12).reshape(2, 1, 3, 2)), np.arange(12).reshape(2, 6))


def test_images_refuses_what_is_no_batch_of_floats():
    with pytest.raises(UserError, match=r"shape \(28, 28, 1\).*add a batch axis"):
        images(jnp.zeros((28, 28, 1)), jnp.float32)
    with pytest.raises(UserError, match="images are uint8.*normalize"):
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


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3)])
def test_batch_norm_of_a_single_value_is_refused(shape):
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), jnp.ones(shape))
    with pytest.raises(UserError, match="BatchNorm: the batch statistics would be of a single value per channel"):
        layer.apply(variables, jnp.ones(shape), mutable=["batch_stats"])
    several = jnp.ones((2, *shape[1:]))
    layer.apply(variables, several, mutable=["batch_stats"])
    BatchNorm(use_running_average=True).apply(variables, jnp.ones(shape))
    joined = BatchNorm(use_running_average=False, axis_name="parts")
    apply = lambda x: joined.apply(variables, x, mutable=["batch_stats"])  # noqa: E731
    jax.vmap(apply, axis_name="parts")(several[:, None])
