"""Named sources: splits, digits, synthetic data sets, real TFDS data sets, and the cache of decoded images."""

import os
import shlex
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from cnn_jax.commands.experiment import parse
from cnn_jax.config import Config
from cnn_jax.data import ArraySource, Example, Preprocess, Splits, default_splits, materialize, open_source, parse_split
from cnn_jax.data.channels import convert, with_channels
from cnn_jax.data.sources import Source, describe_contents
from cnn_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(0, 1000)),
        ("train[:100]", range(0, 100)),
        ("train[100:]", range(100, 1000)),
        ("train[10:20]", range(10, 20)),
        ("train[-100:]", range(900, 1000)),
        ("train[:-10]", range(0, 990)),
        ("train[:90%]", range(0, 900)),
        ("train[90%:]", range(900, 1000)),
        ("train[-10%:]", range(900, 1000)),
        ("train[33%:67%]", range(330, 670)),
        ("train[:]", range(0, 1000)),
        ("train[:1_0%]", range(0, 100)),
        ("train[5_0:]", range(50, 1000)),
    ],
)
def test_split_syntax(split, expected):
    assert parse_split(split, {"train": 1000, "test": 7}) == ("train", expected)


def test_percent_slices_of_any_size_meet_without_gap_or_overlap():
    for size in range(1, 60):
        for percent in range(101):
            edges = {"train": size}
            cut = round(percent * size / 100)
            if 0 < cut < size:
                head = parse_split(f"train[:{percent}%]", edges)[1]
                tail = parse_split(f"train[{percent}%:]", edges)[1]
                assert [*head, *tail] == list(range(size))


@pytest.mark.parametrize(
    "split",
    ["", "train[", "train[a:b]", "train[5]", "train[5:5]", "train[9:3]", "train[:1001]", "train[-1001:]", "trian"],
)
def test_bad_split_is_one_line(split):
    with pytest.raises(UserError, match="split") as caught:
        parse_split(split, {"train": 1000})
    assert "\n" not in str(caught.value)


def test_digits_are_the_published_set():
    sizes = {"train": 1257, "validation": 180, "test": 360}
    images, labels = [], []
    for split, size in sizes.items():
        source = open_source("digits", split)
        assert len(source) == size and source.image_shape == (8, 8, 1)
        images.append(materialize(source)["image"])
        labels.append(materialize(source)["label"])
    # Counts per digit from the UCI documentation of optdigits.tes.
    assert np.bincount(np.concatenate(labels)).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(labels[1]).tolist() == [18] * 10 and np.bincount(labels[2]).tolist() == [36] * 10
    assert len({image.tobytes() for part in images for image in part}) == 1797  # all distinct: the splits are disjoint
    # First row of the original file's first record, a zero, in its grey levels 0 to 16.
    first = [0, 0, 5, 13, 9, 1, 0, 0]
    levels = np.rint(np.concatenate(images)[:, 0, :, 0] * (16 / 255)).astype(int)
    assert first in levels.tolist()


def test_digits_enlarged():
    small, large = open_source("digits", "test[:5]"), open_source("digits", "test[:5]", image_size=28)
    assert large.image_shape == (28, 28, 1)
    assert [large[i]["label"] for i in range(5)] == [small[i]["label"] for i in range(5)]
    coarse = large[0]["image"][..., 0].reshape(4, 7, 4, 7).mean((1, 3))
    fine = small[0]["image"][..., 0].reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(coarse - fine).max() < 20  # block means survive resizing


def test_drawn_examples_depend_on_split_and_index_only():
    whole, part = open_source("xo:train=40", "train"), open_source("xo:train=40", "train[10:20]")
    more = open_source("xo:train=400", "train[:40]")
    for i in range(10):
        np.testing.assert_array_equal(part[i]["image"], whole[10 + i]["image"])
        np.testing.assert_array_equal(more[i]["image"], whole[i]["image"])
        assert part[i]["label"] == whole[10 + i]["label"] == (10 + i) % 2
    assert not np.array_equal(whole[0]["image"], open_source("xo:train=40", "test")[0]["image"])


