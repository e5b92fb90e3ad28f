"""Images of more than 8 bits, transparent values, and images of very many pixels."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

import cnn_jax
from cnn_jax.config import Config
from cnn_jax.data import Preprocess, materialize, open_source
from cnn_jax.data.folder import FolderSource
from cnn_jax.data.image_file import levels_in_use, open_image
from cnn_jax.data.preprocess import fit_image, read_image
from cnn_jax.errors import UserError
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.runs.predict import predict
from cnn_jax.storage import run_folder as files
from cnn_jax.training.experiment import make_experiment


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def fill(folder, images, suffix):
    """Writes `images[class]`, a list of arrays, as files of that kind."""
    for name, arrays in images.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(folder / name / f"{i}.{suffix}")
    return f"folder:{folder}"


def opened(*arguments, **settings) -> FolderSource:
    source = open_source(*arguments, **settings)
    assert isinstance(source, FolderSource)
    return source


def png(width, height, depth, kind, pixels, transparent):
    """A PNG file of any depth, with a transparent value."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def twelve_bits(seed, low=0, high=4096):
    return np.random.default_rng(seed).integers(low, high, (6, 8)).astype(np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_12_bit_values_in_16_bit_files_fill_the_range(tmp_path, suffix):
    images = [twelve_bits(seed) for seed in range(5)]
    images[0][0, 0] = 4000  # needs 12 bits, though 4095 does not occur in every image
    source = opened(fill(tmp_path, {"a": images, "b": images}, suffix), "all")
    expected = {np.round(image / 4095 * 255).astype(np.uint8).tobytes() for image in images}
    assert {source[i]["image"].tobytes() for i in range(len(source))} == expected
    preprocess = Preprocess.fit(source)
    assert preprocess.levels == (0, 4095) and Preprocess.from_json(preprocess.to_json()) == preprocess
    np.testing.assert_array_equal(
        preprocess.read(tmp_path / "a" / f"1.{suffix}")[..., 0], np.round(images[1] / 4095 * 255)
    )


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([[0.25, 0.5], [0.75, 0.25]], np.float32), (0.25, 0.75)),
        (np.array([[-1000, 0], [3000, 500]], np.int32), (-1000, 3000)),
        (np.array([[0, 65535], [257, 514]], np.uint16), (0, 65535)),
        (np.array([[0, 200], [3, 4]], np.uint16), (0, 255)),
        (np.array([[np.nan, 2.0], [4.0, np.inf]], np.float32), (2.0, 4.0)),
    ],
)
def test_values_are_scaled_by_the_range_in_use(tmp_path, values, levels):
    source = opened(fill(tmp_path, {"a": [values] * 3, "b": [values] * 3}, "tif"), "train")
    assert source.levels == levels
    scaled = np.nan_to_num((values.astype(float) - levels[0]) / (levels[1] - levels[0]) * 255, nan=0.0)
    np.testing.assert_array_equal(source[0]["image"][..., 0], np.clip(np.round(scaled), 0, 255))


def test_the_range_is_that_of_the_training_images(tmp_path):
    fill(tmp_path / "train", {"a": [twelve_bits(0)] * 3, "b": [twelve_bits(1)] * 3}, "png")
    fill(tmp_path / "test", {"a": [twelve_bits(2) * 16], "b": [twelve_bits(3)]}, "png")
    assert opened(f"folder:{tmp_path}", "test").levels == (0, 4095)
    fixed = opened(f"folder:{tmp_path}", "test", levels=(0.0, 1023.0))
    assert {int(fixed[i]["image"].max()) for i in range(2)} == {255}


def test_ranges_that_cannot_be_told_are_refused(tmp_path):
    both = fill(tmp_path / "both", {"a": [twelve_bits(0)] * 3}, "png")
    fill(tmp_path / "both", {"b": [np.zeros((6, 8), np.float32)] * 3}, "tif")
    with pytest.raises(UserError, match=r"integers and of floats.*convert them to one kind"):
        opened(both, "train")
    data = png(2, 1, 16, 2, [np.array([4095, 300, 1, 0, 256, 0], ">u2").tobytes()], b"\0\0" * 3)
    for name in ("a", "b"):
        (tmp_path / "colour" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "colour" / name / f"{i}.png").write_bytes(data)
    with pytest.raises(UserError, match=r"colour images of 16 bits.*convert them to 8 bits"):
        opened(f"folder:{tmp_path / 'colour'}", "train")


