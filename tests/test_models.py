"""LeNet-5, the small networks and ResNet match the published ones; the model list and layer table; mistakes."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cnn_jax.models
from cnn_jax.commands.models import main
from cnn_jax.commands.parser import guard
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_flops, count_parameters, layer_table
from cnn_jax.models import MODELS, build, create_model, model_name, stages
from cnn_jax.models.catalogue import SOURCES, read_table
from cnn_jax.models.lenet import C3_TABLE, PartialConv, RbfOutput, prototypes
from cnn_jax.models.resnet import ResNet

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = [
    *("softmax_regression", "mlp", "mlp_500_500", "lenet5", "lenet5_1998"),
    *("mnist_cnn", "tf_cnn", "keras_cifar_cnn", "kaggle_lenet", "xo_cnn"),
]
# Few layers that cover all the ResNet code: both stems, both blocks, both shortcuts.
TINY = {
    "tiny CIFAR ResNet": ResNet(3, blocks=(1, 1), width=4),
    "tiny ImageNet ResNet": ResNet(3, blocks=(1, 1), width=4, shortcut="B", bottleneck=True, imagenet_stem=True),
}
NETS = {**{name: build(name, 3) for name in SMALL}, **TINY}


def some_images(model: nn.Module, batch: int = 6) -> jax.Array:
    height, width, channels = getattr(model, "input_shape", None) or (28, 28, 1)
    if isinstance(model, ResNet):
        height = width = 16
    return jax.random.normal(jax.random.key(1), (batch, height, width, channels))


def shapes(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False))


@cache
def some_variables(name: str) -> Any:
    return draw_variables(NETS[name], some_images(NETS[name], 1).shape[1:])


def draw_variables(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """Random variables from NumPy, much faster than compiling the initialisers."""
    numbers = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = max(1, np.prod(leaf.shape[:-1]))
        centre = 1.0 if leaf.ndim == 1 else 0.0  # scales and variances are positive
        values = centre + np.clip(numbers.normal(size=leaf.shape), -2, 2) / np.sqrt(fan_in) * (1 - 0.9 * centre)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(draw, shapes(model, input_shape))


def test_parameter_counts_of_variants():
    def count(name: str, shape: tuple[int, int, int], *args: str) -> int:
        return count_parameters(shapes(build(name, 10, args=args), shape)["params"])

    assert count("lenet5", (32, 32, 1)) == 61_706
    assert count("lenet5_1998", (28, 28, 1)) == 60_000
    assert count("lenet5", (28, 28, 1), "pool=average", "activation=tanh") == 61_706
    for name in ("resnet20", "resnet32"):
        assert count(name, (32, 32, 3), "shortcut=B") == count(name, (32, 32, 3)) + 2_752
    assert count("mlp", (28, 28, 1), "hidden=300") == 784 * 300 + 300 + 300 * 10 + 10
    assert count("softmax_regression", (32, 32, 3)) == 30_730


def test_lenet_1998_layers_have_the_published_counts():
    rows = {row.name: row.parameters for row in layer_table(build("lenet5_1998"), (32, 32, 1))}
    published = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164, "output": 0}
    assert {name: rows[name] for name in published} == published


def test_batch_statistics_move_in_training_and_only_there():
    model, variables = TINY["tiny CIFAR ResNet"], some_variables("tiny CIFAR ResNet")
    x = 2 + some_images(model)
    before = variables["batch_stats"]
    after = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[1])(x)
    conv1 = jax.lax.conv_general_dilated(
        x, variables["params"]["conv1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    moved = after["batch_stats"]["bn1"]
    maps = np.asarray(conv1)
    np.testing.assert_allclose(moved["mean"], 0.9 * before["bn1"]["mean"] + 0.1 * maps.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(moved["var"], 0.9 * before["bn1"]["var"] + 0.1 * maps.var((0, 1, 2)), rtol=1e-4)
    moves = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), before, after["batch_stats"])
    assert all(jax.tree.leaves(moves)), moves
    evaluated = jax.jit(lambda x: model.apply(variables, x, train=False, mutable=["batch_stats"])[1])(x)
    jax.tree.map(np.testing.assert_array_equal, before, evaluated["batch_stats"])


def test_axis_name_joins_the_statistics_of_all_devices():
    variables, model = some_variables("tiny CIFAR ResNet"), TINY["tiny CIFAR ResNet"]
    x = some_images(model, 4)

    def train(model: nn.Module, x: jax.Array) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, stats = jax.jit(lambda x: train(model, x))(x)
    split = jax.vmap(lambda x: train(model.clone(axis_name="data"), x), axis_name="data")
    split_logits, split_stats = jax.jit(split)(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(split_logits.reshape(logits.shape), logits, rtol=1e-3, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-5), split_stats, stats)


def test_dropout_acts_in_training_only():
    model, variables = NETS["kaggle_lenet"], some_variables("kaggle_lenet")
    x = some_images(model)
    train = jax.jit(lambda seed: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    assert not np.allclose(train(0), train(1))
    model.apply(variables, x[:1], train=False)  # needs no random key


def test_stages_are_given_by_name_in_order():
    model, variables = NETS["lenet5"], some_variables("lenet5")
    x = some_images(model, 2)
    logits, seen = jax.jit(lambda x: stages(model, variables, x))(x)
    assert {name: a.shape for name, a in seen.items()} == {
        "conv1": (2, 28, 28, 6),
        "pool1": (2, 14, 14, 6),
        "conv2": (2, 10, 10, 16),
        "pool2": (2, 5, 5, 16),
        "fc1": (2, 120),
        "fc2": (2, 84),
    }
    assert list(stages(model, variables, x)[1]) == ["conv1", "pool1", "conv2", "pool2", "fc1", "fc2"]
    params = variables["params"]["output"]
    np.testing.assert_allclose(seen["fc2"] @ params["kernel"] + params["bias"][None], logits, rtol=1e-4, atol=1e-5)


def test_stages_of_a_resnet_are_its_blocks():
    tiny = "tiny ImageNet ResNet"
    _, seen = jax.eval_shape(lambda x: stages(TINY[tiny], some_variables(tiny), x), some_images(TINY[tiny], 2))
    assert {name: a.shape[1:] for name, a in seen.items()} == {
        "conv1": (8, 8, 4),
        "pool1": (4, 4, 4),
        "stage1_block1": (4, 4, 16),
        "stage2_block1": (2, 2, 32),
        "pool": (32,),
    }


def test_c3_sees_the_maps_of_the_table_only():
    assert [len(seen) for seen in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 6))
    layer = PartialConv()
    variables = layer.init(jax.random.key(1), x)
    jacobian = jax.jacrev(lambda x: jnp.ravel(layer.apply(variables, x)))(x)  # type: ignore[arg-type]
    sees = np.abs(jacobian).sum((1, 2, 3)) > 0
    assert [tuple(np.flatnonzero(row)) for row in sees] == list(C3_TABLE)


def test_another_initialiser_of_c3_draws_a_dense_kernel_and_keeps_the_connected_maps():
    variables: Any = PartialConv("dirac").init(jax.random.key(1), jnp.zeros((1, 5, 5, 6)))
    filters = np.asarray(variables["params"]["kernel"])
    pairs = [(seen, made) for made, maps in enumerate(C3_TABLE) for seen in maps]
    assert filters.shape == (5, 5, len(pairs)) == (5, 5, 60)
    np.testing.assert_array_equal(filters[2, 2], [float(seen == made) for seen, made in pairs])
    assert 0 < filters.sum() == filters[2, 2].sum()


def test_output_units_of_lenet_1998_are_distances_to_fixed_codes():
    x = np.random.default_rng(0).normal(size=(4, 84)).astype(np.float32)
    codes = prototypes(12)
    assert set(np.unique(codes)) == {-1.0, 1.0}
    np.testing.assert_array_equal(codes[:10], prototypes(10))
    apart = np.array([np.sum(a != b) for i, a in enumerate(codes) for b in codes[:i]])
    assert apart.min() > 25, "two classes have nearly the same code"
    layer = RbfOutput(12)
    assert layer.init(jax.random.key(0), x) == {}
    expected = [[-np.sum((row - code) ** 2) for code in codes] for row in x]
    np.testing.assert_allclose(layer.apply({}, x), expected, rtol=1e-5)  # type: ignore[arg-type]


def test_shortcut_a_samples_every_second_pixel_and_adds_zero_maps():
    model = ResNet(3, blocks=(1, 1), width=4, zero_init_residual=True)
    x = some_images(model, 2)
    quick = {"xla_backend_optimization_level": 0}
    seen = jax.jit(lambda: stages(model, model.init(jax.random.key(0), x, train=False), x)[1], compiler_options=quick)()
    # The residual branches start at zero, so each block outputs its shortcut.
    np.testing.assert_array_equal(seen["stage1_block1"], seen["conv1"])
    np.testing.assert_array_equal(seen["stage2_block1"][..., 2:6], seen["conv1"][:, ::2, ::2])
    np.testing.assert_array_equal(seen["stage2_block1"][..., :2], 0)
    np.testing.assert_array_equal(seen["stage2_block1"][..., 6:], 0)


def test_shortcut_a_is_refused_with_bottlenecks():
    with pytest.raises(UserError, match="shortcut=A does not work with bottleneck blocks"):
        shapes(build("resnet50", args=["shortcut=A"]), (64, 64, 3))


def test_other_shortcuts_than_a_and_b_are_refused():
    with pytest.raises(UserError, match="shortcut is 'C': it must be A or B"):
        jax.eval_shape(
            lambda: build("resnet20", shortcut="C").init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
        )


@pytest.mark.parametrize("name", SMALL)
def test_channels_and_classes_follow_what_is_given(name):
    model = build(name, 7)
    logits = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 36, 30, 2)), train=False)[0]
    )
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(("name", "layer"), [("lenet5", "LeNet5.conv2"), ("lenet5_1998", "LeNet5Of1998.c3")])
def test_too_small_image_is_refused_by_the_layer_that_it_does_not_fit(name, layer):
    with pytest.raises(UserError) as error:
        shapes(build(name), (8, 8, 1))
    assert str(error.value).startswith((f"{layer}: a 4x4 map is too small", f"{layer}: a 6x6 map is too small"))
    assert "usual size is" in str(error.value)


def test_smallest_image_of_lenet5_works():
    shapes(build("lenet5"), (12, 12, 1))
    with pytest.raises(UserError, match=r"LeNet5\.pool2"):
        shapes(build("lenet5"), (11, 11, 1))


MISTAKES = [
    ("lenet-5", [], "unknown model 'lenet-5'; perhaps you meant lenet5"),
    ("lenet5", ["activaton=relu"], "perhaps you meant activation"),
    ("lenet5", ["pool=min"], "pool=min for lenet5: write pool=max|average"),
    ("resnet20", ["zero_init_residual=perhaps"], "write zero_init_residual=true|false"),
    ("mnist_cnn", ["dense_dropout=half"], "write dense_dropout=NUMBER"),
    ("resnet20", ["dtype=float16"], "no argument 'dtype'"),
]


@pytest.mark.parametrize(("name", "args", "message"), MISTAKES)
def test_build_refuses_wrong_names_and_arguments(name, args, message):
    with pytest.raises(UserError) as error:
        build(name, 10, args=args)
    assert message in str(error.value)


def test_unknown_activation_is_refused():
    with pytest.raises(UserError, match="unknown activation 'rellu'; perhaps you meant relu"):
        shapes(build("lenet5", args=["activation=rellu"]), (28, 28, 1))


def test_build_sets_the_axis_name_of_models_that_have_one():
    assert build("resnet20", axis_name="data").axis_name == "data"
    assert not hasattr(build("lenet5", axis_name="data"), "axis_name")


def test_flops_of_lenet5_by_hand():
    convolutions = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25
    assert count_flops(build("lenet5"), (28, 28, 1)) == 2 * (convolutions + 400 * 120 + 120 * 84 + 84 * 10)


@pytest.mark.parametrize(
    ("model", "stage", "layer"),
    [
        (build("lenet5", args=["pool=average", "activation=linear"]), "pool2", "pool2"),
        (ResNet(3, blocks=(1, 1), width=4, shortcut="B"), "stage2_block1", "stage2_block1/conv2"),
    ],
    ids=["lenet5", "resnet"],
)
def test_receptive_field_is_what_an_output_depends_on(model, stage, layer):
    x = jax.random.normal(jax.random.key(0), (8, 40, 40, 1))
    variables = draw_variables(model, x.shape[1:])

    def middle(x: jax.Array) -> jax.Array:
        activation = stages(model, variables, x)[1][stage]
        row, column = activation.shape[1] // 2, activation.shape[2] // 2
        return jnp.sum(activation[:, row, column])

    rows = np.flatnonzero(np.abs(jax.jit(jax.grad(middle))(x)).sum((0, 2, 3)))
    table = {row.name: row.receptive_field for row in layer_table(model, (40, 40, 1))}
    assert rows.max() - rows.min() + 1 == table[layer]


def test_list_names_every_model_with_its_count_and_source(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == list(MODELS) == list(SOURCES)
    for line, row in zip(lines, read_table(), strict=True):
        assert f" {int(row['parameters']):,} " in line and SOURCES[row["model"]] in line
    notes = {line.split()[0]: line.rsplit("; ", 1)[-1] for line in lines if "auxiliary heads" in line}
    assert notes == {
        "googlenet": "without auxiliary heads 6,998,552 parameters",
        "googlenet_torchvision": "without auxiliary heads 6,624,904 parameters",
        "inception_v3": "without auxiliary heads 23,834,568 parameters",
    }


def test_table_of_a_model_has_its_layers_and_totals(capsys):
    main(["lenet5", "--input", "32x32x1", "--model-args", "pool=average"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        ["layer", "kind", "output", "parameters", "FLOPs", "sees"],
        ["input", "32x32x1", "1"],
        ["conv1", "Conv", "28x28x6", "156", "235", "k", "5"],
        ["pool1", "AvgPool", "14x14x6", "6"],
    ]
    assert lines[-2] == ["total", "61,706", "833", "k"]


def test_table_of_a_users_own_model(capsys):
    main(["cnn_jax.models.lenet:LeNet5", "--input", "32x32x1", "--model-args", "pool=average"])
    own = capsys.readouterr().out
    main(["lenet5", "--input", "32x32x1", "--model-args", "pool=average"])
    assert capsys.readouterr().out == own


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet21"], "error: unknown model 'resnet21'"),
        (["cnn_jax.models.lenet:LeNet5"], "cnn_jax.models.lenet:LeNet5 has no published input: set --input, such as"),
        (["cnn_jax.models.lenet:LeNet6"], "cnn_jax.models.lenet has no attribute LeNet6"),
        (["lenet5", "--input", "28x28"], "--input is '28x28': write HEIGHTxWIDTHxCHANNELS"),
        (["lenet5", "--input", "8x8x1"], "LeNet5.conv2: a 4x4 map is too small"),
        (["lenet5", "--classes", "0"], "0 classes for lenet5"),
        (["lenet5", "--classes", "ten"], "--classes is ten: it must be a whole number (see"),
        (["lenet5", "--model-args", "pool"], "is not key=value"),
        (["--input", "8x8x1"], "these options need a model"),
        (["--foo"], "unknown option --foo; drop it (see"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        guard(lambda: main(argv))
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("mlp", "hidden=-5"),
        ("mlp", "hidden=0"),
        ("resnet20", "blocks=3/0/3"),
        ("mnist_cnn", "dense_dropout=2.0"),
        ("convnext_tiny", "drop_path=-0.1"),
        ("alexnet", "first_padding=-1"),
    ],
)
def test_values_out_of_range_are_refused(name, argument):
    with pytest.raises(
        UserError, match=f"^{argument} is out of range for {name}: use (whole numbers|a rate) of at least [01]"
    ):
        build(name, args=[argument])


def test_boundary_values_are_accepted():
    assert build("alexnet", args=["first_padding=0", "dropout=0"]).first_padding == 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "pattern"])
def test_a_network_of_the_catalogue_is_named(name):
    found = model_name(create_model(name))
    assert found is not None
    # Where several names mean equal networks, the first one is given.
    assert create_model(found[0], **found[1]) == create_model(name) and found[1] == {}


def test_fields_of_a_named_network_are_those_that_differ_from_the_catalogue():
    model = create_model("resnet56", 7, shortcut="B", dtype=jnp.bfloat16)
    assert model_name(model) == ("resnet56", {"num_classes": 7, "dtype": jnp.bfloat16, "shortcut": "B"})
    assert model_name(nn.Dense(3)) is None
    assert model_name(create_model("pattern")) is None, "it does not keep the text of its pattern"


def test_every_name_of_the_catalogue_can_be_imported():
    assert all(getattr(cnn_jax.models, name) is make for name, make in MODELS.items())
    assert set(MODELS) <= set(cnn_jax.models.__all__)


def test_fields_may_be_text_or_values():
    assert build("resnet20", 10, shortcut="B") == create_model("resnet20", 10, shortcut="B")
    assert build("resnet20", shortcut="B", args=["width=4"]) == build("resnet20", args=["shortcut=B", "width=4"])
    with pytest.raises(UserError, match="^shortcut is given twice for resnet20: drop one$"):
        build("resnet20", shortcut="B", args=["shortcut=A"])
    with pytest.raises(UserError, match="unknown field of resnet20 'shortcutt'; perhaps you meant shortcut"):
        build("resnet20", shortcutt="B")
    with pytest.raises(UserError, match="width=0 is out of range for resnet20"):
        build("resnet20", width=0)


def test_both_stages_of_the_multi_scale_network_feed_its_classifier():
    model = build("multiscale_cnn", features=(3, 4), hidden=5)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))
    variables: Any = model.init(jax.random.key(1), x, train=False)
    logits, found = stages(model, variables, x)
    assert {name: activation.shape[1:] for name, activation in found.items()} == {
        "conv1": (28, 28, 3),
        "pool1": (14, 14, 3),
        "conv2": (10, 10, 4),
        "pool2": (5, 5, 4),
        "skip": (7, 7, 3),
        "fc1": (5,),
    }
    params = variables["params"]
    # 7x7 means of 2x2 pooled maps are means of 4x4 pixels; both stages are rectified.
    first, means = np.asarray(found["conv1"]), np.asarray(found["skip"])
    np.testing.assert_allclose(means, first.reshape(2, 7, 4, 7, 4, 3).mean((2, 4)), rtol=1e-5)
    assert min(first.min(), np.min(found["conv2"])) >= 0
    features = np.concatenate([np.asarray(found[name]).reshape(2, -1) for name in ("pool2", "skip")], axis=1)
    kernel = np.concatenate([params["fc1"]["kernel"], params["fc1_skip"]["kernel"]])
    hidden = np.tanh(features @ kernel + np.asarray(params["fc1"]["bias"])[None])
    np.testing.assert_allclose(hidden @ np.asarray(params["output"]["kernel"]), logits, rtol=1e-4, atol=1e-5)
