"""Plots test accuracy against the number of labels, with and without transfer, over several seeds.

    python -m experiments.mnist_lenet5
    python -m benchmarks.transfer_labels --output results/transfer/digits
    python -m benchmarks.transfer_labels --dataset folder:PATH --runs runs/own --output runs/own

LeNet-5, trained on MNIST, is transferred to a folder of grey images: without --dataset, to the small digits that ship
with the package, which are first written as PNG files to RUNS/images. The runs are those of
`experiments.transfer_digits`; finished ones are not repeated. Each seed has its own labels: N consecutive images from a
random place in the training split (a folder's images are in random order). Writes OUTPUT.csv, a row per run, and
OUTPUT.png, mean and range over the seeds.
"""

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from cnn_jax.commands.parser import ArgumentParser, guard
from experiments.transfer_digits import CONFIG, PRESETS

WAYS = {"transferred": CONFIG, "linear probe": PRESETS["probe"], "from scratch": PRESETS["scratch"]}
LABELS = (10, 20, 50, 100, 200, 500)  # those below the size of the training split, and then all of it


def main(argv: Sequence[str] | None = None) -> None:
    """Trains the missing runs, then writes the table and the plot.

    Raises:
        UserError: no weights to start from, no such data set, or the folder holds runs of another study.
    """
    parser = ArgumentParser(
        prog="python -m benchmarks.transfer_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--init-from", default=CONFIG.model.init_from, help="the run on MNIST (default: %(default)s)")
    parser.add_argument("--dataset", help="folder:PATH to transfer to (default: the small digits, as a folder)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="results, without suffix")
    arguments = parser.parse_args(argv)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # fail before the training, not after it
    dataset = arguments.dataset or f"folder:{digits_folder(arguments.runs / 'images')}"
    rows = study(dataset, arguments.init_from, arguments.seeds, arguments.runs)
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    arguments.output.with_suffix(".png").write_bytes(draw(rows))


def digits_folder(path: Path) -> Path:
    """Writes the small digits to PATH/SPLIT/CLASS/NUMBER.png, unless PATH exists; returns the absolute path."""
    from cnn_jax.data import open_source
    from cnn_jax.data.pictures import export

    if not path.exists():
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        for split in ("train", "validation", "test"):
            export(open_source("digits", split), unfinished / split)
        unfinished.rename(path)
    return path.resolve()


def study(dataset: str, init_from: str, seeds: int, runs: Path) -> list[dict[str, Any]]:
    """Trains each way with each number of labels and each seed; returns one row per run."""
    from cnn_jax.data import default_splits, open_source
    from cnn_jax.training.run import train

    total = len(open_source(dataset, default_splits(dataset).train, image_size=CONFIG.data.image_size))
    rows = []
    for way, base in WAYS.items():
        for labels in (*(few for few in LABELS if few < total), total):
            for seed in range(seeds):
                config = base.override(
                    dataset=dataset,
                    init_from=init_from if base.model.init_from else None,
                    train_split=drawn_split(labels, total, seed),
                    batch_size=min(labels, 50),
                    eval_every=1e9,
                    seed=seed,
                    workdir=str(runs / f"{way.replace(' ', '-')}-{labels}-{seed}"),
                )
                accuracy = train(config)["test_accuracy"]
                rows.append({"way": way, "labels": labels, "seed": seed, "test_accuracy": accuracy})
    return rows


def drawn_split(labels: int, total: int, seed: int) -> str:
    """Returns the split that this seed trains on: `labels` consecutive images of the first `total`."""
    start = int(np.random.default_rng(seed).integers(total - labels + 1))
    return f"train[{start}:{start + labels}]"


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Plots accuracy against the number of labels: a line for each way, with its range over the seeds."""
    from cnn_jax.report.figures import BLUE, INK, ORANGE, new_axes, png, style

    numbers = sorted({row["labels"] for row in rows})
    with style():
        figure, axes = new_axes(5.2, 3.4)
        for way, color in zip(WAYS, (BLUE, INK, ORANGE), strict=True):
            accuracies = [
                [100 * row["test_accuracy"] for row in rows if (row["way"], row["labels"]) == (way, number)]
                for number in numbers
            ]
            axes.plot(numbers, list(map(mean, accuracies)), "-o", color=color, label=way, markersize=4)
            axes.fill_between(numbers, list(map(min, accuracies)), list(map(max, accuracies)), color=color, alpha=0.15)
        axes.set(xscale="log", xlabel="labelled training images", ylabel="test accuracy (%)", ylim=(None, 100))
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.minorticks_off()
        axes.legend()
        return png(figure)


if __name__ == "__main__":
    guard(main)
