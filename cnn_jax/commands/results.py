"""Collects finished runs in CSV files, and turns CSV files into Markdown tables.

    python -m cnn_jax results collect runs/mnist_lenet5-* --output results/mnist.csv
    python -m cnn_jax results table results/*.csv
    python -m cnn_jax results readme docs/results.md results/*.csv

Runs that differ only in their seed share a row: mean and standard deviation over the seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cnn_jax.commands.parser import ArgumentParser, file_path
from cnn_jax.errors import counted
from cnn_jax.runs.results import collect, models_table, read_rows, table, with_section, with_table, write_rows
from cnn_jax.storage.run_folder import CONFIG


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sub-command in the arguments (default: those of the command line).

    Raises:
        UserError: an unfinished run, the same run twice, a CSV file with the wrong columns, or a page without markers.
    """
    arguments = _parse(argv)
    match arguments.action:
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
            if "<!-- results -->" in text or "<!-- models -->" not in text:
                text = with_table(text, read_rows(arguments.csv))
            path.write_text(text, encoding="utf-8")


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
    collecting = actions.add_parser("collect", help="write runs to a CSV file")
    collecting.add_argument("runs", type=file_path, metavar="RUN", nargs="+", help="folders of finished runs")
    collecting.add_argument(
        "--output", type=file_path, metavar="FILE", required=True, help="the CSV file; an existing one is replaced"
    )
    printing = actions.add_parser("table", help="print CSV files as a Markdown table")
    printing.add_argument("csv", type=file_path, metavar="CSV", nargs="+")
    filling = actions.add_parser("readme", help="replace the tables between the markers of a Markdown page")
    filling.add_argument("readme", type=file_path, metavar="README")
    filling.add_argument("csv", type=file_path, metavar="CSV", nargs="+")
    return parser.parse_args(argv)