def test_xo_without_nuisances_is_the_letter():
    name = "xo:size=41,translation=0,scale=0,rotation=0,weight=0,noise=0"
    x, o = (open_source(name, "train")[i]["image"][..., 0].astype(int) for i in (0, 1))
    for letter in (x, o):  # both letters are symmetric under mirroring and transposition
        np.testing.assert_array_equal(letter, letter[::-1])
        np.testing.assert_array_equal(letter, letter.T)
    assert x[20, 20] == 255 and o[20, 20] == 0
    radius, stroke = 0.3 * 41, 0.1 * 41
    assert o.sum() / 255 == pytest.approx(2 * np.pi * radius * stroke, rel=0.02)  # area of the ring
    bars = 2 * (2 * radius * stroke + np.pi * stroke**2 / 4) - stroke**2  # two round-ended bars, minus their overlap
    assert x.sum() / 255 == pytest.approx(bars, rel=0.02)


@pytest.mark.parametrize("nuisance", ["translation", "scale", "rotation", "weight", "noise"])
def test_each_nuisance_of_xo_changes_the_image(nuisance):
    still = {"translation": 0.0, "scale": 0.0, "rotation": 0.0, "weight": 0.0, "noise": 0.0}

    def images(**arguments):
        text = ",".join(f"{key}={value}" for key, value in {**still, **arguments}.items())
        source = open_source(f"xo:{text}", "train[:8]")
        return np.stack([source[i]["image"] for i in range(0, 8, 2)])  # X's only: rotating an O changes nothing

    assert len(np.unique(images(), axis=0)) == 1
    assert len(np.unique(images(**{nuisance: 0.3 if nuisance != "rotation" else 30.0}), axis=0)) == 4


@pytest.mark.parametrize(
    "name",
    ["xo:sise=3", "xo:size=big", "xo:size=2", "xo:rotation=999", "xo:noise=-1", "xo:size=28,size=32", "digits:3"]
    + ["synthetic", "synthetic:32x32:10", "synthetic:0x4x1:2", "synthetic:4x4x1:2:x", "synthetic:4x4x1:2:9:9"],
)
def test_bad_arguments_of_built_in_sets(name):
    with pytest.raises(UserError) as caught:
        open_source(name, "train")
    assert "\n" not in str(caught.value)


def test_synthetic_is_learnable_and_sized():
    source = open_source("synthetic:8x6x3:4:64", "train")
    images, labels = materialize(source).values()
    assert images.shape == (64, 8, 6, 3) and images.dtype == np.uint8 and labels.dtype == np.int32
    assert len(open_source("synthetic:8x6x3:4", "train")) == 2048
    means = np.stack([images[labels == k].mean(0) for k in range(4)])
    test_images, test_labels = materialize(open_source("synthetic:8x6x3:4:64", "test")).values()
    nearest = ((test_images[:, None] - means[None]) ** 2).sum((2, 3, 4)).argmin(1)
    np.testing.assert_array_equal(nearest, test_labels)
    assert not np.array_equal(images[0], images[4])  # same class, different noise


def test_image_size_of_built_in_sets():
    assert open_source("xo", "train", image_size=20).image_shape == (20, 20, 1)
    assert open_source("synthetic:8x8x1:2", "train", image_size=8).image_shape == (8, 8, 1)
    for name in ("xo:size=24", "synthetic:9x9x1:2"):
        with pytest.raises(UserError, match="size"):
            open_source(name, "train", image_size=8)
    with pytest.raises(UserError, match="`image_size` is -3"):
        open_source("digits", "train", image_size=-3)


