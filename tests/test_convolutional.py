"""Converted classifiers: same logits, exact sliding for nets without padding, and errors for what cannot convert."""

from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.errors import UserError
from cnn_jax.inspect.sliding import Convolutional, heat_map, to_convolutional
from cnn_jax.inspect.summary import layer_table
from cnn_jax.layers import Conv, GlobalAvgPool, LocallyConnected, SqueezeExcite, flatten
from cnn_jax.models import build, stages
from cnn_jax.models.pattern import from_pattern
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.vgg import VGG


class Case(NamedTuple):
    model: nn.Module
    trained: tuple[int, int, int]
    larger: tuple[int, int] = (0, 0)
    stride: int = 0


# No padding: sliding is exact. The odd sizes leave pixels over at the edges.
EXACT = {
    "lenet5": Case(build("lenet5", 3), (32, 32, 1), (41, 38), 4),
    "lenet5_1998": Case(build("lenet5_1998", 3), (32, 32, 1), (36, 40), 4),
    "kaggle_lenet": Case(build("kaggle_lenet", 3), (28, 28, 1), (33, 36), 4),
    "softmax_regression": Case(build("softmax_regression", 3), (4, 5, 2), (6, 9), 1),
    "mlp": Case(build("mlp", 3, args=["hidden=7"]), (4, 5, 2), (6, 9), 1),
    "strides": Case(from_pattern("conv3-4s2pvalid bn pool3s2 fc6 bn drop0.5 fc5"), (15, 19, 2), (24, 31), 4),
    "global average": Case(
        from_pattern("conv3-4pvalid avgpool conv2-6pvalid gap drop0.5 fc5 fc4"), (11, 9, 2), (15, 15), 2
    ),
    "all convolutional": Case(from_pattern("conv3-4s2pvalid conv1-5 gap"), (9, 11, 2), (14, 15), 2),
}
# With padding, logits match at the training size only; `test_miniatures` covers every architecture.
PADDED = {
    "lenet5": Case(build("lenet5", 3), (28, 28, 1)),
    "ImageNet ResNet": Case(
        ResNet(3, blocks=(1, 1), width=4, shortcut="B", bottleneck=True, imagenet_stem=True), (32, 40, 3)
    ),
    "VGG": Case(VGG(3, convolutions=(2, 1), features=(4, 6), dense=(8, 9), batch_norm=True), (12, 8, 3)),
    "VGG remat": Case(VGG(3, convolutions=(2, 1), features=(4, 6), dense=(8, 9), remat=True), (12, 8, 3)),
    "pattern": Case(from_pattern("[[conv3-4 bn]*2 pool]*2 [fc8 drop0.5]*2 fc5"), (12, 8, 3)),
    "head_map that averages": Case(VGG(3, convolutions=(1,), features=(4,), dense=(8, 9), head_map=3), (8, 8, 3)),
}


