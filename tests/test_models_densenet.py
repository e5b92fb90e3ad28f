"""The DenseNets are the published ones to the digit; each layer sees all before it; they learn, in less memory too."""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.errors import UserError
from cnn_jax.models import densenet, stages
from cnn_jax.models.densenet import DenseNet
from cnn_jax.models.summary import count_flops, count_parameters, layer_table

PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet_bc100": 769_162,
}
# torchvision's published GMAC for 224×224.
GMAC = {"densenet121": 2.834, "densenet161": 7.728, "densenet169": 3.36, "densenet201": 4.291}
TINY: dict[str, Any] = {
    "CIFAR": DenseNet(3, (1, 1), growth=2, imagenet_stem=False),
    "ImageNet": DenseNet(3, (1, 2), growth=4),
}


def shapes(model: nn.Module, *input_shape: int) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False))


def volumes(model: nn.Module, *input_shape: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the stages, without the batch."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    _, seen = jax.eval_shape(lambda v, x: stages(model, v, x), shapes(model, *input_shape), x)
    return {name: a.shape[1:] for name, a in seen.items()}


def drawn(model: nn.Module, *input_shape: int) -> Any:
    """Random variables; scales and variances are positive, no bias or statistic has its trivial value."""
    numbers = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim == 1:
            return jnp.asarray(numbers.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(numbers.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    return jax.tree.map(draw, shapes(model, *input_shape))


def some_images(batch: int = 4) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, 16, 16, 3))


@cache
def trained(model: Any) -> tuple[Any, Any]:
    """Gradients, and the logits and new batch statistics, of one step."""
    variables, x = drawn(model, 16, 16, 3), some_images()

    def loss(params: Any) -> Any:
        all_variables = {**variables, "params": params}
        logits, updates = model.apply(all_variables, x, train=True, mutable=["batch_stats"])  # type: ignore[misc]
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]), (logits, updates)

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    model = getattr(densenet, name)()
    assert count_parameters(shapes(model, *model.input_shape)["params"]) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "layers"),
    [("densenet121", 121), ("densenet161", 161), ("densenet169", 169), ("densenet201", 201), ("densenet_bc100", 100)],
)
def test_number_of_layers_is_in_the_name(name, layers):
    rows = layer_table(getattr(densenet, name)(), (32, 32, 3))
    assert sum(row.flops > 0 for row in rows) == layers


@pytest.mark.parametrize("name", GMAC)
def test_flops_are_the_published_ones(name):
    assert count_flops(getattr(densenet, name)(), (224, 224, 3)) / 2e9 == pytest.approx(GMAC[name], abs=6e-4)


def test_maps_of_densenet121_are_those_of_table_1():
    assert volumes(densenet.densenet121(), 224, 224, 3) == {
        "conv1": (112, 112, 64),
        "pool1": (56, 56, 64),
        "block1": (56, 56, 64 + 6 * 32),
        "transition1": (28, 28, 128),
        "block2": (28, 28, 128 + 12 * 32),
        "transition2": (14, 14, 256),
        "block3": (14, 14, 256 + 24 * 32),
        "transition3": (7, 7, 512),
        "block4": (7, 7, 512 + 16 * 32),
        "pool": (1024,),
    }


def test_maps_of_other_images():
    seen = volumes(densenet.densenet_bc100(), 40, 24, 1)
    assert [seen[f"block{b}"] for b in (1, 2, 3)] == [(40, 24, 216), (20, 12, 300), (10, 6, 342)]
    shapes(densenet.densenet121(), 29, 29, 3)
    with pytest.raises(UserError, match=r"DenseNet\.transition3\.pool: given a 1x1 map"):
        shapes(densenet.densenet121(), 28, 28, 3)


def test_each_layer_adds_k_maps_to_all_before_it():
    params = shapes(densenet.densenet121(), 64, 64, 3)["params"]
    for i in range(1, 13):
        layer = params[f"block2_layer{i}"]
        assert layer["conv1"]["kernel"].shape == (1, 1, 128 + 32 * (i - 1), 4 * 32)
        assert layer["conv2"]["kernel"].shape == (3, 3, 4 * 32, 32)
    assert params["transition2"]["conv"]["kernel"].shape == (1, 1, 512, 256)


