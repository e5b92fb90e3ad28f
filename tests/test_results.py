"""Collecting runs into CSV rows, rows into tables, and tables into the README."""

import csv
import shutil
import statistics

import pytest
from made_up_run import CONFIG, make_run

from cnn_jax.commands import results as command
from cnn_jax.commands.parser import guard
from cnn_jax.errors import UserError
from cnn_jax.runs import results
from cnn_jax.storage import run_folder as files

ACCURACIES = (0.9, 0.91, 0.95)


@pytest.fixture
def runs(tmp_path):
    """Run folders: three seeds of one config, and one run with another batch size."""
    folders = [
        make_run(
            tmp_path / f"seed{seed}",
            CONFIG.override(seed=seed, workdir=f"runs/{seed}"),
            seed=seed,
            test_accuracy=accuracy,
        )
        for seed, accuracy in enumerate(ACCURACIES)
    ]
    return [*folders, make_run(tmp_path / "other", CONFIG.override(batch_size=64, seed=0), seed=0)]


def refuse(capsys, argv):
    """Runs the command, expects exit code 2 and one line on stderr, and returns that line."""
    with pytest.raises(SystemExit) as stop:
        guard(lambda: command.main([str(a) for a in argv]))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_collect_groups_seeds(runs, tmp_path):
    command.main(["collect", *map(str, runs), "--output", str(tmp_path / "new" / "made_up.csv")])
    with open(tmp_path / "new" / "made_up.csv", newline="") as file:
        rows = {row["seeds"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"3", "1"}
    group, single = rows["3"], rows["1"]
    assert float(group["test_accuracy_mean"]) == pytest.approx(100 * statistics.mean(ACCURACIES), abs=1e-3)
    assert float(group["test_accuracy_std"]) == pytest.approx(100 * statistics.stdev(ACCURACIES), abs=1e-3)
    assert (single["test_accuracy_mean"], single["test_accuracy_std"]) == ("90.000", "")
    assert group["config"] != single["config"]
    facts = {name: group[name] for name in ("experiment", "model", "dataset", "commit", "device", "jax", "parameters")}
    assert facts == {
        "experiment": "made_up",
        "model": "softmax_regression",
        "dataset": "digits",
        "commit": "abc1234",
        "device": "1 x TPU v9",
        "jax": "9.8.7",
        "parameters": "650",
    }


def test_each_commit_has_its_own_row(tmp_path):
    runs = [make_run(tmp_path / c, seed=i, commit=c) for i, c in enumerate(("aaa", "bbb"))]
    assert [row["commit"] for row in results.collect(runs)] == ["aaa", "bbb"]


def test_a_repeated_seed_is_refused(tmp_path, capsys):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    line = refuse(capsys, ["collect", *runs, "--output", tmp_path / "x.csv"])
    assert "seed 3 appears more than once" in line and str(runs[0]) in line and str(runs[1]) in line
    assert not (tmp_path / "x.csv").exists()


def test_unfinished_and_foreign_folders(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    assert "unfinished" in refuse(capsys, ["collect", run, "--output", tmp_path / "x.csv"])
    assert "config.json" in refuse(capsys, ["collect", tmp_path, "--output", tmp_path / "x.csv"])


def test_what_is_no_run_is_left_out_and_said(runs, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("not a folder")
    others = [str(tmp_path / "notes"), str(tmp_path / "notes.txt")]
    command.main(["collect", others[0], str(runs[0]), others[1], "--output", str(tmp_path / "x.csv")])
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        f"warning: {other} is not a run folder, as it has no config.json; left out" for other in others
    ]
    assert "1 row of 1 run in all" in shown.out
    assert results.read_rows([tmp_path / "x.csv"]) == results.collect(runs[:1])


def test_table_shows_mean_std_and_count(runs):
    lines = results.table(results.collect(runs)).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    (group,) = [line for line in lines if "± " in line.split("|")[4]]
    assert "| 92.00 ± 2.65 | 87.50 ± 0.00 | 3 | 4 | 75 s | 650 | 0.0013 |" in group
    (single,) = [line for line in lines if "| 90.00 | 87.50 | 1 |" in line]
    assert "`python -m experiments.made_up --seed 3`" in single


def test_time_is_that_of_solving_and_evaluating(tmp_path):
    """Nearest neighbours take their time when they are evaluated, and the images they keep are not parameters."""
    run = make_run(tmp_path / "run", seconds=0.4, evaluation_seconds=38.2, parameters=None)
    (row,) = results.collect([run])
    assert (row["seconds_mean"], row["parameters"]) == ("38.6", "")
    results.write_rows(tmp_path / "x.csv", [row])
    assert "| 39 s | – | 0.0013 |" in results.table(results.read_rows([tmp_path / "x.csv"]))


def test_readme_is_filled_and_then_agrees(runs, tmp_path):
    readme, path = tmp_path / "README.md", tmp_path / "made_up.csv"
    readme.write_text("# Title\n<!-- results -->\nold\n<!-- /results -->\nend\n")
    results.write_rows(path, results.collect(runs[:1]))
    rows = results.read_rows([path])
    assert results.with_table(readme.read_text(), rows) != readme.read_text()
    command.main(["readme", str(readme), str(path)])
    text = readme.read_text()
    assert results.with_table(text, rows) == text
    assert text.startswith("# Title\n<!-- results -->\n\n| Experiment |") and text.endswith("<!-- /results -->\nend\n")
    assert "old" not in text and "| 90.00 |" in text
    changed = [rows[0] | {"test_accuracy_mean": "91.000"}]
    assert results.with_table(text, changed) != text


def test_no_results_leave_nothing_between_the_markers():
    text = "# Title\n<!-- results -->\n<!-- /results -->\n"
    assert results.with_table(text, []) == text


@pytest.mark.parametrize("text", ["none", "<!-- results -->", "<!-- /results --> <!-- results -->", ""])
def test_readme_without_markers_is_left_alone(text):
    with pytest.raises(UserError, match="markers|pair"):
        results.with_table(text, [])


def test_two_pairs_of_markers_are_refused():
    with pytest.raises(UserError, match="one pair"):
        results.with_table("<!-- results --><!-- /results -->" * 2, [])


def test_csv_of_another_kind(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "do not have the columns" in refuse(capsys, ["table", tmp_path / "x.csv"])
    assert "absent.csv" in refuse(capsys, ["table", tmp_path / "absent.csv"])


def test_a_summary_without_its_numbers(runs, tmp_path, capsys):
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / files.SUMMARY).write_text("{}")
    line = refuse(capsys, ["collect", tmp_path / "run", "--output", tmp_path / "x.csv"])
    assert "lacks command, commit, dataset" in line and "repeat the command of the run" in line


def test_table_of_several_files_is_printed(runs, tmp_path, capsys):
    for i in (0, 3):
        results.write_rows(tmp_path / f"{i}.csv", results.collect([runs[i]]))
    command.main(["table", str(tmp_path / "0.csv"), str(tmp_path / "3.csv")])
    assert capsys.readouterr().out.strip() == results.table(results.collect([runs[0]]) + results.collect([runs[3]]))