def test_colour_of_16_bits_that_are_in_use_is_read(tmp_path):
    data = png(2, 1, 16, 2, [np.array([65535, 300, 1, 0, 40000, 0], ">u2").tobytes()], b"\0\1" * 3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(data)
    source = opened(f"folder:{tmp_path}", "train")
    assert source.levels is None and source[0]["image"].tolist() == [[[255, 1, 0], [0, 40000 >> 8, 0]]]


def test_a_run_that_is_resumed_keeps_the_range(tmp_path):
    images = [twelve_bits(i) for i in range(12)]
    dataset = fill(tmp_path, {"a": images, "b": images}, "png")
    config = Config().override(dataset=dataset, model="softmax_regression", steps=1, epochs=None, batch_size=8)
    assert make_experiment(config).preprocess.levels == (0, 4095)
    resumed = make_experiment(config, resumed=Preprocess((6, 8, 1), (0.5,), (1.0,), levels=(0.0, 8191.0)))
    sources = resumed.sources.values()
    assert {resumed.preprocess.levels, *(getattr(source, "levels", None) for source in sources)} == {(0, 8191)}


def test_a_run_records_the_range_and_uses_it_again(tmp_path, capsys):
    images = {"dark": [twelve_bits(i, 0, 2000) for i in range(12)], "light": [twelve_bits(i, 2000) for i in range(12)]}
    dataset = fill(tmp_path / "photos", images, "png")
    made = cnn_jax.fit("softmax_regression", dataset, steps=12, batch_size=8, logger=[], workdir=tmp_path / "run")
    assert "levels     0 (black) to 4095 (white)" in capsys.readouterr().out
    assert files.read_json(tmp_path / "run", files.PREPROCESS)["levels"] == [0, 4095]
    # The same files alone, and in a set whose values would need fewer bits, give what the training images gave.
    source = opened(dataset, "all")
    place = {file.path: i for i, file in enumerate(source.files)}
    paths = sorted(place)
    said = predict(tmp_path / "run", paths)
    by_arrays = made.predict(np.stack([source[place[path]]["image"] for path in paths]))
    for prediction, probabilities in zip(said, by_arrays, strict=True):
        rows = {row["class"]: row["probability"] for row in prediction.rows}
        np.testing.assert_allclose([rows["dark"], rows["light"]], probabilities, rtol=1e-4)
    # A run that starts from its weights has the range of its own images.
    config = Config().override(dataset=dataset, model="softmax_regression", steps=1, epochs=None, batch_size=8)
    tuned = make_experiment(config.override(init_from=str(tmp_path / "run")))
    assert tuned.preprocess.levels == (0, 4095) and tuned.preprocess.mean == made.preprocess.mean
    only_dark = fill(tmp_path / "dark", {"dark": images["dark"]}, "png")
    assert opened(only_dark, "all").levels == (0, 2047)
    scores = evaluate(tmp_path / "run", "all", dataset=only_dark)
    dark = [i for i, path in enumerate(paths) if path.parent.name == "dark"]
    assert scores["loss"] == pytest.approx(-np.log(by_arrays[dark, 0]).mean(), rel=1e-4)


def test_without_a_range_all_16_bits_are_used_and_a_warning_says_so(tmp_path):
    Image.fromarray(twelve_bits(0) * 16).save(tmp_path / "deep.png")
    Image.fromarray(np.full((6, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    code = (
        "from cnn_jax.data.preprocess import read_image\n"
        "for name in 'deep.png', 'deep.png', 'float.tif':\n"
        f"    print(read_image({str(tmp_path)!r} + '/' + name, (6, 8, 1)).max())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(round(int(twelve_bits(0).max()) * 16 / 257))] * 2 + ["128"]
    assert done.stderr.count("warning") == 2 and "0 (black) to 65535 (white)" in done.stderr


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (16, np.array([300, 4095, 0], ">u2").tobytes(), 300, [255, 255, 0]),
        (16, np.array([301, 4095, 0], ">u2").tobytes(), 300, [19, 255, 0]),
        (8, bytes([3, 9, 0]), 3, [255, 9, 0]),
        (4, bytes([0x3A, 0x00]), 3, [255, 170, 0]),
        (2, bytes([0b01100000]), 1, [255, 170, 0]),
        (1, bytes([0b01000000]), 0, [255, 255, 255]),
    ],
)
def test_the_transparent_value_of_grey_png_files_is_white(depth, row, transparent, expected):
    image = open_image(io.BytesIO(png(3, 1, depth, 0, [row], struct.pack(">H", transparent))))
    assert fit_image(image, (1, 3, 1), (0.0, 4095.0)).ravel().tolist() == expected


def test_the_transparent_value_of_colour_png_files_is_white():
    row = np.array([4095, 300, 1, 0, 40000, 0], ">u2").tobytes()
    image = open_image(io.BytesIO(png(2, 1, 16, 2, [row], struct.pack(">HHH", 4095, 300, 1))))
    assert fit_image(image, (1, 2, 3)).tolist() == [[[255] * 3, [0, 156, 0]]]


def test_integers_keep_zero_black():
    assert levels_in_use("integer", 900, 1023) == (0, 1023)
    assert levels_in_use("integer", 0, 0) == (0, 255)
    assert levels_in_use("float", 2.0, 2.0) == (2, 3)


@pytest.fixture
def small_limit(monkeypatch):
    """Pillow's limit, which is of 179 million pixels, is of 1,000."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_jpeg_files_are_decoded_smaller(tmp_path, small_limit):
    ramp = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None] * 3, (80, 160))
    Image.fromarray(ramp).save(tmp_path / "large.jpg", quality=95)
    read = read_image(tmp_path / "large.jpg", (10, 20, 1))
    assert np.abs(read[..., 0] - ramp.reshape(10, 8, 20, 8).mean((1, 3))).max() <= 4
    with pytest.raises(UserError, match=r"large.jpg' cannot be read \(it has more than 1,000 pixels.*CNN_JAX_MAX_PIX"):
        read_image(tmp_path / "large.jpg", (80, 160, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.fromarray(ramp).save(tmp_path / "a" / f"{i}.jpg", exif=exif)
    assert opened(f"folder:{tmp_path}", "train").image_shape == (160, 80, 1)


def test_other_large_files_are_refused_with_the_limit(tmp_path, small_limit, monkeypatch):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "large.png")
    with pytest.raises(
        UserError, match=r"it has more than 1,000 pixels, the limit.*shrink it, or set .*CNN_JAX_MAX_PIXELS"
    ):
        read_image(tmp_path / "large.png", (4, 4, 1))
    monkeypatch.setenv("CNN_JAX_MAX_PIXELS", "1600")
    assert read_image(tmp_path / "large.png", (4, 4, 1)).shape == (4, 4, 1)
    monkeypatch.setenv("CNN_JAX_MAX_PIXELS", "1599")
    with pytest.raises(UserError, match=r"more than 1,599 pixels"):
        read_image(tmp_path / "large.png", (4, 4, 1))
    monkeypatch.setenv("CNN_JAX_MAX_PIXELS", "many")
    with pytest.raises(UserError, match=r"CNN_JAX_MAX_PIXELS is 'many': set it to a number"):
        read_image(tmp_path / "large.png", (4, 4, 1))
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "large.png").rename(tmp_path / "set" / "a" / "large.png")
    with pytest.raises(UserError, match=r"CNN_JAX_MAX_PIXELS is 'many'"):  # no fault of the files
        open_source(f"folder:{tmp_path / 'set'}", "train", image_size=4, skip_bad_images=True)


def test_one_colour_image_among_thousands_of_grey_ones_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "a" / "0000.jpg")
    for i in range(2, 2100):
        os.link(tmp_path / "a" / "0000.jpg", tmp_path / "a" / f"{i:04}.jpg")
    assert opened(f"folder:{tmp_path}", "train").image_shape == (4, 4, 1)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a" / "0001.jpg")
    assert opened(f"folder:{tmp_path}", "train").image_shape == (4, 4, 3)


def test_labels_corrected_by_exchanging_files_of_one_size_and_time_are_noticed(tmp_path):
    images = {name: [np.full((4, 4), value, np.uint8)] * 3 for name, value in (("a", 10), ("b", 200))}
    name = fill(tmp_path, images, "bmp")
    pairs = [(tmp_path / "a" / f"{i}.bmp", tmp_path / "b" / f"{i}.bmp") for i in range(3)]
    for path in (path for pair in pairs for path in pair):
        os.utime(path, (0, 0))
    before = materialize(opened(name, "train"))
    assert sorted(zip(before["image"][:, 0, 0, 0].tolist(), before["label"].tolist())) == [(10, 0), (200, 1)]
    for one, other in pairs:
        one.rename(tmp_path / "third")
        other.rename(one)
        (tmp_path / "third").rename(other)
    after = materialize(opened(name, "train"))
    assert sorted(zip(after["image"][:, 0, 0, 0].tolist(), after["label"].tolist())) == [(10, 1), (200, 0)]


def test_links_to_nothing_are_unreadable_images(tmp_path):
    name = fill(tmp_path, {"a": [np.zeros((4, 4), np.uint8)] * 3}, "png")
    (tmp_path / "a" / "broken.png").symlink_to(tmp_path / "nothing.png")
    parts = [opened(name, part, skip_bad_images=True) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 3
    with pytest.raises(UserError, match=r"broken.png' cannot be read"):
        for part in ("train", "validation", "test"):
            materialize(opened(name, part))


@pytest.mark.parametrize("channels", [1, 3])
def test_lab_files_are_read_as_the_colours_that_they_are(tmp_path, channels):
    colour = Image.new("RGB", (4, 4), (200, 120, 40))
    spaces = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.profileToProfile(colour, *spaces, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    expected = np.asarray(colour.convert("L" if channels == 1 else "RGB")).reshape(4, 4, channels).astype(int)
    assert np.abs(read_image(tmp_path / "lab.tif", (4, 4, channels)) - expected).max() <= 2  # rounding in LAB
