"""Pooling layers against a loop over windows and PyTorch, and their gradients against finite differences."""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.layers import POOLS, AvgPool, GlobalAvgPool, GlobalMaxPool, L2Pool, MaxPool, MinPool, Pool

# window, strides, padding, map size; in every case the last windows overhang in ceil mode.
CASES = [
    ((2, 2), (2, 2), ((0, 0), (0, 0)), (5, 7)),
    ((2, 2), (2, 2), ((1, 1), (1, 1)), (5, 6)),
    ((3, 3), (2, 2), ((0, 0), (0, 0)), (6, 8)),
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (6, 8)),
    ((3, 2), (2, 3), ((1, 1), (0, 0)), (8, 6)),
    ((2, 2), (3, 3), ((0, 0), (0, 0)), (6, 7)),  # a window that would start past the edge is left out
    ((2, 2), (3, 3), ((1, 1), (1, 1)), (5, 5)),  # likewise inside the padding
]


def maps(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def apply(pool: Pool, x: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda x: pool.apply({}, x))(jnp.asarray(x)))


def by_hand(kind: str, x: np.ndarray, window: Any, strides: Any, pads: Any, ceil_mode: bool, count_pads: bool) -> Any:
    """Pools window by window, straight from the definition."""
    starts = []
    for n, k, s, (before, after) in zip(x.shape[1:3], window, strides, pads, strict=True):
        # Start positions, from the first input, of windows inside the padded map and of those that may overhang it.
        inside = [i for i in range(-before, n + after, s) if i + k <= n + after]
        overhanging = [i for i in range(-before, n, s) if i - s + k < n + after] if ceil_mode else []
        starts.append(sorted({*inside, *overhanging}))
    y = np.empty((len(x), len(starts[0]), len(starts[1]), x.shape[-1]))
    for (a, i), (b, j) in itertools.product(enumerate(starts[0]), enumerate(starts[1])):
        rows, columns = slice(max(i, 0), i + window[0]), slice(max(j, 0), j + window[1])
        seen = x[:, rows, columns].astype(np.float64)
        if kind == "average":
            sides = [
                min(start + k, n + after) - start if count_pads else min(start + k, n) - max(start, 0)
                for start, k, n, (_, after) in zip((i, j), window, x.shape[1:3], pads, strict=True)
            ]
            y[:, a, b] = seen.sum((1, 2)) / (sides[0] * sides[1])
        else:
            functions = {"max": np.max, "min": np.min, "l2": lambda v, axis: np.sqrt((v**2).sum(axis))}
            y[:, a, b] = functions[kind](seen, axis=(1, 2))
    return y


@pytest.mark.parametrize(("window", "strides", "pads", "size"), CASES)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pools_match_their_definition(ceil_mode, window, strides, pads, size):
    x = maps(size)
    pools = [(kind, True, pool(window, strides, pads, ceil_mode)) for kind, pool in POOLS.items()]
    pools.append(("average", False, AvgPool(window, strides, pads, ceil_mode, count_include_pad=False)))
    outputs: Any = jax.jit(lambda x: [pool.apply({}, x) for _, _, pool in pools])(jnp.asarray(x))
    for (kind, count_pads, _), y in zip(pools, outputs, strict=True):
        expected = by_hand(kind, x, window, strides, pads, ceil_mode, count_pads)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6, err_msg=f"{kind}, {count_pads=}")


