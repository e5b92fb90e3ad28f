"""The MNIST table: its rows, how they are measured and resumed, and what it prints."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn_jax.classical.solved import import_sklearn
from cnn_jax.config import Config
from cnn_jax.data import materialize, open_source
from cnn_jax.data.sources import ArraySource
from cnn_jax.errors import UserError
from cnn_jax.models import MODELS
from cnn_jax.runs.evaluate import member_predictions
from cnn_jax.runs.results import with_section
from experiments.mnist_table import data, run, table
from experiments.mnist_table.measure import Result, classifier, committee
from experiments.mnist_table.rows import ROWS, Row
from experiments.mnist_table.setting import setting

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = Path(__file__).parent.parent
# As printed in the lectures; the second linear row and HOG are not there.
PUBLISHED = {
    "linear": 12.0,
    "knn1": 5.0,
    "knn3": 5.0,
    "net300": 4.7,
    "svm": 1.4,
    "lenet5": 0.95,
    "virtual_svm": 0.56,
    "simard": 0.4,
    "mlp6": 0.35,
    "large_cnn": 0.35,
    "committee": 0.23,
}
TINY = {"model": "softmax_regression", "steps": 2, "batch_size": 16, "devices": 1}


def made(*errors: float, **changes: Any) -> Result:
    return Result(**{"errors": errors, "seconds": 90.0, "parameters": 7850, "device": "cpu", "commit": "abc"} | changes)


def row(name: str = "linear", measure: Any = None, **changes: Any) -> Row:
    values = {
        "title": "A | B",
        "published": 12.0,
        "source": "Someone 1998",
        "quick": {"seeds": 2},
        "full": {"seeds": 5},
    }
    return Row(**{"name": name, "measure": measure} | values | changes)


@pytest.fixture
def two_rows(monkeypatch) -> list[tuple[str, Any]]:
    """A table of the rows "one" and "two", whose measurements are listed."""
    calls: list[tuple[str, Any]] = []

    def measuring(name: str):
        def measure(settings, folder):
            calls.append((name, dict(settings)))
            return made(1.0, 2.0)

        return measure

    rows = [row(name, measuring(name)) for name in ("one", "two")]
    monkeypatch.setattr(run, "ROWS", {row.name: row for row in rows})
    return calls


def test_rows_have_the_lectures_errors_and_a_source():
    assert {name: row.published for name, row in ROWS.items() if name in PUBLISHED} == PUBLISHED
    assert list(ROWS) == [row.name for row in ROWS.values()]
    assert all(row.source and row.title and row.published > 0 for row in ROWS.values())
    assert len({row.title for row in ROWS.values()}) == len(ROWS)


@pytest.mark.parametrize("budget", ["quick", "full"])
@pytest.mark.parametrize("name", ROWS)
def test_settings_of_both_budgets_are_a_valid_config(name, budget):
    settings = dict(ROWS[name].settings(budget))
    if not settings["model"].startswith("cnn_jax.classical:"):  # the table names them, so none is left to its default
        assert {"optimizer", "schedule", "batch_size", "epochs", "seeds"} <= settings.keys()
    datasets = settings.pop("datasets", None)
    assert settings.pop("seeds", 1) >= 1
    config = Config().override(**settings).resolve()
    assert config.model.model in MODELS or config.model.model.startswith("cnn_jax.classical:")
    assert datasets or config.data.dataset in ("mnist", "experiments.mnist_table.data:padded")
    json.dumps(settings)  # what a finished row remembers


def test_full_budget_is_not_smaller_and_the_whole_committee_has_35_columns():
    for row in ROWS.values():
        small, large = row.settings("quick"), row.settings("full")
        assert large.get("epochs", 0) >= small.get("epochs", 0) and large.get("seeds", 1) >= small.get("seeds", 1)
        assert "train_split" not in large, "all training images"
    full = ROWS["committee"].settings("full")
    assert len(full["datasets"]) * full["members"] == 35


def test_seeds_replace_those_of_rows_that_have_some():
    assert row().settings("quick")["seeds"] == 2 and row().settings("full")["seeds"] == 5
    assert row().settings("full", 7)["seeds"] == 7
    assert "seeds" not in row(quick={"k": 1}).settings("quick", 7), "nearest neighbours have no seed"


def test_unknown_row_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="unknown row 'simmard'; perhaps you meant simard"):
        run.choose(["linear", "simmard"])
    assert [row.name for row in run.choose(["simard", "linear"])] == ["linear", "simard"]
    assert run.choose(None) == list(ROWS.values())


def test_table_of_hand_made_results():
    records = [
        table.record(row(note="guess"), "quick", {"epochs": 10}, made(1.0, 2.0, 3.0, detail="alone")),
        table.record(row("two", source="X 2012"), "quick", {"train_split": "train[:20000]"}, made(0.5, seconds=600.0)),
        table.record(row("three"), "full", {}, None),
    ]
    lines = table.markdown(records).splitlines()
    first = "| A \\| B (`linear`) | 12 (Someone 1998) | 2.00 ± 1.00 | 3 | 90 s | 7,850 "
    assert lines[2] == f"{first}| 10 epochs | cpu | alone; guess |"
    second = "| A \\| B (`two`) | 12 (X 2012) | 0.50 | 1 | 10 min | 7,850 "
    note = "may be worse: fewer training images than with the full budget"
    assert lines[3] == f"{second}| 20,000 training images | cpu | {note} |"
    assert lines[4] == "| A \\| B (`three`) | 12 (Someone 1998) | not run | – | – | – | – | – |  |"
    assert {line.count(" | ") for line in lines} == {8}


ADAM = "Adam, one-cycle rate, batches of 128"
LEVENBERG = "stochastic Levenberg–Marquardt, single images"
ONLINE = "published: gradient descent"
# With the quick and the full budget, as written in the papers and the rows; of what quick has fewer than full.
SETTINGS = {
    "linear": (f"{ADAM}, 10 epochs", f"{ADAM}, 50 epochs", "epochs"),
    "logistic": (f"{ADAM}, 10 epochs", f"{ADAM}, 50 epochs", "epochs"),
    "knn1": ("k=1", "k=1", ""),
    "knn3": ("k=3", "k=3", ""),
    "net300": (
        f"{ADAM}, 10 epochs (published: {LEVENBERG})",
        f"{ADAM}, 50 epochs (published: {LEVENBERG})",
        "epochs",
    ),
    "svm": ("30,000 training images", "", "training images"),
    "hog": ("", "", ""),
    "lenet5": (
        "Nesterov's momentum, one-cycle rate, batches of 128, 12 epochs "
        "(published: stochastic Levenberg–Marquardt, stepwise decay, single images, 20 epochs)",
        "Nesterov's momentum, one-cycle rate, batches of 128 "
        "(published: stochastic Levenberg–Marquardt, stepwise decay, single images)",
        "epochs",
    ),
    "virtual_svm": ("10,000 training images, shift=1", "shift=2", "training images and shifts"),
    "simard": (
        f"{ADAM}, 30 epochs ({ONLINE}, stepwise decay, single images)",
        "batches of 16, 500 epochs (published: single images)",
        "epochs",
    ),
    "mlp6": (
        f"{ADAM}, 8 epochs ({ONLINE}, exponential decay, single images)",
        "batches of 16, 800 epochs (published: single images)",
        "epochs",
    ),
    "large_cnn": (
        f"{ADAM}, 6 epochs ({ONLINE}, single images)",
        "exponential decay, batches of 16, 500 epochs (published: single images)",
        "epochs",
    ),
    "committee": (
        f"{ADAM}, 6 epochs, 7 columns ({ONLINE}, exponential decay, single images, 800 epochs, 35 columns)",
        "batches of 16 (published: single images)",
        "epochs and columns",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_table_says_how_each_row_differs_from_the_published_recipe(name):
    quick, full, fewer = SETTINGS[name]
    row = ROWS[name]
    records = {budget: table.record(row, budget, row.settings(budget), made(1.0)) for budget in ("quick", "full")}
    assert (records["quick"]["setting"], records["full"]["setting"]) == (quick, full)
    why = f"may be worse: fewer {fewer} than with the full budget; " if fewer else ""
    assert records["quick"]["note"] == why + row.note and records["full"]["note"] == row.note
    read_back = json.loads(json.dumps(row.settings("quick")))
    assert table.record(row, "quick", read_back, made(1.0)) == records["quick"]


def test_setting_leaves_out_what_is_as_published():
    recipe = {"optimizer": "gradient_descent", "epochs": 20}
    assert setting(recipe | {"learning_rate": 0.1}, recipe) == "as published"
    assert setting(recipe | {"epochs": 5}, recipe) == "5 epochs (published: 20 epochs)"
    assert setting({"model_args": ["k=3", "refit=true"]}, {}) == "k=3" and setting({}, {}) == ""


@pytest.mark.tfds
def test_least_squares_makes_the_error_that_the_table_quotes(tfds_dir):
    """The linear row says where its loss converges to."""
    train, test = (materialize(open_source("mnist", split, data_dir=tfds_dir)) for split in ("train[:55000]", "test"))
    x, images = (
        np.pad(part["image"].reshape(len(part["image"]), -1) / 255.0, ((0, 0), (0, 1)), constant_values=1.0)
        for part in (train, test)
    )
    weights = np.linalg.lstsq(x.T @ x, x.T @ np.eye(10)[train["label"]], rcond=1e-12)[0]
    error = 100 * np.mean((images @ weights).argmax(axis=1) != test["label"])
    assert f"makes {error:.2f} %" in ROWS["linear"].note


def test_both_messages_of_a_missing_extra_name_the_same_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError) as error:
        import_sklearn()
    for name in ("svm", "virtual_svm"):
        assert ROWS[name].lacks.partition(": ")[2] == str(error.value).partition(": ")[2] != ""


def test_csv_gives_the_same_table_back(tmp_path):
    records = [table.record(row(), "quick", {}, made(1.0, 2.0)), table.record(row("two"), "quick", {}, None)]
    table.write_records(tmp_path / "folder" / "rows.csv", records)
    assert table.read_records(tmp_path / "folder" / "rows.csv") == records
    assert records[0]["error_mean"] == "1.500" and records[0]["error_std"] == "0.707"


def test_figure_shows_rows_with_and_without_figures():
    records = [table.record(row(), "quick", {}, made(1.0, 2.0)), table.record(row("two"), "quick", {}, None)]
    assert table.draw(records).startswith(b"\x89PNG")


def test_finished_row_is_not_run_again_unless_its_settings_change(two_rows, tmp_path, capsys):
    rows = run.choose(None)
    first = run.make_table(rows[:1], "quick", tmp_path)
    assert two_rows == [("one", {"seeds": 2})]
    assert [record["error_mean"] for record in first] == ["1.500", ""], "the other row is not run"
    again = run.make_table(rows, "quick", tmp_path)
    assert two_rows[1:] == [("two", {"seeds": 2})] and again[0] == first[0]
    assert "one: finished already" in capsys.readouterr().out
    assert table.read_records(tmp_path / "table.csv") == again
    assert (tmp_path / "table.md").read_text() == table.markdown(again) + "\n"
    run.make_table(rows, "quick", tmp_path, seeds=3)
    assert two_rows[2:] == [("one", {"seeds": 3}), ("two", {"seeds": 3})]


def test_row_that_was_stopped_is_run_again_and_the_others_are_not(two_rows, tmp_path, monkeypatch):
    def stopped(settings, folder):
        raise KeyboardInterrupt

    rows = run.choose(None)
    monkeypatch.setitem(run.ROWS, "two", row("two", stopped))
    with pytest.raises(KeyboardInterrupt):
        run.make_table(run.choose(None), "quick", tmp_path)
    assert [record["error_mean"] for record in table.read_records(tmp_path / "table.csv")] == ["1.500", ""]
    monkeypatch.setitem(run.ROWS, "two", rows[1])
    run.make_table(rows, "quick", tmp_path)
    assert [name for name, _ in two_rows] == ["one", "two"]


def test_row_without_its_extra_says_how_to_install_it_and_the_others_run(two_rows, tmp_path, monkeypatch, capsys):
    lacking = row("one", lambda *_: pytest.fail("it was run"), needs="no_such_module", lacks="needs X: pip install X")
    monkeypatch.setitem(run.ROWS, "one", lacking)
    records = run.make_table(run.choose(None), "quick", tmp_path)
    assert [record["error_mean"] for record in records] == ["", "1.500"]
    assert records[0]["note"] == "needs X: pip install X"
    assert "one: needs X: pip install X" in capsys.readouterr().out


def test_damaged_result_is_a_mistake_that_names_the_file(two_rows, tmp_path):
    run.make_table(run.choose(None), "quick", tmp_path)
    (tmp_path / "one" / run.RESULT).write_text("{")
    with pytest.raises(UserError, match=r"one/result\.json is damaged .*: delete it"):
        run.make_table(run.choose(None), "quick", tmp_path)


def test_page_is_filled_between_its_markers_and_checked_before_anything_runs(two_rows, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no markers")
    with pytest.raises(UserError, match="mnist-table"):
        run.make_table(run.choose(None), "quick", tmp_path, page=str(page))
    assert not two_rows
    page.write_text("a\n<!-- mnist-table -->\n<!-- /mnist-table -->\nb\n")
    records = run.make_table(run.choose(None), "quick", tmp_path, page=str(page), csv=str(tmp_path / "copy.csv"))
    assert page.read_text() == f"a\n<!-- mnist-table -->\n\n{table.markdown(records)}\n\n<!-- /mnist-table -->\nb\n"
    assert table.read_records(tmp_path / "copy.csv") == records


def test_classifier_is_run_once_per_seed_and_its_runs_are_found_again(tmp_path, capsys):
    result = classifier(TINY | {"dataset": "digits", "seeds": 2}, tmp_path)
    summaries = [json.loads((tmp_path / f"seed{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    assert result.errors == tuple(100 - 100 * summary["test_accuracy"] for summary in summaries)
    assert [summary["seed"] for summary in summaries] == [0, 1] and result.parameters == 650
    times = [summary[name] for summary in summaries for name in ("seconds", "evaluation_seconds")]
    assert result.seconds == pytest.approx(sum(times) / 2) and min(times) > 0
    capsys.readouterr()
    assert classifier(TINY | {"dataset": "digits", "seeds": 2}, tmp_path) == result
    assert capsys.readouterr().out.count("finished already") == 2


def test_nearest_neighbours_take_the_time_of_testing_and_have_no_parameters(tmp_path):
    settings = {"dataset": "digits", "model": "cnn_jax.classical:knn", "normalize": "none"}
    result = classifier(settings, tmp_path)
    summary = json.loads((tmp_path / "seed0" / "summary.json").read_text())
    assert result.seconds == summary["seconds"] + summary["evaluation_seconds"] > summary["evaluation_seconds"] > 0
    assert result.parameters is None
    assert "| – | " in table.markdown([table.record(row(), "quick", settings, result)]).splitlines()[2]


def test_committee_decides_by_the_mean_probability_of_all_columns(tmp_path, monkeypatch):
    module = types.ModuleType("two_versions")
    for version, shift in (("left", -1), ("right", 1)):
        splits = {}
        for split in ("train", "test"):
            digits: Any = open_source("digits", split)
            images = np.roll(digits.images, shift, axis=2)
            splits[split] = ArraySource("digits", split, digits.class_names, images, digits.labels)
        setattr(module, version, splits)
    monkeypatch.setitem(sys.modules, "two_versions", module)
    settings = TINY | {"datasets": ("two_versions:left", "two_versions:right"), "members": 2, "seeds": 1, "steps": 20}
    settings |= {"model": "mlp", "model_args": ("hidden=8",)}
    result = committee(settings, tmp_path)
    found = [member_predictions(tmp_path / "seed0" / name, "test") for name in ("left", "right")]
    logits_4xNxK = np.concatenate([logits for logits, _, _ in found]).astype(np.float64)
    odds = np.exp(logits_4xNxK - logits_4xNxK.max(-1, keepdims=True))
    votes = (odds / odds.sum(-1, keepdims=True)).mean(0).argmax(-1)
    assert result.errors == pytest.approx([100 * np.mean(votes != found[0][1])])
    alone = 100 * (logits_4xNxK.argmax(-1) != found[0][1]).mean(-1)
    assert result.detail == f"4 columns, alone {alone.mean():.2f} ± {alone.std(ddof=1):.2f} %"


def test_padding_adds_background_below_and_to_the_right():
    images = np.full((2, 28, 28, 1), 7, np.uint8)
    padded = data.pad(images)
    assert padded.shape == (2, 29, 29, 1) and padded.sum() == images.sum()
    np.testing.assert_array_equal(padded[:, :28, :28], images)


def test_columns_see_all_images_at_their_width(tfds_dir):
    narrow = data.width_10()
    assert {split: len(source) for split, source in narrow.items()} == {
        "train": 55000,
        "validation": 5000,
        "test": 10000,
    }
    for source in narrow.values():
        columns = np.asarray(source.images)[:500].any(axis=(0, 1, 3)).nonzero()[0]  # type: ignore[attr-defined]
        assert source.image_shape == (29, 29, 1) and (columns[0], columns[-1]) == (9, 18)


def test_page_has_the_measured_rows():
    text = (ROOT / "docs" / "mnist_table.md").read_text()
    measured = ROOT / "results" / "mnist_table" / "quick.csv"
    section = table.markdown(table.read_records(measured)) if measured.exists() else ""
    assert with_section(text, "mnist-table", section) == text, (
        "repeat: python -m experiments.mnist_table --page docs/mnist_table.md --csv results/mnist_table/quick.csv"
    )