def test_first_maps_of_a_block_are_its_input():
    x, model = some_images(), TINY["ImageNet"]
    _, seen = jax.jit(lambda v: stages(model, v, x))(drawn(model, 16, 16, 3))
    np.testing.assert_array_equal(seen["block2"][..., :6], seen["transition1"])
    assert not np.array_equal(seen["block2"][..., 6:10], seen["block2"][..., 10:])


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name):
    gradients, _ = trained(TINY[name])
    flat: dict[str, Any] = traverse_util.flatten_dict(gradients, sep="/")
    sizes = {path: float(np.abs(g).max()) for path, g in flat.items()}
    assert [path for path, size in sizes.items() if not 0 < size < np.inf] == []


def test_rematerialisation_changes_nothing_but_the_program():
    model, again = TINY["ImageNet"], TINY["ImageNet"].clone(remat=True)
    assert jax.tree.structure(shapes(again, 16, 16, 3)) == jax.tree.structure(shapes(model, 16, 16, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), trained(model), trained(again))


def test_rematerialisation_keeps_the_new_maps_only():
    """Not the joint ones, whose memory would grow with the square of the number of layers."""
    x = some_images()

    def kept(model: nn.Module) -> int:
        variables = shapes(model, 16, 16, 3)
        apply = partial(model.apply, train=True, mutable=["batch_stats"])
        _, pullback = jax.eval_shape(
            lambda p: jax.vjp(lambda p: apply({**variables_of(p, variables)}, x)[0], p), variables["params"]
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pullback) if leaf.ndim == 4)

    def variables_of(params: Any, variables: Any) -> Any:
        stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["batch_stats"])
        return {"params": params, "batch_stats": stats}

    long, longer = (DenseNet(3, (n,), growth=4, imagenet_stem=False, remat=True) for n in (8, 16))
    assert kept(longer) < 2.5 * kept(long)
    assert kept(longer.clone(remat=False)) > 3 * kept(longer)


def test_batch_statistics_move_in_training_only():
    model, x = TINY["ImageNet"], some_images()
    variables = drawn(model, 16, 16, 3)
    _, (_, updates) = trained(model)
    moves = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), variables["batch_stats"], updates["batch_stats"])
    assert all(jax.tree.leaves(moves)), moves
    _, evaluated = jax.jit(lambda: model.apply(variables, x, train=False, mutable=["batch_stats"]))()
    jax.tree.map(np.testing.assert_array_equal, evaluated["batch_stats"], variables["batch_stats"])


def test_axis_name_joins_the_statistics_of_all_devices():
    model, x = TINY["ImageNet"], some_images()
    variables = drawn(model, 16, 16, 3)
    halves = model.clone(axis_name="data")

    def train(model: nn.Module, x: jax.Array) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, _ = jax.jit(lambda x: train(model, x))(x)
    split, _ = jax.jit(jax.vmap(lambda x: train(halves, x), axis_name="data"))(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(split.reshape(logits.shape), logits, rtol=1e-3, atol=1e-4)


def test_dropout_acts_in_training_only():
    model, x = DenseNet(3, (1,), growth=2, imagenet_stem=False, dropout=0.5, remat=True), some_images()
    variables = drawn(model, 16, 16, 3)

    @jax.jit
    def train(seed: int) -> Any:
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}, mutable=["batch_stats"])[0]

    assert not np.allclose(train(0), train(1))
    model.apply(variables, x, train=False)  # no key: nothing is drawn


def test_bfloat16_is_only_inside():
    model, x = TINY["ImageNet"], some_images()
    half = model.clone(dtype=jnp.bfloat16)
    variables = drawn(half, 16, 16, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    got, expected = (np.asarray(jax.jit(lambda v, m=m: m.apply(v, x, train=False))(variables)) for m in (half, model))
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(got, expected), "computed in float32 after all"


def test_weights_start_as_torchvisions():
    model = DenseNet(10, (1,), growth=64, imagenet_stem=False)
    params = jax.jit(lambda: model.init(jax.random.key(0), some_images(1), train=False))()["params"]
    kernels = {
        name: np.asarray(layer["kernel"]) for name, layer in params["block1_layer1"].items() if "kernel" in layer
    }
    assert kernels["conv1"].std() == pytest.approx(np.sqrt(2 / 128), rel=0.03)
    assert kernels["conv2"].std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.03)  # fan-in, not fan-out
    assert np.abs(kernels["conv1"]).max() > 3 * kernels["conv1"].std()  # not cut
    head = np.abs(params["output"]["kernel"])
    assert 0.95 / np.sqrt(192) < head.max() <= 1 / np.sqrt(192) and not np.any(params["output"]["bias"])
