"""Every model of the list: the published number of parameters, any size and number of classes, its variables."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from model_checks import shapes

from cnn_jax.models import MODELS, build, default_input_shape, stages
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
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet_bc100": 769_162,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "convnext_tiny": 28_589_128,
    "wrn28_10": 36_479_194,
    "pattern": 716_362,
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


def parameters(name: str, num_classes: int | None = None, extra: int = 0) -> dict[str, Any]:
    height, width, channels = default_input_shape(name)
    variables = shapes(build(name, num_classes), height + extra, width + extra, channels)
    return traverse_util.flatten_dict(variables["params"], sep="/")


def test_every_model_has_a_source():
    assert list(SOURCES) == list(MODELS) == [row["model"] for row in read_table()]


@pytest.mark.parametrize("name", NAMES)
def test_count_is_the_published_one_and_that_of_the_list(name):
    row = next(row for row in read_table() if row["model"] == name)
    assert {k: str(v) for k, v in measure(name).items()} == row, "write it anew: python -m cnn_jax.models --measure"
    assert int(row["parameters"]) == PARAMETERS.get(name, int(row["parameters"]))


@pytest.mark.parametrize("name", GOLDEN)
def test_any_size_and_number_of_classes(name):
    usual = parameters(name)
    larger = parameters(name, num_classes=7, extra=32)
    assert larger.keys() == usual.keys()
    heads = {path for path, leaf in larger.items() if leaf.shape != usual[path].shape}
    # The classifiers, and the layer that reads a flattened map.
    assert all("output" in path or path.endswith("kernel") for path in heads), heads
    assert not [p for p in larger if p.startswith("output/") and larger[p].shape[-1] != 7]


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_stages_by_name(name):
    model, shape = build(name), default_input_shape(name)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits, seen = jax.eval_shape(lambda v, x: stages(model, v, x), shapes(model, *shape), x)
    assert logits.shape == (2, model.num_classes) and logits.dtype == jnp.float32
    assert name == "softmax_regression" or len(seen) >= 2
    assert all(stage.shape[0] == 2 for stage in seen.values())


@pytest.mark.parametrize("name", GOLDEN)
def test_tree_of_variables_is_the_golden_one(name, monkeypatch):
    model, initializers = build(name), {}
    draw = nn.Module.param

    def param(self: nn.Module, key: str, init: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        initializers["/".join(["params", *self.path, key])] = described(init)
        return draw(self, key, init, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "param", param)
    leaves = traverse_util.flatten_dict(shapes(model, *default_input_shape(name)), sep="/")
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
