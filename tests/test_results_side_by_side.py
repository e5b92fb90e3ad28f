"""Listing runs, comparing them and drawing their curves."""

import datetime
import json
import os
from typing import Any

import numpy as np
import pytest
from made_up_run import CONFIG, SUMMARY, make_run, row
from test_results import refuse

from cnn_jax.commands import results as command
from cnn_jax.report import lines
from cnn_jax.report.metric import Metric
from cnn_jax.runs.listing import list_runs
from cnn_jax.runs.side_by_side import differing_fields, how_shown, names, plot, results
from cnn_jax.storage import run_folder as files

ACCURACY = Metric("accuracy", percent=True)


def points_of(line: Any) -> np.ndarray:
    """The points of a line of a plot, (N, 2)."""
    return np.asarray(line.get_xydata())


@pytest.fixture
def runs(tmp_path):
    """Two finished runs that differ in batch size and seed, in tmp_path/runs."""
    return [
        make_run(tmp_path / "runs" / "first", CONFIG),
        make_run(tmp_path / "runs" / "deep" / "second", CONFIG.override(batch_size=64, seed=4), test_accuracy=0.95),
    ]


def test_list_has_every_run_below(runs, tmp_path):
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes" / "config.json").write_text("{}")  # of another program
    found = list_runs([tmp_path / "runs"])
    assert [listed.run for listed in found] == [runs[1], runs[0]]
    first = found[1]
    assert (first.experiment, first.model, first.data) == ("made_up", "softmax_regression", "digits")
    assert (first.result, first.steps, first.state, first.reason) == ("90.00%", 40, "finished", "")
    assert found[0].result == "95.00%"
    assert list_runs([runs[0], tmp_path / "runs"]) == found  # each run once


def test_list_dates_a_run_by_its_last_change(runs):
    for number, name in enumerate(sorted(path.name for path in runs[0].iterdir() if path.is_file())):
        os.utime(runs[0] / name, (0, 1e9 + number))
    os.utime(runs[0] / files.METRICS, (0, 1.5e9))
    (found,) = list_runs([runs[0]])
    assert found.date == datetime.datetime.fromtimestamp(1.5e9)


def test_list_tells_unfinished_and_damaged_runs(runs, capsys):
    (runs[0] / files.SUMMARY).unlink()
    (runs[1] / files.SUMMARY).write_text("{")
    command.main(["list", str(runs[0].parent)])
    shown = capsys.readouterr()
    states = {line.split()[0]: line.split() for line in shown.out.splitlines()[1:]}
    assert states[str(runs[0])][4:7] == ["–", "40", "unfinished"]
    assert states[str(runs[1])][4:7] == ["–", "0", "damaged"]
    (warning,) = shown.err.splitlines()
    assert warning.startswith(f"warning: {runs[1]} is damaged: ") and files.SUMMARY in warning


def test_list_shows_the_loss_of_a_task_without_accuracy(tmp_path):
    run = make_run(tmp_path / "run")
    (run / files.SUMMARY).write_text(json.dumps({"steps": 5, "test_loss": 0.01234}))
    assert list_runs([tmp_path])[0].result == "loss 0.0123"
    (run / files.SUMMARY).write_text(json.dumps({"test_loss": 0.01234}))
    assert list_runs([tmp_path])[0].reason == "summary.json lacks 'steps'"


def test_list_of_nothing(tmp_path, capsys):
    assert "there is no folder" in refuse(capsys, ["list", tmp_path / "absent"])
    assert "no runs in" in refuse(capsys, ["list", tmp_path])


def test_differing_fields_are_those_that_matter(runs, tmp_path):
    other = make_run(tmp_path / "third", CONFIG.override(workdir="elsewhere", workers=3))
    assert differing_fields(runs) == {"batch_size": ["128", "64"], "seed": ["3", "4"]}
    assert differing_fields([runs[0], other]) == {}


def test_results_stand_side_by_side(runs, tmp_path):
    unfinished = make_run(tmp_path / "third")
    (unfinished / files.SUMMARY).unlink()
    found = results([*runs, unfinished])
    assert found["test_accuracy"] == ["90.00%", "95.00%", "–"]
    assert found["validation_loss"] == ["0.4321", "0.4321", "–"]
    assert found["seconds"] == ["75.2", "75.2", "–"] and found["parameters"] == ["650", "650", "–"]
    assert "test_count" not in found


def test_no_result_has_the_name_of_a_config_field(runs):
    found = results(runs)
    assert found["steps done"] == ["40", "40"] and found["epochs done"] == ["4", "4"]
    assert not set(found) & set(CONFIG.flat()) and {"steps", "epochs"} <= set(SUMMARY)
    done = [make_run(runs[0].parent / str(seconds), evaluation_seconds=seconds) for seconds in (38.25, 0.04567)]
    assert results(done)["evaluation_seconds"] == ["38.2", "0.04567"]


