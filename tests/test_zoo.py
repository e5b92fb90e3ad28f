"""Published counts and the model contract for every listed model, by tracing; `test_miniatures` checks values."""

import inspect
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from model_checks import by_path, dependencies, each, loss, shapes

from cnn_jax.inspect.summary import count_parameters
from cnn_jax.inspect.tables import measure
from cnn_jax.models import MODELS, build, default_input_shape
from cnn_jax.models.catalogue import SOURCES, read_table
from cnn_jax.optim.optimizers import decay_mask

# Sources: the papers where they give counts, else the tables of torchvision and timm for the weights they publish. The
# tests of each family count some of them by hand.
PARAMETERS = {
    "softmax_regression": 7_850,
    "mlp": 648_010,
    "mlp_500_500": 648_010,
    "mlp_300": 238_510,
    "ciresan_mlp": 12_115_010,
    "lenet5": 61_706,
    "lenet5_1998": 60_000,
    "simard_cnn": 132_540,
    "ciresan_cnn": 212_260,
    "mcdnn_column": 76_040,
    "mnist_cnn": 3_274_634,
    "tf_cnn": 1_669_002,
    "keras_cifar_cnn": 1_250_858,
    "kaggle_lenet": 99_127,
    "xo_cnn": 2_818,
    "multiscale_cnn": 1_576_959,
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
    "bn_inception": 11_278_528,
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
    "preact_resnet110": 1_727_962,
    "preact_resnet164": 1_703_258,
    "preact_resnet1001": 10_327_706,
    "preact_resnet18": 11_687_720,
    "preact_resnet50": 25_549_352,
    "wrn16_4": 2_748_890,
    "wrn28_10": 36_479_194,
    "wrn40_2": 2_243_546,
    "speednet94": 1_971_352,
    "speednet94_muon": 1_971_352,
    "speednet95": 4_604_440,
    "speednet96": 9_915_416,
    "pattern": 716_362,
    "conv_autoencoder": 14_217,
}
WITHOUT_HEADS = {"googlenet": 6_998_552, "googlenet_torchvision": 6_624_904, "inception_v3": 23_834_568}
# torchvision's published GMAC for the listed image sizes, rounded to 1e-3.
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
DEEP = "preact_resnet1001"  # takes a minute to trace; it is preact_resnet164 with more blocks
NAMES = [name for name in MODELS if name != DEEP]
# One network of most families; the others, and the costly inceptions and DenseNets, are slow tests.
QUICK = (
    *("softmax_regression", "lenet5", "xo_cnn", "resnet20", "preact_resnet18", "alexnet", "vgg11", "all_cnn_c"),
    *("mobilenet_v2", "pattern", "conv_autoencoder"),
)
CLASSIFIERS = [name for name in NAMES if hasattr(build(name), "num_classes")]
CLASSES, BATCH = 7, 2
GOLDEN = Path(__file__).parent / "golden"


def rows() -> dict[str, dict[str, str]]:
    return {row["model"]: row for row in read_table()}


class Published(NamedTuple):
    """Results of tracing a published model.

    Attributes:
        row: its row of the model table.
        leaves: shapes of its variables by path.
        initializers: descriptions of its parameters' initialisers by path.
    """

    row: dict[str, str]
    leaves: dict[str, Any]
    initializers: dict[str, str]


