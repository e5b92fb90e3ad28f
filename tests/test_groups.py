r"""`group_by`: images of one group, such as the frames of one video, are never divided between splits."""

import collections
import json
import re
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from cnn_jax import fit
from cnn_jax.config import Config
from cnn_jax.data import default_splits, open_source
from cnn_jax.data.folder import open_folder
from cnn_jax.data.own import Subset, split_off
from cnn_jax.data.sources import ArraySource
from cnn_jax.errors import UserError
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.run import train

TRACK = r"^(\d+)_"
CONFIG = Config("signs").override(
    model="softmax_regression", batch_size=8, steps=2, epochs=None, group_by=TRACK, logger=(), devices=1
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def fill(folder, tracks, frames=5):
    """Writes `tracks[class]` tracks per class, of `frames` frames each, named TRACK_FRAME.png as in GTSRB."""
    for name, count in tracks.items():
        (folder / name).mkdir(parents=True)
        for track in range(count):
            for frame in range(frames):
                Image.fromarray(np.full((3, 3), track, np.uint8)).save(folder / name / f"{track:05d}_{frame:05d}.png")


def tracks(source):
    """(class, track) of every image, by the names of the files."""
    return [(file.path.parent.name, file.path.name.split("_")[0]) for file in source.files]


def parts(folder, *splits, group_by: str | None = TRACK):
    return [open_folder(str(folder), split, None, False, group_by=group_by) for split in splits]


def test_no_track_is_on_both_sides_and_every_image_on_one(tmp_path):
    fill(tmp_path / "train", {"stop": 30, "yield": 50, "left": 11})
    whole, train, validation = parts(tmp_path, "train", "train[:90%]", "train[90%:]")
    assert not set(tracks(train)) & set(tracks(validation))
    assert train.files + validation.files == whole.files and len(whole) == 5 * 91
    ungrouped = parts(tmp_path, "train[:90%]", "train[90%:]", group_by=None)
    assert set(tracks(ungrouped[0])) & set(tracks(ungrouped[1]))  # what this is for


def test_the_share_is_near_the_one_asked_for_in_every_class(tmp_path):
    fill(tmp_path / "train", {"stop": 30, "yield": 50, "left": 11})
    for percent in (10, 20, 50):
        (split_off,) = parts(tmp_path, f"train[{100 - percent}%:]")
        assert abs(len(split_off) - percent / 100 * 455) <= 2.5  # half a track
        found = collections.Counter(name for name, _ in set(tracks(split_off)))
        for name, count in {"stop": 30, "yield": 50, "left": 11}.items():
            assert abs(found[name] - percent / 100 * count) <= 1


def test_the_same_number_in_another_class_is_another_track(tmp_path):
    fill(tmp_path / "train", {"stop": 20, "yield": 20})
    (validation,) = parts(tmp_path, "train[90%:]")
    numbers = collections.defaultdict(set)
    for name, track in tracks(validation):
        numbers[name].add(track)
    assert len(numbers["stop"]) == len(numbers["yield"]) == 2 and numbers["stop"] != numbers["yield"]


def test_the_division_is_the_same_each_time_and_wherever_the_folder_is(tmp_path):
    for place in ("one", "other"):
        fill(tmp_path / place / "train", {"stop": 12, "yield": 9})
    one, again = (parts(tmp_path / "one", "train[80%:]")[0] for _ in range(2))
    (other,) = parts(tmp_path / "other", "train[80%:]")
    assert one.files == again.files and tracks(one) == tracks(other)
    # Within a class the order is that of SHA-256 of class and track, and class by class the tracks are spread evenly.
    places = {}
    for name, count in {"stop": 12, "yield": 9}.items():
        hashes = {track: sha256(f"{name}/{track:05d}".encode()).hexdigest()[:12] for track in range(count)}
        for rank, track in enumerate(sorted(hashes, key=hashes.__getitem__)):
            places[name, f"{track:05d}"] = (rank + int(hashes[track], 16) / 16**12) / count
    assert set(tracks(one)) == set(sorted(places, key=places.__getitem__)[-4:])  # 17 of 21 are nearest to 80 %


def test_one_folder_is_divided_by_track_and_stays_so_as_tracks_are_added(tmp_path):
    splits = ("train", "validation", "test")
    fill(tmp_path / "few", {"stop": 40, "yield": 3})
    fill(tmp_path / "more", {"stop": 60, "yield": 3})
    few, more = ([set(tracks(part)) for part in parts(tmp_path / place, *splits)] for place in ("few", "more"))
    assert sum(map(len, few)) == len(set.union(*few)) == 43
    assert all(before <= after for before, after in zip(few, more, strict=True))
    assert [sum(name == "yield" for name, _ in part) for part in few] == [1, 1, 1]
    assert 26 <= len(few[0]) <= 38
    assert sum(map(len, parts(tmp_path / "few", *splits))) == 5 * 43


def test_folders_of_their_own_for_validation_and_test_are_not_grouped(tmp_path):
    fill(tmp_path / "train", {"stop": 10, "yield": 10})
    fill(tmp_path / "test", {"stop": 1, "yield": 1})
    for number, path in enumerate(sorted((tmp_path / "test").rglob("*.png"))):
        path.rename(path.with_name(f"{number:05d}.png"))
    name = f"folder:{tmp_path}"
    assert default_splits(name, group_by=TRACK).test == "test"
    assert len(open_source(name, "test", group_by=TRACK)) == 10
    assert len(open_source(name, "test[:3]", group_by=TRACK)) == 3
    experiment = make_experiment(CONFIG.override(dataset=name))
    assert [len(experiment.sources[part]) for part in ("train", "validation", "test")] == [90, 10, 10]


def test_a_validation_share_in_the_library_keeps_groups_together(tmp_path):
    fill(tmp_path / "train", {"stop": 10, "yield": 10})
    (whole,) = parts(tmp_path, "train")
    rest, held_out = split_off(whole, 0.3)
    sides = [{tracks(whole)[row] for row in part.rows} for part in (rest, held_out)]
    assert not sides[0] & sides[1] and [len(rest), len(held_out)] == [70, 30]
    assert rest.groups is not None and held_out.groups is not None and held_out.labels is not None
    assert not set(rest.groups) & set(held_out.groups)
    assert held_out.labels.tolist() == [whole[row]["label"] for row in held_out.rows]
    uneven = Groups(whole, np.arange(100), "train")
    assert len(split_off(uneven, 0.5)[1]) in (40, 60)  # three groups, of 40, 40 and 20
    with pytest.raises(UserError, match="of 0.01 of 100 examples in 20 groups leaves one part empty"):
        split_off(whole, 0.01)
    with pytest.raises(UserError, match="`group_by` is for the file names of a folder"):
        fit("softmax_regression", (np.zeros((8, 2, 2), np.uint8), [0, 1] * 4), group_by=TRACK)


class Groups(Subset):
    groups = np.repeat([5, 6, 7], [40, 40, 20])  # type: ignore[assignment]


def test_splitting_off_single_examples_has_not_changed():
    source = ArraySource("mine", "train", ("a",), np.zeros((10, 1, 1, 1), np.uint8), np.zeros(10, np.int32))
    rest, held_out = split_off(source, 0.3)
    assert (list(rest.rows), list(held_out.rows)) == ([1, 3, 4, 5, 6, 7, 8], [0, 2, 9])


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("^(", r"`group_by` is '\^\(', which is not a regular expression: missing \)"),
        (r"^\d+_", r"`group_by` is '\^.*_', which has no group: put the part of the name .* in parentheses"),
        (r"^([a-z]+)", r"`group_by` '.*' does not match '0000\d_0000\d.png' in .*/train/(stop|yield): change it"),
        (r"^(x)?\d", r"`group_by` '.*' does not match '0000\d_0000\d.png' in "),  # a group that takes no part
    ],
)
def test_a_wrong_expression_is_refused(tmp_path, group_by, message):
    fill(tmp_path / "train", {"stop": 5, "yield": 5}, frames=2)
    for call in (default_splits, lambda name, **of: open_source(name, "train", **of)):
        with pytest.raises(UserError, match=message):
            call(f"folder:{tmp_path}", group_by=group_by)


