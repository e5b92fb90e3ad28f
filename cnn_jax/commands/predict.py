"""What a trained model sees in images of one's own.

python -m cnn_jax predict runs/mnist_lenet5 digit.png photos/ --top 3
python -m cnn_jax predict runs/mnist_lenet5 photos/ --csv - > predictions.csv
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from cnn_jax.commands.output import write_output
from cnn_jax.commands.parser import ArgumentParser, positive
from cnn_jax.runs.predict import Prediction, find_images, predict

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, predicts, and writes tables.

    Raises:
        UserError: no finished run, no images, images that cannot be read (all of these are named), or a file that
            cannot be written.
    """
    arguments = _parse(argv)
    paths = list(find_images(arguments.images))
    found = predict(
        arguments.run,
        paths,
        top=arguments.top,
        batch_size=arguments.batch_size,
        skip_bad_images=arguments.skip_bad_images,
    )
    for flag, name, write in (("--csv", arguments.csv, write_csv), ("--json", arguments.json, write_json)):
        if name is not None:
            text = io.StringIO()
            write(found, text)
            write_output(flag, name, text.getvalue())
    if "-" not in (arguments.csv, arguments.json):
        _print(found)


def write_csv(found: Iterable[Prediction], file: TextIO) -> None:
    """Writes a line for each image and class: image, rank from 1, class, probability in [0, 1]."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "probability"))
    for prediction in found:
        for rank, (name, share) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True), 1):
            writer.writerow((prediction.image, rank, name, f"{share:.6g}"))


def write_json(found: Iterable[Prediction], file: TextIO) -> None:
    """Writes a list of {"image", "predictions": [{"class", "probability"}, …]}."""
    records: list[dict[str, Any]] = [
        {
            "image": str(image),
            "predictions": [{"class": name, "probability": share} for name, share in zip(names, shares, strict=True)],
        }
        for image, names, shares in found
    ]
    json.dump(records, file, indent=2, ensure_ascii=False)
    file.write("\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m cnn_jax predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders that are searched for them")
    parser.add_argument("--top", type=positive, default=5, help="classes shown for each image (default: 5)")
    parser.add_argument("--csv", metavar="FILE", help="write CSV; - for stdout")
    parser.add_argument("--json", metavar="FILE", help="write JSON; - for stdout")
    parser.add_argument("--batch-size", type=positive, default=256, help="images a forward pass (default: 256)")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be read")
    return parser.parse_args(argv)


def _print(found: Sequence[Prediction]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("image", overflow="fold"), "class", "probability", box=None, pad_edge=False)
    for image, names, shares in found:
        for rank, (name, share) in enumerate(zip(names, shares, strict=True)):
            table.add_row(*map(Text, ("" if rank else str(image), name, f"{share:7.2%}")))
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a file has no edge
