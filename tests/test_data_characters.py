"""Slant and width of written characters, against NumPy, SciPy and Pillow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_run import digits
from PIL import Image
from scipy import ndimage

from cnn_jax.data import characters
from cnn_jax.errors import UserError

deskew = jax.jit(characters.deskew)
normalize_width = jax.jit(characters.normalize_width, static_argnums=1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Twenty digits in the middle of 16x16 images, in [0, 1], float32."""
    return np.pad(digits("train")[0][:20], ((0, 0), (4, 4), (4, 4), (0, 0))).astype(np.float32) / 255


def slant(image: np.ndarray) -> tuple[float, float]:
    """The slope of columns on rows, and the mean row."""
    rows, columns = np.indices(image.shape)
    row, column = np.average(rows, weights=image), np.average(columns, weights=image)
    covariance = np.average((rows - row) * (columns - column), weights=image)
    return covariance / np.average((rows - row) ** 2, weights=image), row


def test_deskewing_shears_by_the_moments(images: np.ndarray):
    found = np.asarray(deskew(images))
    for before, after in zip(images[..., 0].astype(float), found[..., 0], strict=True):
        slope, row = slant(before)
        # Output (i, j) is read at row i and column j + slope * (i - row).
        offset: Any = (0, -slope * row)
        expected = ndimage.affine_transform(before, [[1, 0], [slope, 1]], offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(after, expected, atol=2e-5)


def test_deskewed_characters_stand_upright(images: np.ndarray):
    found = np.asarray(deskew(images))[..., 0]
    slants = [(abs(slant(before)[0]), abs(slant(after)[0])) for before, after in zip(images[..., 0], found)]
    before, after = np.array(slants).T
    assert before.max() > 0.3
    assert after.max() < 0.02


def test_deskewing_keeps_the_mass_and_its_centre(images: np.ndarray):
    found = np.asarray(deskew(images))[..., 0]
    for before, after in zip(images[..., 0], found, strict=True):
        assert after.sum() == pytest.approx(before.sum(), rel=1e-5)
        assert ndimage.center_of_mass(after) == pytest.approx(ndimage.center_of_mass(before), abs=1e-4)


def test_deskewing_bytes_rounds_and_treats_channels_alike(images: np.ndarray):
    grey = np.round(255 * images).astype(np.uint8)
    colour = np.concatenate([grey, grey, grey], axis=-1)
    found = np.asarray(deskew(colour))
    assert found.dtype == np.uint8
    expected = np.round(255 * np.asarray(deskew(grey.astype(np.float32) / 255)))
    np.testing.assert_array_equal(found, np.repeat(expected, 3, axis=-1))


def test_empty_images_and_single_rows_stay_as_they_are():
    blank, line = np.zeros((20, 16, 16, 1), np.float32), np.zeros((20, 16, 16, 1), np.float32)
    line[:, 2] = np.linspace(0, 1, 16)[:, None]
    for images in (blank, line):
        np.testing.assert_allclose(deskew(images), images, atol=1e-6)
    np.testing.assert_array_equal(normalize_width(blank, 3), blank)


@pytest.mark.parametrize("width", [3, 8, 11, 16])
def test_width_is_normalized_as_by_cropping_and_resizing(images: np.ndarray, width: int):
    found = np.asarray(normalize_width(images, width))
    for before, after in zip(images[..., 0], found[..., 0], strict=True):
        used = np.flatnonzero(before.any(axis=0))
        box = Image.fromarray(before[:, used[0] : used[-1] + 1])  # mode F: no rounding
        resized = np.asarray(box.resize((width, 16), Image.Resampling.BILINEAR))
        left = (16 - width) // 2
        np.testing.assert_allclose(after[:, left : left + width], resized, atol=1e-5)
        assert not after[:, :left].any() and not after[:, left + width :].any()


@pytest.mark.parametrize("width", [0, 17])
def test_widths_that_do_not_fit_are_refused(width: int):
    with pytest.raises(UserError, match=f"^width {width} of characters: set 1 to 16"):
        normalize_width(jnp.zeros((1, 16, 16, 1)), width)