@pytest.mark.parametrize("name", ["digits", "xo:train=8", "synthetic:6x5x1:2:8"])
def test_grey_sources_become_colour_by_repeating(name):
    grey, colour = open_source(name, "test[:2]"), open_source(name, "test[:2]", channels=3)
    assert colour.image_shape == (*grey.image_shape[:2], 3) and colour.class_names == grey.class_names
    images, labels = materialize(colour).values()
    for i in range(2):
        np.testing.assert_array_equal(images[i], np.repeat(grey[i]["image"], 3, axis=-1))
        np.testing.assert_array_equal(images[i], colour[i]["image"])
        assert labels[i] == colour[i]["label"] == grey[i]["label"]
    assert open_source(name, "test[:2]", channels=1).image_shape == grey.image_shape
    assert Preprocess.fit(colour).mean == Preprocess.fit(grey).mean * 3


def test_colour_sources_become_grey_as_pillow_does():
    colour, grey = (open_source("synthetic:64x64x3:2:4", "train", channels=channels) for channels in (None, 1))
    for i in range(4):
        expected = np.asarray(Image.fromarray(colour[i]["image"]).convert("L"))
        np.testing.assert_array_equal(grey[i]["image"][..., 0], expected)
    corners = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert convert(corners, 1)[0, :, 0].tolist() == [0, 255, 76, 150, 29]


def test_other_channels_are_refused():
    with pytest.raises(UserError, match="synthetic:4x4x2:2 has 2 channels, and only grey.*: leave out `channels` 3"):
        open_source("synthetic:4x4x2:2", "train", channels=3)
    with pytest.raises(UserError, match="`channels` is 2: set it to 1"):
        open_source("digits", "train", channels=2)


def test_default_splits_of_known_names():
    assert default_splits("mnist") == default_splits("MNIST") == Splits("train[:55000]", "train[55000:]", "test")
    assert default_splits("cifar10:3.0.2") == Splits("train[:45000]", "train[45000:]", "test")
    assert default_splits("xo:size=28") == Splits("train", "validation", "test")


def test_absent_tfds_set_says_how_to_get_it_and_what_works_without(tmp_path):
    folder = tmp_path / "my sets"
    with pytest.raises(UserError) as caught:
        open_source("svhn_cropped", "train", data_dir=str(folder))
    message = str(caught.value)
    assert f"data set 'svhn_cropped' is not in {folder}" in message and "\n" not in message
    assert f"run python -m cnn_jax data prepare svhn_cropped --data-dir '{folder}'; or" in message
    assert message.endswith(": python -m experiments.digits_lenet5")  # pytest is not an experiment


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", ""),
        ("--epochs 3 --fresh", "--epochs 3 --fresh "),
        ("--dataset cifar10 --epochs 3", "--epochs 3 "),
        ("--dataset=cifar10 --epochs=3 --data_dir=D", "--epochs=3 "),
        ("--data-dir D --train-split train[:9] --validation_split x --test-split=y --seed 1", "--seed 1 "),
        ("--augment flip pad_crop:padding=2 --dataset cifar10", "--augment flip pad_crop:padding=2 "),
        ("--workdir 'runs/my own'", "--workdir 'runs/my own' "),
    ],
)
def test_absent_tfds_set_offers_the_same_command_on_digits(tmp_path, monkeypatch, typed, offered):
    from experiments import mnist_lenet5

    monkeypatch.setitem(sys.modules, "__main__", mnist_lenet5)  # as under `python -m experiments.mnist_lenet5`
    monkeypatch.setattr(sys, "argv", ["…/experiments/mnist_lenet5.py", *shlex.split(typed)])
    with pytest.raises(UserError) as caught:
        open_source("mnist", "train", data_dir=str(tmp_path))
    command = str(caught.value).partition("ships with the package: ")[2]
    assert command == f"python -m experiments.mnist_lenet5 {offered}--dataset digits"
    config = parse(shlex.split(command)[3:], mnist_lenet5.CONFIG)  # the experiment accepts the command
    assert (config.data.dataset, config.data.data_dir, config.data.train_split) == ("digits", None, None)


