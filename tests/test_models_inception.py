"""GoogLeNet, BN-Inception and Inception-v3 match the published networks; auxiliary heads act in training only."""

import importlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_checks import dependencies, drawn_like, shapes, volumes, without_gradient

from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_flops, count_parameters, layer_table
from cnn_jax.layers import AvgPool, BatchNorm, Conv
from cnn_jax.models.googlenet import (
    Branch,
    ConvUnit,
    Filters,
    Inception,
    googlenet,
    googlenet_torchvision,
)
from cnn_jax.models.inception_bn import bn_inception
from cnn_jax.models.inception_v3 import inception_v3

pytestmark = pytest.mark.usefixtures("one_device")

v3 = importlib.import_module("cnn_jax.models.inception_v3")  # the package re-exports a function of this name

FACTORIES = {
    "googlenet": googlenet,
    "googlenet_torchvision": googlenet_torchvision,
    "bn_inception": bn_inception,
    "inception_v3": inception_v3,
}
WITH_HEADS = {"googlenet": ("aux1", "aux2"), "googlenet_torchvision": ("aux1", "aux2"), "inception_v3": ("aux",)}
# Parameters with auxiliary heads and without.
PARAMETERS = {
    "googlenet": (13_378_280, 6_998_552),
    "googlenet_torchvision": (13_004_888, 6_624_904),
    "inception_v3": (27_161_264, 23_834_568),
}
PADS = ((1, 1), (1, 1))
NORM = partial(BatchNorm, use_running_average=True, epsilon=1e-3)

# Ioffe and Szegedy 2015, figure 5, transcribed again to count the network independently of its code.
FIGURE_5 = """
3a  64  64  64   64  96  32
3b  64  64  96   64  96  64
3c   0 128 160   64  96   0
4a 224  64  96   96 128 128
4b 192  96 128   96 128 128
4c 160 128 160  128 160 128
4d  96 128 192  160 192 128
4e   0 128 192  192 256   0
5a 352 192 320  160 224 128
5b 352 192 320  192 224 128
"""


def kernels(params: Any) -> dict[str, tuple[int, ...]]:
    """Kernel shapes (height, width, inputs, outputs) by the path of their `ConvUnit`."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    return {path.removesuffix("/conv/kernel"): a.shape for path, a in flat.items() if path.endswith("/conv/kernel")}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    with_heads, without = PARAMETERS[name]
    model = FACTORIES[name]()
    tree, bare = (shapes(m, *model.input_shape) for m in (model, FACTORIES[name](aux_heads=False)))
    assert count_parameters(tree["params"]) == with_heads
    assert count_parameters(bare["params"]) == without
    for collection in bare:
        kept = {layer: leaves for layer, leaves in tree[collection].items() if layer not in WITH_HEADS[name]}
        assert kept == bare[collection]


def figure_5() -> tuple[int, int, int]:
    """Counts of the inception blocks' convolution weights, their filters, and the final maps."""
    weights = filters = 0
    maps = 192
    for row in FIGURE_5.split("\n")[1:-1]:
        single, reduce, count, reduce_double, double, projection = map(int, row.split()[1:])
        weights += maps * (single + reduce + reduce_double + projection)
        weights += 9 * (reduce * count + reduce_double * double + double * double)
        filters += single + reduce + count + reduce_double + 2 * double + projection
        maps = single + count + double + (projection if single else maps)
    return weights, filters, maps


def test_parameter_count_of_bn_inception_is_that_of_its_figure():
    weights, filters, maps = figure_5()
    assert maps == 1024
    weights += 64 * 64 + 9 * 64 * 192
    filters += 64 + 64 + 192
    classifier = maps * 1000 + 1000
    plain, separable = 7 * 7 * 3 * 64, 7 * 7 * 3 * 8 + 3 * 8 * 64
    count = count_parameters(shapes(bn_inception(), 224, 224, 3)["params"])
    assert count == weights + separable + 2 * filters + classifier == 11_278_528
    # A Caffe replica with this count has a plain first convolution and a redundant bias before every norm.
    of_the_replica = count_parameters(shapes(bn_inception(separable_stem=False), 224, 224, 3)["params"]) + filters
    assert of_the_replica == weights + plain + 3 * filters + classifier == 11_295_240