def test_compare_prints_both(runs, capsys):
    command.main(["compare", *map(str, runs)])
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["first", "second"] in cells and ["batch_size", "128", "64"] in cells
    assert ["test_accuracy", "90.00%", "95.00%"] in cells
    command.main(["compare", str(runs[0]), str(runs[0])])
    assert capsys.readouterr().out.startswith("no config field differs that changes the result")


def test_names_are_paths_where_the_last_part_is_not_enough(tmp_path):
    assert names(["a/one", "a/two/"]) == ["one", "two"]
    assert names(["a/one", "b/one"]) == ["a/one", "b/one"]
    assert names([b"caf\xe9".decode(errors="surrogateescape")]) == ["caf\\xe9"]


def test_plot_draws_validation_and_smoothed_training(runs, tmp_path):
    axes = plot(runs, "accuracy", ACCURACY).axes[0]
    first = [line for line in axes.lines if line.get_color() == lines.colour(0) and len(points_of(line)) > 2]
    thick = max(first, key=lambda line: line.get_linewidth())
    assert points_of(thick)[:, 0].tolist() == [1, 2, 3, 4] and points_of(thick)[:, 1] == pytest.approx(
        [80, 80, 87.5, 80]
    )
    (thin,) = [line for line in first if line is not thick]
    expected = [100 * (1 - 2.3 / step / 3) for step in range(1, 41)]
    assert len(points_of(thin)) == 40 and np.allclose(thin.get_ydata(), expected, atol=3)
    assert {text.get_text() for text in axes.texts} == {"first", "second"}
    assert axes.get_ylabel() == "accuracy (%)"


def test_plot_of_compared_rates_shows_the_best(tmp_path):
    run = make_run(tmp_path / "run", best_member=1)
    (run / files.METRICS).unlink()
    for member in (0, 1):
        for step in (10, 20):
            files.append_metrics(run, row("validation", step, member + step / 100, 0.5, member=member))
    axes = plot([run], "loss", Metric("loss")).axes[0]
    assert points_of(axes.lines[0])[:, 1].tolist() == [1.1, 1.2]


def test_plot_draws_gauges(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    for epoch, sharpness in enumerate((8.0, 4.0, 2.0)):
        values = {"sharpness": sharpness, "dead_units/block1_conv": 0.25, "update_ratio/block1_conv": 0.5**epoch}
        if epoch == 2:  # no update follows the last step
            del values["update_ratio/block1_conv"]
        files.append_metrics(
            run, {"kind": "gauges", "step": 10 * epoch, "epoch": float(epoch), "seconds": 1.0} | values
        )
    expected = {
        "sharpness": ("sharpness", [[0, 8], [1, 4], [2, 2]]),
        "update_ratio/block1_conv": ("update ratio of block1_conv", [[0, 1], [1, 0.5]]),
        "dead_units/block1_conv": ("dead units of block1_conv (%)", [[0, 25], [1, 25], [2, 25]]),
    }
    for metric, (label, points) in expected.items():
        axes = plot([run], metric, how_shown(run, metric)).axes[0]
        assert points_of(axes.lines[0]).tolist() == points and axes.get_ylabel() == label
    command.main(["plot", str(run), "--metric", "sharpness", "--output", str(tmp_path / "gauges.png")])
    assert (tmp_path / "gauges.png").is_file()


def test_plot_writes_a_picture(runs, tmp_path, capsys):
    command.main(["plot", *map(str, runs), "--output", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out
    command.main(["plot", str(runs[0]), "--metric", "learning_rate", "--output", str(tmp_path / "rates.png")])
    assert (tmp_path / "rates.png").is_file()


def test_how_a_metric_is_shown(runs):
    assert how_shown(runs[0], "accuracy").percent and not how_shown(runs[0], "loss").percent
    assert how_shown(runs[0], "gradient_norm") == Metric("gradient norm")


def test_plot_of_what_is_not_there(runs, tmp_path, capsys):
    output = ["--output", tmp_path / "curves.png"]
    line = refuse(capsys, ["plot", *runs, *output, "--metric", "acuracy"])
    assert "unknown metric" in line and "perhaps you meant accuracy" in line
    assert "is not a run folder" in refuse(capsys, ["plot", tmp_path, *output])
    assert "--output is curves.jpg: it must end in .png" in refuse(capsys, ["plot", *runs, "--output", "curves.jpg"])
    (runs[0] / files.METRICS).unlink()
    assert "has no metrics yet" in refuse(capsys, ["plot", runs[0], *output])
    assert not (tmp_path / "curves.png").exists()
