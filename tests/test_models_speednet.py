"""The network of the CIFAR-10 speed records: counts, whitening, initialisation, and what is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_checks import (
    assert_bfloat16_is_only_inside,
    drawn,
    evaluated,
    initialised,
    shapes,
    some_images,
    trained,
    volumes,
    without_gradient,
)

from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_parameters
from cnn_jax.models import speednet
from cnn_jax.models.speednet import SpeedNet, partial_dirac, whitened, whitening
from cnn_jax.optim.optimizers import from_transformation
from cnn_jax.training.state import init_state

TINY = SpeedNet(3, widths=(6, 8), depth=3, residual=True)


def by_hand(widths: tuple[int, ...], depth: int) -> int:
    total, before = 24, 24
    for width in widths:
        total += 9 * before * width + (depth - 1) * 9 * width * width + depth * width
        before = width
    return total + 10 * before


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("speednet94", 1_971_352),
        ("speednet94_muon", 1_971_352),
        ("speednet95", by_hand((128, 384, 384), 2)),
        ("speednet96", by_hand((128, 384, 512), 3)),
    ],
)
def test_trained_parameters_are_those_of_the_records(name, parameters):
    variables = shapes(getattr(speednet, name)(), 32, 32, 3)
    assert count_parameters(variables["params"]) == parameters
    assert variables["batch_stats"]["whiten"]["kernel"].shape == (2, 2, 3, 24)


def test_counts_by_hand_are_those_in_the_header():
    assert by_hand((64, 256, 256), 2) == 1_971_352
    for widths, depth in (((128, 384, 384), 2), ((128, 384, 512), 3)):
        assert f"{by_hand(widths, depth):,}" in (speednet.__doc__ or "")


def test_maps_are_those_of_the_records_also_for_other_images():
    assert volumes(SpeedNet(), 32, 32, 3) == {
        "whiten": (31, 31, 24),
        "group1": (15, 15, 64),
        "group2": (7, 7, 256),
        "group3": (3, 3, 256),
        "pool": (256,),
    }
    assert volumes(SpeedNet(), 28, 28, 1)["group3"] == (3, 3, 256)
    shapes(SpeedNet(), 9, 9, 3)
    with pytest.raises(UserError, match=r"SpeedNet\.group3\.pool: given a 1x1 map"):
        shapes(SpeedNet(), 8, 8, 3)
    with pytest.raises(UserError, match=r"SpeedNet\.whiten: given a 1x1 map"):
        shapes(SpeedNet(), 1, 1, 3)


def test_whitening_makes_patches_white():
    # Correlated neighbouring pixels and colours, as in photographs, and a nonzero mean.
    noise = np.random.default_rng(0).normal(size=(64, 10, 10, 2))
    smooth = noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + noise[:, :-1, :-1]
    x = (smooth @ np.array([[1.0, 0.9, 0.2], [0.1, 0.3, 1.0]]) + 0.3).astype(np.float32)
    x = x + 0.1 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    x = jnp.asarray(x)
    kernel = whitening(x, epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24) and kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    y = jax.lax.conv_general_dilated(x, kernel[..., :12], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    rows = np.asarray(y).reshape(-1, 12)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(12), atol=1e-3)
    norms = np.linalg.norm(np.asarray(kernel[..., :12]).reshape(12, 12), axis=0)
    assert np.all(np.diff(norms) > 0), "the largest eigenvalue is not first"


def test_epsilon_bounds_the_gain_in_flat_directions():
    flat = jnp.ones((4, 6, 6, 3))
    kernel = np.asarray(whitening(flat, epsilon=5e-4)).reshape(12, 24)
    norms = np.linalg.norm(kernel[:, :12], axis=0)
    np.testing.assert_allclose(norms[0], 1 / np.sqrt(12 + 5e-4), rtol=1e-4)
    np.testing.assert_allclose(norms[1:], 1 / np.sqrt(5e-4), rtol=1e-2)


def test_whitened_replaces_the_whitening_filters_only():
    x = some_images(8, 12)
    variables = drawn(TINY, 12, 12, 3)
    after = whitened(variables, x)
    np.testing.assert_allclose(after["batch_stats"]["whiten"]["kernel"], whitening(x), rtol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    same = jax.tree.map(lambda a, b: a is b, variables, after)
    same["batch_stats"].pop("whiten")
    assert all(jax.tree.leaves(same))


def test_whitened_refuses_what_does_not_go_together():
    with pytest.raises(UserError, match="expected images with 3 channels"):
        whitened(drawn(TINY, 12, 12, 3), jnp.zeros((2, 12, 12, 1)))
    with pytest.raises(UserError, match="expected variables of a SpeedNet"):
        whitened({"params": {}}, jnp.zeros((2, 12, 12, 3)))


def test_every_parameter_gets_a_gradient_and_the_whitening_stays():
    variables, x = drawn(TINY, 16, 16, 3), some_images()
    gradients, (_, updates) = trained(TINY, variables, x)
    assert without_gradient(gradients) == []
    assert set(gradients["whiten"]) == {"bias"} and set(gradients["group1"]["bn1"]) == {"bias"}
    before, after = dict(variables["batch_stats"]), dict(updates["batch_stats"])
    np.testing.assert_array_equal(before.pop("whiten")["kernel"], after.pop("whiten")["kernel"])
    moves = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), before, after)
    assert all(jax.tree.leaves(moves)), moves


def test_training_state_has_the_whitening_but_the_optimizer_has_not():
    state = jax.eval_shape(
        lambda: init_state(TINY, from_transformation(optax.sgd(0.1, momentum=0.9)), (16, 16, 3), seed=0)
    )
    assert state.batch_stats["whiten"]["kernel"].shape == (2, 2, 3, 24)
    assert {leaf.shape for leaf in jax.tree.leaves(state.params["whiten"])} == {(24,)}
    momenta = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
    assert (2, 2, 3, 24) not in momenta


def test_whitening_bias_can_be_frozen():
    variables, x = drawn(TINY, 16, 16, 3), some_images()
    free, held = (trained(TINY.clone(train_whitening_bias=t), variables, x) for t in (True, False))
    assert without_gradient(held[0]) == ["whiten/bias"]
    np.testing.assert_allclose(free[1][0], held[1][0], rtol=1e-5)


def test_running_statistics_have_momentum_0_6():
    model, x = SpeedNet(3, widths=(6,)), some_images(4, 9)
    variables = drawn(model, 9, 9, 3)
    _, (_, updates) = trained(model, variables, x)
    params = variables["params"]
    y = jax.lax.conv_general_dilated(
        x,
        variables["batch_stats"]["whiten"]["kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = jax.nn.gelu(y + params["whiten"]["bias"].reshape(1, 1, 1, -1), approximate=False)
    y = jax.lax.conv_general_dilated(
        y, params["group1"]["conv1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    maps = np.asarray(y).reshape(4, 4, 2, 4, 2, 6).max((2, 4))  # pooled before the norm
    old, new = variables["batch_stats"]["group1"]["bn1"], updates["batch_stats"]["group1"]["bn1"]
    np.testing.assert_allclose(new["mean"], 0.6 * old["mean"] + 0.4 * maps.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(new["var"], 0.6 * old["var"] + 0.4 * maps.var((0, 1, 2)), rtol=1e-3)


def test_residual_adds_the_first_activation():
    model, x = SpeedNet(3, widths=(6,), depth=3, residual=True), some_images(2, 9)
    variables = drawn(model, 9, 9, 3)
    group = variables["params"]["group1"]
    for name in ("conv2", "conv3"):  # zero, so the group is gelu(first + bias of the last norm)
        group[name]["kernel"] = jnp.zeros_like(group[name]["kernel"])
    for i in (2, 3):
        variables["batch_stats"]["group1"][f"bn{i}"]["mean"] = jnp.zeros(6)
        group[f"bn{i}"]["bias"] = jnp.zeros(6)

    def group1(model: SpeedNet) -> Any:
        return model.apply(variables, x, train=False, mutable=["stages"])[1]["stages"]["group1"]  # type: ignore[index]

    first = group1(SpeedNet(3, widths=(6,), depth=1))
    np.testing.assert_allclose(group1(model), jax.nn.gelu(first, approximate=False), rtol=1e-5, atol=1e-6)
    assert not np.any(group1(model.clone(residual=False)))


def test_logits_are_scaled():
    variables, x = drawn(TINY, 16, 16, 3), some_images(2)
    plain, ninth = (evaluated(TINY.clone(logit_scale=s), variables, x) for s in (1.0, 1 / 9))
    np.testing.assert_allclose(plain, 9 * ninth, rtol=1e-5)


def test_bfloat16_is_only_inside():
    assert_bfloat16_is_only_inside(TINY, some_images())


def test_first_filters_start_as_the_identity():
    kernel = np.asarray(partial_dirac(jax.random.key(0), (3, 3, 24, 64)))
    np.testing.assert_array_equal(kernel[1, 1, :, :24], np.eye(24))
    assert np.sum(kernel[..., :24] != 0) == 24
    rest = np.abs(kernel[..., 24:])
    assert 0.98 / np.sqrt(216) < rest.max() <= 1 / np.sqrt(216)
    x = some_images(1, 5)
    same = jax.lax.conv_general_dilated(
        x, partial_dirac(jax.random.key(0), (3, 3, 3, 3)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(same, x)


def test_weights_start_as_the_records():
    sgd, muon = (
        initialised(m, 32, 32, 3) for m in (SpeedNet(widths=(4, 256)), speednet.speednet94_muon(widths=(4, 256)))
    )
    assert not np.any(sgd["params"]["whiten"]["bias"])
    bias = np.abs(muon["params"]["whiten"]["bias"])
    assert 0.7 / np.sqrt(12) < bias.max() <= 1 / np.sqrt(12)
    head = np.abs(sgd["params"]["output"]["kernel"])
    assert 0.98 / 16 < head.max() <= 1 / 16
    assert np.asarray(muon["params"]["output"]["kernel"]).std(ddof=1) == pytest.approx(1, rel=1e-5)
    filters = np.asarray(sgd["batch_stats"]["whiten"]["kernel"]).reshape(12, 24)
    np.testing.assert_array_equal(filters[:, 12:], -filters[:, :12])
    np.testing.assert_allclose(filters[:, :12].T @ filters[:, :12], np.eye(12), atol=1e-5)
