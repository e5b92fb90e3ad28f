"""Classifies your own images with a finished run, or reconstructs them.

python -m cnn_jax predict runs/mnist_lenet5 digit.png photos/ --top 3
python -m cnn_jax predict runs/mnist_lenet5 photos/ --csv - > predictions.csv
"""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cnn_jax.commands.output import console, write_output
from cnn_jax.commands.parser import ArgumentParser, file_path, positive
from cnn_jax.errors import UserError
from cnn_jax.storage.file_names import readable

if TYPE_CHECKING:
    from cnn_jax.runs.predict import Prediction


def main(argv: Sequence[str] | None = None) -> None:
    """Predicts for every image and prints a table, or writes CSV, JSON and pictures.

    Args:
        argv: arguments; default: those of the command line.

    Raises:
        UserError: the run is not finished, there are no images, images cannot be read (all of these are named), or a
            file cannot be written.
    """
    arguments = _parse(argv)
    from cnn_jax.runs.predict import find_images, predict  # imports JAX

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
    if arguments.pictures is not None:
        write_pictures(found, arguments.pictures)
    if "-" not in (arguments.csv, arguments.json):
        _print(found)


def write_csv(found: Sequence["Prediction"], file: TextIO) -> None:
    """Writes a line for each image and prediction: image, rank from 1, and the task's columns, such as class.

    In the names of images, bytes that are not UTF-8 and line breaks are escaped, see `storage.file_names`.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("image", "rank", *found[0].rows[0]))
    for prediction in found:
        for rank, row in enumerate(prediction.rows, 1):
            cells = (f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row.values())
            writer.writerow((readable(prediction.image), rank, *cells))


def write_json(found: Sequence["Prediction"], file: TextIO) -> None:
    """Writes a list of {"image", "predictions": [{"class", "probability"}, …]}."""
    records = [{"image": readable(prediction.image), "predictions": list(prediction.rows)} for prediction in found]
    json.dump(records, file, indent=2, ensure_ascii=False)
    file.write("\n")


def write_pictures(found: Sequence["Prediction"], folder: str) -> None:
    """Writes the outputs of a task that outputs images, as NUMBER-NAME.png.

    Raises:
        UserError: the task's outputs are not images, or a file cannot be written.
    """
    from cnn_jax.report.figures import image_png

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--pictures {folder} cannot be created ({error.strerror}): choose another folder") from error
    for number, prediction in enumerate(found):
        if prediction.picture is None:
            raise UserError("the outputs of this run are not images: leave out --pictures")
        name = f"{number:05d}-{readable(prediction.image.stem)}.png"
        write_output("--pictures", str(Path(folder) / name), image_png(prediction.picture))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m cnn_jax predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=file_path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "images", type=file_path, metavar="IMAGE", nargs="+", help="image files, or folders to search for them"
    )
    parser.add_argument("--top", type=positive, default=5, help="predictions shown per image (default: 5)")
    parser.add_argument("--csv", type=file_path, metavar="FILE", help="write CSV; - for stdout")
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write JSON; - for stdout")
    parser.add_argument(
        "--pictures", type=file_path, metavar="FOLDER", help="write the images reconstructed by an auto-encoder"
    )
    parser.add_argument("--batch-size", type=positive, default=256, help="images per forward pass (default: 256)")
    parser.add_argument("--skip-bad-images", action="store_true", help="skip images that cannot be read")
    return parser.parse_args(argv)


def _print(found: Sequence["Prediction"]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("image", overflow="fold"), *found[0].rows[0], box=None, pad_edge=False)
    for prediction in found:
        for rank, row in enumerate(prediction.rows):
            cells = (_cell(name, value) for name, value in row.items())
            table.add_row(*map(Text, ("" if rank else readable(prediction.image), *cells)))
    console().print(table)


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:7.2%}" if name == "probability" else f"{value:.4f}"