def test_output_sizes_of_the_figure_take_96_filters_after_two_poolings():
    printed = {"3a": 256, "3b": 320, "3c": 576, "4a": 576, "4b": 576, "4c": 576, "4d": 576, "4e": 1024, "5b": 1024}
    as_google, as_filters = (volumes(bn_inception(projection_4cd=n), 224, 224, 3) for n in (96, 128))
    assert {row: as_google[f"inception{row}"][-1] for row in printed} == printed
    differ = {row: as_filters[f"inception{row}"][-1] for row in printed} | {"4c": 576, "4d": 576, "4e": 1024}
    assert differ == printed
    assert [as_filters[f"inception{row}"][-1] for row in ("4c", "4d", "4e")] == [608, 608, 1056]


# torchvision's GMAC. The GoogLeNet paper says 1.5; torchvision's "5×5" convolutions make it slightly less.
@pytest.mark.parametrize(
    ("model", "gmac"),
    [(googlenet_torchvision(aux_heads=False), 1.498), (inception_v3(aux_heads=False), 5.713)],
    ids=["googlenet_torchvision", "inception_v3"],
)
def test_flops_are_the_published_ones(model, gmac):
    assert count_flops(model, model.input_shape) / 2e9 == pytest.approx(gmac, abs=6e-4)


@pytest.mark.parametrize("form", ["paper", "torchvision"])
def test_maps_of_googlenet_are_those_of_table_1(form):
    seen = volumes(googlenet(form=form), 224, 224, 3)
    assert ("norm1" in seen, "norm2" in seen) == (form == "paper",) * 2
    assert {name: seen[name] for name in seen if not name.startswith("norm")} == {
        "conv1": (112, 112, 64),
        "pool1": (56, 56, 64),
        "conv2": (56, 56, 192),
        "pool2": (28, 28, 192),
        "inception3a": (28, 28, 256),
        "inception3b": (28, 28, 480),
        "pool3": (14, 14, 480),
        "inception4a": (14, 14, 512),
        "inception4b": (14, 14, 512),
        "inception4c": (14, 14, 512),
        "inception4d": (14, 14, 528),
        "inception4e": (14, 14, 832),
        "pool4": (7, 7, 832),
        "inception5a": (7, 7, 832),
        "inception5b": (7, 7, 1024),
        "pool": (1024,),
    }


def test_filters_of_googlenet_are_those_of_table_1():
    paper, other = (kernels(shapes(googlenet(form=form), 224, 224, 3)["params"]) for form in ("paper", "torchvision"))
    assert {path.removeprefix("inception4d/"): paper[path] for path in paper if path.startswith("inception4d/")} == {
        "branch1x1": (1, 1, 512, 112),
        "branch3x3_1": (1, 1, 512, 144),
        "branch3x3_2": (3, 3, 144, 288),
        "branch5x5_1": (1, 1, 512, 32),
        "branch5x5_2": (5, 5, 32, 64),
        "branch_pool": (1, 1, 512, 64),
    }
    differ = {path for path in paper if paper[path] != other[path]}
    assert differ == {path for path in paper if path.endswith("branch5x5_2")} and len(differ) == 9
    assert {other[path][:2] for path in differ} == {(3, 3)}
    assert sum(path.startswith("inception") for path in paper) + 3 + 1 == 58  # layers with weights, without heads


def test_maps_of_bn_inception():
    seen = volumes(bn_inception(), 224, 224, 3)
    sides = {"conv1": 112, "pool1": 56, "pool2": 28, "inception3b": 28, "inception3c": 14, "inception4e": 7}
    assert {name: seen[name][0] for name in sides} == sides
    assert seen["inception5b"] == (7, 7, 1024)
    odd = volumes(bn_inception(), 90, 61, 1)
    assert (odd["inception3c"], odd["inception5b"]) == ((6, 4, 576), (3, 2, 1024))