def some_variables(model: nn.Module, input_shape: tuple[int, int, int]) -> Any:
    """Random variables scaled to give logits of about 1; no layer is the identity."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False))
    numbers = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        if leaf.ndim == 1:
            return jnp.asarray(numbers.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(numbers.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.dtype)

    return jax.tree.map(draw, shapes)


@cache
def converted(case: Case) -> tuple[Convolutional, Any]:
    return to_convolutional(case.model, some_variables(case.model, case.trained), case.trained)


def some_images(batch: int, size: tuple[int, ...], channels: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, *size, channels))


def evaluate(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)


def assert_close(one: Any, other: Any) -> None:
    scale = max(1.0, float(np.abs(other).max()))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("case", [*EXACT.values(), *PADDED.values()], ids=[*EXACT, *(f"padded {n}" for n in PADDED)])
def test_logits_are_the_classifiers_on_images_of_the_training_size(case):
    x = some_images(2, case.trained[:2], case.trained[2])
    logits = evaluate(case.model, some_variables(case.model, case.trained), x)
    assert np.std(logits) > 1e-3, "equal logits would prove nothing"
    own = evaluate(*converted(case), x)
    assert own.shape == (2, 1, 1, logits.shape[-1])
    assert own.dtype == jnp.float32
    assert_close(own[:, 0, 0], logits)


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_map_of_a_larger_image_is_the_classifier_on_every_crop(case):
    (height, width, channels), stride = case.trained, case.stride
    image = some_images(1, case.larger, channels)[0]
    rows, columns = ((given - own) // stride + 1 for given, own in zip(case.larger, case.trained, strict=False))
    assert rows > 1 and columns > 1
    crops = [
        image[stride * i : stride * i + height, stride * j : stride * j + width]
        for i in range(rows)
        for j in range(columns)
    ]
    logits = evaluate(case.model, some_variables(case.model, case.trained), jnp.stack(crops))
    own = evaluate(*converted(case), image[None])
    assert own.shape == (1, rows, columns, logits.shape[-1])
    assert_close(own.reshape(logits.shape), logits)


def test_interior_of_a_padded_nets_map_depends_on_local_pixels_only():
    case = Case(from_pattern("conv5-4 pool conv3-6 pool fc8 fc3"), (12, 12, 1))
    image = some_images(1, (48, 44), 1)
    part = image[:, 8:36, 12:40]
    whole_map, part_map = evaluate(*converted(case), image), evaluate(*converted(case), part)
    assert part_map.shape == (1, 5, 5, 3)
    same = np.isclose(whole_map[:, 2:7, 3:8], part_map, rtol=1e-4, atol=1e-4).all((0, 3))
    # Padding reaches 2 + 2 pixels, one cell of the last map, so windows at the part's edges see it.
    assert same[1:-1, 1:-1].all()
    assert not same[0].any() and not same[:, -1].any()
    # It differs from the classifier on the crop, which is padded with zeros.
    crop = evaluate(case.model, some_variables(case.model, case.trained), image[:, 16:28, 16:28])
    assert not np.allclose(crop[0], whole_map[0, 4, 4], rtol=1e-2)


@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        (EXACT["lenet5"], {"fc1": (5, 5, 16, 120), "fc2": (1, 1, 120, 84), "output": (1, 1, 84, 3)}),
        (EXACT["global average"], {"fc1": (1, 1, 6, 5), "output": (1, 1, 5, 4)}),
        (PADDED["VGG"], {"fc6": (3, 2, 6, 8), "fc7": (1, 1, 8, 9), "output": (1, 1, 9, 3)}),
    ],
    ids=["lenet5", "global average", "VGG"],
)
def test_kernels_become_filters_and_nothing_else_changes(case, kernels):
    before: dict[str, Any] = traverse_util.flatten_dict(some_variables(case.model, case.trained), sep="/")
    after: dict[str, Any] = traverse_util.flatten_dict(converted(case)[1], sep="/")
    assert after.keys() == before.keys()
    changed = {path: leaf.shape for path, leaf in after.items() if leaf.shape != before[path].shape}
    assert changed == {f"params/{name}/kernel": shape for name, shape in kernels.items()}
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf.ravel(), before[path].ravel())


def test_converted_model_is_a_model():
    case = EXACT["lenet5"]
    model, variables = converted(case)
    drawn = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *case.trained)), train=False))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, variables)
    _, seen = jax.eval_shape(lambda x: stages(model, variables, x), jnp.zeros((2, 40, 44, 1)))
    assert {name: a.shape for name, a in seen.items() if name in ("pool2", "fc1", "fc2")} == {
        "pool2": (2, 7, 8, 16),
        "fc1": (2, 3, 4, 120),
        "fc2": (2, 3, 4, 84),
    }
    rows = {row.name: row for row in layer_table(model, (40, 44, 1))}
    assert sum(row.parameters for row in rows.values()) == 61_706 - 7 * 85
    assert rows["fc1"].flops == 2 * 3 * 4 * (5 * 5 * 16 * 120), "at each of 3x4 positions"


def test_bfloat16_stays_inside():
    model = build("lenet5", 3, dtype=jnp.bfloat16)
    x = some_images(2, (32, 32), 1)
    variables = some_variables(EXACT["lenet5"].model, (32, 32, 1))
    own = evaluate(*to_convolutional(model, variables, (32, 32, 1)), x)
    assert own.dtype == jnp.float32
    logits = evaluate(model, variables, x)
    np.testing.assert_allclose(own[:, 0, 0], logits, atol=0.02 * float(np.abs(logits).max()))


def test_heat_map_is_the_softmax_at_each_position():
    case = EXACT["strides"]
    image = some_images(1, case.larger, 2)[0]
    heat = heat_map(*converted(case), image)
    logits = evaluate(*converted(case), image[None])[0]
    assert heat.shape == logits.shape == (3, 4, 5)
    np.testing.assert_allclose(heat, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-4)


def test_heat_map_finds_the_place():
    # A one-template classifier, for a cross: the map peaks where the cross is.
    model, cross = build("softmax_regression", 2), np.eye(5) + np.eye(5)[::-1]
    variables = {"params": {"output": {"kernel": np.stack([cross, 0 * cross], -1).reshape(25, 2), "bias": np.zeros(2)}}}
    variables = jax.tree.map(jnp.float32, variables)
    image = np.zeros((20, 30, 1), np.float32)
    image[11:16, 17:22, 0] = cross
    heat = heat_map(*to_convolutional(model, variables, (5, 5, 1)), jnp.asarray(image))
    assert np.unravel_index(np.argmax(heat[..., 0]), heat.shape[:2]) == (11, 17)


class Net(nn.Module):
    """A convolution, an optional layer, and one of several heads."""

    layer: Any = None
    head: str = "flatten"

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = Conv(4, (3, 3), padding="VALID", name="conv")(x)
        x = x if self.layer is None else self.layer(name="layer")(x)
        if self.head == "functional pool":
            return nn.Dense(3, name="output")(flatten(nn.max_pool(x, (2, 2), (2, 2))))
        if self.head == "fixed size":
            return nn.Dense(3, name="output")(flatten(jax.image.resize(x, (*x.shape[:1], 4, 4, 4), "linear")))
        if self.head == "last maps":
            return Conv(3, x.shape[1:3], padding="VALID", name="output")(x)[:, 0, 0]
        return nn.Dense(3, name="output")(flatten(x))


class Composite(nn.Module):
    """A net whose head spans several modules, after a block that has a global average of its own."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        class Head(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.relu(nn.Dense(5, name="fc")(x))
                return nn.LayerNorm(name="norm")(x)

        class Gate(nn.Module):
            @nn.compact
            def __call__(self, x):
                gate = nn.sigmoid(nn.Dense(x.shape[-1], name="fc")(GlobalAvgPool(name="pool")(x)))
                return x * gate[:, None, None]

        x = Gate(name="gate")(Conv(4, (3, 3), padding="VALID", name="conv")(x))
        x = Head(name="head2")(Head(name="head1")(flatten(x)))
        return nn.Dense(3, name="output")(x)


