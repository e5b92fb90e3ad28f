"""Reading and normalising images."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn_jax.data import Preprocess, open_source
from cnn_jax.errors import UserError

GREY, COLOUR = Preprocess((6, 8, 1), (0.0,), (1.0,)), Preprocess((6, 8, 3), (0.0,) * 3, (1.0,) * 3)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_normalize_by_hand_and_under_jit():
    preprocess = Preprocess((2, 2, 3), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    images = noise(4, 2, 2, 3)
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 2.0])
    for ours in (preprocess.normalize(images), jax.jit(preprocess.normalize)(jnp.asarray(images))):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    floats = jnp.asarray(images / 255, jnp.float32)
    np.testing.assert_allclose(preprocess.normalize(floats), expected, atol=1e-5)
    np.testing.assert_allclose(preprocess.normalize(images[0]), expected[0], atol=1e-5)  # a single image
    assert preprocess.normalize(floats.astype(jnp.bfloat16)).dtype == jnp.float32


def test_fit_gives_zero_mean_and_unit_variance():
    images = noise(2500, 4, 5, 3)
    images[..., 1] //= 3
    normalized = Preprocess.fit(images).normalize(images)
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(normalized.std((0, 1, 2)), 1, atol=1e-4)
    assert Preprocess.fit(images, "half") == Preprocess((4, 5, 3), (0.5,) * 3, (0.5,) * 3)
    assert Preprocess.fit(images, "none") == Preprocess((4, 5, 3), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(UserError, match="dataset"):
        Preprocess.fit(images, "datasets")


def test_fit_of_a_source_and_of_a_constant_channel():
    source = open_source("digits", "train")
    images = np.stack([source[i]["image"] for i in range(len(source))])
    fitted = Preprocess.fit(source)
    assert fitted == Preprocess.fit(images)
    np.testing.assert_allclose(fitted.mean, images.mean() / 255, rtol=1e-9)
    np.testing.assert_allclose(fitted.std, images.std() / 255, rtol=1e-9)
    assert Preprocess.fit(np.full((5, 2, 2, 1), 51, np.uint8)) == Preprocess((2, 2, 1), (0.2,), (1.0,))


def test_json_round_trip():
    fitted = Preprocess.fit(noise(10, 4, 5, 3))
    assert Preprocess.from_json(fitted.to_json()) == fitted
    with pytest.raises(UserError, match="std"):
        Preprocess((2, 2, 3), (0.0,), (1.0,))
    with pytest.raises(UserError, match="std"):
        Preprocess((2, 2, 1), (0.0,), (0.0,))


def saved(image_shape: Any = (8, 6, 1), mean: Any = (0.5,), std: Any = (1.0,)) -> str:
    return json.dumps({"image_shape": image_shape, "mean": mean, "std": std})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "{", saved() + "}", saved().replace("mean", "men"), saved(image_shape=3)]
    + [saved(image_shape=shape) for shape in ([8, 6], [1], [8, 6, 1, 1], [0, 6, 1], [8.0, 6, 1], ["8", 6, 1], "861")]
    + [saved(mean=mean) for mean in ([], [0, 0], 0, ["0"], [None], [float("nan")])]
    + [saved(std=std) for std in ([], [0], [-1], [float("inf")], [[1]])]
    + [saved([8, 6, 0], [], [])],
)
def test_a_damaged_file_is_named(text):
    with pytest.raises(UserError, match="^runs/a/preprocess.json is not JSON with image_shape, mean and std") as error:
        Preprocess.from_json(text, "runs/a/preprocess.json")
    assert "restore it" in str(error.value) and "\n" not in str(error.value)
    assert Preprocess.from_json(saved(), "runs/a/preprocess.json") == Preprocess((8, 6, 1), (0.5,), (1.0,))


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_read_keeps_the_pixels_of_an_image_that_fits(tmp_path, suffix):
    pixels = noise(6, 8, 3)
    Image.fromarray(pixels).save(tmp_path / f"image.{suffix}", lossless=True)
    np.testing.assert_array_equal(COLOUR.read(tmp_path / f"image.{suffix}"), pixels)


def test_read_jpeg(tmp_path):
    pixels = np.full((6, 8, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg", quality=95)
    assert np.abs(COLOUR.read(tmp_path / "image.jpg").astype(int) - pixels).max() <= 3


def test_read_converts_between_grey_and_colour(tmp_path):
    grey = noise(6, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(COLOUR.read(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    colour = noise(6, 8, 3)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(GREY.read(tmp_path / "colour.png")[..., 0] - luma).max() <= 1


def test_read_transparent_palette_and_16_bits(tmp_path):
    colour = noise(6, 8, 3)
    alpha = np.zeros((6, 8, 1), np.uint8)
    alpha[:3] = 255
    Image.fromarray(np.concatenate([colour, alpha], 2)).save(tmp_path / "transparent.png")
    read = COLOUR.read(tmp_path / "transparent.png")
    np.testing.assert_array_equal(read[:3], colour[:3])
    assert (read[3:] == 255).all()  # white

    index = noise(6, 8) % 4
    palette = Image.frombytes("P", (8, 6), index.tobytes())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    palette.save(tmp_path / "palette.png")
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    np.testing.assert_array_equal(COLOUR.read(tmp_path / "palette.png"), colours[index])

    deep = noise(6, 8).astype(np.uint16) * 257  # 0 to 65535
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(GREY.read(tmp_path / "deep.png")[..., 0], deep // 257)


def test_read_turns_as_exif_says(tmp_path):
    pixels = noise(8, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # display rotated 90° clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(COLOUR.read(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_read_resizes_to_cover_and_cuts_the_centre(tmp_path):
    wide = np.zeros((12, 40, 1), np.uint8)
    wide[:, 12:28] = 200  # 6x8 doubled in the middle, black on both sides
    Image.fromarray(wide[..., 0]).save(tmp_path / "wide.png")
    read = GREY.read(tmp_path / "wide.png")
    assert read.shape == (6, 8, 1) and (read[:, 1:-1] == 200).all()
    Image.fromarray(noise(3, 4)).save(tmp_path / "small.png")
    assert GREY.read(tmp_path / "small.png").shape == (6, 8, 1)


def test_unreadable_images_are_named(tmp_path):
    Image.fromarray(noise(60, 80, 3)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    files = {"truncated.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"not an image"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "absent.png"]:
        with pytest.raises(UserError, match=name) as caught:
            COLOUR.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="4 channels"):
        Preprocess((6, 8, 4), (0.0,) * 4, (1.0,) * 4).read(tmp_path / "whole.jpg")
