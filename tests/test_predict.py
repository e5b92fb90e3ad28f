"""The predict command: image files in; table, CSV and JSON out."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from made_up_run import digits, expected_logits, make_run
from PIL import Image, features

from cnn_jax.commands import predict as command
from cnn_jax.commands.parser import guard
from cnn_jax.data import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.runs import predict
from cnn_jax.storage import durable


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made_up") / "run")


@pytest.fixture
def photos(tmp_path):
    """A folder with five digits as PNG files, one of them in a sub-folder, and two files that are not images."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    images, _ = digits("test[:5]")
    for name, image in zip(("b.png", "a.png", "sub/c.PNG", "d.png", "e.png"), images, strict=True):
        Image.fromarray(image[..., 0]).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "._a.png").write_text("litter of another system")
    return folder


def refuse(capsys, argv):
    """Runs the command, expects exit code 2 and one "error:" line besides warnings, and returns that line."""
    with pytest.raises(SystemExit) as stop:
        guard(lambda: command.main([str(a) for a in argv]))
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert line.startswith("error:")
    return line


def test_csv_holds_the_models_probabilities(run, photos, capsys):
    command.main([str(run), str(photos), "--csv", "-", "--top", "3"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    images, _ = digits("test[:5]")
    odds = np.exp(expected_logits(images).astype(np.float64))
    expected = odds / odds.sum(axis=1, keepdims=True)
    order = [photos / name for name in ("a.png", "b.png", "d.png", "e.png", "sub/c.PNG")]
    assert [row["image"] for row in rows] == [str(path) for path in order for _ in range(3)]
    for path, which in zip(order, (1, 0, 3, 4, 2), strict=True):
        mine = [row for row in rows if row["image"] == str(path)]
        best = np.argsort(-expected[which])[:3]
        assert [row["class"] for row in mine] == [str(k) for k in best]
        assert [row["rank"] for row in mine] == ["1", "2", "3"]
        np.testing.assert_allclose([float(row["probability"]) for row in mine], expected[which][best], atol=1e-4)


def test_json_and_csv_files_agree_and_the_table_is_shown(run, photos, tmp_path, capsys):
    out = tmp_path / "out.json", tmp_path / "out.csv"
    command.main([str(run), str(photos / "a.png"), "--top", "99", "--json", str(out[0]), "--csv", str(out[1])])
    (record,) = json.loads(out[0].read_text())
    assert record["image"] == str(photos / "a.png")
    assert len(record["predictions"]) == 10
    assert sum(p["probability"] for p in record["predictions"]) == pytest.approx(1, abs=1e-5)
    assert [p["class"] for p in record["predictions"]] == [r["class"] for r in csv.DictReader(open_text(out[1]))]
    table = capsys.readouterr().out
    assert f"{record['predictions'][0]['probability']:.2%}" in table


def open_text(path):
    return io.StringIO(path.read_text())


def test_class_names_are_shown_as_they_are(tmp_path, photos, capsys):
    run = make_run(tmp_path / "run")
    (run / "classes.txt").write_text("".join(f"[red]class {k}[/red]\n" for k in range(10)))
    command.main([str(run), str(photos / "a.png"), "--top", "1"])
    assert "[red]class" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["avif", "tif", "jfif"])
def test_less_common_kinds_of_images(run, tmp_path, suffix, capsys):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    images, _ = digits("test[:1]")
    Image.fromarray(images[0, ..., 0]).save(tmp_path / f"digit.{suffix}", format="JPEG" if suffix == "jfif" else None)
    assert predictions(run, tmp_path, capsys) == predictions(run, tmp_path / f"digit.{suffix}", capsys) != []


def predictions(run, path, capsys):
    command.main([str(run), str(path), "--csv", "-"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_unreadable_images_are_all_named(run, photos, capsys):
    for name in ("f.png", "g.jpg"):
        (photos / name).write_bytes(b"\x89PNG not really")
    line = refuse(capsys, [run, photos])
    assert "f.png" in line and "g.jpg" in line and "--skip-bad-images" in line


def test_images_are_read_and_run_batch_by_batch(run, photos, monkeypatch, capsys):
    whole = predict.predict(run, list(predict.find_images([photos])))
    (photos / "c.png").write_bytes(b"\x89PNG not really")
    alive: list[weakref.ref] = []
    most = 0
    read, run_model = Preprocess.read, predict.predict_outputs

    def watched(self, path):
        nonlocal most
        image = read(self, path).copy()
        alive.append(weakref.ref(image))
        most = max(most, sum(reference() is not None for reference in alive))
        return image

    sizes = []

    def measured(model, variables, preprocess, images, batch_size):
        sizes.append(len(images))
        return run_model(model, variables, preprocess, images, batch_size)

    monkeypatch.setattr(Preprocess, "read", watched)
    monkeypatch.setattr(predict, "predict_outputs", measured)
    found = predict.predict(run, list(predict.find_images([photos])), batch_size=2, skip_bad_images=True)
    assert most <= 2 and sizes == [2, 2, 2]  # the last batch is padded to the same shape
    named, probabilities = (
        lambda of: [(p.image, [row["class"] for row in p.rows]) for p in of],
        lambda of: [[row["probability"] for row in p.rows] for p in of],
    )
    assert named(found) == named(whole)
    np.testing.assert_allclose(probabilities(found), probabilities(whole), rtol=1e-5)
    assert "c.png" in capsys.readouterr().err


def test_the_model_does_not_run_once_an_image_is_unreadable(run, photos, monkeypatch):
    (photos / "a.png").write_bytes(b"\x89PNG not really")
    (photos / "sub" / "c.PNG").write_bytes(b"")
    monkeypatch.setattr(predict, "predict_outputs", None)
    with pytest.raises(UserError, match="a.png.*c.PNG"):
        predict.predict(run, list(predict.find_images([photos])), batch_size=2)


@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_output_is_written_whole_or_not_at_all(run, photos, tmp_path, capsys, monkeypatch, flag):
    def replace(path, data):
        assert path.parent != Path("/dev"), "a device is written to, not replaced"
        write(path, data)

    write = durable.write
    monkeypatch.setattr(durable, "write", replace)
    line = refuse(capsys, [run, photos, flag, "/dev/full"])
    assert f"{flag} /dev/full cannot be written (" in line and "No space left on device" in line
    line = refuse(capsys, [run, photos, flag, tmp_path / "absent" / "out"])
    assert f"{flag} {tmp_path / 'absent' / 'out'} cannot be written (" in line and "No such file" in line
    assert "Is a directory" in refuse(capsys, [run, photos, flag, photos])

    (tmp_path / "target").write_text("earlier")
    (tmp_path / "link").symlink_to("target")
    command.main([str(run), str(photos), flag, str(tmp_path / "link")])
    assert (tmp_path / "link").is_symlink() and "a.png" in (tmp_path / "target").read_text()

    def fill_up(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill_up)
    before = {path: path.stat().st_size for path in tmp_path.iterdir()}
    for name in ("target", "new"):
        line = refuse(capsys, [run, photos / "b.png", flag, tmp_path / name])
        assert f"{flag} {tmp_path / name} cannot be written (No space left on device)" in line
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == before


def test_unreadable_images_can_be_skipped(run, photos, capsys):
    (photos / "f.png").write_bytes(b"\x89PNG not really")
    command.main([str(run), str(photos), "--skip-bad-images", "--csv", "-", "--top", "1"])
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1 + 5
    assert output.err.startswith("warning:") and "f.png" in output.err
    assert "the image cannot be read: name at least one" in refuse(capsys, [run, photos / "f.png", "--skip-bad-images"])


def test_mistakes_in_the_arguments(run, photos, tmp_path, capsys):
    assert "absent.png" in refuse(capsys, [run, photos / "absent.png"])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refuse(capsys, [run, empty])
    assert "config.json" in refuse(capsys, [empty, photos])


@pytest.mark.parametrize("argv", [[], ["run"], ["run", "a.png", "--top", "0"], ["run", "a.png", "--top", "x"]])
def test_wrong_usage_is_one_line(argv):
    with pytest.raises(UserError) as error:
        command.main(argv)
    assert "--help" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("command", ["predict", "evaluate", "results"])
def test_help_needs_no_jax(command):
    code = f"""
import runpy, sys
sys.argv = ["x", "{command}", "--help"]
try:
    runpy.run_module("cnn_jax", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0
assert "jax" not in sys.modules and "flax" not in sys.modules
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert f"python -m cnn_jax {command}" in said.stdout


def test_images_are_read_ahead_but_never_all_of_them(tmp_path, monkeypatch):
    seen = []

    class Reader:
        def read(self, path):
            seen.append(path)
            if path.name == "3":
                raise UserError("no image")
            return np.full((1, 1, 1), int(path.name), np.uint8)

    paths = [Path(str(number)) for number in range(100)]
    found = predict._read(paths, cast("Preprocess", Reader()), ahead=5)
    first = [next(found) for _ in range(5)]
    assert [path for path, _ in first] == paths[:5]
    assert isinstance(first[3][1], UserError)
    assert [int(np.asarray(first[k][1]).item()) for k in (0, 1, 2, 4)] == [0, 1, 2, 4]
    found.close()
    assert set(seen) <= set(paths[:11])
    assert [path for path, _ in predict._read(paths, cast("Preprocess", Reader()), ahead=5)] == paths
