"""The fast convolutions and pooling match XLA's in value and in every derivative."""

import contextlib
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from cnn_jax.native import build
from cnn_jax.ops import avg_pool, conv, conv_general_dilated, max_pool, native, portable
from cnn_jax.ops.plain import plain_operations
from cnn_jax.ops.portable import conv_chunked, conv_tiled

needs_compiler = pytest.mark.skipif(not native.available(), reason=native.status())
NHWC = ("NHWC", "HWIO", "NHWC")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def reference(x, kernel, strides, pads):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


CASES = {
    "3x3": ((8, 6, 6, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), 4),
    "batch no multiple of the chunk": ((7, 5, 5, 2), (3, 3, 2, 5), (1, 1), ((1, 1), (1, 1)), 3),
    "batch smaller than the chunk": ((2, 5, 5, 2), (3, 3, 2, 3), (1, 1), ((0, 0), (0, 0)), 8),
    "stride 2, even size": ((5, 8, 8, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1)), 2),
    "stride 2, odd size, uneven padding": ((4, 9, 7, 2), (3, 3, 2, 3), (2, 2), ((0, 1), (1, 0)), 2),
    "stride 3 by 2, oblong kernel": ((4, 11, 9, 2), (5, 2, 2, 3), (3, 2), ((2, 2), (0, 1)), 2),
    "1x1 stride 2": ((4, 7, 7, 3), (1, 1, 3, 5), (2, 2), ((0, 0), (0, 0)), 2),
    "rows of several tiles": ((3, 7, 11, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), 2),
    "tiles that share no input": ((3, 7, 17, 2), (2, 1, 2, 3), (1, 2), ((0, 0), (0, 0)), 2),
    "columns that no output sees": ((3, 8, 14, 2), (2, 2, 2, 3), (3, 3), ((0, 0), (0, 0)), 2),
    "more features than numbers in a patch": ((5, 6, 6, 3), (1, 1, 3, 8), (1, 1), ((0, 0), (0, 0)), 2),
    "kernel as large as the map": ((3, 5, 5, 2), (5, 5, 2, 4), (1, 1), ((0, 0), (0, 0)), 2),
}


FORMS = ["chunked", "tiled", pytest.param("native", marks=needs_compiler)]


def form_of(name: str, strides, pads, chunk: int):
    if name == "native":
        return lambda x, kernel: native.convolve(x, kernel, strides, pads)
    if name == "tiled":
        return lambda x, kernel: conv_tiled(x, kernel, strides, pads)
    return lambda x, kernel: conv_chunked(x, kernel, strides, pads, chunk)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_convolution_equals_xla(case, form):
    x_shape, kernel_shape, strides, pads, chunk = case
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)

    def loss(convolve, x, kernel):
        return jnp.sum(jnp.tanh(convolve(x, kernel)) ** 2)

    ours = form_of(form, strides, pads, chunk)

    def xla(x, kernel):
        return reference(x, kernel, strides, pads)

    np.testing.assert_allclose(ours(x, kernel), xla(x, kernel), rtol=1e-5, atol=1e-5)
    gradients = [jax.jit(jax.grad(lambda x, k, f=f: loss(f, x, k), argnums=(0, 1)))(x, kernel) for f in (ours, xla)]
    for got, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2]])
def test_convolution_has_second_derivatives_in_both_modes(form):
    x, kernel, direction = normal(0, 5, 4, 4, 2), normal(1, 3, 3, 2, 3), normal(2, 3, 3, 2, 3)
    pads = ((1, 1), (1, 1))

    def products(convolve):
        def loss(kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel)))

        reverse = jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), direction))
        return jax.jit(lambda k: (reverse(k), jax.jvp(jax.grad(loss), (k,), (direction,))[1]))(kernel)

    forms = form_of(form, (1, 1), pads, 2), partial(reference, strides=(1, 1), pads=pads)
    for got, expected in zip(*map(products, forms), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2]])
@pytest.mark.parametrize("axes", [(None, 0), (0, 1), (3, None)])
def test_convolution_has_gradients_under_vmap(form, axes):
    pads = ((1, 1), (1, 1))
    kernel, x = (
        jnp.moveaxis(stack, 0, axis) if axis is not None else stack[0]
        for stack, axis in zip((normal(1, 3, 3, 3, 2, 3), normal(0, 3, 4, 5, 5, 2)), axes, strict=True)
    )

    def gradient(convolve):
        def loss(kernel, x):
            return jnp.sum(convolve(x, kernel) ** 2)

        return jax.jit(jax.vmap(jax.grad(loss), axes))(kernel, x)

    expected = gradient(partial(reference, strides=(1, 1), pads=pads))
    np.testing.assert_allclose(gradient(form_of(form, (1, 1), pads, 2)), expected, rtol=1e-4, atol=1e-3)