@pytest.mark.parametrize(("window", "strides", "pads", "size"), CASES)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pools_and_their_gradients_match_torch(ceil_mode, window, strides, pads, size):
    torch: Any = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = maps(size)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    common = {"stride": strides, "padding": tuple(before for before, _ in pads), "ceil_mode": ceil_mode}
    pools = [
        MaxPool(window, strides, pads, ceil_mode),
        AvgPool(window, strides, pads, ceil_mode),
        AvgPool(window, strides, pads, ceil_mode, count_include_pad=False),
    ]
    references = [
        functional.max_pool2d(x_torch, window, **common),
        functional.avg_pool2d(x_torch, window, **common),
        functional.avg_pool2d(x_torch, window, **common, count_include_pad=False),
    ]

    def loss(pool: Pool, x: jax.Array) -> Any:
        y: Any = pool.apply({}, x)
        return jnp.sum(jnp.square(y)), y

    ours = jax.jit(lambda x: [jax.grad(partial(loss, pool), has_aux=True)(x) for pool in pools])(jnp.asarray(x))
    for (gradient, y), reference in zip(ours, references, strict=True):
        np.testing.assert_allclose(y, reference.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
        (expected,) = torch.autograd.grad(reference.square().sum(), x_torch)
        np.testing.assert_allclose(gradient, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strides", [(2, 2), (1, 1)])
@pytest.mark.parametrize("pool", [*POOLS.values(), GlobalAvgPool, GlobalMaxPool])
def test_gradients_match_finite_differences(pool, strides):
    layer = pool() if pool in (GlobalAvgPool, GlobalMaxPool) else pool((2, 2), strides, ceil_mode=True)
    x, direction = jnp.asarray(maps((5, 5))), jnp.asarray(maps((5, 5), seed=1))
    small = 1e-3

    def loss(x):
        y: Any = layer.apply({}, x)
        return jnp.sum(jnp.sin(y))

    def slopes(x):
        difference = loss(x + small * direction) - loss(x - small * direction)
        return jnp.vdot(jax.grad(loss)(x), direction), difference / (2 * small)

    by_gradient, by_difference = jax.jit(slopes)(x)
    assert float(by_gradient) == pytest.approx(float(by_difference), rel=2e-2, abs=1e-2)


def test_l2_pool_and_its_gradient_are_zero_where_the_input_is():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, :2, 0].set(jnp.array([3.0, 4.0]))
    y, gradient = jax.value_and_grad(lambda x: jnp.sum(L2Pool().apply({}, x)))(x)  # type: ignore[arg-type]
    assert float(y) == 5
    np.testing.assert_allclose(gradient[0, 0, :, 0], [0.6, 0.8, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(gradient[0, 1:], 0)


def test_overhang_of_the_printed_example():
    # From the lectures: a 7×7 map, 2×2 windows, stride 2; the fourth row and column of windows overhang.
    x = np.arange(49.0, dtype=np.float32).reshape(1, 7, 7, 1)
    assert apply(MaxPool(), x).shape == (1, 3, 3, 1)
    y = apply(MaxPool(ceil_mode=True), x)[0, :, :, 0]
    np.testing.assert_array_equal(y, [[8, 10, 12, 13], [22, 24, 26, 27], [36, 38, 40, 41], [43, 45, 47, 48]])


@pytest.mark.parametrize("pool", [MaxPool, AvgPool])
@pytest.mark.parametrize(("size", "window", "stride"), [(5, 2, 2), (6, 3, 2), (6, 2, 3), (7, 3, 3)])
def test_ceil_mode_has_no_effect_with_same_padding(size, window, stride, pool):
    x = maps((size, size))
    y = apply(pool((window, window), (stride, stride), "SAME"), x)
    assert y.shape[1:3] == (math.ceil(size / stride),) * 2
    np.testing.assert_array_equal(apply(pool((window, window), (stride, stride), "SAME", ceil_mode=True), x), y)


@pytest.mark.parametrize("pool", POOLS.values())
@pytest.mark.parametrize("window", [(2, 2), (3, 3)])
def test_bfloat16_stays_bfloat16(pool, window):
    x = jnp.asarray(maps((6, 6)), jnp.bfloat16)
    y = apply(pool(window, (2, 2), ceil_mode=True), x)
    assert y.dtype == jnp.bfloat16
    expected = apply(pool(window, (2, 2), ceil_mode=True), x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("pool", POOLS.values())
def test_maps_smaller_than_the_window_are_refused(pool):
    with pytest.raises(UserError, match=r"given a 1x4 map; a 2x2 filter.*\(1 \+ 0 - 2\)/2 \+ 1 >= 1"):
        pool(name="pool").apply({}, jnp.zeros((1, 1, 4, 3)))
    # With overhang, one pixel is enough for a 2×2 window of stride 2 but not for a 3×3 one.
    np.testing.assert_array_equal(pool(ceil_mode=True).apply({}, jnp.ones((1, 1, 1, 1))), 1)
    with pytest.raises(UserError, match=r"given a 1x4 map.*\(1 \+ 0 - 3\)/2 \+ 1 > 0"):
        pool((3, 3), (2, 2), ceil_mode=True).apply({}, jnp.zeros((1, 1, 4, 3)))


def test_windows_of_nothing_but_padding_are_refused():
    with pytest.raises(UserError, match=r"MaxPool: given padding \(0, 2\) for a window of 2; expected less"):
        MaxPool(padding=((0, 0), (0, 2))).apply({}, jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(UserError, match="squash: given padding"):
        AvgPool((3, 3), padding=((3, 3), (1, 1)), name="squash").apply({}, jnp.zeros((1, 4, 4, 1)))


def test_min_pool_mirrors_max_pool_in_padding_too():
    x = np.ones((1, 3, 3, 1), np.float32)
    np.testing.assert_array_equal(apply(MinPool((2, 2), (2, 2), ((1, 1), (1, 1))), x), 1)
    np.testing.assert_array_equal(apply(MaxPool((2, 2), (2, 2), ((1, 1), (1, 1))), -x), -1)


@pytest.mark.parametrize(("layer", "reduce"), [(GlobalAvgPool(), np.mean), (GlobalMaxPool(), np.max)])
def test_global_pools_reduce_each_map_and_each_sliding_window(layer, reduce):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(layer.apply({}, jnp.asarray(x)), reduce(x, (1, 2)), rtol=1e-5)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2), (1, 2))
    np.testing.assert_allclose(layer.slide(jnp.asarray(x), (3, 2)), reduce(windows, (-2, -1)), rtol=1e-5, atol=1e-6)
