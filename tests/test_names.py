"""Names of files, folders and classes that are not plain text: not UTF-8, with control characters, in other scripts."""

import csv
import json
import os
import sys
import warnings

import numpy as np
import pytest
from made_up_run import make_run
from PIL import Image

import cnn_jax
from cnn_jax.commands import predict as command_line
from cnn_jax.commands.data import main as data_command
from cnn_jax.commands.parser import guard
from cnn_jax.config import Config
from cnn_jax.data import materialize, open_source
from cnn_jax.data.folder import open_folder
from cnn_jax.data.sources import describe_contents
from cnn_jax.errors import UserError
from cnn_jax.report import figures, fonts
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.file_names import readable
from cnn_jax.tasks.classification_report import classification_findings

LATIN_1 = os.fsdecode(b"K\xe4fer")  # not UTF-8


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def fill(folder, names, count=12, file="{}.png"):
    """Writes `count` images per class; every pixel of image i of class k is 100 k + i."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4), 100 * label + i, np.uint8)).save(folder / name / file.format(i))
    return f"folder:{folder}"


def test_folders_whose_names_are_not_utf_8_or_have_line_breaks(tmp_path):
    dataset = fill(tmp_path, [LATIN_1, "a\nb"], file=os.fsdecode(b"\xff") + "{}.png")
    source = open_source(dataset, "all")
    assert source.class_names == ("K\\xe4fer", "a\\nb")
    examples = sorted((source[i]["label"], int(source[i]["image"].max())) for i in range(24))
    assert examples == [(label, 100 * label + i) for label in (0, 1) for i in range(12)]
    assert len(materialize(source)["image"]) == describe_contents(source)["examples"] == 24


def test_a_run_on_names_that_are_not_utf_8_or_have_line_breaks(tmp_path):
    dataset = fill(tmp_path / "photos", [LATIN_1, "a\nb"], file=os.fsdecode(b"\xff") + "{}.png")
    run = tmp_path / "run"
    made = cnn_jax.fit("softmax_regression", dataset, steps=2, batch_size=8, logger=[], workdir=run)
    assert made.classes == files.read_classes(run) == ("K\\xe4fer", "a\\nb")
    assert json.loads((run / files.DATA).read_text()) == {
        name: describe_contents(open_source(dataset, name)) for name in ("train", "validation", "test")
    }
    assert "K\\xe4fer" in (run / files.REPORT).read_text()
    assert cnn_jax.load(run).evaluate("test")["count"] > 0


def test_other_sources_with_such_classes_are_refused(tmp_path):
    arrays = np.zeros((20, 4, 4, 1), np.uint8), np.arange(20) % 2
    for name in ("a\nb", LATIN_1, "a\u2028b"):
        with pytest.raises(UserError, match=r"class name '.*' has a line break or another control character"):
            cnn_jax.fit("softmax_regression", arrays, classes=("a", name), steps=1, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_composed_and_decomposed_letters_are_the_same(tmp_path):
    composed, decomposed = "Käfer", "Ka\u0308fer"
    assert composed != decomposed
    fill(tmp_path / "train", [decomposed, "dog"])
    fill(tmp_path / "test", [composed, "dog"], count=2)
    test = open_source(f"folder:{tmp_path}", "test")
    assert test.class_names == open_source(f"folder:{tmp_path}", "train").class_names == (composed, "dog")
    assert sorted((test[i]["label"], int(test[i]["image"].max())) for i in range(4)) == [
        (0, 0),
        (0, 1),
        (1, 100),
        (1, 101),
    ]
    # The split of a file does not depend on how the system spells it.
    splits = []
    for name, spelled in (("one", composed), ("other", decomposed)):
        fill(tmp_path / name, [spelled, "dog"], file=spelled + "{}.png")
        source = open_folder(str(tmp_path / name), "train", None, False)
        splits.append([int(source[i]["image"].max()) for i in range(len(source))])
    assert splits[0] == splits[1]
    # Both spellings beside each other are one class.
    fill(tmp_path / "both", [composed, decomposed], count=3)
    both = open_source(f"folder:{tmp_path / 'both'}", "all")
    assert both.class_names == (composed,) and len(both) == 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def test_predictions_of_files_whose_names_are_not_utf_8(run, tmp_path, capsys):
    for name in (LATIN_1, "a\nb", "plain"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    out.mkdir()
    command_line.main(
        [str(run), str(tmp_path), "--csv", str(out / "t.csv"), "--json", str(out / "t.json"), "--top", "1"]
    )
    expected = sorted(f"{tmp_path}/{name}.png" for name in ("K\\xe4fer", "a\\nb", "plain"))
    with open(out / "t.csv", encoding="utf-8", newline="") as file:
        assert sorted(row["image"] for row in csv.DictReader(file)) == expected
    assert sorted(row["image"] for row in json.loads((out / "t.json").read_text())) == expected
    assert "K\\xe4fer.png" in capsys.readouterr().out
    (tmp_path / f"{LATIN_1}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"K\\xe4fer\.png cannot be read"):
        command_line.main([str(run), str(tmp_path)])


def test_a_run_folder_that_is_not_utf_8_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"`workdir` is .*K\\xe4fer, which is not UTF-8: rename it"):
        Config().override(workdir=str(tmp_path / LATIN_1)).resolve()
    with pytest.raises(UserError, match=r"`dataset` is folder:.*K\\xe4fer, which is not UTF-8"):
        Config().override(dataset=f"folder:{tmp_path / LATIN_1}").resolve()
    (tmp_path / LATIN_1).mkdir()
    monkeypatch.chdir(tmp_path / LATIN_1)
    with pytest.raises(UserError, match=r"`workdir` is .*K\\xe4fer/runs/a, which is not UTF-8"):
        Config().override(workdir="runs/a").resolve()


def letters_of(path):
    from matplotlib.ft2font import FT2Font

    return set(FT2Font(path).get_charmap())


def test_fonts_are_chosen_that_have_the_letters():
    from matplotlib import font_manager, rcParams

    usual = font_manager.findfont("DejaVu Sans")
    other = next(font for font in font_manager.fontManager.ttflist if font.name == "STIXGeneral" and font.weight == 400)
    letter = chr(min(c for c in letters_of(other.fname) - letters_of(usual) if chr(c).isprintable()))
    assert fonts.families(["cat", "Ж"]) == list(rcParams["font.family"])  # nothing is added that is not needed
    chosen = fonts.families(["cat", letter])
    assert chosen is not None and any(ord(letter) in letters_of(font_manager.findfont(family)) for family in chosen[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with figures.style(["cat", letter]):
            warnings.simplefilter("error")  # without the filter for letters that no font has
            figure, axes = figures.new_axes(1, 1)
            axes.set_title(letter)
            figures.png(figure)


def findings(classes):
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]])
    images = np.zeros((4, 8, 8, 1), np.uint8)
    return classification_findings(
        split="test", classes=classes, labels=labels, probabilities=probabilities, images=images
    )


def test_without_such_a_font_figures_show_numbers_and_tables_explain_them(monkeypatch):
    monkeypatch.setattr(fonts, "_letters", lambda path: frozenset(range(128)))
    assert fonts.families(["猫", "犬"]) is None and fonts.drawable(["猫", "犬"]) == ("0", "1")
    chinese, plain = findings(("猫", "犬")), findings(("0", "1"))
    assert chinese.pictures["confusion"] == plain.pictures["confusion"]
    assert chinese.pictures["mistakes"] == plain.pictures["mistakes"]
    page = "".join(chinese.sections)
    assert "0: 猫" in page and "1: 犬" in page and "figures show their numbers" in page
    assert "says 犬" in page  # the browser has its own fonts
    assert "figures show their numbers" not in "".join(plain.sections)


def test_export_writes_to_no_filled_folder(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    (out / "3").mkdir(parents=True)
    (out / "3" / "00000.png").write_text("mine")
    command = ["data", "export", "digits", "--split", "test[:40]", "--output", str(out)]
    monkeypatch.setattr(sys, "argv", ["cnn_jax", *command[1:]])
    with pytest.raises(SystemExit):
        guard(lambda: data_command(command[1:]))
    assert "is not empty" in (said := capsys.readouterr().err) and "set --force" in said
    assert [path.name for path in out.rglob("*")] == ["3", "00000.png"] and (
        out / "3" / "00000.png"
    ).read_text() == "mine"
    data_command([*command[1:], "--force"])
    assert len(list(out.rglob("*.png"))) == 41  # the user's file was not one of the examples'
    empty = tmp_path / "empty"
    empty.mkdir()
    data_command([*command[1:-1], str(empty)])
    assert len(list(empty.rglob("*.png"))) == 40


@pytest.mark.parametrize("classes", [("a/b", "a-b"), ("..", "a"), ("", "a")])
def test_export_refuses_classes_that_make_no_folders(tmp_path, classes):
    from cnn_jax.data.own import as_source
    from cnn_jax.data.pictures import export

    source = as_source((np.zeros((2, 4, 4, 1), np.uint8), [0, 1]), class_names=classes)
    with pytest.raises(UserError, match=r"cannot be the name of a folder"):
        export(source, tmp_path / "out" / "here")
    assert not (tmp_path / "out").exists()


def test_export_sees_files_through_a_path_that_does_not_exist_yet(tmp_path):
    mine = tmp_path / "data" / "3" / "00000.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    around = tmp_path / "data" / "new" / ".." / ".." / "data"
    with pytest.raises(UserError, match="data is not empty"):
        data_command(["export", "digits", "--split", "test[:40]", "--output", str(around)])
    assert mine.read_text() == "mine" and not (tmp_path / "data" / "new").exists()


def test_readable_names():
    assert readable("Käfer 猫 ‍👩‍🔬 שלום.png") == "Käfer 猫 ‍👩‍🔬 שלום.png"
    assert readable(LATIN_1 + "\t\x85\x00") == "K\\xe4fer\\t\\x85\\x00"
    for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)):  # they turn text around
        assert readable(f"a{chr(code)}b") == f"a\\u{code:04x}b"


def test_a_class_name_cannot_turn_text_around(tmp_path):
    source = open_source(fill(tmp_path, ["ok", "gnp\u202eexe"]), "train")
    assert source.class_names == ("gnp\\u202eexe", "ok")
