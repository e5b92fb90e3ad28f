"""How much better several trained networks are together: each member, their mean, and the committee of the first k.

python -m cnn_jax committee runs/mnist_lenet5-*
python -m cnn_jax committee runs/seven --split validation --views flip shift --csv committee.csv --plot committee.png

A run of several members counts as so many networks. The runs must have the same classes and read the same images.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_jax.commands.output import write_output
from cnn_jax.commands.parser import ArgumentParser
from cnn_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, evaluates every member once, prints a table.

    Raises:
        UserError: no finished run, runs that do not belong together, an unknown split or view.
    """
    arguments = _parse(argv)
    rows = committee_table(arguments.runs, arguments.split, tuple(arguments.views))
    _print(rows)
    if arguments.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_output("--csv", arguments.csv, text.getvalue())
    if arguments.plot:
        write_output("--plot", arguments.plot, _draw(rows))


def committee_table(
    runs: Sequence[str | Path], split: str = "test", views: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Evaluates the members of all runs and the committees of the first 1, 2, … of them.

    Args:
        runs: folders of finished runs.
        split: "train", "validation" or "test", or split syntax such as test[:1000].
        views: names of `cnn_jax.models.ensembles.VIEWS` with their arguments: each member sees an image from all of them.

    Returns:
        One row a member: "run", "member" (its number in the run), "learning_rate" (None where the run has
        one for all), "accuracy" of it alone, "committee_of" k, "committee_accuracy" of the first k members,
        "agreement" (share of images of which they all say the same), "count" of images.

    Raises:
        UserError: the runs differ in classes or examples.
    """
    import numpy as np

    from cnn_jax.models.ensembles import average
    from cnn_jax.runs.evaluate import member_predictions
    from cnn_jax.storage.run_folder import read_config

    rows: list[dict[str, Any]] = []
    seen: list[Any] = []
    first: Any = None
    for run in runs:
        logits_MxNxK, labels_N, classes = member_predictions(run, split, views=views)
        rates = read_config(run).optim.member_learning_rates or [None] * len(logits_MxNxK)
        if first is None:
            first = (classes, labels_N)
        if classes != first[0] or not np.array_equal(labels_N, first[1]):
            raise UserError(f"given {runs[0]} and {run}, of other classes or images; expected the same data; drop one")
        for number, (rate, logits_NxK) in enumerate(zip(rates, logits_MxNxK, strict=True)):
            seen.append(logits_NxK)
            votes_MxN = np.stack(seen).argmax(axis=-1)
            together = np.asarray(average(np.stack(seen))).argmax(axis=-1)
            rows.append(
                {
                    "run": str(run),
                    "member": number,
                    "learning_rate": rate,
                    "accuracy": float(np.mean(votes_MxN[-1] == labels_N)),
                    "committee_of": len(seen),
                    "committee_accuracy": float(np.mean(together == labels_N)),
                    "agreement": float(np.mean((votes_MxN == votes_MxN[0]).all(axis=0))),
                    "count": len(labels_N),
                }
            )
    return rows


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from statistics import mean, stdev

    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(name, no_wrap=True, justify="right") for name in ("alone", "first k", "together", "agree")]
    table = Table(Column("network", overflow="fold"), *columns, box=None, pad_edge=False)
    for row in rows:
        shares = [f"{row[name]:.2%}" for name in ("accuracy", "committee_accuracy", "agreement")]
        rate = "" if row["learning_rate"] is None else f", rate {row['learning_rate']:g}"
        table.add_row(f"{row['run']} #{row['member']}{rate}", shares[0], str(row["committee_of"]), *shares[1:])
    console = Console(highlight=False)
    console.print(table)
    alone = [100 * row["accuracy"] for row in rows]
    spread = f" ± {stdev(alone):.2f}" if len(alone) > 1 else ""
    last = rows[-1]
    console.print(
        f"{len(rows)} networks, {last['count']:,} images: alone {mean(alone):.2f}{spread} %, "
        f"together {last['committee_accuracy']:.2%}"
    )


def _draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Error against the size of the committee, PNG."""
    from cnn_jax.report.figures import BLUE, ORANGE, new_axes, png, style

    sizes = [row["committee_of"] for row in rows]
    with style():
        figure, axes = new_axes(4.5, 3.1)
        axes.plot(sizes, [100 - 100 * row["accuracy"] for row in rows], "o", color=ORANGE, label="network k alone")
        together = [100 - 100 * row["committee_accuracy"] for row in rows]
        axes.plot(sizes, together, "-o", color=BLUE, label="the first k together")
        axes.set(xlabel="k networks", ylabel="error (%)", xticks=sizes[:: -(-len(sizes) // 10)])
        axes.legend()
        return png(figure)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m cnn_jax committee", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of finished runs")
    parser.add_argument(
        "--split", default="test", help="train, validation or test, or such as test[:1000] (default: test)"
    )
    parser.add_argument(
        "--views", nargs="*", default=[], metavar="VIEW", help="average over views: flip, shift, ten_crop"
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table there")
    parser.add_argument("--plot", metavar="FILE", help="draw error against number of networks there (PNG)")
    return parser.parse_args(argv)
