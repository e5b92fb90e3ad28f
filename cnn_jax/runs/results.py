"""Collects runs into rows of a CSV file, and turns CSV files into the tables of the README.

    python -m cnn_jax results collect runs/mnist_lenet5-* --output results/mnist.csv
    python -m cnn_jax results table results/*.csv
    python -m cnn_jax results readme README.md results/*.csv

Runs that differ only in their seed share one row: mean and standard deviation over the seeds.
"""

import csv
import hashlib
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cnn_jax.config import TRANSIENT, Config
from cnn_jax.errors import UserError
from cnn_jax.report.markdown import markdown_table
from cnn_jax.storage import run_folder as files

COLUMNS: tuple[str, ...] = (
    "experiment",
    "model",
    "dataset",
    "config",
    "commit",
    "seeds",
    "test_accuracy_mean",
    "test_accuracy_std",
    "validation_accuracy_mean",
    "validation_accuracy_std",
    "epochs",
    "seconds_mean",
    "parameters",
    "flops_per_image",
    "device",
    "jax",
    "command",
)
OWN = ("learning_rate", "optimizer_args")  # more columns, if a run compares these: each network has a row
# Fields of summary.json from which a row is made.
_NEEDED = {"experiment", "model", "dataset", "commit", "seed", "test_accuracy", "validation_accuracy", "epochs"} | {
    *("seconds", "parameters", "flops_per_image", "device", "command")
}
Row = dict[str, str]
SPEED = "speed.csv"  # the table of `benchmarks.speed`, which results/*.csv also matches


def collect(runs: Iterable[str | Path]) -> list[Row]:
    """Returns one row per group of runs with the same config, commit, device and JAX version, sorted by these.

    Accuracies are in per cent; the standard deviation is that of a sample (n - 1), empty for a single seed. A run that
    compares learning rates has a row per network; only one that was the best in every seed has a test accuracy. Time is
    `total_seconds`. Classifiers that keep training images have no number of parameters.

    Raises:
        UserError: a folder is not a finished run, or a group has a seed twice.
    """
    groups: dict[tuple[Any, ...], list[tuple[str, dict[str, Any]]]] = {}
    for run in runs:
        config = files.read_config(run)
        if not (Path(run) / files.SUMMARY).is_file():
            raise UserError(f"{run} is unfinished, without {files.SUMMARY}: finish the run, or leave it out")
        summary, environment = files.read_json(run, files.SUMMARY), files.read_json(run, files.ENVIRONMENT)
        if "test_accuracy" not in summary and summary.get("task", "classification") != "classification":
            raise UserError(f"{run} is a run of {summary['task']}, without accuracies: leave it out of the table")
        lacking = [*(_NEEDED - summary.keys()), *({"jax"} - environment.keys())]
        if lacking:
            raise UserError(
                f"the summary or environment of {run} lacks {', '.join(sorted(lacking))}: delete its {files.SUMMARY} "
                "and repeat the command of the run, or leave it out"
            )
        facts = (config_hash(config), str(summary["commit"] or ""), summary["device"], environment["jax"])
        for own, of_one in _by_network(summary):
            groups.setdefault((summary["experiment"], *facts, own), []).append((str(run), of_one))
    return [_row(key, members) for key, members in sorted(groups.items())]


