"""Accuracy against the number of labels: from scratch beside transferred, several seeds each, one picture.

    python -m experiments.mnist_lenet5
    python -m experiments.transfer_labels --output results/transfer/digits

The runs are those of `experiments.transfer_digits`, in `runs/transfer`; finished ones are not repeated. Writes
OUTPUT.csv (a row a run) and OUTPUT.png (mean and range over the seeds).
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from cnn_jax.cli import ArgumentParser, guard
from experiments.transfer_digits import CONFIG, PRESETS

WAYS = {"transferred": CONFIG, "linear probe": PRESETS["probe"], "from scratch": PRESETS["scratch"]}
LABELS = (10, 20, 50, 100, 200, 500, 1257)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes and draws."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init-from", default=CONFIG.model.init_from, help="the run on MNIST (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="where, without ending")
    arguments = parser.parse_args(argv)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # found out before the training, not after it
    from cnn_jax.training.run import train

    rows = []
    for way, base in WAYS.items():
        start = arguments.init_from if base.model.init_from else None
        for labels in LABELS:
            for seed in range(arguments.seeds):
                name = f"{way.replace(' ', '-')}-{labels}-{seed}"
                config = base.override(
                    init_from=start,
                    train_split=f"train[:{labels}]",
                    batch_size=min(labels, 50),
                    eval_every=1e9,
                    seed=seed,
                    workdir=str(arguments.runs / name),
                )
                accuracy = train(config)["test_accuracy"]
                rows.append({"way": way, "labels": labels, "seed": seed, "test_accuracy": accuracy})
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    arguments.output.with_suffix(".png").write_bytes(draw(rows))


def draw(rows: list[dict]) -> bytes:
    """Error against labels, both logarithmic, a line a way with its range over the seeds."""
    from cnn_jax.report.figures import BLUE, INK, ORANGE, new_axes, png, style

    with style():
        figure, axes = new_axes(5.2, 3.4)
        for way, color in zip(WAYS, (BLUE, INK, ORANGE)):
            errors = [
                [100 - 100 * r["test_accuracy"] for r in rows if (r["way"], r["labels"]) == (way, n)] for n in LABELS
            ]
            axes.plot(LABELS, list(map(mean, errors)), "-o", color=color, label=way, markersize=4)
            axes.fill_between(LABELS, list(map(min, errors)), list(map(max, errors)), color=color, alpha=0.15)
        axes.set(xscale="log", xlabel="labelled training images", ylabel="test error (%)", ylim=(0, None))
        axes.set_xticks(LABELS, [str(n) for n in LABELS])
        axes.minorticks_off()
        axes.legend()
        return png(figure)


if __name__ == "__main__":
    guard(main)