SIZES = {  # images, kernel, strides, pads: each exercises a different way of splitting the work
    "blocks of features, and some that are left": ((2, 9, 13, 5), (3, 3, 5, 75), (1, 1), ((1, 1), (1, 1))),
    "kernel in parts": ((2, 6, 6, 300), (3, 3, 300, 33), (1, 1), ((1, 1), (1, 1))),
    "one kernel row in parts": ((3, 4, 4, 130), (5, 5, 130, 40), (1, 1), ((2, 2), (2, 2))),
    "images in pieces": ((2, 70, 90, 8), (7, 7, 8, 4), (2, 2), ((3, 3), (3, 3))),
    "parts of the batch": ((64, 20, 20, 3), (3, 3, 3, 20), (1, 1), ((0, 0), (0, 0))),
    "padding wider than the kernel": ((2, 4, 5, 3), (2, 2, 3, 4), (1, 1), ((5, 4), (3, 6))),
    "stride beyond the kernel": ((2, 11, 10, 3), (2, 1, 3, 17), (3, 4), ((0, 2), (1, 0))),
    "negative padding with a stride": ((2, 8, 8, 3), (3, 3, 3, 4), (2, 2), ((-1, 0), (-1, -2))),
    "small images together": ((40, 5, 5, 64), (3, 3, 64, 64), (1, 1), ((1, 1), (1, 1))),
    "neighbouring outputs as one": ((5, 8, 12, 3), (5, 5, 3, 6), (1, 1), ((2, 2), (2, 2))),
    "neighbouring outputs as one, strides": ((3, 12, 15, 3), (3, 3, 3, 5), (2, 3), ((1, 0), (1, 1))),
    "neighbouring inputs as one, a row stride": ((3, 12, 15, 3), (3, 3, 3, 8), (2, 1), ((1, 1), (1, 1))),
    "several blocks over the same maps": ((6, 9, 9, 70), (1, 1, 70, 80), (1, 1), ((0, 0), (0, 0))),
    "several blocks, rows that see padding alone": ((12, 5, 5, 40), (5, 5, 40, 70), (1, 1), ((4, 4), (4, 4))),
    "as many groups as a vector has numbers": ((3, 5, 6, 32), (3, 3, 2, 16), (1, 1), ((1, 1), (1, 1))),
    "groups that fill a vector together": ((3, 5, 6, 8), (3, 3, 4, 16), (1, 1), ((1, 1), (1, 1))),
    "two groups": ((3, 7, 8, 6), (3, 2, 3, 8), (1, 2), ((1, 1), (0, 1))),
    "groups of one channel and several features": ((3, 7, 8, 5), (3, 3, 1, 15), (2, 1), ((1, 1), (1, 1))),
    "depthwise": ((3, 9, 20, 21), (3, 3, 1, 21), (1, 1), ((1, 1), (1, 1))),
    "depthwise, whole vectors, no padding": ((3, 9, 8, 32), (5, 3, 1, 32), (2, 2), ((0, 0), (0, 0))),
    "depthwise, more taps than a tile has rows": ((2, 15, 15, 3), (11, 11, 1, 3), (1, 1), ((5, 5), (5, 5))),
    "depthwise, stride beyond the kernel": ((2, 9, 10, 4), (1, 2, 1, 4), (2, 3), ((0, 0), (1, 1))),
    "squares of outputs": ((8, 14, 14, 64), (3, 3, 64, 96), (1, 1), ((1, 1), (1, 1))),
    "squares, odd sizes, uneven padding": ((12, 13, 11, 64), (3, 3, 64, 64), (1, 1), ((2, 1), (0, 1))),
    "squares, no padding": ((10, 13, 15, 80), (3, 3, 80, 64), (1, 1), ((0, 0), (0, 0))),
    "squares, negative padding": ((10, 15, 15, 64), (3, 3, 64, 64), (1, 1), ((-1, 0), (0, -1))),
    "squares, padding wider than the kernel": ((9, 7, 8, 64), (3, 3, 64, 128), (1, 1), ((5, 4), (4, 6))),
    "many images in squares": ((30, 7, 8, 128), (3, 3, 128, 64), (1, 1), ((1, 1), (1, 1))),
}


