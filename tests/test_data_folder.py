"""Data sets read from image folders."""

import os

import numpy as np
import pytest
from PIL import Image, features

from cnn_jax.config import Config
from cnn_jax.data import Splits, default_splits, materialize, open_source
from cnn_jax.data.folder import check_outside_of_classes, find_images, open_folder
from cnn_jax.errors import UserError
from cnn_jax.storage.lock import locked
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.run import train

CONFIG = Config("photos").override(model="softmax_regression", batch_size=8, steps=1, epochs=None)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def fill(folder, counts, size=(5, 7), channels=3, suffix="png"):
    """Writes `counts[class]` images per class; every pixel of image i of class k is 20 k + i."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((*size, channels), 20 * label + i, np.uint8)
            Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / name / f"{i}.{suffix}")
    return f"folder:{folder}"


def values(source):
    return [int(source[i]["image"].flat[0]) for i in range(len(source))]


def test_three_folders(tmp_path):
    fill(tmp_path / "train", {"cat": 4, "dog": 3})
    fill(tmp_path / "val", {"cat": 2, "dog": 1})
    fill(tmp_path / "test", {"cat": 1, "dog": 1})
    name = f"folder:{tmp_path}"
    train = open_source(name, "train")
    assert train.class_names == ("cat", "dog") and train.image_shape == (5, 7, 3)
    images, labels = materialize(train).values()
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 20, 21, 22]
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] // 20)
    assert (len(open_source(name, "validation")), len(open_source(name, "test"))) == (3, 2)
    assert default_splits(name) == Splits()


def test_missing_parts_come_from_train(tmp_path):
    name = f"folder:{tmp_path}"
    fill(tmp_path / "train", {"cat": 10, "dog": 10})
    assert default_splits(name) == Splits("train[:80%]", "train[80%:90%]", "train[90%:]")
    parts = [values(open_source(name, split)) for split in ("train[:80%]", "train[80%:90%]", "train[90%:]")]
    assert sorted(sum(parts, [])) == sorted(values(open_source(name, "train"))) and [len(p) for p in parts] == [
        16,
        2,
        2,
    ]
    fill(tmp_path / "test", {"cat": 1, "dog": 1})
    assert default_splits(name) == Splits("train[:90%]", "train[90%:]", "test")
    with pytest.raises(UserError, match="validation"):
        open_source(name, "validation")


def test_one_folder_is_divided(tmp_path):
    name = fill(tmp_path, {"a": 20, "b": 20, "c": 3})
    parts = {split: set(values(open_source(name, split))) for split in ("train", "validation", "test")}
    assert set.union(*parts.values()) == {*range(40), 40, 41, 42}
    assert sum(map(len, parts.values())) == 43
    for part in parts.values():  # stratified: every class with three or more images is in each part
        assert {value // 20 for value in part} == {0, 1, 2}
    assert 25 <= len(parts["train"]) <= 39
    assert default_splits(name) == Splits()


def test_split_is_about_80_10_10_and_stable_as_files_are_added(tmp_path):
    for i in range(300):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{i}.png").touch()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a" / "0.png")

    def names(split):
        return {file.path.name for file in open_folder(str(tmp_path), split, None, False).files}

    before = {split: names(split) for split in ("train", "validation", "test")}
    assert 220 <= len(before["train"]) <= 260 and 15 <= len(before["validation"]) <= 45
    for i in range(300, 600):
        (tmp_path / "a" / f"{i}.png").touch()
    for split, files in before.items():
        assert files <= names(split)


def test_mixed_sizes_and_modes(tmp_path):
    name = fill(tmp_path, {"a": 3, "b": 3}, size=(30, 40))
    assert open_source(name, "train").image_shape == (30, 40, 3)
    fill(tmp_path, {"a": 1}, size=(90, 40), channels=1, suffix="jpg")
    assert open_source(name, "train").image_shape == (64, 64, 3)
    assert open_source(name, "train", image_size=12)[0]["image"].shape == (12, 12, 3)
    grey = fill(tmp_path / "grey", {"a": 3}, channels=1)
    assert open_source(grey, "train").image_shape == (5, 7, 1)
    large = fill(tmp_path / "large", {"a": 3}, size=(257, 257), channels=1)
    assert open_source(large, "train").image_shape == (64, 64, 1)


def test_files_are_read_as_grey_or_colour(tmp_path):
    grey = fill(tmp_path / "grey", {"a": 3, "b": 3}, channels=1)
    source = open_source(grey, "train", channels=3)
    images, _ = materialize(source).values()
    assert images.shape[1:] == source.image_shape == (5, 7, 3) and (images == images[..., :1]).all()
    mixed = fill(tmp_path / "mixed", {"a": 3, "b": 3})
    colour = Image.new("RGB", (7, 5), (200, 100, 50))
    colour.save(tmp_path / "mixed" / "a" / "0.png")
    assert open_source(mixed, "train").image_shape == (5, 7, 3)
    parts = [open_source(mixed, split, channels=1) for split in ("train", "validation", "test")]
    found = {int(part[i]["image"][0, 0, 0]) for part in parts for i in range(len(part))}
    assert found == {colour.convert("L").getpixel((0, 0)), 1, 2, 20, 21, 22}


def test_sideways_photographs_have_the_size_they_are_shown_in(tmp_path):
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(3):
        Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "a" / f"{i}.jpg", exif=exif)
    assert open_source(f"folder:{tmp_path}", "train").image_shape == (6, 8, 1)


def test_hidden_and_foreign_files_are_not_images(tmp_path):
    name = fill(tmp_path, {"a": 3, "b": 3})
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("about these")
    (tmp_path / "a" / "._0.png").write_text("what macOS leaves")
    splits = ("train", "validation", "test")
    assert sum(len(open_source(name, split)) for split in splits) == 6
    assert open_source(name, "train").class_names == ("a", "b")


def test_bad_folders(tmp_path):
    def message(path, split="train"):
        with pytest.raises(UserError) as caught:
            open_source(f"folder:{path}", split)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "not a folder" in message(tmp_path / "nowhere")
    assert "no sub-folder" in message(tmp_path)
    fill(tmp_path, {"a": 3})
    (tmp_path / "empty").mkdir()
    assert "'empty' has no images" in message(tmp_path)
    (tmp_path / "empty").rmdir()
    assert "split" in message(tmp_path, "train[5000:]")
    fill(tmp_path / "half" / "train", {"a": 3, "b": 3})
    fill(tmp_path / "half" / "test", {"a": 3})
    (tmp_path / "half" / "test" / "b").mkdir()
    assert message(tmp_path / "half").startswith(f"{tmp_path / 'half' / 'test'}: class 'b' has no images")
    fill(tmp_path / "no_train" / "test", {"a": 3})
    fill(tmp_path / "no_train" / "val", {"a": 3})
    (tmp_path / "no_train" / "validation").mkdir()
    assert "but no train: add" in message(tmp_path / "no_train")
    fill(tmp_path / "deep" / "train", {"a": 3})
    fill(tmp_path / "deep" / "test", {"b": 3})
    assert "class 'b'" in message(tmp_path / "deep")


def test_too_few_images_for_three_splits_are_told_before_training(tmp_path):
    def message(name, **changes):
        with pytest.raises(UserError) as caught:
            make_experiment(CONFIG.override(dataset=name, **changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    pairs = fill(tmp_path / "pairs", {"cat": 2, "dog": 2})
    assert message(pairs).startswith(f"{pairs} has no class with three images")
    assert len(open_source(pairs, "train")) > 0  # the images can still be opened
    one = fill(tmp_path / "one", {"cat": 9})
    assert message(one).startswith("the only class of the data is 'cat', but classification needs two: add a class")
    assert "is '0', but classification needs two: " in message("synthetic:8x8x1:1")

    fill(tmp_path / "few" / "train", {"cat": 3, "dog": 4})
    few = f"folder:{tmp_path / 'few'}"
    assert "7 images in train, too few to take some for validation, test: provide at least 8" in message(few)
    own = {"train_split": "train[:5]", "validation_split": "train[5:6]", "test_split": "train[6:]"}
    assert len(make_experiment(CONFIG.override(dataset=few, **own)).sources["test"]) == 1


def test_tenths_of_train_leave_some_of_each_class_to_train_on(tmp_path):
    fill(tmp_path / "train", {"cat": 20, "dog": 1})
    (dog,) = (tmp_path / "train" / "dog").iterdir()
    told = set()
    for i in range(60):  # rename until the file falls into the last tenth
        dog = dog.rename(dog.with_name(f"{i}.png"))
        try:
            splits = default_splits(f"folder:{tmp_path}")
        except UserError as error:
            told.add(str(error))
        else:
            train = open_source(f"folder:{tmp_path}", splits.train)
            assert {train[i]["label"] for i in range(len(train))} == {0, 1}
    (line,) = told
    assert "so few images of class 'dog' that all would be taken for validation, test" in line


def test_bad_images(tmp_path, capsys):
    fill(tmp_path / "train", {"a": 3, "b": 3})
    name = f"folder:{tmp_path}"
    whole = (tmp_path / "train" / "a" / "0.png").read_bytes()
    (tmp_path / "train" / "a" / "bad.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="bad.png"):
        materialize(open_source(name, "train"))
    source = open_folder(str(tmp_path), "train", None, skip_bad_images=True)
    assert len(source) == len(open_source(name, "train", skip_bad_images=True)) == 6
    assert [path.name for path in source.skipped] == ["bad.png"]
    assert materialize(source)["image"].shape == (6, 5, 7, 3)
    warning = capsys.readouterr().err
    assert "left out 1 unreadable" in warning and "bad.png" in warning and warning.count("\n") == 2  # one line per load


def test_a_changed_file_is_decoded_again(tmp_path):
    fill(tmp_path / "train", {"a": 2})
    name = f"folder:{tmp_path}"
    assert set(materialize(open_source(name, "train"))["image"][:, 0, 0, 0].tolist()) == {0, 1}
    path = tmp_path / "train" / "a" / "0.png"
    Image.fromarray(np.full((5, 7, 3), 99, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert set(materialize(open_source(name, "train"))["image"][:, 0, 0, 0].tolist()) == {99, 1}


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_other_names_of_validation_and_strangers(tmp_path, name, capsys):
    for part in ("train", name, "test"):
        fill(tmp_path / part, {"a": 3, "b": 4})
    fill(tmp_path / "extra", {"a": 1})
    folder = f"folder:{tmp_path}"
    assert default_splits(folder, None) == Splits()
    assert len(open_source(folder, "validation")) == 7
    assert len(open_source(folder, "all")) == 21
    assert capsys.readouterr().err == f"warning: {folder}: ignoring extra beside train, validation, test\n"
    other = "val" if name == "valid" else "valid"
    fill(tmp_path / other, {"a": 1})
    with pytest.raises(
        UserError, match=f"has both {'|'.join((f'{name} and {other}', f'{other} and {name}'))}: keep one"
    ):
        open_source(folder, "train")


def test_a_class_that_is_called_train(tmp_path):
    folder = fill(tmp_path, {"bus": 8, "car": 8, "train": 8})
    assert open_source(folder, "train").class_names == ("bus", "car", "train")
    assert (
        len(open_source(folder, "all"))
        == 24
        == sum(len(open_source(folder, s)) for s in ("train", "validation", "test"))
    )


def test_a_test_set_alone_is_enough_to_evaluate(tmp_path):
    folder = fill(tmp_path / "set" / "test", {"a": 3, "b": 3}).removesuffix("/test")
    source = open_source(folder, "test")
    assert (len(source), source.class_names) == (6, ("a", "b"))
    assert default_splits(folder, None).test == "test"
    with pytest.raises(UserError, match="has test but no train: add .*/train/CLASS"):
        open_source(folder, default_splits(folder, None).train)


def test_splits_without_classes_are_not_taken_for_classes(tmp_path):
    folder = fill(tmp_path, {"train": 8, "test": 8})
    with pytest.raises(UserError, match="images in test and train, but not sorted into classes: move them"):
        open_source(folder, "train")


def test_runs_beside_the_classes_are_no_class(tmp_path, capsys):
    folder = fill(tmp_path, {"a": 8, "b": 8})
    with locked(tmp_path / "runs" / "one"):
        (tmp_path / "runs" / "one" / "config.json").touch()
    assert open_source(folder, "train").class_names == ("a", "b")
    with locked(tmp_path / "sweeps" / "rates" / "one"):
        fill(tmp_path / "sweeps" / "rates" / "one", {"plots": 1})
    assert open_source(folder, "train").class_names == ("a", "b")
    assert {path.parent.name for path in find_images(tmp_path)} == {"a", "b"}
    assert not capsys.readouterr().err
    fill(tmp_path, {"runs": 3})
    assert open_source(f"{folder}/", "train").class_names == ("a", "b")
    assert capsys.readouterr().err == f"warning: {folder}/: left out the folders runs (it holds runs)\n"


def test_a_run_inside_a_class_is_refused(tmp_path):
    folder = fill(tmp_path / "data", {"a": 8, "b": 8})
    for workdir in ("data/a", "data/a/run", "data/b/runs/one"):
        with pytest.raises(UserError, match=rf"is in {tmp_path}/data/[ab], a class of the data.*outside of the data"):
            train(CONFIG.override(dataset=folder, workdir=str(tmp_path / workdir), devices=1))
    assert sorted(path.name for path in (tmp_path / "data" / "a").iterdir()) == [f"{i}.png" for i in range(8)]
    for workdir in ("data/runs/one", "data", "run"):  # these take no class away
        check_outside_of_classes(str(tmp_path / "data"), tmp_path / workdir)


@pytest.mark.parametrize("suffix", ["jfif", "tif", "tiff", "avif"])
def test_less_common_kinds_of_images(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    (tmp_path / "a").mkdir()
    for number in range(3):
        image = Image.new("RGB", (6, 5), (200, 10, 10))
        image.save(tmp_path / "a" / f"{number}.{suffix}", format="JPEG" if suffix == "jfif" else None)
    source = open_source(f"folder:{tmp_path}", "all")
    assert len(source) == 3 and abs(int(source[0]["image"][0, 0, 0]) - 200) < 10


def test_what_is_left_out_is_named(tmp_path, capsys):
    folder = fill(tmp_path, {"a": 4, "b": 4})
    for name in ("x.gif", "y.gif", "notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / "a" / name).write_bytes(b"")
    (tmp_path / "b" / "more").mkdir()
    (tmp_path / "b" / "a.jpg").mkdir()
    (tmp_path / "__background__").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    assert len(open_source(folder, "all")) == len(open_source(folder, "all")) == 8
    told = f"warning: {folder}: left out 3 files (.gif 2, .txt 1) and the folders __background__, b/a.jpg, b/more\n"
    assert capsys.readouterr().err == told
    fill(tmp_path, {".": 2})
    open_source(f"{folder}/", "all")
    assert ", 2 images outside of the classes' folders and the folders" in capsys.readouterr().err


def test_images_below_a_folder_are_found_by_the_same_rules(tmp_path):
    fill(tmp_path / "set", {"a": 2, ".ipynb_checkpoints": 1, "__MACOSX": 1})
    fill(tmp_path / "elsewhere", {"linked": 1})
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    found = [str(path.relative_to(tmp_path / "set")) for path in find_images(tmp_path / "set")]
    assert found == ["a/0.png", "a/1.png", "link/linked/0.png"]
