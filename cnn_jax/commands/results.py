"""Lists runs, compares them, and collects them in CSV files and Markdown tables.

    python -m cnn_jax results list
    python -m cnn_jax results compare runs/first runs/second
    python -m cnn_jax results plot runs/first runs/second --output curves.png --metric accuracy
    python -m cnn_jax results collect runs/mnist_lenet5-* --output results/mnist.csv
    python -m cnn_jax results table results/*.csv
    python -m cnn_jax results readme docs/results.md results/*.csv

In the CSV files, runs that differ only in their seed share a row: mean and standard deviation over the seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cnn_jax.commands.output import console, write_output
from cnn_jax.commands.parser import ArgumentParser, file_path
from cnn_jax.errors import UserError, counted
from cnn_jax.runs.pages import has_tables, with_tables
from cnn_jax.runs.results import collect, models_table, read_rows, table, with_section, with_table, write_rows
from cnn_jax.storage.file_names import readable
from cnn_jax.storage.run_folder import CONFIG


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sub-command in the arguments (default: those of the command line).

    Raises:
        UserError: a folder that is no run or is unfinished, the same run twice, an unknown metric, a CSV file with the
            wrong columns, or a page without markers.
    """
    arguments = _parse(argv)
    match arguments.action:
        case "list":
            _list(arguments.folders)
        case "compare":
            _compare(arguments.runs)
        case "plot":
            _plot(arguments.runs, arguments.metric, arguments.output)
        case "collect":
            runs = _run_folders(arguments.runs)
            rows = collect(runs)
            write_rows(arguments.output, rows)
            print(f"wrote {arguments.output}: {counted(len(rows), 'row')} of {counted(len(runs), 'run')} in all")
        case "table":
            print(table(read_rows(arguments.csv)))
        case "readme":
            path = Path(arguments.readme)
            text = path.read_text(encoding="utf-8")
            if "<!-- models -->" in text:
                text = with_section(text, "models", models_table())
            if has_tables(text):
                text = with_tables(text)
            if "<!-- results -->" in text or not ("<!-- models -->" in text or has_tables(text)):
                text = with_table(text, read_rows(arguments.csv))
            path.write_text(text, encoding="utf-8")


def _list(folders: Sequence[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cnn_jax.runs.listing import list_runs

    table = Table(box=None, header_style="bold")
    for name in ("run", "experiment", "model", "data", "test", "steps", "state", "date"):
        table.add_column(name, justify="right" if name in ("test", "steps") else "left", overflow="fold")
    found = list_runs(folders)
    for run in found:
        what = (run.experiment, run.model, run.data, run.result, f"{run.steps:,}", run.state)
        table.add_row(*map(escape, (readable(run.run), *what)), f"{run.date:%Y-%m-%d %H:%M}")
    console().print(table)
    for run in found:
        if run.reason:
            print(f"warning: {readable(run.run)} is damaged: {run.reason}", file=sys.stderr)


def _compare(runs: Sequence[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cnn_jax.runs.side_by_side import differing_fields, names, results

    fields, found = differing_fields(runs), results(runs)
    if not fields:
        print("no config field differs that changes the result")
    table = Table("", *map(escape, names(runs)), box=None, header_style="bold")
    for rows in (fields, found):
        for name, values in rows.items():
            table.add_row(*map(escape, (name, *values)), end_section=name == list(rows)[-1])
    console().print(table)


def _plot(runs: Sequence[str], metric: str, output: str) -> None:
    if output != "-" and Path(output).suffix != ".png":
        raise UserError(f"`output` is {output}: it must end in .png")
    from cnn_jax.report import figures
    from cnn_jax.runs.side_by_side import how_shown, names, plot

    with figures.style(names(runs)):
        drawn = figures.png(plot(runs, metric, how_shown(runs[0], metric)))
    write_output("--output", output, drawn)
    if output != "-":
        print(f"wrote {output}")


def _run_folders(names: Sequence[str]) -> list[str]:
    """Returns the run folders among `names`, and warns of the others, as `runs/*` may match them, too.

    If there is none, returns all: the first is then refused, with the reason.
    """
    runs = [name for name in names if (Path(name) / CONFIG).is_file()]
    if not runs:
        return list(names)
    for name in names:
        if name not in runs:
            print(f"warning: {name} is not a run folder, as it has no {CONFIG}; left out", file=sys.stderr)
    return runs


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m cnn_jax results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="list the runs in folders")
    listing.add_argument("folders", type=file_path, metavar="FOLDER", nargs="*", default=["runs"], help="default: runs")
    comparing = actions.add_parser("compare", help="show where runs differ, and their results side by side")
    comparing.add_argument("runs", type=file_path, metavar="RUN", nargs="+")
    plotting = actions.add_parser("plot", help="draw the curves of several runs in one picture")
    plotting.add_argument("runs", type=file_path, metavar="RUN", nargs="+")
    plotting.add_argument("--output", type=file_path, metavar="FILE.png", required=True, help="- is stdout")
    plotting.add_argument("--metric", default="loss", help="of metrics.jsonl: loss, accuracy, gradient_norm, …")
    collecting = actions.add_parser("collect", help="write runs to a CSV file")
    collecting.add_argument("runs", type=file_path, metavar="RUN", nargs="+", help="folders of finished runs")
    collecting.add_argument(
        "--output", type=file_path, metavar="FILE", required=True, help="the CSV file; an existing one is replaced"
    )
    printing = actions.add_parser("table", help="print CSV files as a Markdown table")
    printing.add_argument("csv", type=file_path, metavar="CSV", nargs="+")
    filling = actions.add_parser("readme", help="replace the tables between the markers of a Markdown page")
    filling.add_argument("readme", type=file_path, metavar="README")
    filling.add_argument("csv", type=file_path, metavar="CSV", nargs="*", help="of the marks <!-- results -->")
    return parser.parse_args(argv)
