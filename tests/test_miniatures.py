"""The model contract, checked numerically on a small network of every architecture and kind of block."""

import importlib
import re
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_checks import by_path, drawn, each, evaluated, loss, shapes, trained, without_gradient

from cnn_jax.errors import UserError
from cnn_jax.inspect.sliding import to_convolutional
from cnn_jax.layers import INITIALIZERS
from cnn_jax.models import MODELS, build, inception_bn
from cnn_jax.models.alexnet import AlexNet, alexnet_no_conv3_conv4_fc6_fc7, alexnet_one_tower
from cnn_jax.models.all_cnn import AllCnn
from cnn_jax.models.autoencoder import ConvAutoencoder
from cnn_jax.models.convnext import ConvNeXt
from cnn_jax.models.densenet import DenseNet
from cnn_jax.models.digits import DigitCnn, Maps
from cnn_jax.models.efficientnet import efficientnet_b0
from cnn_jax.models.googlenet import Branch, Filters
from cnn_jax.models.mobilenet import InvertedResidualNet, Stage
from cnn_jax.models.multiscale import MultiScaleCnn
from cnn_jax.models.pattern import from_pattern
from cnn_jax.models.preact_resnet import PreActResNet
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.speednet import SpeedNet
from cnn_jax.models.vgg import VGG
from cnn_jax.models.zfnet import ZFNet

pytestmark = pytest.mark.usefixtures("one_device")

# Not plain imports: the package re-exports functions of the same names.
googlenet, inception_v3 = (importlib.import_module(f"cnn_jax.models.{name}") for name in ("googlenet", "inception_v3"))


class Miniature(NamedTuple):
    model: nn.Module
    image: tuple[int, int, int] = (16, 16, 3)
    batch: int = 4


_THIN: Any = {"num_classes": 3, "features": (4, 8, 12, 8, 4), "dense": (16, 10)}
_STAGES = (Stage(1, 8, 3, 1, 1), Stage(2, 16, 5, 2, 2))  # blocks without expansion, with stride, with shortcut
_MOBILE: Any = {"num_classes": 3, "stages": _STAGES, "stem_features": 8, "head_features": 16}
MINIATURES = {
    # Already small.
    **{name: Miniature(build(name, 3), (28, 28, 1)) for name in ("softmax_regression", "mlp", "lenet5", "lenet5_1998")},
    **{name: Miniature(build(name, 3), (28, 28, 1)) for name in ("kaggle_lenet", "keras_cifar_cnn", "xo_cnn")},
    "mcdnn_column": Miniature(DigitCnn(3, maps=(Maps(4, 4, pool=2), Maps(6, 3, 2)), dense=(8,)), (16, 16, 1)),
    "pattern": Miniature(from_pattern("conv3-4 bn pool bn conv3-4 pool fc8 bn fc8 drop0.5 fc3"), (8, 8, 1), 16),
    "alexnet": Miniature(AlexNet(**_THIN), (75, 75, 3)),
    "alexnet, one tower, averaged to 2x2": Miniature(alexnet_one_tower(**_THIN, head_map=2), (75, 75, 3)),
    "alexnet, no layers 3, 4, 6, 7": Miniature(alexnet_no_conv3_conv4_fc6_fc7(**_THIN), (75, 75, 3)),
    "zfnet": Miniature(ZFNet(**_THIN), (75, 75, 3)),
    "multiscale_cnn": Miniature(MultiScaleCnn(features=(4, 6), hidden=10, num_classes=3), (32, 32, 1)),
    "vgg": Miniature(VGG(3, convolutions=(1, 2), features=(4, 6), dense=(8, 10)), (8, 8, 3)),
    "vgg_bn": Miniature(
        VGG(3, convolutions=(1, 2), features=(4, 6), dense=(8, 10), batch_norm=True, head_map=3), (8, 8, 3)
    ),
    "all_cnn": Miniature(AllCnn(3, sizes=(3, 1), features=(6, 8)), (12, 12, 3), 8),
    "resnet20": Miniature(ResNet(3, blocks=(1, 1), width=4)),
    "resnet50": Miniature(ResNet(3, blocks=(1, 1), width=4, shortcut="B", bottleneck=True, imagenet_stem=True)),
    "resnext50": Miniature(ResNet(3, blocks=(1, 1), width=4, shortcut="B", bottleneck=True, groups=2, base_width=32)),
    "preact_resnet110": Miniature(PreActResNet(3, blocks=(2, 1), width=4, shortcut="A")),
    "preact_resnet50": Miniature(PreActResNet(3, blocks=(1, 1), width=4, bottleneck=True, imagenet_stem=True)),
    "wrn": Miniature(PreActResNet(3, blocks=(1, 1), width=4, widen=2, dropout=0.2)),
    "googlenet": Miniature(googlenet.googlenet(3), (79, 79, 3)),
    "googlenet_torchvision": Miniature(googlenet.googlenet_torchvision(3), (33, 33, 3)),
    "bn_inception": Miniature(inception_bn.bn_inception(3), (33, 33, 3)),
    "inception_v3": Miniature(inception_v3.inception_v3(3, aux_heads=False), (75, 75, 3)),
    "densenet_bc": Miniature(DenseNet(3, blocks=(1, 1), growth=2, imagenet_stem=False)),
    "densenet121": Miniature(DenseNet(3, blocks=(1, 2), growth=4)),
    "mobilenet_v2": Miniature(InvertedResidualNet(**_MOBILE)),
    "efficientnet": Miniature(efficientnet_b0(**_MOBILE, drop_path=0.6)),
    "convnext": Miniature(ConvNeXt(3, blocks=(1, 2), widths=(4, 8), drop_path=0.6), batch=8),
    "speednet": Miniature(SpeedNet(3, widths=(6, 8), depth=3, residual=True)),
    "conv_autoencoder": Miniature(ConvAutoencoder(features=(4, 6), code=2), (9, 7, 3)),
}
CLASSIFIERS = [name for name, (model, _, _) in MINIATURES.items() if hasattr(model, "num_classes")]
NORMALIZED = [name for name, (model, _, _) in MINIATURES.items() if hasattr(model, "axis_name")]
# One of each kind of block; the others are slow tests.
QUICK = ("lenet5", "pattern", "vgg_bn", "resnet20", "mobilenet_v2", "conv_autoencoder")
REMATERIALISED = [name for name, (model, _, _) in MINIATURES.items() if hasattr(model, "remat")]