def test_heads_of_several_modules_are_converted_and_gates_inside_are_not():
    model, x = Composite(), some_images(2, (6, 6), 2)
    variables = some_variables(model, (6, 6, 2))
    own, own_variables = to_convolutional(model, variables, (6, 6, 2))
    kernels: dict[str, Any] = traverse_util.flatten_dict(own_variables["params"], sep="/")
    assert kernels["gate/fc/kernel"].shape == (4, 4)
    assert [kernels[f"{name}/kernel"].shape for name in ("head1/fc", "head2/fc", "output")] == [
        (4, 4, 4, 5),
        (1, 1, 5, 5),
        (1, 1, 5, 3),
    ]
    assert_close(evaluate(own, own_variables, x)[:, 0, 0], evaluate(model, variables, x))
    assert evaluate(own, own_variables, some_images(2, (8, 9), 2)).shape == (2, 3, 4, 3)


def test_squeeze_excitation_sees_the_whole_larger_image():
    model = Net(layer=lambda name: SqueezeExcite(2, name=name))
    own, variables = to_convolutional(model, some_variables(model, (6, 6, 1)), (6, 6, 1))
    x = some_images(1, (6, 8), 1)
    changed = x.at[:, :, 7].add(1)
    assert not np.allclose(evaluate(own, variables, x)[:, :, 0], evaluate(own, variables, changed)[:, :, 0])