def _by_network(summary: dict[str, Any]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Returns (its values of `OWN`, summary) of each network that a run compares; ((), the summary) of other runs."""
    tested = ("test_accuracy", "test_loss")
    return [
        (
            tuple(row[name] for name in OWN if name in row),
            summary | ({} if row["kept"] else dict.fromkeys(tested)) | row,
        )
        for row in summary.get("rates", [])
    ] or [((), summary)]


def config_hash(config: Config) -> str:
    """Returns ten hex digits that identify what a config computes: the seed and `TRANSIENT` fields are left out.

    >>> config_hash(Config()) == config_hash(Config().override(seed=7, workdir="elsewhere"))
    True
    >>> config_hash(Config()) == config_hash(Config().override(batch_size=64))
    False
    """
    deciding = {name: value for name, value in config.flat().items() if name not in TRANSIENT | {"seed"}}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:10]


def _row(key: tuple[Any, ...], members: Sequence[tuple[str, dict[str, Any]]]) -> Row:
    members = sorted(members, key=lambda member: member[1]["seed"])
    for seed, same in groupby(members, key=lambda member: member[1]["seed"]):
        names = [name for name, _ in same]
        if len(names) > 1:
            raise UserError(f"seed {seed} appears more than once ({', '.join(names)}): keep one run per seed")
    summaries = [summary for _, summary in members]
    first = summaries[0]
    experiment, config, commit, device, jax, own = key
    values = {
        "experiment": experiment,
        "model": first["model"],
        "dataset": _shared_name(first["dataset"]),
        "config": config,
        "commit": commit,
        "seeds": len(summaries),
        **_spread("test_accuracy", summaries),
        **_spread("validation_accuracy", summaries),
        "epochs": f"{first['epochs']:.6g}",
        "seconds_mean": f"{statistics.mean(map(total_seconds, summaries)):.1f}",
        "parameters": "" if first["parameters"] is None else first["parameters"],
        "flops_per_image": first["flops_per_image"],
        "device": device,
        "jax": jax,
        "command": first["command"],
    }
    compared = {name: of if isinstance(of, str) else f"{of:g}" for name, of in zip(OWN, own, strict=False)}
    return {column: str(values[column]) for column in COLUMNS} | compared


def total_seconds(summary: Mapping[str, Any]) -> float:
    """Seconds that a run took to train or solve, and to evaluate in the end; summaries of old runs lack the latter.

    >>> total_seconds({"seconds": 0.5, "evaluation_seconds": 40.0}), total_seconds({"seconds": 75.2})
    (40.5, 75.2)
    """
    return summary["seconds"] + summary.get("evaluation_seconds", 0.0)


def _shared_name(dataset: str) -> str:
    """The name of a data set without the place of a folder, which means nothing on another machine.

    >>> _shared_name("folder:/home/ann/data/gtsrb"), _shared_name("svhn_cropped:3.1.0")
    ('folder:gtsrb', 'svhn_cropped:3.1.0')
    """
    family, colon, path = dataset.partition(":")
    return f"{family}:{os.path.basename(path)}" if family == "folder" else f"{family}{colon}{path}"


def _spread(name: str, summaries: Sequence[dict[str, Any]]) -> dict[str, str]:
    if any(summary[name] is None for summary in summaries):
        return {f"{name}_mean": "", f"{name}_std": ""}
    values = [100 * summary[name] for summary in summaries]
    std = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return {f"{name}_mean": f"{statistics.mean(values):.3f}", f"{name}_std": std}


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes the rows as CSV with a header; creates the folder if absent."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    columns = (*COLUMNS, *_used(rows))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _used(rows: Sequence[Row]) -> list[str]:
    """The columns of `OWN` that a table needs."""
    return [name for name in OWN if any(row.get(name) for row in rows)]


def read_rows(paths: Iterable[str | Path]) -> list[Row]:
    """Returns the rows of all files, in order.

    Raises:
        UserError: a file is missing, or its columns are not those of `write_rows`.
    """
    rows: list[Row] = []
    for path in paths:
        if Path(path).name == SPEED:
            continue
        try:
            with open(path, encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                rows += [dict(row) for row in reader]
                header = tuple(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read results {path} ({error}): collect them again") from error
        if header not in [(*COLUMNS, *OWN[:more]) for more in range(len(OWN) + 1)]:
            raise UserError(f"results {path} do not have the columns {', '.join(COLUMNS)}: collect them again")
    return rows


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table, with accuracies in per cent: mean ± standard deviation over the seeds."""
    head = ("Experiment", "Model", "Data", "Test accuracy (%)", "Validation (%)", "Seeds", "Epochs", "Time")
    head += ("Parameters", "MFLOP/image", "Device", "JAX", "Commit", "Command")
    used = _used(rows)
    head = (*head[:3], *[{"learning_rate": "Rate", "optimizer_args": "Arguments"}[name] for name in used], *head[3:])
    return markdown_table(head, [_cells(row, used) for row in rows], range(3, 3 + len(used) + 7))


def _cells(row: Row, used: Sequence[str]) -> tuple[str, ...]:
    words = (row["experiment"], row["model"], row["dataset"], *(row.get(name) or "" for name in used))
    where = (row["device"], row["jax"], row["commit"] or "–", f"`{row['command']}`")
    numbers = (
        _mean_std(row, "test_accuracy"),
        _mean_std(row, "validation_accuracy"),
        row["seeds"],
        f"{float(row['epochs']):.4g}",
        _time(float(row["seconds_mean"])),
        f"{int(row['parameters']):,}" if row["parameters"] else "–",
        _mega(float(row["flops_per_image"])),
    )
    return (*words, *numbers, *where)


def _mean_std(row: Row, name: str) -> str:
    std = row[f"{name}_std"]
    if not row[f"{name}_mean"]:
        return "–"
    return f"{float(row[f'{name}_mean']):.2f}" + (f" ± {float(std):.2f}" if std else "")


def _mega(flops: float) -> str:
    return f"{flops / 1e6:,.2f}" if flops >= 1e6 else f"{flops / 1e6:.2g}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def with_table(readme: str, rows: Sequence[Row]) -> str:
    """Returns the text with the table of `rows` between the "results" markers.

    A README is up to date if `with_table(text, rows) == text`.

    Raises:
        UserError: the text has not exactly one pair of markers.
    """
    return with_section(readme, "results", table(rows) if rows else "")


def with_section(text: str, name: str, section: str) -> str:
    """Returns the text with `section` between the markers <!-- name --> and <!-- /name -->.

    Raises:
        UserError: the text has not exactly one pair of markers.

    >>> with_section("a <!-- sum --> 3 <!-- /sum --> b", "sum", "4")
    'a <!-- sum -->\\n\\n4\\n\\n<!-- /sum --> b'
    """
    begin_mark, end_mark = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = text.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end or begin_mark in rest or end_mark in before + after:
        raise UserError(f"the README must hold one pair of {begin_mark} and {end_mark}: put it where the table goes")
    between = f"\n\n{section}\n\n" if section else "\n"
    return f"{before}{begin_mark}{between}{end_mark}{after}"


def models_table() -> str:
    """Returns the models of `cnn_jax.models` as a Markdown table, with their input, size and source."""
    from cnn_jax.models.catalogue import read_table, si, source

    rows = [
        (f"`{row['model']}`", row["input"], f"{int(row['parameters']):,}", si(int(row["flops"])), source(row))
        for row in read_table()
    ]
    return markdown_table(("Model", "Input", "Parameters", "FLOPs", "Source"), rows, (2, 3))