@needs_compiler
@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES.keys())
def test_compiled_convolution_equals_xla_at_every_size(case):
    x_shape, kernel_shape, strides, pads = case
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)
    groups = x_shape[3] // kernel_shape[2]

    def parts(convolve):
        y, gradients = jax.vjp(convolve, x, kernel)
        return y, *gradients(normal(2, *y.shape))

    def ours(x, kernel):
        return native.convolve(x, kernel, strides, pads, groups)

    def xla(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC, feature_group_count=groups)

    for got, expected in zip(parts(ours), parts(xla), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


@needs_compiler
def test_squares_of_outputs_are_at_least_as_exact(one_device):
    x, kernel = normal(0, 8, 14, 14, 64), normal(1, 3, 3, 64, 64)
    whole, one = (native.convolve(images, kernel, (1, 1), ((1, 1), (1, 1))) for images in (x, x[:1]))
    assert not jnp.array_equal(whole[:1], one), "eight images are computed in squares, one is not"
    padded = np.pad(np.asarray(x[:1], np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        padded[:, i : i + 14, j : j + 14] @ np.asarray(kernel[i, j], np.float64) for i in range(3) for j in range(3)
    )
    errors = [float(np.abs(np.asarray(y[:1], np.float64) - exact).max()) for y in (whole, one)]
    assert errors[0] <= 1.5 * errors[1] and errors[0] < 1e-6 * np.abs(exact).max()


@needs_compiler
def test_compiled_convolution_evaluates_without_jit_and_lowers_for_other_platforms(one_device):
    x, kernel = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)
    convolve = form_of("native", (2, 1), ((1, 1), (0, 2)), 0)
    loss = lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2)  # noqa: E731
    expected = jax.grad(loss, argnums=(0, 1))(x, kernel)
    with jax.disable_jit():
        for got, same in zip(jax.grad(loss, argnums=(0, 1))(x, kernel), expected, strict=True):
            np.testing.assert_allclose(got, same, rtol=1e-6)
    exported = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1))), platforms=["tpu"])(x, kernel)
    assert "stablehlo.convolution" in exported.mlir_module()
    with pytest.raises(ValueError, match="do not fit"):
        convolve(x, kernel[:, :, :2])
    with pytest.raises(ValueError, match="feature_group_count"):  # raised by JAX
        conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2)


@needs_compiler
def test_convolution_under_shard_map_has_the_gradient_of_a_shared_kernel(one_device):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    x, kernel = normal(0, 2, 5, 5, 3), normal(1, 3, 3, 3, 4)

    def gradient(x, kernel):
        convolve = partial(conv_general_dilated, dimension_numbers=NHWC)
        return jax.grad(lambda k: jnp.sum(convolve(x, k, (1, 1), "SAME") ** 2))(kernel)

    mapped = jax.jit(
        jax.shard_map(gradient, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec())
    )
    np.testing.assert_allclose(mapped(x, kernel), gradient(x, kernel), rtol=1e-4, atol=1e-4)


@needs_compiler
def test_compiled_convolution_is_deterministic():
    x, kernel = normal(0, 64, 20, 20, 3), normal(1, 3, 3, 3, 20)
    gradient = jax.jit(jax.grad(lambda k: jnp.sum(form_of("native", (1, 1), ((0, 0), (0, 0)), 0)(x, k) ** 2)))
    first = gradient(kernel)
    for _ in range(5):
        assert jnp.array_equal(gradient(kernel), first)


@needs_compiler
def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path))
    assert build._functions("c++")[0]
    for compiler, reason in (("c++ -include nothing.h", "nothing.h: No such file"), ("no-such-compiler", "no-such")):
        functions, said = build._functions(compiler)
        assert not functions and said.startswith(f"{compiler} failed: ") and reason in said
    assert len(list(tmp_path.rglob("*.so"))) == 1, "failed compilations must leave nothing"


def test_compiling_starts_before_jax_is_imported():
    code = (
        "import sys; from cnn_jax.native import build; build.start(); print('jax' in sys.modules); "
        "functions, said = build.library(); import jax; from cnn_jax.ops import native; "
        "print(native.available() == bool(functions), native.status() == said, "
        "str(build._include_folder()) == jax.ffi.include_dir())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True", "True", "True"]


def kernel_gradient(x, kernel, **kwargs) -> str:
    def gradient(kernel):
        return jax.grad(lambda k: jnp.sum(conv_general_dilated(x, k, dimension_numbers=NHWC, **kwargs)))(kernel)

    return str(jax.make_jaxpr(gradient)(kernel))