@pytest.fixture(autouse=True, scope="module")
def thin_inceptions() -> Iterator[None]:
    """Patches the inception networks' tables, which are not arguments: one row of each kind, few filters."""
    with pytest.MonkeyPatch.context() as patch:
        row, last = (4, 3, 5, 2, 3, 4), (6, 3, 5, 2, 3, 4)
        patch.setattr(googlenet, "TABLE", {4: {"a": row, "d": last}})
        halving = (0, 3, 4, 2, 3, 0)
        patch.setattr(inception_bn, "TABLE", {"3a": row, "3c": halving, "5b": last})
        blocks = {name: inception_v3.BLOCKS[f"mixed{name}"] for name in ("6e", "7a", "7b")}
        patch.setattr(inception_v3, "BLOCKS", {f"mixed{name}": thin(block) for name, block in blocks.items()})
        yield
    jax.clear_caches()  # hundreds of programs that no other test needs


def thin(branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    def few(chain: tuple[Filters, ...]) -> tuple[Filters, ...]:
        return tuple(filters._replace(count=2 + filters.count // 64) for filters in chain)

    return tuple(branch._replace(chain=few(branch.chain), fork=few(branch.fork)) for branch in branches)


@cache
def case(name: str) -> tuple[nn.Module, Any, jax.Array]:
    """The model, random variables, and images."""
    model, image, batch = MINIATURES[name]
    return model, drawn(model, *image), jax.random.normal(jax.random.key(1), (batch, *image))


def test_every_architecture_has_a_miniature():
    assert {type(build(name)) for name in MODELS} == {type(model) for model, _, _ in MINIATURES.values()}


@pytest.mark.parametrize("name", each(CLASSIFIERS, QUICK))
def test_every_parameter_gets_a_gradient(name):
    model, variables, x = case(name)
    gradients, (logits, _) = trained(model, variables, x)
    assert logits.shape == (len(x), 3) and np.isfinite(logits).all()
    idle = set(without_gradient(gradients))
    # A bias before batch normalisation has no effect; rounding may still make its gradient nonzero.
    assert idle <= ({f"conv{i}/bias" for i in ("1_1", "2_1", "2_2")} if name == "vgg_bn" else set())


def test_networks_without_classes_reconstruct_and_train_every_parameter():
    names = [name for name in MINIATURES if name not in CLASSIFIERS]
    assert names == ["conv_autoencoder"]
    for name in names:
        model, variables, x = case(name)
        gradients, (reconstruction, _) = trained(model, variables, x)
        assert reconstruction.shape == x.shape and np.isfinite(reconstruction).all()
        assert without_gradient(gradients) == []


@pytest.mark.parametrize("name", each(NORMALIZED, QUICK))
def test_batch_statistics_move_in_training_only(name):
    model, variables, x = case(name)
    before = variables.get("batch_stats", {})
    _, (_, updates) = trained(model, variables, x)
    moves = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), before, updates["batch_stats"])
    still = {path for path, yes in by_path(moves).items() if not yes}
    assert still == ({"whiten/kernel"} if name == "speednet" else set())


@pytest.mark.parametrize("name", each(MINIATURES, QUICK))
def test_bfloat16_is_only_inside(name):
    model, variables, x = case(name)
    half = model.clone(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, *x.shape[1:]))} == {jnp.dtype("float32")}
    got, expected = (np.asarray(evaluated(m, variables, x)) for m in (half, model))
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(got, expected), "computed in float32 after all"


