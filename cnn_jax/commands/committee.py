"""Averages the predictions of several trained networks, and compares each member with the committee of the first k.

python -m cnn_jax committee runs/mnist_lenet5-*
python -m cnn_jax committee runs/seven --split validation --views flip shift --csv committee.csv --plot committee.png

A run with several members counts as that many networks. All runs must have the same classes and read the same images.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from typing import Any

from cnn_jax.commands.output import console, write_output
from cnn_jax.commands.parser import ArgumentParser, file_path
from cnn_jax.errors import counted


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates every member once and prints a table; writes CSV and a plot if asked.

    Args:
        argv: arguments; default: those of the command line.

    Raises:
        UserError: a run is not finished or does not match the others, the split or a view is unknown, or a file cannot
            be written.
    """
    arguments = _parse(argv)
    from cnn_jax.runs.committee import committee_table, draw  # imports JAX

    rows = committee_table(arguments.runs, arguments.split, tuple(arguments.views))
    _print(rows)
    if arguments.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_output("--csv", arguments.csv, text.getvalue())
    if arguments.plot:
        write_output("--plot", arguments.plot, draw(rows))


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from statistics import mean, stdev

    from rich.table import Column, Table

    columns = [Column(name, no_wrap=True, justify="right") for name in ("alone", "first k", "together", "agree")]
    table = Table(Column("network", overflow="fold"), *columns, box=None, pad_edge=False)
    for row in rows:
        shares = [f"{row[name]:.2%}" for name in ("accuracy", "committee_accuracy", "agreement")]
        rate = "" if row["learning_rate"] is None else f", rate {row['learning_rate']:g} {row['optimizer_args'] or ''}"
        table.add_row(f"{row['run']} #{row['member']}{rate}".strip(), shares[0], str(row["committee_of"]), *shares[1:])
    output = console()
    output.print(table)
    alone = [100 * row["accuracy"] for row in rows]
    spread = f" ± {stdev(alone):.2f}" if len(alone) > 1 else ""
    last = rows[-1]
    output.print(
        f"{counted(len(rows), 'network')}, {counted(last['count'], 'image')}: alone {mean(alone):.2f}{spread} %, "
        f"together {last['committee_accuracy']:.2%}"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m cnn_jax committee", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=file_path, metavar="RUN", nargs="+", help="folders of finished runs")
    parser.add_argument(
        "--split", default="test", help="train, validation or test, or such as test[:1000] (default: test)"
    )
    parser.add_argument(
        "--views", nargs="*", default=[], metavar="VIEW", help="average over views: flip, shift, ten_crop"
    )
    parser.add_argument("--csv", type=file_path, metavar="FILE", help="also write the table as CSV")
    parser.add_argument("--plot", type=file_path, metavar="FILE", help="plot error against number of networks (PNG)")
    return parser.parse_args(argv)