@cache
def published(name: str) -> Published:
    leaves: dict[str, Any] = {}
    initializers: dict[str, str] = {}
    init, draw = nn.Module.init, nn.Module.param

    def watched_init(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        variables = init(self, *args, **kwargs)
        leaves.update(by_path(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)))
        return variables

    def watched_param(self: nn.Module, key: str, start: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        initializers["/".join(["params", *self.path, key])] = described(start)
        return draw(self, key, start, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "init", watched_init)
        patch.setattr(nn.Module, "param", watched_param)
        row = {column: "" if value is None else str(value) for column, value in measure(name).items()}
    return Published(row, leaves, initializers)


def other(name: str, **fields: Any) -> nn.Module:
    """The model with a different number of classes."""
    return build(name, CLASSES).clone(**fields)


def other_images(name: str) -> jax.ShapeDtypeStruct:
    """Images of a different size."""
    height, width, channels = default_input_shape(name)
    return jax.ShapeDtypeStruct((BATCH, height + 32, width + 32, channels), jnp.float32)


@cache
def other_variables(name: str) -> Any:
    """Variables of `other` for `other_images`, with rematerialised blocks where the model has them."""
    fields = {"remat": True} if hasattr(build(name), "remat") else {}
    return shapes(other(name, **fields), *other_images(name).shape[1:])


def test_every_model_has_a_source_and_a_golden_file():
    assert list(SOURCES) == list(MODELS) == list(rows())
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(MODELS)


@pytest.mark.parametrize("name", each(NAMES, QUICK))
def test_table_matches_the_code(name):
    assert published(name).row == rows()[name], "regenerate it: python -m cnn_jax models --measure"


def test_parameters_and_flops_are_the_published_ones():
    assert {name: int(row["parameters"]) for name, row in rows().items()} == PARAMETERS
    without = {name: int(row["without_heads"]) for name, row in rows().items()}
    assert without == {**PARAMETERS, **WITHOUT_HEADS}
    assert {name: int(rows()[name]["flops"]) / 2e9 for name in GMAC} == pytest.approx(GMAC, abs=6e-4)


def test_activation_and_initialiser_of_every_model_are_arguments():
    for name in MODELS:
        model = build(name, args=["activation=tanh", "kernel_init=glorot_normal"])
        assert (model.activation, model.kernel_init) == ("tanh", "glorot_normal"), name


@pytest.mark.parametrize("name", each(CLASSIFIERS, QUICK))
def test_training_reads_every_parameter_and_moves_every_statistic(name):
    """The loss depends differentiably on every parameter, and every statistic on the images.

    Traces plain blocks with the variables of rematerialised ones, which are the same.
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
    # The whitening of the speednets is set before training.
    assert still == (["whiten/kernel"] if name.startswith("speednet") else [])


@pytest.mark.parametrize("name", each(CLASSIFIERS, QUICK))
def test_bfloat16_evaluation_records_the_stages_and_moves_no_statistic(name):
    model = other(name, dtype=jnp.bfloat16)

    def evaluate(variables: Any, x: jax.Array) -> Any:
        logits, updates = model.apply(variables, x, train=False, mutable=["batch_stats", "stages"])  # type: ignore[misc]
        before = variables.get("batch_stats", {})
        same = jax.tree.map(lambda a, b: a is b, updates.get("batch_stats", before), before)
        assert all(jax.tree.leaves(same)), same
        return logits, updates.get("stages", {})

    logits, seen = jax.eval_shape(evaluate, other_variables(name), other_images(name))
    assert (logits.shape, logits.dtype) == ((BATCH, CLASSES), jnp.float32)
    assert len(seen) >= {"softmax_regression": 0, "mlp_300": 1}.get(name, 2)
    assert {(stage.shape[0], stage.dtype) for stage in seen.values()} <= {(BATCH, jnp.dtype("bfloat16"))}


@pytest.mark.parametrize("name", each(CLASSIFIERS, QUICK))
def test_number_of_classes_is_that_of_the_classifiers(name):
    params = by_path(other_variables(name)["params"])
    heads = {leaf.shape[-1] for path, leaf in params.items() if path.split("/")[-2] == "output"}
    assert heads <= {CLASSES} and (heads or name == "lenet5_1998"), "the paper's output units have no parameters"


@pytest.mark.parametrize("name", each(CLASSIFIERS, QUICK))
def test_image_size_and_classes_change_the_classifiers_only(name):
    before = {path: leaf for path, leaf in published(name).leaves.items() if path.startswith("params/")}
    after = by_path({"params": other_variables(name)["params"]})
    assert after.keys() == before.keys()
    heads = {path for path, leaf in after.items() if leaf.shape != before[path].shape}
    # Only classifiers and layers that read a flattened map may change.
    assert all("output" in path or path.endswith("kernel") for path in heads), heads


@pytest.mark.parametrize("name", each(MODELS, QUICK))
def test_tree_of_variables_matches_the_golden_file(name):
    lines = golden_lines(deep() if name == DEEP else published(name))
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text("".join(lines))
    known = golden.read_text().splitlines(keepends=True) if golden.exists() else []
    gone, new = [line for line in known if line not in lines], [line for line in lines if line not in known]
    assert known == lines, (
        f"the variables of {name} changed: saved weights no longer load, or initial values differ.\n"
        f"gone:\n{''.join(gone)}new:\n{''.join(new)}"
        f"If that is intended, regenerate {golden.name} with UPDATE_GOLDEN=1 and note it in the changelog."
    )


def test_preact_resnet1001_is_preact_resnet164_with_more_blocks():
    assert build(DEEP).clone(blocks=(18, 18, 18)) == build("preact_resnet164")
    assert build(DEEP).blocks == (111, 111, 111)
    parameters = {path: leaf for path, leaf in deep().leaves.items() if path.startswith("params/")}
    assert count_parameters(parameters) == PARAMETERS[DEEP]


def deep() -> Published:
    """Derives the trace of preact_resnet1001: its extra blocks are like the last ones of preact_resnet164."""
    row, *trees = published("preact_resnet164")
    leaves, initializers = (
        {path.replace("_block18/", f"_block{i}/"): leaf for i in range(18, 112) for path, leaf in tree.items()}
        for tree in trees
    )
    return Published(row, leaves, initializers)


def golden_lines(model: Published) -> list[str]:
    """Path, shape, decay flag and initialiser of each parameter; path and shape of each statistic.

    Layers whose names differ only in the last number share lines where they agree: "stage1_block2-18/…".
    """
    decayed = decay_mask({path: leaf for path, leaf in model.leaves.items() if path.startswith("params/")})
    numbers: dict[tuple[str, str], list[str]] = {}
    for path, leaf in model.leaves.items():
        kind, layer, rest = path.split("/", 2)
        stem = layer.rstrip("0123456789")
        facts = ["x".join(map(str, leaf.shape))]
        if path in decayed:
            facts += ["decay" if decayed[path] else "no-decay", model.initializers[path]]
        numbers.setdefault((f"{kind}/{stem}", " ".join([f"/{rest}", *facts])), []).append(layer.removeprefix(stem))
    return sorted(f"{start}{ranges(found)}{end}\n" for (start, end), found in numbers.items())


def ranges(numbers: Iterable[str]) -> str:
    """Formats numbers as ranges, such as "1-3,5"."""
    runs: list[list[int]] = []
    for number in sorted(map(int, filter(None, numbers))):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def described(init: Callable[..., Any]) -> str:
    """Name of an initialiser with its numeric arguments."""
    name = getattr(init, "__qualname__", type(init).__name__).split(".")[0]
    try:
        inner = inspect.getclosurevars(init).nonlocals
    except TypeError:  # a functools.partial
        inner = {}
    told = {k: v for k, v in inner.items() if isinstance(v, int | float | str) and k in _TOLD}
    return f"{name}({','.join(f'{k}={told[k]:.4g}' if isinstance(told[k], float) else f'{k}={told[k]}' for k in told)})"


_TOLD = ("scale", "mode", "distribution", "stddev", "value")