def kernel_gradient_has_scan(x, kernel, **kwargs) -> bool:
    return "scan" in kernel_gradient(x, kernel, **kwargs)


@pytest.fixture
def one_device(monkeypatch) -> None:
    monkeypatch.setattr(conv.jax, "device_count", lambda: 1)


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)


@needs_compiler
def test_dispatch_takes_the_compiled_form(monkeypatch, one_device):
    x, kernel = normal(0, 4, 9, 9, 3), normal(1, 3, 3, 3, 6)

    def operations(x=x, kernel=kernel, padding: Any = "SAME", **kwargs) -> str:
        convolve = partial(conv_general_dilated, dimension_numbers=NHWC, **kwargs)
        return str(jax.make_jaxpr(lambda x, k: convolve(x, k, (1, 1), padding))(x, kernel))

    assert "cnn_jax_convolution" in operations()
    assert "cnn_jax_convolution" in operations(rhs_dilation=(2, 2))
    assert "cnn_jax_convolution" not in operations(lhs_dilation=(2, 2), padding=((1, 1), (1, 1)))
    assert "cnn_jax_convolution" in operations(kernel=normal(1, 3, 3, 1, 6), feature_group_count=3)
    assert "cnn_jax_convolution" not in operations(x[:3], batch_group_count=3)
    assert "cnn_jax_convolution" in operations(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert "cnn_jax_convolution" not in operations(x.astype(jnp.int32), kernel.astype(jnp.int32))
    assert "cnn_jax_convolution" not in operations(x[:0]), "no images"
    assert "cnn_jax_convolution" not in operations(x[:, :2], padding="VALID"), "too small for the kernel"
    with plain_operations():
        assert "cnn_jax_convolution" not in operations()
    assert conv.form_of_convolutions().startswith("compiled by c++")
    monkeypatch.setattr(conv.jax, "device_count", lambda: 8)
    assert "cnn_jax_convolution" not in operations()
    assert conv.form_of_convolutions() == "XLA's"


DILATED = {  # image, kernel, dilation, padding
    "same": ((3, 9, 8, 3), (3, 3, 3, 4), (2, 2), "SAME"),
    "valid": ((2, 9, 11, 3), (3, 2, 3, 4), (3, 4), "VALID"),
    "one direction": ((2, 6, 7, 2), (3, 3, 2, 3), (1, 2), "SAME"),
    "uneven padding, some of it negative": ((2, 9, 9, 2), (2, 3, 2, 3), (2, 3), ((3, -1), (0, 5))),
    "more than the image": ((2, 4, 5, 2), (3, 3, 2, 3), (6, 6), ((6, 6), (6, 6))),
    "groups": ((2, 7, 7, 6), (3, 3, 2, 9), (2, 2), "SAME"),
    "depthwise": ((2, 7, 7, 5), (3, 3, 1, 5), (2, 2), "SAME"),
    "one pixel": ((2, 5, 5, 3), (1, 1, 3, 4), (2, 2), "SAME"),
}


@needs_compiler
@pytest.mark.parametrize("case", DILATED.values(), ids=DILATED.keys())
def test_dilated_convolution_equals_xla_with_its_gradients(one_device, case):
    x_shape, kernel_shape, dilation, padding = case
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)

    def convolve(ours, x, kernel):
        how = {"rhs_dilation": dilation, "feature_group_count": x_shape[3] // kernel_shape[2]}
        with contextlib.nullcontext() if ours else plain_operations():
            return conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NHWC, **how)

    assert "cnn_jax_convolution" in str(jax.make_jaxpr(partial(convolve, True))(x, kernel))

    def all_of(ours, x, kernel):
        y, pull = jax.vjp(partial(convolve, ours), x, kernel)
        return y, *pull(jnp.sin(y))

    results = [jax.jit(partial(all_of, ours))(x, kernel) for ours in (True, False)]
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(jnp.abs(expected).max())))