def test_maps_of_inception_v3_are_those_of_table_1():
    seen = volumes(inception_v3(), 299, 299, 3)
    assert {
        name: shape for name, shape in seen.items() if not name.startswith("mixed") or name[5:] in ("5b", "5d", "7a")
    } == {
        "conv1a": (149, 149, 32),
        "conv2a": (147, 147, 32),
        "conv2b": (147, 147, 64),
        "pool1": (73, 73, 64),
        "conv3b": (73, 73, 80),
        "conv4a": (71, 71, 192),
        "pool2": (35, 35, 192),
        "mixed5b": (35, 35, 256),
        "mixed5d": (35, 35, 288),
        "mixed7a": (8, 8, 1280),
        "pool": (2048,),
    }
    assert {seen[f"mixed6{letter}"] for letter in "abcde"} == {(17, 17, 768)}
    assert {seen[f"mixed7{letter}"] for letter in "bc"} == {(8, 8, 2048)}


def test_filters_of_inception_v3():
    seen = kernels(shapes(inception_v3(), 299, 299, 3)["params"])

    def block(name: str) -> dict[str, tuple[int, ...]]:
        return {path.partition("/")[2]: shape for path, shape in seen.items() if path.startswith(f"{name}/")}

    assert block("mixed6c") == {
        "branch1x1": (1, 1, 768, 192),
        "branch7x7_1": (1, 1, 768, 160),
        "branch7x7_2": (1, 7, 160, 160),
        "branch7x7_3": (7, 1, 160, 192),
        "branch7x7dbl_1": (1, 1, 768, 160),
        "branch7x7dbl_2": (7, 1, 160, 160),
        "branch7x7dbl_3": (1, 7, 160, 160),
        "branch7x7dbl_4": (7, 1, 160, 160),
        "branch7x7dbl_5": (1, 7, 160, 192),
        "branch_pool": (1, 1, 768, 192),
    }
    assert block("mixed7c") == {
        "branch1x1": (1, 1, 2048, 320),
        "branch3x3_1": (1, 1, 2048, 384),
        "branch3x3_2a": (1, 3, 384, 384),
        "branch3x3_2b": (3, 1, 384, 384),
        "branch3x3dbl_1": (1, 1, 2048, 448),
        "branch3x3dbl_2": (3, 3, 448, 384),
        "branch3x3dbl_3a": (1, 3, 384, 384),
        "branch3x3dbl_3b": (3, 1, 384, 384),
        "branch_pool": (1, 1, 2048, 192),
    }
    assert len(block("mixed6a")) == 4  # its pooling branch has no convolution


@pytest.mark.parametrize(
    ("name", "smallest", "message"),
    [
        ("googlenet", 79, r"GoogLeNet\.aux1\.pool: a 4x4 map is too small"),
        ("inception_v3", 299, r"InceptionV3\.aux\.conv2\.conv: a 4x4 map is too small"),
    ],
)
def test_smallest_images_of_the_side_heads(name, smallest, message):
    shapes(FACTORIES[name](), smallest, smallest, 3)
    with pytest.raises(UserError, match=message):
        shapes(FACTORIES[name](), smallest - 1, smallest - 1, 3)
    smaller = FACTORIES[name](num_classes=5, aux_heads=False)
    assert volumes(smaller, 75, 82, 1)["pool"] == volumes(smaller, 224, 160, 1)["pool"]


def test_smallest_images_without_side_heads():
    shapes(inception_v3(aux_heads=False), 75, 75, 3)
    with pytest.raises(UserError, match=r"InceptionV3\.mixed7a\.branch3x3_2\.conv: a 2x2 map is too small"):
        shapes(inception_v3(aux_heads=False), 74, 74, 3)
    assert shapes(googlenet_torchvision(), 32, 32, 3) == shapes(googlenet_torchvision(), 224, 224, 3)


