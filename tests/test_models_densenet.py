"""The DenseNets match the published networks; each layer reads all earlier ones; rematerialisation saves memory."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_checks import drawn, shapes, some_images, volumes

from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import layer_table
from cnn_jax.models import densenet, stages
from cnn_jax.models.densenet import DenseNet

pytestmark = pytest.mark.usefixtures("one_device")

TINY = DenseNet(3, blocks=(1, 2), growth=4)


def test_number_of_layers_is_in_the_name():
    for layers in (121, 161, 169, 201):
        blocks = getattr(densenet, f"densenet{layers}")().blocks
        # Stem, two per layer, one per transition, classifier.
        assert 1 + 2 * sum(blocks) + len(blocks) - 1 + 1 == layers
    rows = layer_table(densenet.densenet_bc100(), (32, 32, 3))
    assert sum(row.flops > 0 for row in rows) == 100


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
    with pytest.raises(UserError, match=r"DenseNet\.transition3\.pool: a 1x1 map is too small"):
        shapes(densenet.densenet121(), 28, 28, 3)


def test_each_layer_adds_k_maps_to_all_before_it():
    params = shapes(densenet.densenet121(), 64, 64, 3)["params"]
    for i in range(1, 13):
        layer = params[f"block2_layer{i}"]
        assert layer["conv1"]["kernel"].shape == (1, 1, 128 + 32 * (i - 1), 4 * 32)
        assert layer["conv2"]["kernel"].shape == (3, 3, 4 * 32, 32)
    assert params["transition2"]["conv"]["kernel"].shape == (1, 1, 512, 256)


def test_first_maps_of_a_block_are_its_input():
    x, model = some_images(), TINY
    _, seen = jax.jit(lambda v: stages(model, v, x))(drawn(model, 16, 16, 3))
    np.testing.assert_array_equal(seen["block2"][..., :6], seen["transition1"])
    assert not np.array_equal(seen["block2"][..., 6:10], seen["block2"][..., 10:])


def test_rematerialisation_keeps_the_new_maps_only():
    """It does not keep the concatenated maps, whose memory grows with the square of the number of layers."""
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

    long, longer = (DenseNet(3, blocks=(n,), growth=4, imagenet_stem=False, remat=True) for n in (8, 16))
    assert kept(longer) < 2.5 * kept(long)
    assert kept(longer.clone(remat=False)) > 3 * kept(longer)


def test_axis_name_joins_the_statistics_of_all_devices():
    model, x = TINY, some_images()
    variables = drawn(model, 16, 16, 3)
    halves = model.clone(axis_name="data")

    def train(model: nn.Module, x: jax.Array) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, _ = jax.jit(lambda x: train(model, x))(x)
    split, _ = jax.jit(jax.vmap(lambda x: train(halves, x), axis_name="data"))(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(split.reshape(logits.shape), logits, rtol=1e-3, atol=1e-4)


def test_dropout_acts_in_training_only():
    model, x = DenseNet(3, blocks=(1,), growth=2, imagenet_stem=False, dropout=0.5, remat=True), some_images()
    variables = drawn(model, 16, 16, 3)

    @jax.jit
    def train(seed: int) -> Any:
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}, mutable=["batch_stats"])[0]

    assert not np.allclose(train(0), train(1))
    model.apply(variables, x, train=False)  # needs no random key


def test_weights_start_as_torchvisions():
    model = DenseNet(10, blocks=(1,), growth=64, imagenet_stem=False)
    params = jax.jit(lambda: model.init(jax.random.key(0), some_images(1), train=False))()["params"]
    kernels = {
        name: np.asarray(layer["kernel"]) for name, layer in params["block1_layer1"].items() if "kernel" in layer
    }
    assert kernels["conv1"].std() == pytest.approx(np.sqrt(2 / 128), rel=0.03)
    assert kernels["conv2"].std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.03)  # fan-in, not fan-out
    assert np.abs(kernels["conv1"]).max() > 3 * kernels["conv1"].std()  # not truncated
    head = np.abs(params["output"]["kernel"])
    assert 0.95 / np.sqrt(192) < head.max() <= 1 / np.sqrt(192) and not np.any(params["output"]["bias"])
