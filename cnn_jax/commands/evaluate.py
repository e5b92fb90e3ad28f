"""Evaluates finished runs on a split of their own data set, or on another data set with the same classes.

python -m cnn_jax evaluate runs/mnist_lenet5
python -m cnn_jax evaluate runs/mnist_* --split validation --json scores.json
python -m cnn_jax evaluate runs/own --dataset folder:new_photos --split test[:500]
python -m cnn_jax evaluate runs/cifar10_resnet --views flip
python -m cnn_jax evaluate runs/alexnet --views ten_crop
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cnn_jax.commands.output import console, write_output
from cnn_jax.commands.parser import ArgumentParser, file_path, positive

if TYPE_CHECKING:
    from cnn_jax.tasks import Metric

# measure → (column heading, format); other measures are shown as their task shows them
COLUMNS = {
    "count": ("images", "{count:,}"),
    "accuracy": ("accuracy", "{accuracy:.2%}"),
    "accuracy_low": ("95% interval", "{accuracy_low:.2%}–{accuracy_high:.2%}"),
    "loss": ("loss", "{loss:.4f}"),
    "top5_accuracy": ("top 5", "{top5_accuracy:.2%}"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates every run and prints a table, or JSON.

    Args:
        argv: arguments; default: those of the command line.

    Raises:
        UserError: a run is not finished, the data set or split is unknown, its images or classes do not match the run,
            or a file cannot be written.
    """
    arguments = _parse(argv)
    from cnn_jax.runs.evaluate import evaluate  # imports JAX
    from cnn_jax.weights.trained import load_trained

    scores: list[dict[str, Any]] = []
    metrics: dict[str, Metric] = {}
    for run in arguments.runs:
        trained = load_trained(run)
        found = evaluate(
            run,
            arguments.split,
            dataset=arguments.dataset,
            data_dir=arguments.data_dir,
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
            views=arguments.views,
            skip_bad_images=arguments.skip_bad_images,
            trained=trained,
        )
        scores.append(found)
        metrics |= trained.task.metrics
    text = json.dumps(scores, indent=2, ensure_ascii=False)
    if arguments.json == "-":
        print(text)
        return
    if arguments.json is not None:
        write_output("--json", arguments.json, text + "\n")
    _print(scores, metrics)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m cnn_jax evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=file_path, metavar="RUN", nargs="+", help="folders of finished runs")
    parser.add_argument(
        "--split", default="test", help="train, validation or test of the run, or such as test[:1000] (default: test)"
    )
    parser.add_argument("--dataset", help="another data set with the run's classes (default: the run's own)")
    parser.add_argument("--data-dir", type=file_path, help="folder of TFDS data sets (default: as in the run)")
    parser.add_argument("--image-size", type=positive, help="resize images to this height and width")
    parser.add_argument("--batch-size", type=positive, help="images per forward pass (default: as in the run)")
    parser.add_argument("--skip-bad-images", action="store_true", help="skip images of a folder that cannot be read")
    parser.add_argument(
        "--views", nargs="*", default=[], metavar="VIEW", help="average over views: flip, shift, ten_crop"
    )
    parser.add_argument(
        "--json", type=file_path, metavar="FILE", help="also write JSON; - prints it instead of the table"
    )
    return parser.parse_args(argv)


def _print(scores: Sequence[dict[str, Any]], metrics: Mapping[str, "Metric"]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    shown = [name for name in COLUMNS if any(name in row for row in scores)]
    if "accuracy" not in shown:  # another task than classification: all of its measures
        shown += list(dict.fromkeys(n for row in scores for n, v in row.items() if type(v) is float and n not in shown))
    numbers = [Column(COLUMNS[name][0] if name in COLUMNS else name.replace("_", " "), no_wrap=True) for name in shown]
    table = Table(Column("run", overflow="fold"), "data", *numbers, box=None, pad_edge=False)
    for row in scores:
        cells = [row["run"], f"{row['dataset']} {row['split']}", *(_cell(name, row, metrics) for name in shown)]
        table.add_row(*map(Text, cells))
    console().print(table)


def _cell(name: str, row: dict[str, Any], metrics: Mapping[str, "Metric"]) -> str:
    if name not in row:
        return "–"
    if name in COLUMNS:
        return COLUMNS[name][1].format_map(row)
    return metrics[name].text(row[name]) if name in metrics else f"{row[name]:.4f}"