def test_an_inception_block_is_its_branches_side_by_side():
    branches = (
        Branch("branch1x1", (Filters(2, 1, 1),)),
        Branch("branch_forked", (Filters(3, 3, 3),), (Filters(4, 1, 3), Filters(5, 3, 1))),
        Branch("branch_pool", (Filters(6, 1, 1),), pool=partial(AvgPool, (3, 3), (1, 1), PADS)),
    )
    block = Inception(branches, partial(ConvUnit, conv=Conv))
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    params = drawn_like(jax.eval_shape(block.init, jax.random.key(0), x))["params"]
    assert set(params) == {"branch1x1", "branch_forked_1", "branch_forked_2a", "branch_forked_2b", "branch_pool"}

    def unit(name: str, x: jax.Array) -> jax.Array:
        layer = params[name]["conv"]
        y = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.maximum(y + layer["bias"].reshape(1, 1, 1, -1), 0)

    forked = unit("branch_forked_1", x)
    parts = [
        unit("branch1x1", x),
        unit("branch_forked_2a", forked),
        unit("branch_forked_2b", forked),
        unit("branch_pool", AvgPool((3, 3), (1, 1), PADS).apply({}, x)),  # type: ignore[arg-type]
    ]
    got = block.apply({"params": params}, x)
    np.testing.assert_allclose(got, jnp.concatenate(parts, axis=-1), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def train(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """Returns (logits, updates) of a forward pass in training mode."""
    rngs = {"dropout": jax.random.key(2)}
    return model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats", "auxiliary"])


@pytest.mark.parametrize("name", WITH_HEADS)
def test_side_heads_are_offered_in_training_only(name):
    model = FACTORIES[name](num_classes=7)
    tree = shapes(model, *model.input_shape)
    assert set(tree) <= {"params", "batch_stats"}
    x = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    logits, updates = jax.eval_shape(lambda v, x: train(model, v, x), tree, x)
    assert logits.shape == (2, 7)
    heads = updates["auxiliary"]
    assert set(heads) == set(WITH_HEADS[name])
    assert {(head["logits"].shape, head["logits"].dtype) for head in heads.values()} == {((2, 7), jnp.dtype("float32"))}

    def evaluate(variables: Any, x: jax.Array) -> Any:
        return model.apply(variables, x, train=False, mutable=["auxiliary"])

    # Evaluation does not read the heads' parameters.
    bare = {kind: {k: v for k, v in leaves.items() if k not in heads} for kind, leaves in tree.items()}
    assert jax.eval_shape(evaluate, bare, x)[1] == {}
    without = FACTORIES[name](num_classes=7, aux_heads=False)
    assert "auxiliary" not in jax.eval_shape(lambda v, x: train(without, v, x), bare, x)[1]


@pytest.mark.parametrize(
    ("name", "weight"), [("googlenet", 0.3), ("googlenet_torchvision", 0.3), ("inception_v3", 0.4)]
)
def test_weights_of_the_losses_of_the_side_heads(name, weight):
    model = FACTORIES[name]()
    tree = shapes(model, *model.input_shape)

    def weights() -> Any:
        # The compiler removes everything else from the forward pass.
        variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree)
        _, updates = train(model, variables, jnp.zeros((2, *model.input_shape)))
        return [head["weight"] for head in updates["auxiliary"].values()]

    np.testing.assert_allclose(jax.jit(weights)(), weight, rtol=1e-6)


BELOW = {"aux1": "inception4a", "aux2": "inception4d", "aux": "mixed6e"}


@pytest.mark.parametrize("name", WITH_HEADS)
def test_each_side_head_reads_its_own_parameters_and_what_lies_below(name):
    model = FACTORIES[name](num_classes=3)
    tree = shapes(model, *model.input_shape)
    leaves, structure = jax.tree.flatten(tree["params"])
    x = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)

    def heads(params: Any, rest: Any, x: jax.Array) -> Any:
        _, updates = train(model, {**rest, "params": params}, x)
        return {head: offered["logits"] for head, offered in updates["auxiliary"].items()}

    rest = {kind: variables for kind, variables in tree.items() if kind != "params"}
    for head, mask in dependencies(heads, tree["params"], rest, x).items():
        reads = jax.tree.unflatten(structure, [mask >> i & 1 for i in range(len(leaves))])
        idle = {layer for layer in reads if not all(jax.tree.leaves(reads[layer]))}
        assert not any(any(jax.tree.leaves(reads[layer])) for layer in idle)
        above = {layer for layer in reads if layer.startswith(("inception", "mixed")) and layer > BELOW[head]}
        assert idle == above | {"output", *WITH_HEADS[name]} - {head}


def test_every_parameter_of_the_side_head_of_inception_v3_gets_a_gradient():
    head, x = v3.AuxiliaryHead(3, Conv, NORM, nn.Dense), jax.random.normal(jax.random.key(0), (4, 17, 17, 16))
    variables = drawn_like(jax.eval_shape(head.init, jax.random.key(0), x))

    def loss(params: Any) -> Any:
        logits: Any = head.apply({**variables, "params": params}, x)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    assert without_gradient(jax.jit(jax.grad(loss))(variables["params"])) == []