def test_absent_tfds_set_in_a_script_and_in_a_notebook(tmp_path, monkeypatch):
    def offered(**attributes):
        monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(CONFIG=Config(), **attributes))
        with pytest.raises(UserError) as caught:
            open_source("mnist", "train", data_dir=str(tmp_path))
        return str(caught.value).partition("ships with the package: ")[2]

    monkeypatch.setattr(sys, "argv", ["mine.py", "--seed", "1"])
    assert offered(__spec__=None, __file__="mine.py") == "python mine.py --seed 1 --dataset digits"
    assert offered(__spec__=None) == "python -m experiments.digits_lenet5"


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(UserError, match="perhaps you meant mnist"):
        open_source("mnits", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="perhaps you meant digits"):
        open_source("digit", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="unknown data set 'xyzzyq'"):
        open_source("xyzzyq", "train", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="name:version"):
        open_source("two words", "train", data_dir=str(tmp_path))


def test_labels_out_of_range_are_refused():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    for label in (-1, 2):
        source = ArraySource("mine", "test", ("a", "b"), images, np.array([0, label, 1]))
        with pytest.raises(UserError, match=f"mine 'test': example 1 has label {label}, not 0 to 1"):
            materialize(source)


class Counted:
    """A source that counts its reads; the fingerprint makes it cacheable."""

    name, split, class_names, image_shape = "counted", "train[:3]", ("a", "b"), (2, 2, 1)

    def __init__(self, fingerprint: str):
        self.fingerprint, self.reads = fingerprint, 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int, /) -> Example:
        self.reads += 1
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": index % 2}


def test_decoded_once(cache):
    first, second, changed = Counted("1"), Counted("1"), Counted("2")
    for source in (first, second, changed):
        images, labels = materialize(source).values()
        assert images[:, 0, 0, 0].tolist() == [0, 1, 2] and labels.tolist() == [0, 1, 0]
    assert (first.reads, second.reads, changed.reads) == (3, 0, 3)


def test_converted_images_have_a_cache_of_their_own(cache):
    source = Counted("1")
    materialize(source)
    for _ in range(2):
        images, _ = materialize(with_channels(source, 3)).values()
        assert images.shape == (3, 2, 2, 3) and images[2].tolist() == np.full((2, 2, 3), 2).tolist()
    assert source.reads == 6
    assert len(list(cache.iterdir())) == 2  # no scratch folder left


def test_damaged_cache_is_rebuilt(cache):
    materialize(Counted("1"))
    (folder,) = cache.iterdir()
    for damage in (b"", (folder / "image.npy").read_bytes()[:-1]):
        (folder / "image.npy").write_bytes(damage)
        source = Counted("1")
        assert materialize(source)["image"].shape == (3, 2, 2, 1) and source.reads == 3
        assert len(list(cache.iterdir())) == 1


def test_unwritable_cache_costs_only_the_cache(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("a file where the cache's folder should be")
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "file"))
    assert materialize(Counted("1"))["label"].tolist() == [0, 1, 0]


def test_importing_data_is_light():
    code = "import sys, cnn_jax.data; print({'jax', 'grain', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


def test_mnist(tfds_dir):
    source = open_source("mnist", "train[:55000]", data_dir=tfds_dir)
    assert (len(source), source.image_shape, source.class_names) == (55000, (28, 28, 1), tuple("0123456789"))
    assert len(open_source("mnist", "train[55000:]", data_dir=tfds_dir)) == 5000
    images, labels = materialize(open_source("mnist:3.0.1", "test[:300]", data_dir=tfds_dir)).values()
    assert images.shape == (300, 28, 28, 1) and set(labels.tolist()) == set(range(10))
    # The digits were placed in 28x28 by centre of mass (LeCun et al. 1998), which is at pixel 13.5 or 14.
    rows = (images.sum((2, 3)) * np.arange(28)).sum(1) / images.sum((1, 2, 3))
    np.testing.assert_allclose(rows, 13.8, atol=1)
    ours, tfds_own = source[7], _by_tfds("mnist", "train", tfds_dir)[7]
    np.testing.assert_array_equal(ours["image"], tfds_own["image"])
    assert ours["label"] == tfds_own["label"]
    for split in ("tran", "train[", "train[:99999999]", "train[5:5]"):
        with pytest.raises(UserError, match="60000 examples") as caught:
            open_source("mnist", split, data_dir=tfds_dir)
        assert "\n" not in str(caught.value)


