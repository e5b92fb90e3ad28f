"""Every number printed in the lectures, and hand-written backward passes against automatic differentiation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.arithmetic import (
    avg_pool_gradient,
    conv,
    conv_flops,
    conv_input_gradient,
    conv_kernel_gradient,
    conv_parameters,
    convolve,
    cross_correlate,
    dense_flops,
    dense_parameters,
    ends,
    locally_connected_parameters,
    match_template,
    max_pool_gradient,
    output_size,
    receptive_field,
    same_padding,
)
from cnn_jax.data.sources import parse_split
from cnn_jax.errors import UserError
from cnn_jax.layers import MaxPool, activation
from cnn_jax.ops import avg_pool, max_pool

# --- Output size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "filter_size", "stride", "padding", "outputs"),
    [
        (7, 3, 1, 0, 5),
        (7, 3, 2, 0, 3),
        (7, 3, 1, 1, 7),
        (32, 5, 1, 2, 32),
        (32, 5, 1, 0, 28),
        (227, 11, 4, 0, 55),
        (55, 3, 2, 0, 27),
    ],
)
def test_output_sizes_of_the_slides(size, filter_size, stride, padding, outputs):
    for rounding in ("exact", "floor", "ceil"):
        assert output_size(size, filter_size, stride, padding, rounding=rounding) == outputs


@pytest.mark.parametrize(("size", "filter_size", "stride", "shown"), [(7, 3, 3, "2.333"), (10, 3, 2, "4.5")])
def test_filters_that_do_not_fit_on_the_slides_are_refused(size, filter_size, stride, shown):
    with pytest.raises(UserError) as error:
        output_size(size, filter_size, stride)
    assert f"does not fit {size} inputs, as ({size} + 0 - {filter_size})/{stride} + 1 = {shown}:" in str(error.value)
    assert "\n" not in str(error.value)
    assert output_size(size, filter_size, stride, rounding="floor") == math.floor(float(shown))
    assert output_size(size, filter_size, stride, rounding="ceil") == math.ceil(float(shown))


def test_output_size_refuses_a_filter_larger_than_the_input_and_a_stride_of_nothing():
    with pytest.raises(UserError, match=r"\(4 \+ 0 - 5\)/1 \+ 1 = 0: choose"):
        output_size(4, 5)
    assert output_size(4, 5, rounding="floor") == 0
    assert output_size(4, 5, padding=(1, 0)) == output_size(5, 5) == 1
    with pytest.raises(UserError, match="stride 0"):
        output_size(4, 3, 0, rounding="floor")


def test_overhanging_windows_begin_before_the_end():
    # As in PyTorch and Caffe: a third 2×2 window of stride 3 on 6 inputs would start at 6, past the last one.
    assert output_size(6, 2, 3, rounding="ceil") == 2
    assert output_size(7, 2, 3, rounding="ceil") == 3
    assert output_size(1, 2, 2, rounding="ceil") == 1
    assert output_size(1, 3, 2, rounding="ceil") == 0
    assert ends(3) == (3, 3) and ends((1, 2)) == (1, 2)


def test_alexnet_volumes_of_the_slides():
    # (filter, stride, padding) from conv1 to pool5; all divisions are exact.
    layers = [(11, 4, 0), (3, 2, 0), (5, 1, 2), (3, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 2, 0)]
    sides = [227]
    for layer in layers:
        sides.append(output_size(sides[-1], *layer))
    assert sides == [227, 55, 27, 27, 13, 13, 13, 13, 6]
    assert conv_parameters((11, 11), 3, 96, bias=False) == 34_848  # "35K"
    assert dense_parameters(6 * 6 * 256, 4096) == 37_752_832
    assert receptive_field([layer[:2] for layer in layers]) == 195


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("filter_size", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 4, 5, 28])
def test_same_padding_is_that_of_xla(size, filter_size, stride):
    pads = same_padding(size, filter_size, stride)
    assert pads == jax.lax.padtype_to_pads((size,), (filter_size,), (stride,), "SAME")[0]
    assert output_size(size, filter_size, stride, pads, rounding="floor") == math.ceil(size / stride)


def test_receptive_fields_of_known_networks():
    assert receptive_field([]) == 1
    assert receptive_field([(3, 1)] * 2) == receptive_field([(5, 1)]) == 5
    blocks = ([(3, 1)] * count + [(2, 2)] for count in (2, 2, 3, 3, 3))
    assert receptive_field(layer for block in blocks for layer in block) == 212  # VGG-16 up to pool5


# --- Counts ----------------------------------------------------------------------------------------------------------


def test_parameter_counts_of_the_slides():
    assert conv_parameters((5, 5), 3, 1) == 76
    assert conv_parameters((5, 5), 3, 10) == 760
    assert dense_parameters(200 * 200, 40_000, bias=False) == 1_600_000_000
    assert conv_parameters((5, 5), 1, 100, bias=False) == 2_500
    # In between: each of the 40,000 units has its own weights for a 5×5 field.
    assert locally_connected_parameters((200, 200), (5, 5), 1, 1, bias=False) == 1_000_000


def test_flops_count_a_multiply_add_as_two():
    assert conv_flops((28, 28), (5, 5), 3, 6) == 2 * 28 * 28 * 6 * 75
    assert conv_flops((28, 28), (3, 3), 8, 8, groups=8) == 2 * 28 * 28 * 8 * 9
    assert conv_parameters((3, 3), 8, 8, groups=8) == 80
    assert dense_flops(400, 120) == 96_000
    assert conv_flops((1, 1), (5, 5), 16, 120) == dense_flops(400, 120)


# --- Convolution and cross-correlation -------------------------------------------------------------------------------


def test_step_of_the_slides_in_one_dimension():
    step, difference = [0, 0, 0, 1, 1, 1, 1, 1], [-1, 1]
    assert cross_correlate(step, difference).tolist() == [0, 0, 1, 0, 0, 0, 0]
    # The slide prints eight values, the last one with the edge repeated. It writes ⊗, but true convolution, which
    # flips the kernel, gives the opposite sign.
    assert cross_correlate(step, difference, "edge").tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert cross_correlate(step, difference, "zero").tolist() == [0, 0, 1, 0, 0, 0, 0, -1]
    assert convolve(step, difference, "edge").tolist() == [0, 0, 0, -1, 0, 0, 0, 0]


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
def test_one_dimension_is_numpy(taps):
    numbers = np.random.default_rng(0)
    x, kernel = numbers.normal(size=9), numbers.normal(size=taps)
    np.testing.assert_allclose(cross_correlate(x, kernel), np.correlate(x, kernel, "valid"))
    np.testing.assert_allclose(convolve(x, kernel), np.convolve(x, kernel, "valid"))
    np.testing.assert_allclose(convolve(x, kernel, "zero"), np.convolve(x, kernel, "same"))
    if taps % 2:
        np.testing.assert_allclose(cross_correlate(x, kernel, "zero"), np.correlate(x, kernel, "same"))
    np.testing.assert_allclose(cross_correlate(x, kernel, "edge", 2), cross_correlate(x, kernel, "edge")[::2])


def test_convolution_is_cross_correlation_with_the_kernel_rotated():
    numbers = np.random.default_rng(0)
    x, kernel = numbers.normal(size=(6, 7)), numbers.normal(size=(3, 2))
    np.testing.assert_array_equal(convolve(x, kernel), cross_correlate(x, kernel[::-1, ::-1]))
    assert convolve(x, kernel, "edge").shape == cross_correlate(x, kernel, "zero").shape == x.shape
    # Convolving an impulse returns the kernel; cross-correlation returns it rotated.
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1
    odd = numbers.normal(size=(3, 3))
    np.testing.assert_array_equal(convolve(impulse, odd), odd)
    np.testing.assert_array_equal(cross_correlate(impulse, odd), odd[::-1, ::-1])


def test_kernels_that_cannot_slide_are_refused():
    with pytest.raises(UserError, match="kernel of 1 axes cannot slide over a signal of 2"):
        cross_correlate(np.zeros((3, 3)), [1, 2])
    with pytest.raises(UserError, match=r"shape \(3,\) does not fit a signal of shape \(2,\)"):
        convolve([1, 2], [1, 2, 3])


VERTICAL_EDGE = [[1, 0, -1]] * 3
NUMBERS = [
    [4, 9, 2, 5, 8, 3],
    [5, 6, 2, 4, 0, 3],
    [2, 4, 5, 4, 5, 2],
    [5, 6, 5, 4, 7, 8],
    [5, 7, 7, 9, 2, 1],
    [5, 8, 5, 3, 8, 4],
]


def test_vertical_edge_filter_of_the_slides():
    result = cross_correlate(NUMBERS, VERTICAL_EDGE)
    assert result.shape == (4, 4)
    assert result[0, :2].tolist() == [2, 6]
    # With stride 2 the slide prints 2 and 1. The second is a slip, column 5 instead of column 4: its own numbers give
    # (2 + 2 + 5) - (8 + 0 + 5). Strictly, the filter does not fit: (6 - 3)/2 + 1 = 2.5.
    assert cross_correlate(NUMBERS, VERTICAL_EDGE, stride=2)[0].tolist() == [2, -4]
    with pytest.raises(UserError, match=r"\(6 \+ 0 - 3\)/2 \+ 1 = 2.5"):
        output_size(6, 3, 2)


def test_sharpening_with_zero_padding_of_the_slides():
    patch = [
        [60, 113, 56, 139, 85],
        [73, 121, 54, 84, 128],
        [131, 99, 70, 129, 127],
        [80, 57, 115, 69, 134],
        [104, 126, 123, 95, 130],
    ]
    sharpened = cross_correlate(patch, [[0, -1, 0], [-1, 5, -1], [0, -1, 0]], "zero")
    assert sharpened.shape == (5, 5)
    assert sharpened[0, 0] == 114
    assert sharpened[2, 2] == 5 * 70 - 54 - 99 - 129 - 115


def test_binary_image_of_the_slides():
    image = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    # The slide shows only the first value, 4; the rest are from its source, Stanford's UFLDL tutorial.
    feature = cross_correlate(image, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert feature.tolist() == [[4, 3, 4], [2, 4, 3], [2, 3, 4]]


def test_curve_detector_of_the_slides():
    # One slide prints the filter with an eighth column and a seventh 30, but its sum matches the source, A. Deshpande's
    # "A beginner's guide to understanding convolutional neural networks", whose filter is the one here.
    curve = np.zeros((7, 7), int)
    curve[0, 5] = curve[1, 4] = 30
    curve[2:6, 3] = 30
    back = np.zeros((7, 7), int)  # the mouse's back, which has this curve
    back[0, 6], back[1, 4:], back[2, 3:5], back[3:, 3:5] = 30, 50, (20, 50), 50
    head = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 40, 0, 0, 0, 0, 0],
            [40, 0, 40, 0, 0, 0, 0],
            [40, 20, 0, 0, 0, 0, 0],
            [0, 50, 0, 0, 0, 0, 0],
            [0, 0, 50, 0, 0, 0, 0],
            [25, 25, 0, 50, 0, 0, 0],
        ]
    )
    assert cross_correlate(back, curve).tolist() == [[50 * 30 + 50 * 30 + 50 * 30 + 20 * 30 + 50 * 30]] == [[6600]]
    assert cross_correlate(head, curve).tolist() == [[0]]


# --- Template matching -----------------------------------------------------------------------------------------------

# Some slides repeat or omit a row of the X; this is the version that matches the maps they print.
LETTER_X = [
    [-1, -1, -1, -1, -1, -1, -1, -1, -1],
    [-1, +1, -1, -1, -1, -1, -1, +1, -1],
    [-1, -1, +1, -1, -1, -1, +1, -1, -1],
    [-1, -1, -1, +1, -1, +1, -1, -1, -1],
    [-1, -1, -1, -1, +1, -1, -1, -1, -1],
    [-1, -1, -1, +1, -1, +1, -1, -1, -1],
    [-1, -1, +1, -1, -1, -1, +1, -1, -1],
    [-1, +1, -1, -1, -1, -1, -1, +1, -1],
    [-1, -1, -1, -1, -1, -1, -1, -1, -1],
]
STROKE = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
CROSS = [[1, -1, 1], [-1, 1, -1], [1, -1, 1]]
BACKSTROKE = [[-1, -1, 1], [-1, 1, -1], [1, -1, -1]]
STROKE_MAP = [
    [0.77, -0.11, 0.11, 0.33, 0.55, -0.11, 0.33],
    [-0.11, 1.00, -0.11, 0.33, -0.11, 0.11, -0.11],
    [0.11, -0.11, 1.00, -0.33, 0.11, -0.11, 0.55],
    [0.33, 0.33, -0.33, 0.55, -0.33, 0.33, 0.33],
    [0.55, -0.11, 0.11, -0.33, 1.00, -0.11, 0.11],
    [-0.11, 0.11, -0.11, 0.33, -0.11, 1.00, -0.11],
    [0.33, -0.11, 0.55, 0.33, 0.11, -0.11, 0.77],
]
CROSS_MAP = [
    [0.33, -0.55, 0.11, -0.11, 0.11, -0.55, 0.33],
    [-0.55, 0.55, -0.55, 0.33, -0.55, 0.55, -0.55],
    [0.11, -0.55, 0.55, -0.77, 0.55, -0.55, 0.11],
    [-0.11, 0.33, -0.77, 1.00, -0.77, 0.33, -0.11],
    [0.11, -0.55, 0.55, -0.77, 0.55, -0.55, 0.11],
    [-0.55, 0.55, -0.55, 0.33, -0.55, 0.55, -0.55],
    [0.33, -0.55, 0.11, -0.11, 0.11, -0.55, 0.33],
]
BACKSTROKE_MAP = [row[::-1] for row in STROKE_MAP]  # printed on the slides too


def printed(values: Any) -> list[list[float]]:
    """Truncates to two decimals, as the slides do (7/9 is 0.77)."""
    return (np.trunc(np.asarray(values, np.float64) * 100) / 100 + 0.0).tolist()


@pytest.mark.parametrize(
    ("template", "expected"), [(STROKE, STROKE_MAP), (CROSS, CROSS_MAP), (BACKSTROKE, BACKSTROKE_MAP)]
)
def test_template_matching_of_the_slides(template, expected):
    assert printed(match_template(LETTER_X, template)) == expected


def pooled(values: np.ndarray) -> list[list[float]]:
    """2×2 max pooling with stride 2, whose last windows overhang the edge."""
    y = MaxPool(ceil_mode=True).apply({}, jnp.asarray(values, jnp.float32)[None, :, :, None])
    return printed(np.asarray(y)[0, :, :, 0] + 1e-6)  # float32 7/9 may fall just below


def test_relu_and_pooling_of_the_slides():
    stroke, cross = match_template(LETTER_X, STROKE), match_template(LETTER_X, CROSS)
    rectified = np.asarray(activation("relu")(jnp.asarray(stroke, jnp.float32)))
    assert printed(rectified[0] + 1e-6) == [0.77, 0, 0.11, 0.33, 0.55, 0, 0.33]
    assert printed(rectified[-1] + 1e-6) == [0.33, 0, 0.55, 0.33, 0.11, 0, 0.77]
    expected = [[1.0, 0.33, 0.55, 0.33], [0.33, 1.0, 0.33, 0.55], [0.55, 0.33, 1.0, 0.11], [0.33, 0.55, 0.11, 0.77]]
    assert pooled(stroke) == pooled(rectified) == expected
    assert pooled(cross) == [
        [0.55, 0.33, 0.55, 0.33],
        [0.33, 1.0, 0.55, 0.11],
        [0.55, 0.55, 0.55, 0.11],
        [0.33, 0.11, 0.11, 0.33],
    ]


# --- Backward pass by hand -------------------------------------------------------------------------------------------


def test_kernel_gradient_of_the_slides():
    x = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    dh = np.random.default_rng(1).normal(size=(2, 2)).astype(np.float32)
    dw = np.asarray(conv_kernel_gradient(jnp.asarray(x)[None, :, :, None], jnp.asarray(dh)[None, :, :, None], (2, 2)))
    written_out = [
        [
            x[0, 0] * dh[0, 0] + x[0, 1] * dh[0, 1] + x[1, 0] * dh[1, 0] + x[1, 1] * dh[1, 1],
            x[0, 1] * dh[0, 0] + x[0, 2] * dh[0, 1] + x[1, 1] * dh[1, 0] + x[1, 2] * dh[1, 1],
        ],
        [
            x[1, 0] * dh[0, 0] + x[1, 1] * dh[0, 1] + x[2, 0] * dh[1, 0] + x[2, 1] * dh[1, 1],
            x[1, 1] * dh[0, 0] + x[1, 2] * dh[0, 1] + x[2, 1] * dh[1, 0] + x[2, 2] * dh[1, 1],
        ],
    ]
    np.testing.assert_allclose(dw[:, :, 0, 0], written_out, rtol=1e-5)
    np.testing.assert_allclose(cross_correlate(x, dh), written_out, rtol=1e-5)


def test_input_gradient_is_the_full_convolution_with_the_kernel_rotated():
    dh, kernel = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)[:, :3, :4]
    kernel = kernel[:2, :2]
    full = convolve(np.pad(dh, 1), kernel)  # flips the kernel itself
    dx = conv_input_gradient(jnp.asarray(dh)[None, :, :, None], jnp.asarray(kernel)[:, :, None, None], (4, 5))
    np.testing.assert_allclose(np.asarray(dx)[0, :, :, 0], full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("size", "filter_size"), [((7, 8), (3, 3)), ((6, 9), (2, 4))])
def test_convolution_gradients_by_hand_match_autodiff(size, filter_size, stride, padding):
    # Includes strides that skip the end of the input and paddings wider than the filter.
    numbers = np.random.default_rng(0)
    x = jnp.asarray(numbers.normal(size=(2, *size, 3)), jnp.float32)
    kernel = jnp.asarray(numbers.normal(size=(*filter_size, 3, 4)), jnp.float32)
    y_shape = jax.eval_shape(lambda: conv(x, kernel, stride, padding)).shape
    dy = jnp.asarray(numbers.normal(size=y_shape), jnp.float32)

    @jax.jit
    def both():
        _, backward = jax.vjp(lambda x, kernel: conv(x, kernel, stride, padding), x, kernel)
        by_hand = (
            conv_input_gradient(dy, kernel, size, stride, padding),
            conv_kernel_gradient(x, dy, filter_size, stride, padding),
        )
        return by_hand, backward(dy)

    for by_hand, automatic in zip(*both(), strict=True):
        np.testing.assert_allclose(by_hand, automatic, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_pooling_gradients_by_hand_match_autodiff(size, window, stride):
    # Few distinct values, so windows are full of ties.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, *size, 3)), jnp.float32)
    arguments = ((window, window), (stride, stride), "VALID")
    y_shape = jax.eval_shape(lambda: max_pool(x, *arguments)).shape
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y_shape), jnp.float32)

    @jax.jit
    def both():
        (by_max,) = jax.vjp(lambda x: max_pool(x, *arguments), x)[1](dy)
        (by_mean,) = jax.vjp(lambda x: avg_pool(x, *arguments), x)[1](dy)
        by_hand = max_pool_gradient(x, dy, window, stride), avg_pool_gradient(dy, size, window, stride)
        return by_hand, (by_max, by_mean)

    for by_hand, automatic in zip(*both(), strict=True):
        np.testing.assert_allclose(by_hand, automatic, rtol=1e-5, atol=1e-6)


# --- Other numbers on the slides -------------------------------------------------------------------------------------


def test_softmax_of_the_slides():
    logits = jnp.array([-0.05, 0.43, 0.92, 0.92, 0.28, -0.69, 0.17, 2.34, -0.81, 0.63])
    expected = [0.04, 0.07, 0.11, 0.11, 0.06, 0.02, 0.05, 0.45, 0.02, 0.08]
    assert np.round(np.asarray(activation("softmax")(logits), np.float64), 2).tolist() == expected


def test_split_of_mnist_of_the_slides():
    sizes = {"train": 60_000, "test": 10_000}
    parts = [parse_split(split, sizes) for split in ("train[:55000]", "train[55000:]", "test")]
    assert [len(examples) for _, examples in parts] == [55_000, 5_000, 10_000]
    assert set(parts[0][1]).isdisjoint(parts[1][1])