def test_it_is_for_folders_only():
    for call in (default_splits, lambda name, **of: open_source(name, "train", **of)):
        with pytest.raises(UserError, match="only the files of folder:PATH can be grouped: drop it"):
            call("digits", group_by=TRACK)
    with pytest.raises(UserError, match="only the files of folder:PATH"):
        make_experiment(CONFIG.override(dataset="digits"))


def test_too_few_tracks_are_told(tmp_path):
    fill(tmp_path / "train", {"stop": 3, "yield": 4})
    name = f"folder:{tmp_path}"
    with pytest.raises(UserError, match="has 7 groups in train, too few to take some for validation, test"):
        default_splits(name, group_by=TRACK)
    with pytest.raises(UserError, match=re.escape("train[98%:] has no whole group of images (there are 7): choose a")):
        open_source(name, "train[98%:]", group_by=TRACK)


def test_a_run_records_it_and_goes_on_only_with_the_same_data(tmp_path):
    fill(tmp_path / "data" / "train", {"stop": 10, "yield": 10}, frames=2)
    config = CONFIG.override(dataset=f"folder:{tmp_path / 'data'}", workdir=str(tmp_path / "run"))
    train(config)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["group_by"] == TRACK
    with pytest.raises(UserError, match=r"different config \(group_by: None here, '\^\(\\\\d\+\)_' there\)"):
        train(config.override(group_by=None))
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been interrupted
    first = next((tmp_path / "data" / "train" / "stop").iterdir())
    first.rename(first.with_name("00077_00000.png"))  # another track
    with pytest.raises(UserError, match="has changed since it was started"):
        train(config)
