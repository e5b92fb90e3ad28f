"""Patterns build the networks they describe; mistakes are reported with their character position."""

import math
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.arguments import parse_arguments
from cnn_jax.commands.experiment import parse as parse_command
from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import layer_table
from cnn_jax.models import stages
from cnn_jax.models.lenet import LeNet5
from cnn_jax.models.pattern import EXAMPLE, from_pattern
from cnn_jax.models.pattern_parser import (
    Convolution,
    Dense,
    Dropout,
    GlobalAverage,
    Normalization,
    Pooling,
    parse,
)
from cnn_jax.models.small import kaggle_lenet, keras_cifar_cnn, mnist_cnn, xo_cnn

VGG16 = "[[conv3-64]*2 pool] [[conv3-128]*2 pool] [[conv3-256]*3 pool] [[conv3-512]*3 pool]*2 [fc4096 drop0.5]*2 fc1000"


def shapes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    tree: Any = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False))
    leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def some_variables(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """Random weights from NumPy, so nothing is compiled; normalisation layers are the identity."""
    numbers = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith(("scale", "var")) or "/bn" in path:
            return jnp.full(shape, float(path.endswith(("scale", "var"))))
        return jnp.asarray(numbers.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)

    leaves = {path: draw(path, shape) for path, shape in shapes(model, input_shape).items()}
    return traverse_util.unflatten_dict(leaves, sep="/")


@cache
def some_images(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


def test_layers_of_the_example():
    stage = (Convolution(3, 64), Convolution(3, 64), Pooling("max"))
    assert parse(EXAMPLE) == (*stage * 3, Dense(512), Dense(10))


LAYERS = [
    ("conv7-64s2p3", Convolution(7, 64, stride=2, padding=3)),
    ("conv1-8pvalid", Convolution(1, 8, padding="VALID")),
    ("conv3-8s2psame", Convolution(3, 8, stride=2, padding="SAME")),
    ("pool", Pooling("max", 2, 2)),
    ("pool3", Pooling("max", 3, 3)),
    ("pool3s2", Pooling("max", 3, 2)),
    ("pools1", Pooling("max", 2, 1)),
    ("avgpool", Pooling("average", 2, 2)),
    ("avgpool8s4", Pooling("average", 8, 4)),
    ("gap", GlobalAverage()),
    ("drop0", Dropout(0.0)),
    ("drop.25", Dropout(0.25)),
    ("bn", Normalization()),
    ("fc120", Dense(120)),
]


@pytest.mark.parametrize(("word", "layer"), LAYERS)
def test_each_layer_is_written_as_documented(word, layer):
    assert parse(f"{word} fc10") == (layer, Dense(10))


GROUPS = [
    ("fc4*3 fc2", "fc4 fc4 fc4 fc2"),
    ("[fc4 drop0.5]*2 fc2", "fc4 drop0.5 fc4 drop0.5 fc2"),
    ("[fc4] fc2", "fc4 fc2"),
    ("[fc4]*0 fc2", "fc2"),
    ("[[[conv3-2]*2]*2 pool]*2[fc2]", "[conv3-2]*4 pool conv3-2*4 pool fc2"),
    ("  [ conv3-2\n]*2\tfc2 ", "conv3-2 conv3-2 fc2"),
]


@pytest.mark.parametrize(("short", "long"), GROUPS)
def test_groups_are_their_repetitions(short, long):
    assert parse(short) == parse(long)


MISTAKES = [
    # pattern, place and word, what is wrong, what to do
    (
        "[[conv3-64]*2 poool]*3 fc10",
        "at character 15, 'poool'",
        "expected one of conv, pool,",
        "perhaps you meant pool",
    ),
    ("dense10", "at character 1, 'dense10'", "expected one of conv, pool,", ""),
    ("Conv3-64 fc10", "at character 1, 'Conv3-64'", "expected one of", "perhaps you meant conv"),
    ("conv3 fc10", "at character 1, 'conv3'", "expected conv{size}-{filters}", "such as conv3-64"),
    ("conv3-0 fc10", "at character 1, 'conv3-0'", "expected conv{size}-{filters}", "such as conv3-64"),
    ("conv3-8pfull fc10", "at character 1, 'conv3-8pfull'", "[p{padding}]", "such as"),
    ("conv3-8 pool0 fc10", "at character 9, 'pool0'", "expected pool[{size}][s{stride}]", "pool3s2"),
    ("drop1 fc10", "at character 1, 'drop1'", "0 <= rate < 1", "drop0.5"),
    ("gap2 fc10", "at character 1, 'gap2'", "expected gap", ""),
    ("3 fc10", "at character 1, '3'", "expected one of", ""),
    ("conv3-8, fc10", "at character 1, 'conv3-8,'", "expected conv{size}", ""),
    ("[conv3-8 fc10", "at character 1, '['", "expected ] for it", "close"),
    ("conv3-8]*2 fc10", "at character 8, ']'", "expected [ before it", "drop it"),
    ("[]*2 fc10", "at character 2, ']'", "expected one of", "drop it"),
    ("[fc8]* 2 fc10", "at character 6, '*'", "expected * and how often", "such as *3"),
    ("*2 fc10", "at character 1, '*2'", "expected one of", ""),
    ("fc8*2*2 fc10", "at character 6, '*2'", "expected one of", ""),
    ("", "at character 1, the end", "expected fc{classes} as the last layer", "add one"),
    ("fc10*0", "at character 1, the end", "expected fc{classes} as the last layer", "add one"),
    ("conv3-8 pool", "at character 9, 'pool'", "expected fc{classes} as the last layer", "add one"),
    ("fc8 drop0.5", "at character 5, 'drop0.5'", "expected fc{classes} as the last layer", "add one"),
    ("pool gap", "at character 6, 'gap'", "or conv and gap", "add one"),
    ("fc8 conv3-8 fc10", "at character 5, 'conv3-8'", "only fc, drop and bn after fc8 at character 1", "move it"),
    ("[conv3-8 gap]*2", "at character 2, 'conv3-8'", "only fc, drop and bn after gap at character 10", "move it"),
    ("[[fc8]*100]*11 fc10", "at character 1, '['", "at most 1000 layers", "less often"),
    ("fc8*99999999 fc10", "at character 4, '*99999999'", "such as *3", ""),
    ("[" * 5000, "at character 21, '['", "at most 20 deep", "fewer brackets"),
]


@pytest.mark.parametrize(("pattern", "place", "expected", "advice"), MISTAKES)
def test_mistake_is_told_in_one_line_with_its_place(pattern, place, expected, advice):
    with pytest.raises(UserError) as error:
        from_pattern(pattern)
    message = str(error.value)
    assert f"; {place}; " in message
    assert expected in message and advice in message
    assert "\n" not in message


def test_vgg16_is_one_line():
    rows = layer_table(from_pattern(VGG16), (224, 224, 3))
    assert sum(row.parameters for row in rows) == 138_357_544
    weights = [row for row in rows if row.parameters]
    assert [row.name for row in weights] == [*(f"conv{i}" for i in range(1, 14)), "fc1", "fc2", "output"]
    assert [row.output_shape for row in rows if row.name == "pool5"] == [(7, 7, 512)]


KNOWN = [
    ("conv5-6p2 pool conv5-16pvalid pool fc120 fc84 fc10", LeNet5(), (28, 28, 1), "lecun_normal"),
    ("conv5-6pvalid pool conv5-16pvalid pool fc120 fc84 fc10", LeNet5(), (32, 32, 1), "lecun_normal"),
    ("[conv5-32 pool][conv5-64 pool] fc1024 drop0.5 fc10", mnist_cnn(), (28, 28, 1), "glorot_uniform"),
    ("conv3-8 pool conv3-16 pool fc2", xo_cnn(), (28, 28, 1), "glorot_uniform"),
    (
        "[conv5-12pvalid pool][conv5-25pvalid pool] fc180 drop0.5 fc100 drop0.5 fc10",
        kaggle_lenet(),
        (28, 28, 1),
        "he_normal",
    ),
]


@pytest.mark.parametrize(("pattern", "known", "input_shape", "kernel_init"), KNOWN)
def test_known_networks_are_reproduced_exactly(pattern, known, input_shape, kernel_init):
    model = from_pattern(pattern, kernel_init=kernel_init)
    assert shapes(model, input_shape) == shapes(known, input_shape)
    variables, x = some_variables(known, input_shape), some_images(2, *input_shape)
    (logits, seen), (known_logits, known_seen) = (jax.jit(partial(stages, m, variables))(x) for m in (model, known))
    np.testing.assert_array_equal(logits, known_logits)
    jax.tree.map(np.testing.assert_array_equal, seen, known_seen)


def test_kernels_start_as_asked():
    variables: Any = from_pattern("conv3-2 bn fc2", kernel_init="zeros").init(
        jax.random.key(0), some_images(1, 3, 3, 1), train=False
    )
    assert not any(np.any(variables["params"][name]["kernel"]) for name in ("conv1", "output"))


def test_published_counts_of_two_more():
    pattern = "conv3-32 conv3-32pvalid pool drop0.25 conv3-64 conv3-64pvalid pool drop0.25 fc512 drop0.5 fc10"
    assert shapes(from_pattern(pattern), (32, 32, 3)) == shapes(keras_cifar_cnn(), (32, 32, 3))
    # All-CNN-C (Springenberg et al. 2014, table 1): 1,369,738 parameters with biases.
    pattern = "conv3-96*2 conv3-96s2 conv3-192*2 conv3-192s2 conv3-192pvalid conv1-192 conv1-10 gap"
    assert sum(row.parameters for row in layer_table(from_pattern(pattern), (32, 32, 3))) == 1_369_738


def test_activation_follows_hidden_layers_and_their_norms_only():
    pattern = "conv3-4 bn pool bn conv3-4 avgpool fc5 bn drop0.5 fc6 fc3"
    model, x = from_pattern(pattern), some_images(8, 8, 8, 2)
    variables = some_variables(model, x.shape[1:])
    params = variables["params"]
    assert {name for name in params if "bias" not in params[name]} == {"conv1", "fc1"}, "a bn replaces the bias"
    logits, seen = stages(model, variables, x)
    assert list(seen) == ["conv1", "bn1", "pool1", "bn2", "conv2", "pool2", "fc1", "bn3", "fc2"]
    negative = {name for name, values in seen.items() if float(jnp.min(values)) < 0}
    # A near-identity norm leaves pool1, which is nonnegative, unchanged.
    assert negative == {"conv1", "fc1"}
    assert float(jnp.min(logits)) < 0
    np.testing.assert_allclose(seen["bn1"], nn.relu(seen["conv1"] / math.sqrt(1 + 1e-5)), rtol=1e-5)
    shifted = {**params, "bn2": {**params["bn2"], "bias": params["bn2"]["bias"] - 9}}
    assert float(jnp.min(stages(model, {**variables, "params": shifted}, x)[1]["bn2"])) < 0, "bn after pool: no ReLU"


def test_output_maps_of_an_all_convolutional_net_are_averaged_without_activation():
    model, x = from_pattern("conv3-4 conv1-5 gap"), some_images(2, 6, 6, 1)
    logits, seen = stages(model, some_variables(model, x.shape[1:]), x)
    assert list(seen) == ["conv1", "output"]
    assert float(jnp.min(seen["output"])) < 0
    np.testing.assert_allclose(logits, seen["output"].mean((1, 2)), rtol=1e-5)
    assert model.num_classes == 5


@pytest.mark.parametrize("pattern", ["conv3-4 pool fc8 fc10", "conv3-10 conv3-10 gap", "[fc10]*2"])
def test_number_of_classes_replaces_the_classifiers_only(pattern):
    given, own = shapes(from_pattern(pattern, 3), (8, 8, 1)), shapes(from_pattern(pattern), (8, 8, 1))
    assert {path for path in own if given[path] != own[path]} == {"params/output/kernel", "params/output/bias"}
    assert given["params/output/bias"] == (3,)


def test_training_drops_and_normalizes():
    model, x = from_pattern("conv3-4 bn gap drop0.5 fc3"), some_images(4, 6, 6, 1)
    variables = some_variables(model, x.shape[1:])

    def train(seed: int) -> Any:
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}, mutable=["batch_stats"])

    (first, updates), (second, _) = train(0), train(1)
    assert not np.allclose(first, second)
    assert not np.allclose(updates["batch_stats"]["bn1"]["mean"], 0)


