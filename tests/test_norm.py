"""Batch normalization in float32 is right where the mean is thousands of times the deviation, in all its forms."""

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.layers import BatchNorm
from cnn_jax.ops import native
from cnn_jax.ops.norm import batch_moments, shifted_moments
from cnn_jax.ops.plain import plain_operations

needs_compiler = pytest.mark.skipif(not native.available(), reason=native.status())
EPSILON = 1e-5


@pytest.fixture(params=[pytest.param("compiled", marks=needs_compiler), "xla", "plain", "parts", "members"])
def form(request, monkeypatch):
    """How the layer is computed; the tests run on eight devices, where it is XLA's."""
    if request.param == "compiled" or request.param == "members" and native.available():
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    with plain_operations() if request.param == "plain" else nullcontext():
        yield request.param


def expected(x: np.ndarray, g: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Output, statistics and gradients of (g·output).sum(), by hand in float64 (Ioffe and Szegedy 2015, §3)."""
    x, g = x.astype(np.float64).reshape(-1, x.shape[-1]), g.astype(np.float64).reshape(-1, x.shape[-1])
    mean, variance = x.mean(0), np.square(x - x.mean(0)).mean(0)
    factor = 1 / np.sqrt(variance + EPSILON)
    h, dh = (x - mean) * factor, g * scale
    return {
        "y": h * scale + bias,
        "mean": mean,
        "variance": variance,
        "dx": factor * (dh - dh.mean(0) - h * (dh * h).mean(0)),
        "dscale": (g * h).sum(0),
        "dbias": g.sum(0),
        "dscale_size": np.abs(g * h).sum(0),
    }


def computed(form: str, x: Any, g: Any, scale: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    layer = BatchNorm(use_running_average=False, momentum=0.0, axis_name="data" if form == "parts" else None)
    statistics = {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])}

    def loss(params, x, g) -> Any:
        y, updates = layer.apply({"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"])
        return jnp.sum(g * y), (y, updates["batch_stats"])

    step = jax.grad(loss, argnums=(0, 1), has_aux=True)
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    if form == "parts":  # the gradient of the whole loss is the sum over the parts
        x, g = (v.reshape(4, -1, *v.shape[1:]) for v in (x, g))
        step = jax.vmap(step, (None, 0, 0), axis_name="data")
    elif form == "members":  # another network beside this one
        x, g = jnp.stack([x[::-1] / 2, x]), jnp.stack([g, g])
        step = jax.vmap(step, (None, 0, 0))
    (dparams, dx), (y, running) = jax.jit(step)(params, x, g)
    if form == "parts":
        dparams, running = jax.tree.map(lambda v: v.sum(0), dparams), jax.tree.map(lambda v: v[1], running)
    elif form == "members":
        dparams, running, dx, y = jax.tree.map(lambda v: v[1], (dparams, running, dx, y))
    rows = (-1, x.shape[-1])
    results = {"y": y.reshape(rows), "mean": running["mean"], "variance": running["var"]}
    gradients = {"dx": dx.reshape(rows), "dscale": dparams["scale"], "dbias": dparams["bias"]}
    return {name: np.asarray(value, np.float64) for name, value in {**results, **gradients}.items()}


@pytest.mark.parametrize("ratio", [1, 1e3, 3e3])
def test_output_statistics_and_gradients_are_those_of_float64(form, ratio):
    rng = np.random.default_rng(0)
    shape = (32, 12, 12, 6)
    x = (rng.normal(size=shape) * np.geomspace(0.1, 10, 6) * (1 + np.arange(32)[:, None, None, None] / 32)).astype("f4")
    x = (x + ratio * x.std((0, 1, 2)) * np.array([1, -1] * 3)).astype(np.float32)
    g = (rng.normal(size=shape) + 0.3).astype(np.float32)
    scale, bias = (rng.uniform(0.5, 2, 6).astype(np.float32) for _ in range(2))
    wanted, got = expected(x, g, scale, bias), computed(form, x, g, scale, bias)
    deviation = np.sqrt(wanted["variance"])
    sizes = {
        "y": 1,
        "mean": ratio * deviation,
        "variance": wanted["variance"],
        "dx": np.abs(wanted["dx"]).max(0),
        "dscale": wanted["dscale_size"],
        "dbias": np.abs(g).sum((0, 1, 2)),
    }
    tolerance = {"mean": 3e-7, "variance": 1e-5, "dbias": 3e-6}  # the others have that of the mean in deviations
    for name, size in sizes.items():
        error = np.max(np.abs(got[name] - wanted[name]) / size)
        assert error <= tolerance.get(name, 1e-5 + 3e-7 * ratio), (name, error)


@jax.numpy_dtype_promotion("standard")
def moments_of(form: str, x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    if form == "parts":
        parts = jax.vmap(lambda part: batch_moments(part, "data"), axis_name="data")(x.reshape(4, -1, *x.shape[1:]))
        mean, variance = (value[2] for value in parts)
    elif form == "members":
        mean, variance = (value[1] for value in jax.vmap(batch_moments)(jnp.stack([x + 1, x])))
    else:
        mean, variance = batch_moments(x)
    return np.asarray(mean), np.asarray(variance)


def test_the_error_is_bounded_even_if_the_differences_are_from_a_value_that_is_far_from_all_others(form):
    bound = 4 * 32 * 32 * 1.2e-7
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 2)).astype(np.float32)
    x[0, 16, 16] = x[0, 0, 0] = 1e5
    _, variance = moments_of(form, jnp.asarray(x))
    np.testing.assert_allclose(variance, x.astype(np.float64).var((0, 1, 2)), rtol=bound)
    x = 3000 + x.clip(-5, 5)
    x[0, 16, 16] = x[0, 0, 0] = 0
    _, variance = moments_of(form, jnp.asarray(x))
    np.testing.assert_allclose(variance, x.astype(np.float64).var((0, 1, 2)), rtol=bound)


def test_constant_maps_have_no_variance_and_nan_stays_nan(form):
    mean, variance = moments_of(form, jnp.full((4, 3, 3, 2), 0.1))
    np.testing.assert_allclose(mean, 0.1, rtol=1e-6)
    assert variance.tolist() == [0, 0]
    mean, variance = moments_of(form, jnp.ones((4, 3, 3, 2)).at[3, 2, 0, 1].set(jnp.nan))
    assert np.isnan(mean).tolist() == np.isnan(variance).tolist() == [False, True]


def test_bfloat16_maps_have_statistics_in_float32(form):
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (8, 16, 16, 3)), jnp.bfloat16)
    mean, variance = moments_of(form, x)
    exact = np.asarray(x, np.float64)
    assert mean.dtype == variance.dtype == np.float32
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3, 16, 100, 300])
@pytest.mark.parametrize("rows", [1, 2, 37, 513, 5000])
def test_compiled_moments_at_every_size(rows, channels):
    x = np.random.default_rng(rows).normal(5, 1, (rows, channels)).astype(np.float32)
    mean, variance = native.moments(jnp.asarray(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-5)
    again = native.moments(jnp.asarray(x))
    assert np.array_equal(again[0], mean) and np.array_equal(again[1], variance)


@needs_compiler
def test_compiled_moments_have_derivatives_in_both_modes(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x, dx = (jnp.asarray(np.random.default_rng(seed).normal(2, 1, (3, 4, 4, 2)), jnp.float32) for seed in (0, 1))
    assert "ffi_call" in str(jax.make_jaxpr(batch_moments)(x)) and "ffi_call" not in str(
        jax.make_jaxpr(shifted_moments)(x)
    )

    def derivatives(moments):
        loss = lambda x: sum(jnp.sum(jnp.sin(value)) for value in moments(x))  # noqa: E731
        gradient = jax.grad(loss)
        return (
            gradient(x),
            jax.jvp(loss, (x,), (dx,)),
            jax.jvp(gradient, (x,), (dx,)),
            jax.grad(lambda x: jnp.sum(gradient(x) * dx))(x),
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6),
        derivatives(batch_moments),
        derivatives(shifted_moments),
    )


@needs_compiler
def test_compiled_moments_lower_for_other_platforms(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    traced = jax.jit(batch_moments).trace(jnp.ones((2, 4, 4, 3)))
    assert "cnn_jax_moments" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "cnn_jax_moments" not in traced.lower(lowering_platforms=("cuda",)).as_text()
