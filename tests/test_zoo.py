"""Every model of the list: the published numbers, and the contract of a model. Traced; `test_miniatures` computes."""

import inspect
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from model_checks import by_path, dependencies, loss, shapes

from cnn_jax.models import MODELS, build, default_input_shape
from cnn_jax.models.__main__ import SOURCES, measure, read_table

# Sources: the papers' own numbers where they give any, the tables of torchvision and timm for what they publish weights
# of; the tests of each family count some of them by hand.
PARAMETERS = {
    "softmax_regression": 7_850,
    "mlp": 648_010,
    "mlp_500_500": 648_010,
    "lenet5": 61_706,
    "lenet5_1998": 60_000,
    "mnist_cnn": 3_274_634,
    "tf_cnn": 1_669_002,
    "keras_cifar_cnn": 1_250_858,
    "kaggle_lenet": 99_127,
    "xo_cnn": 2_818,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "alexnet": 60_965_224,
    "alexnet_ungrouped": 62_378_344,
    "alexnet_one_tower": 61_100_840,
    "alexnet_no_fc7": 44_183_912,
    "alexnet_no_fc6_fc7": 11_551_080,
    "alexnet_no_conv3_conv4": 59_268_712,
    "alexnet_no_conv3_conv4_fc6_fc7": 9_854_568,
    "zfnet": 62_357_608,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "all_cnn_a": 1_254_250,
    "all_cnn_b": 1_300_618,
    "all_cnn_c": 1_369_738,
    "googlenet": 13_378_280,
    "googlenet_torchvision": 13_004_888,
    "inception_v3": 27_161_264,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet_bc100": 769_162,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "preact_resnet18": 11_687_720,
    "preact_resnet50": 25_549_352,
    "wrn28_10": 36_479_194,
    "pattern": 716_362,
}
# torchvision's published GMAC for the images of the list, rounded by it to 1e-3.
GMAC = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnext50_32x4d": 4.23,
    "resnext101_32x8d": 16.414,
    "wide_resnet50_2": 11.398,
    "wide_resnet101_2": 22.753,
    "densenet121": 2.834,
    "densenet161": 7.728,
    "densenet169": 3.36,
    "densenet201": 4.291,
    "mobilenet_v2": 0.301,
    "efficientnet_b0": 0.386,
    "convnext_tiny": 4.456,
    "convnext_small": 8.684,
    "convnext_base": 15.355,
}
NAMES = [name for name in MODELS if name != "preact_resnet1001"]  # a minute to trace; it is preact_resnet164, deeper
# One of each family; the others differ in numbers only.
GOLDEN = (
    *("softmax_regression", "mlp", "mlp_500_500", "lenet5", "lenet5_1998"),
    *("mnist_cnn", "tf_cnn", "keras_cifar_cnn", "kaggle_lenet", "xo_cnn"),
    *("resnet20", "resnet18", "resnet50", "resnext50_32x4d", "preact_resnet18", "wrn16_4"),
    *("alexnet", "zfnet", "vgg16", "vgg11_bn", "all_cnn_c", "googlenet", "googlenet_torchvision"),
    *("bn_inception", "inception_v3", "densenet_bc100", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"),
    *("speednet94", "speednet96", "pattern"),
)


CLASSES, BATCH = 7, 2


def rows() -> dict[str, dict[str, str]]:
    return {row["model"]: row for row in read_table()}


@cache
def usual(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The variables of a model as published, by path, and what its parameters start as."""
    initializers: dict[str, str] = {}
    draw = nn.Module.param

    def param(self: nn.Module, key: str, init: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        initializers["/".join(["params", *self.path, key])] = described(init)
        return draw(self, key, init, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "param", param)
        variables = shapes(build(name), *default_input_shape(name))
    return by_path(variables), initializers


def other(name: str, **fields: Any) -> nn.Module:
    """A model with another number of classes."""
    return build(name, CLASSES).clone(**fields)


def other_images(name: str) -> jax.ShapeDtypeStruct:
    """Images of another size."""
    height, width, channels = default_input_shape(name)
    return jax.ShapeDtypeStruct((BATCH, height + 32, width + 32, channels), jnp.float32)


@cache
def other_variables(name: str) -> Any:
    """Those of `other` for `other_images`, its blocks rematerialised if it can."""
    fields = {"remat": True} if hasattr(build(name), "remat") else {}
    return shapes(other(name, **fields), *other_images(name).shape[1:])


def test_every_model_has_a_source():
    assert list(SOURCES) == list(MODELS) == list(rows())


@pytest.mark.parametrize("name", NAMES)
def test_list_is_what_the_code_makes(name):
    row = {column: str(value) for column, value in measure(name).items()}
    assert row == rows()[name], "write it anew: python -m cnn_jax.models --measure"


def test_parameters_and_flops_are_the_published_ones():
    assert {name: int(rows()[name]["parameters"]) for name in PARAMETERS} == PARAMETERS
    assert {name: int(rows()[name]["flops"]) / 2e9 for name in GMAC} == pytest.approx(GMAC, abs=6e-4)


@pytest.mark.parametrize("name", NAMES)
def test_training_reads_every_parameter_and_moves_every_statistic(name):
    """The loss depends, differentiably, on all parameters, and all statistics on the images.

    On plain blocks with the variables of rematerialised ones: they are the same.
    """
    variables, x = other_variables(name), other_images(name)
    rest = {kind: tree for kind, tree in variables.items() if kind != "params"}

    def step(x: jax.Array, params: Any, rest: Any) -> Any:
        total, (_, updates) = loss(other(name), params, rest, x, jax.random.key(0))
        return total, updates["batch_stats"]

    total, moved = dependencies(step, x, variables["params"], rest)
    leaves, structure = jax.tree.flatten(variables["params"])
    read = jax.tree.unflatten(structure, [total >> i & 1 for i in range(1, 1 + len(leaves))])
    assert [path for path, yes in by_path(read).items() if not yes] == []
    assert jax.tree.structure(moved) == jax.tree.structure(rest.get("batch_stats", {}))
    still = [path for path, mask in by_path(moved).items() if not mask & 1]
    # The whitening of the speed records is set before training.
    assert still == (["whiten/kernel"] if name.startswith("speednet") else [])


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_shows_the_stages_in_either_type_and_moves_no_statistic(name):
    model = other(name, dtype=jnp.bfloat16)

    def evaluate(variables: Any, x: jax.Array) -> Any:
        logits, updates = model.apply(variables, x, train=False, mutable=["batch_stats", "stages"])  # type: ignore[misc]
        before = variables.get("batch_stats", {})
        same = jax.tree.map(lambda a, b: a is b, updates.get("batch_stats", before), before)
        assert all(jax.tree.leaves(same)), same
        return logits, updates.get("stages", {})

    logits, seen = jax.eval_shape(evaluate, other_variables(name), other_images(name))
    assert (logits.shape, logits.dtype) == ((BATCH, CLASSES), jnp.float32)
    assert name == "softmax_regression" or len(seen) >= 2
    assert {(stage.shape[0], stage.dtype) for stage in seen.values()} <= {(BATCH, jnp.dtype("bfloat16"))}


@pytest.mark.parametrize("name", NAMES)
def test_number_of_classes_is_that_of_the_classifiers(name):
    params = by_path(other_variables(name)["params"])
    heads = {leaf.shape[-1] for path, leaf in params.items() if path.split("/")[-2] == "output"}
    assert heads <= {CLASSES} and (heads or name == "lenet5_1998"), "the paper's output units have no parameters"


@pytest.mark.parametrize("name", GOLDEN)
def test_size_and_classes_change_nothing_but_the_classifiers(name):
    before = {path: leaf for path, leaf in usual(name)[0].items() if path.startswith("params/")}
    after = by_path({"params": other_variables(name)["params"]})
    assert after.keys() == before.keys()
    heads = {path for path, leaf in after.items() if leaf.shape != before[path].shape}
    # The classifiers, and the layer that reads a flattened map.
    assert all("output" in path or path.endswith("kernel") for path in heads), heads


@pytest.mark.parametrize("name", GOLDEN)
def test_tree_of_variables_is_the_golden_one(name):
    leaves, initializers = usual(name)
    lines = [
        f"{path} {'x'.join(map(str, leaf.shape))} "
        f"{'decay' if path.startswith('params/') and leaf.ndim > 1 else 'no-decay'} {initializers.get(path, '-')}\n"
        for path, leaf in sorted(leaves.items())
    ]
    golden = Path(__file__).parent / "golden" / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text("".join(lines))
    known = golden.read_text().splitlines(keepends=True) if golden.exists() else []
    gone, new = [line for line in known if line not in lines], [line for line in lines if line not in known]
    assert known == lines, (
        f"the variables of {name} changed: saved weights of the old form no longer load, or start otherwise.\n"
        f"gone:\n{''.join(gone)}new:\n{''.join(new)}"
        f"If that is meant, write {golden.name} anew with UPDATE_GOLDEN=1 and say so in the changelog."
    )


def described(init: Callable[..., Any]) -> str:
    """Name of an initialiser with the numbers it was made with."""
    name = getattr(init, "__qualname__", type(init).__name__).split(".")[0]
    try:
        inner = inspect.getclosurevars(init).nonlocals
    except TypeError:  # a partial
        inner = {}
    told = {k: v for k, v in inner.items() if isinstance(v, int | float | str) and k in _TOLD}
    return f"{name}({','.join(f'{k}={told[k]:.4g}' if isinstance(told[k], float) else f'{k}={told[k]}' for k in told)})"


_TOLD = ("scale", "mode", "distribution", "stddev", "value")