@needs_compiler
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_short_floats_are_rounded_once(one_device, dtype, stride, dilation):
    x, kernel = normal(0, 4, 9, 9, 24).astype(dtype), normal(1, 3, 3, 24, 16).astype(dtype)

    def convolve(x, kernel):
        how = {"rhs_dilation": (dilation, dilation), "dimension_numbers": NHWC}
        return conv_general_dilated(x, kernel, (stride, stride), "SAME", **how)

    def all_of(convolve, x, kernel):
        y, pull = jax.vjp(convolve, x, kernel)
        return y, *pull(jnp.ones_like(y))

    assert "cnn_jax_convolution" in str(jax.make_jaxpr(convolve)(x, kernel))
    got = jax.jit(partial(all_of, convolve))(x, kernel)
    exact = all_of(convolve, x.astype(jnp.float32), kernel.astype(jnp.float32))
    with plain_operations():
        xla = jax.jit(partial(all_of, convolve))(x, kernel)
    for one, other, right in zip(got, xla, exact, strict=True):
        assert one.dtype == other.dtype == dtype
        error, theirs = (float(jnp.abs(array.astype(jnp.float32) - right).max()) for array in (one, other))
        assert error <= float(jnp.finfo(dtype).eps) * float(jnp.abs(right).max()) and error <= 1.01 * theirs + 1e-6


def test_dispatch_takes_tiles_for_few_maps(monkeypatch, no_compiler):
    x, kernel, strides = normal(0, 4, 9, 9, 3), normal(1, 3, 3, 3, 6), (1, 1)

    def operations() -> str:
        convolve = partial(conv_general_dilated, dimension_numbers=NHWC)
        return str(jax.make_jaxpr(lambda x, k: convolve(x, k, strides, "SAME"))(x, kernel))

    assert "conv_general_dilated" in operations(), "eight devices"
    monkeypatch.setattr(conv.jax, "device_count", lambda: 1)
    assert "conv_general_dilated" not in operations()
    expected = reference(x, kernel, strides, ((1, 1), (1, 1)))
    got = conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=NHWC)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    imagenet = (256, 224, 224, 3), (7, 7, 3, 64), (2, 2), ((3, 3), (3, 3))
    assert not portable._fits_tiles(*imagenet), "the tiles would fill the memory"


def test_dispatch_takes_chunks_or_xlas_gradient_behind_barriers(monkeypatch, no_compiler):
    monkeypatch.setattr(conv.jax, "device_count", lambda: 1)
    monkeypatch.setattr(portable, "_WHOLE", True)
    plain = {"window_strides": (1, 1), "padding": "SAME"}
    x, kernel = normal(0, 16, 8, 8, 16), normal(1, 3, 3, 16, 16)
    apart = kernel_gradient(x, kernel, **plain)
    assert apart.count("optimization_barrier") == 2 and "scan" not in apart, "its input and the output's gradient"
    assert "scan" in kernel_gradient(x, normal(1, 1, 1, 16, 16), **plain), "1x1"
    assert "scan" in kernel_gradient(x, normal(1, 3, 3, 16, 65), **plain), "many maps"
    assert portable._chunk_size((128, 32, 32, 16), (3, 3, 16, 16), (1, 1), ((1, 1), (1, 1))) == 128
    assert portable._chunk_size((256, 32, 32, 16), (3, 3, 16, 16), (1, 1), ((1, 1), (1, 1))) == 8, "beyond the cache"
    monkeypatch.setattr(portable, "_WHOLE", False)
    assert "scan" in kernel_gradient(x, kernel, **plain), "a slower XLA"


def test_dispatch_takes_the_chunked_gradient_only_where_it_helps(monkeypatch, no_compiler):
    monkeypatch.setattr(portable, "_WHOLE", False)
    x, kernel = normal(0, 16, 8, 8, 12), normal(1, 3, 3, 12, 16)
    plain = {"window_strides": (1, 1), "padding": "SAME"}
    assert not kernel_gradient_has_scan(x, kernel, **plain), "eight devices: the scan would gather the batch"
    monkeypatch.setattr(conv.jax, "device_count", lambda: 1)
    assert kernel_gradient_has_scan(x, kernel, **plain)
    assert not kernel_gradient_has_scan(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), **plain)
    assert not kernel_gradient_has_scan(x, kernel, **plain, rhs_dilation=(2, 2))
    assert not kernel_gradient_has_scan(x, normal(1, 3, 3, 3, 16), **plain, feature_group_count=4)
    assert not kernel_gradient_has_scan(x, kernel[..., :4], **plain), "too few output channels"
    assert not kernel_gradient_has_scan(x[:1], kernel, **plain), "one image"
    monkeypatch.setattr(conv.jax, "default_backend", lambda: "gpu")
    assert not kernel_gradient_has_scan(x, kernel, **plain)