@pytest.mark.parametrize(
    ("name", "rates", "norms"),
    [
        ("googlenet", {"drop": 0.4, "aux1/drop": 0.7, "aux2/drop": 0.7}, set()),
        ("googlenet_torchvision", {"drop": 0.2, "aux1/drop": 0.7, "aux2/drop": 0.7}, {(0.9, 1e-3)}),
        ("bn_inception", {}, {(0.9, 1e-3)}),
        ("inception_v3", {"drop": 0.5}, {(0.9, 1e-3)}),
    ],
)
def test_dropout_and_batch_norm_act_in_training_only(name, rates, norms):
    model = FACTORIES[name](axis_name="data")
    tree = shapes(model, *model.input_shape)
    x = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    dropped: dict[str, float] = {}
    normalized: set[tuple[float, float]] = set()

    def watch(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.Dropout) and not module.deterministic:
            dropped["/".join(module.path)] = module.rate
        if isinstance(module, BatchNorm) and not module.use_running_average:
            assert module.axis_name == "data"
            normalized.add((module.momentum, module.epsilon))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), tree, x)
        assert (dropped, normalized) == ({}, set())
        mapped = jax.vmap(lambda v, x: train(model, v, x)[0], in_axes=(None, 0), axis_name="data")
        jax.eval_shape(mapped, tree, jax.ShapeDtypeStruct((2, *x.shape), jnp.float32))
    assert (dropped, normalized) == (rates, norms)


@pytest.mark.parametrize(
    ("name", "deviations"),
    [
        # Uniform with standard deviation 1/sqrt(fan-in); biases 0.2.
        ("googlenet", {"conv2": 1 / np.sqrt(9 * 64), "inception4a/branch5x5_2": 1 / np.sqrt(25 * 16)}),
        ("googlenet_torchvision", {"conv2": 0.01, "inception4a/branch5x5_2": 0.01}),
        ("bn_inception", {"conv2": np.sqrt(2 / (9 * 64)), "inception4a/branch3x3dbl_3": np.sqrt(2 / (9 * 128))}),
        ("inception_v3", {"conv4a": 0.1, "mixed5b/branch5x5_2": 0.1, "aux/conv1": 0.1, "aux/conv2": 0.01}),
    ],
)
def test_initial_weights_have_the_documented_deviation(name, deviations):
    model = FACTORIES[name]()

    def some() -> Any:
        # The compiler skips the initialisation of parameters that are not returned.
        params = model.init(jax.random.key(0), jnp.zeros((1, *model.input_shape)), train=False)["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return {layer: flat[f"{layer}/conv/kernel"] for layer in deviations}, flat.get("conv2/conv/bias")

    found, bias = jax.jit(some)()
    assert {layer: float(jnp.std(kernel)) for layer, kernel in found.items()} == pytest.approx(deviations, rel=0.03)
    if name == "googlenet":
        np.testing.assert_allclose(bias, 0.2, rtol=1e-6)


def test_layers_of_googlenet_are_in_the_order_of_figure_3():
    rows = {row.name: (row.kind, row.output_shape) for row in layer_table(googlenet(), (224, 224, 3))}
    stem = ["conv1/conv", "pool1", "norm1", "conv2_reduce/conv", "conv2/conv", "norm2", "pool2"]
    assert list(rows)[:7] == stem
    assert rows["inception3a/branch5x5_2/conv"] == ("Conv", (28, 28, 32))
    assert rows["aux1/pool"] == ("AvgPool", (4, 4, 512))
    assert rows["aux1/fc"] == ("Dense", (1024,)) and rows["aux2/output"] == ("Dense", (1000,))


def test_poolings_of_bn_inception_are_those_of_the_figure():
    rows = layer_table(bn_inception(), (224, 224, 3))
    kinds = {row.name.split("/")[0].removeprefix("inception"): row.kind for row in rows if row.name.endswith("/pool")}
    assert [row for row, kind in kinds.items() if kind == "MaxPool"] == ["3c", "4e", "5b"]
    assert len(kinds) == 10 and set(kinds.values()) == {"AvgPool", "MaxPool"}