SMALLER = [(31, 40, 1), (40, 31, 1), (40, 40, 3)]


@pytest.mark.parametrize("shape", SMALLER)
def test_smaller_images_and_other_channels_are_refused(shape):
    size = "x".join(map(str, shape))
    with pytest.raises(UserError, match=f"images are {size}, but LeNet5 was trained on 32x32 with 1 channels: pass"):
        evaluate(*converted(EXACT["lenet5"]), jnp.zeros((1, *shape)))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            "last maps",
            "Net has no dense layer and no global pooling layer after its last map: pass a classifier whose head",
        ),
        ("functional pool", "a dense layer output on 16 numbers, not on the 4x4x4 map before it: pass a classifier"),
    ],
)
def test_model_without_such_a_head_is_refused(head, message):
    model = Net(head=head)
    with pytest.raises(UserError, match=message) as error:
        to_convolutional(model, some_variables(model, (6, 6, 1)), (6, 6, 1))
    assert "\n" not in str(error.value)


def test_maps_of_a_fixed_size_are_refused_when_they_matter():
    model = Net(head="fixed size")
    own, variables = to_convolutional(model, some_variables(model, (6, 6, 1)), (6, 6, 1))
    assert evaluate(own, variables, jnp.zeros((1, 6, 6, 1))).shape == (1, 1, 1, 3)
    with pytest.raises(UserError, match="dense layer output on 64 numbers, not on the 4x5x4 map.*without head_map"):
        evaluate(own, variables, jnp.zeros((1, 6, 7, 1)))


def test_maps_that_have_the_size_of_the_head_slide_as_they_are():
    plain = VGG(3, convolutions=(1,), features=(4,), dense=(8, 9))
    own, variables = converted(Case(plain.clone(head_map=4), (8, 8, 3)))
    x = some_images(1, (12, 10), 3)
    assert evaluate(own, variables, x).shape == (1, 3, 2, 3)
    assert_close(evaluate(own, variables, x), evaluate(*converted(Case(plain, (8, 8, 3))), x))


def test_weights_that_are_tied_to_positions_are_refused_for_larger_images():
    model = Net(layer=lambda name: LocallyConnected(2, (3, 3), padding="VALID", name=name))
    own, variables = to_convolutional(model, some_variables(model, (6, 6, 1)), (6, 6, 1))
    with pytest.raises(UserError, match="images are 6x7x1, but a layer has weights for 6x6x1 only") as error:
        evaluate(own, variables, jnp.zeros((1, 6, 7, 1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(28, 32, 1), (32, 32, 3)])
def test_variables_of_another_size_are_refused(shape):
    model = build("xo_cnn")
    with pytest.raises(UserError, match="the variables do not fit images of") as error:
        to_convolutional(model, some_variables(model, (32, 32, 1)), shape)
    assert "\n" not in str(error.value)


def test_heat_map_refuses_what_it_cannot_use():
    case = EXACT["strides"]
    with pytest.raises(UserError, match="PatternNet is not a converted network: call to_convolutional"):
        heat_map(case.model, some_variables(case.model, case.trained), jnp.zeros(case.trained))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the image has shape \(1, 15, 19, 2\): pass"):
        heat_map(*converted(case), jnp.zeros((1, *case.trained)))