@pytest.mark.parametrize("padding", ["SAME", 1])
def test_flax_layer_with_our_convolution_equals_flax(monkeypatch, padding):
    monkeypatch.setattr(conv.jax, "device_count", lambda: 1)
    x = normal(0, 17, 9, 9, 3)
    results = []
    for convolve in (None, conv_general_dilated):
        layer = nn.Conv(16, (3, 3), 2, padding=padding, conv_general_dilated=convolve)
        params = {"kernel": normal(1, 3, 3, 3, 16), "bias": normal(2, 16)}

        def loss(params, layer=layer):
            y = layer.apply({"params": params}, x)
            assert isinstance(y, jax.Array)
            return jnp.sum(jnp.sin(y))

        results.append(jax.jit(jax.grad(loss))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


POOLS = [
    ((2, 2), (2, 2), "VALID", (3, 8, 8, 4)),
    ((2, 2), (2, 2), "VALID", (2, 7, 5, 3)),
    ((3, 2), (3, 2), ((0, 0), (0, 0)), (2, 7, 6, 3)),
    ((2, 2), (2, 2), "SAME", (2, 5, 5, 3)),
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (2, 9, 9, 3)),
    ((3, 3), (2, 2), "VALID", (2, 8, 11, 3)),
    ((3, 3), (1, 1), "SAME", (2, 5, 6, 3)),
    ((2, 4), (3, 1), ((1, 0), (2, 3)), (2, 8, 5, 3)),
    ((5, 5), (2, 2), ((2, 2), (2, 2)), (2, 9, 9, 3)),
    ((8, 8), (8, 8), "VALID", (2, 8, 8, 3)),
]


@pytest.mark.parametrize(("window", "strides", "padding", "shape"), POOLS)
@pytest.mark.parametrize(("ours", "flax"), [(max_pool, nn.max_pool), (avg_pool, nn.avg_pool)])
def test_pooling_equals_flax_with_its_gradient(ours, flax, window, strides, padding, shape):
    # Few distinct values, so windows are full of ties.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, shape), jnp.float32)

    def value_and_gradient(pool):
        def loss(x):
            y = pool(x, window, strides, padding)
            return jnp.sum(y * normal(1, *y.shape)), y

        (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
        return y, gradient

    with jax.numpy_dtype_promotion("standard"):  # nn.avg_pool divides by an integer array
        reference = value_and_gradient(flax)
    for got, expected in zip(value_and_gradient(ours), reference, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_max_pool_of_integers():
    x = jnp.arange(-16, 0).reshape(1, 4, 4, 1)
    assert max_pool(x, (2, 2), (2, 2), "VALID").ravel().tolist() == [-11, -9, -3, -1]
    assert max_pool(x, (2, 2), (2, 2), ((1, 1), (1, 1))).ravel().tolist() == [-16, -14, -13, -8, -6, -5, -4, -2, -1]


@pytest.mark.parametrize(("window", "strides"), [((2, 2), (2, 2)), ((3, 3), (2, 2))])
def test_max_pool_has_second_derivatives_in_both_modes_and_under_vmap(window, strides):
    x, direction = normal(0, 3, 2, 7, 8, 3), normal(1, 3, 2, 7, 8, 3)

    def products(pool):
        def loss(x):
            return jnp.sum(jnp.sin(pool(x, window, strides, "VALID")))

        def both(x, direction):
            reverse = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), direction))
            return jax.jvp(loss, (x,), (direction,))[1], reverse(x), jax.jvp(jax.grad(loss), (x,), (direction,))[1]

        return jax.jit(jax.vmap(both))(x, direction)

    for got, expected in zip(products(max_pool), products(nn.max_pool), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_max_pool_propagates_nan(place):
    x = jnp.zeros((1, 2, 2, 1)).at[0, place[0], place[1], 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, (2, 2), (2, 2), "VALID")).all()


@needs_compiler
def test_compiled_convolution_of_an_empty_batch():
    kernel = normal(1, 3, 3, 3, 4)

    def loss(kernel, x):
        return native.convolve(x, kernel, (1, 1), ((1, 1), (1, 1))).sum()

    total = jax.grad(lambda kernel: jax.vmap(loss, (None, 0))(kernel, jnp.zeros((0, 2, 8, 8, 3))).sum())(kernel)
    np.testing.assert_array_equal(total, jnp.zeros_like(kernel))
    each = jax.vmap(jax.grad(loss), (None, 0))(kernel, jnp.zeros((0, 2, 8, 8, 3)))
    assert each.shape == (0, 3, 3, 3, 4)