def _by_tfds(name, split, folder) -> Any:
    import tensorflow_datasets as tfds

    return tfds.data_source(name, split=split, data_dir=folder)


def test_cifar10(tfds_dir):
    source = open_source("cifar10", "train[:45000]", data_dir=tfds_dir)
    assert len(source) == 45000 and source.image_shape == (32, 32, 3)
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    np.testing.assert_array_equal(source[3]["image"], _by_tfds("cifar10", "train", tfds_dir)[3]["image"])
    preprocess = Preprocess.fit(open_source("cifar10", "train[:2000]", data_dir=tfds_dir))
    np.testing.assert_allclose(preprocess.mean, (0.4914, 0.4822, 0.4465), atol=0.01)  # well-known values of all 50,000
    np.testing.assert_allclose(preprocess.std, (0.2470, 0.2435, 0.2616), atol=0.01)
    assert open_source("cifar10", "test[:5]", data_dir=tfds_dir, image_size=16)[0]["image"].shape == (16, 16, 3)


def test_data_dir_from_environment(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    assert len(open_source("mnist", "test[:10]")) == 10
    monkeypatch.setenv("TFDS_DATA_DIR", os.path.join(tfds_dir, "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        open_source("mnist", "test[:10]")


def reads(fingerprint):
    source = Counted(fingerprint)
    materialize(source)
    return source.reads


def test_the_cache_drops_what_was_not_used_for_longest(cache, monkeypatch):
    for order, fingerprint in enumerate(("first", "second")):
        assert reads(fingerprint) == 3
        for folder in cache.iterdir():
            if folder.stat().st_mtime > 1e9:  # a new one
                os.utime(folder, (order + 1, order + 1))
    size = sum(path.stat().st_size for path in next(cache.iterdir()).iterdir())
    monkeypatch.setenv("CNN_JAX_CACHE_GB", str(2.5 * size / 1e9))
    assert reads("first") == 0  # which is use, too
    assert reads("third") == 3 and len(list(cache.iterdir())) == 2
    assert (reads("first"), reads("third"), reads("second")) == (0, 0, 3)
    monkeypatch.setenv("CNN_JAX_CACHE_GB", "0")
    assert reads("last") == 3 and reads("last") == 0  # larger than the limit, but in use
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setenv("CNN_JAX_CACHE_GB", "much")
    with pytest.raises(UserError, match="CNN_JAX_CACHE_GB is 'much': set it to a number of gigabytes"):
        materialize(Counted("other"))


def test_what_killed_processes_left_in_the_cache_goes(cache):
    for name in (".writing-old", ".writing-now"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / ".writing-old", (0, 0))
    materialize(Counted("any"))
    assert [path.name for path in cache.glob(".*")] == [".writing-now"]


class Told:
    """A source of the user's that says nothing of what is in it."""

    name, split, class_names, image_shape, fingerprint = "told", "train", ("a", "b"), (1, 1, 1), None

    def __init__(self, labels):
        self.told = labels

    def __len__(self):
        return len(self.told)

    def __getitem__(self, index):
        return {"image": np.full((1, 1, 1), index, np.uint8), "label": self.told[index]}


def test_other_labels_are_another_data_set():
    one, other, same = (cast(Source, Told(labels)) for labels in ([0, 1, 1], [1, 0, 1], [0, 1, 1]))
    contents = [describe_contents(source, materialize(source)) for source in (one, same, other)]
    assert contents[0] == contents[1] != contents[2]
    assert describe_contents(one) == {"examples": 3}  # streamed: only their number is known
