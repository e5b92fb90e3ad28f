"""Runs the contest of `experiments.cifar10_speedrun`, with the same flags, and records its figures.

    python -m benchmarks.speedrun --require gpu --torch-script ~/cifar10-airbench/airbench94_muon.py \\
        --output results/speed.csv

The ratio is our time over the script's: below 1, our program is faster.
"""

import argparse
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from benchmarks.speed import Figure, figure, record, table
from cnn_jax.commands.parser import guard
from experiments.cifar10_speedrun import command
from experiments.cifar10_speedrun.__main__ import PRESETS, RECIPE

if TYPE_CHECKING:
    from experiments.cifar10_speedrun.contest import Run


def figures(arguments: argparse.Namespace, runs: "dict[str, list[Run]]") -> list[Figure]:
    """Returns seconds and accuracy of every contender, and the ratio of our time to each script's."""
    from experiments.cifar10_speedrun.contest import ratios, spread

    (name, ours), *others = runs.items()
    given = {"train images": arguments.train_images, "test images": arguments.test_images}
    where = f"{arguments.split} split" + (", random images" if arguments.random_images else "")
    where += "".join(f", {value} {name}" for name, value in given.items() if value)
    ways = {"unroll": arguments.unroll if arguments.unroll > 1 else None, "stream": arguments.stream}
    own = command.changes(arguments) | {name: value for name, value in ways.items() if value}
    changed = "".join(f", {flag} {value}" for flag, value in own.items())
    found = []
    for title, each in runs.items():
        case = f"{title}, {where}" + (changed if title == name else "")
        found.append(figure(case, "run", [run.seconds for run in each], "s"))
        percent = [100 * run.accuracy for run in each]
        found += [
            figure(case, "accuracy", percent, "%"),
            Figure(case, "mean accuracy", mean(percent), "%", n=len(each)),
            Figure(case, "standard deviation of the accuracy", spread(percent), "points", n=len(each)),
        ]
    percent = [100 * run.extra_accuracy for run in ours if run.extra_accuracy is not None]
    if percent:
        found.append(figure(f"{name}, {where}{changed}", "accuracy on official test images", percent, "%"))
    for title, theirs in others:
        found.append(figure(f"{name}, {where}{changed}", f"time / {title}", ratios(ours, theirs), "x"))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and records."""
    parser = command.make_parser(__doc__, RECIPE, PRESETS)
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = command.parse(parser, PRESETS, argv)
    command.contest(
        arguments,
        lambda runs, facts: record(arguments.output, "speedrun", figures(arguments, runs), extra_versions=facts),
    )


if __name__ == "__main__":
    guard(main)