@pytest.mark.parametrize("name", each(MINIATURES, QUICK))
def test_jit_changes_nothing(name):
    model, variables, x = case(name)
    plain, compiled = np.asarray(model.apply(variables, x, train=False)), evaluated(model, variables, x)
    np.testing.assert_allclose(plain, compiled, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("name", each(REMATERIALISED, QUICK))
def test_rematerialisation_changes_nothing_but_the_program(name):
    """Variables, logits, statistics, gradients and dropped units are all the same."""
    model, variables, x = case(name)
    again = model.clone(remat=True)
    assert jax.tree.structure(shapes(again, *x.shape[1:])) == jax.tree.structure(variables)
    programs = (str(jax.make_jaxpr(lambda v, m=m: m.apply(v, x, train=False))(variables)) for m in (model, again))
    assert ["checkpoint" in program or "remat" in program for program in programs] == [False, True]
    plain, recomputed = trained(model, variables, x), trained(again, variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, recomputed)


# Tracing is cheap, so this one keeps its auxiliary head, which needs 299×299 images.
TRACED = {**MINIATURES, "inception_v3": Miniature(inception_v3.inception_v3(3), (299, 299, 3))}
# Nonlinearities that are not the activation: the gates, the GELU after the fixed whitening.
KEPT = {"efficientnet": {"logistic"}, "speednet": {"erf"}}


@pytest.mark.parametrize("name", each([name for name in MINIATURES if name != "softmax_regression"], QUICK))
def test_another_activation_replaces_every_one(name):
    """With linear activations, no nonlinearity is left in the training program, auxiliary heads included."""
    model, image, batch = TRACED[name]
    variables, x = shapes(model, *image), jax.ShapeDtypeStruct((batch, *image), jnp.float32)
    rest = {kind: tree for kind, tree in variables.items() if kind != "params"}

    def program(model: nn.Module) -> str:
        return str(jax.make_jaxpr(partial(loss, model))(variables["params"], rest, x, jax.random.key(0)))

    def bends(program: str) -> set[str]:
        return set(re.findall(r"\b(relu|erf|tanh|logistic)", program))

    fields: Any = {field: "linear" for field in ("activation", "dense_activation") if hasattr(model, field)}
    before, after = program(model), program(model.clone(**fields))
    assert bends(before) and before != after
    assert bends(after) == KEPT.get(name, set())


@pytest.mark.parametrize("name", each(MINIATURES, QUICK))
def test_another_initialiser_draws_every_kernel(name):
    model, image, _ = TRACED[name]
    drawn_by: dict[str, Any] = {}
    draw = nn.Module.param

    def param(self: nn.Module, key: str, init: Any, *args: Any, **kwargs: Any) -> Any:
        if key == "kernel":
            drawn_by["/".join(self.path)] = init
        return draw(self, key, init, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "param", param)
        shapes(model.clone(kernel_init="normal_0.05"), *image)
    others = {path for path, init in drawn_by.items() if init is not INITIALIZERS["normal_0.05"]}
    # c3's sparse filters are taken from a dense kernel; see test_models.
    assert drawn_by and others == ({"c3"} if name == "lenet5_1998" else set())


@pytest.mark.parametrize("name", each(MINIATURES, QUICK))
def test_unknown_names_are_refused_with_the_nearest_ones(name):
    model, image, _ = MINIATURES[name]
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"activation": "rellu"}, "unknown activation 'rellu'; perhaps you meant relu"),
        ({"kernel_init": "glorot_norml"}, "unknown initializer 'glorot_norml'; perhaps you meant glorot_normal"),
    )
    for fields, message in mistakes:
        with pytest.raises(UserError, match=message):
            shapes(model.clone(**fields), *image)


@pytest.mark.parametrize("name", each([name for name in CLASSIFIERS if name != "multiscale_cnn"], QUICK))
def test_head_as_convolutions_gives_the_same_logits_and_slides(name):
    model, variables, x = case(name)
    sliding, filters = to_convolutional(model, variables, MINIATURES[name].image)
    logits, own = evaluated(model, variables, x), evaluated(sliding, filters, x)
    assert own.shape == (len(x), 1, 1, 3)
    np.testing.assert_allclose(own[:, 0, 0], logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    larger = jnp.zeros((1, x.shape[1] + 32, x.shape[2] + 64, x.shape[3]))
    slide = partial(jax.eval_shape, partial(sliding.apply, train=False), filters, larger)
    if getattr(model, "head_map", None):  # differs from the size of the image's map
        with pytest.raises(UserError, match="without head_map"):
            slide()
    else:
        batch, rows, columns, classes = slide().shape
        assert (batch, classes) == (1, 3) and 1 < rows < columns


def test_a_head_that_reads_two_maps_does_not_slide():
    model, variables, _ = case("multiscale_cnn")
    with pytest.raises(UserError, match=r"a dense layer fc1 on 150 numbers, not on the 7x7x4 map before it"):
        to_convolutional(model, variables, MINIATURES["multiscale_cnn"].image)