def test_every_parameter_gets_a_gradient():
    model, x = from_pattern("conv3-4 bn pool bn conv3-4 pool fc8 bn fc8 fc3"), some_images(16, 8, 8, 1)
    variables = some_variables(model, x.shape[1:])

    def loss(params: Any) -> jax.Array:
        logits: Any = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])[0]
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    gradients: dict[str, Any] = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
    assert [path for path, gradient in gradients.items() if not np.any(gradient)] == []


def test_bfloat16_is_only_inside():
    model, x = from_pattern("conv3-4 bn pool fc3", dtype=jnp.bfloat16), some_images(2, 8, 8, 1)
    variables = some_variables(model, x.shape[1:])
    logits, seen = stages(model, variables, x)
    assert logits.dtype == jnp.float32
    assert seen["pool1"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_image_too_small_for_a_pooling_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"PatternNet\.pool3: given a 1x1 map; a 2x2 filter") as error:
        shapes(from_pattern("[conv3-8 pool]*3 fc10"), (4, 4, 1))
    assert "usual size" not in str(error.value), "a custom pattern has none"


def test_text_of_the_command_line_survives():
    config = parse_command(["--model", "pattern", "--model-args", f"pattern={EXAMPLE}", "activation=tanh"], Config())
    values = parse_arguments("pattern", from_pattern, config.model.model_args, hidden=["num_classes"])
    assert values == {"pattern": EXAMPLE, "activation": "tanh"}
