"""What a trained model sees in images of one's own.

python -m cnn_jax.predict runs/mnist_lenet5 digit.png photos/ --top 3
python -m cnn_jax.predict runs/mnist_lenet5 photos/ --csv - > predictions.csv
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from cnn_jax.cli import ArgumentParser, guard
from cnn_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Prediction(NamedTuple):
    """The most probable classes of one image, the best first."""

    image: Path
    classes: Sequence[str]
    probabilities: Sequence[float]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, predicts, and writes tables.

    Raises:
        UserError: no finished run, no images, or images that cannot be read; all of these are named.
    """
    arguments = _parse(argv)
    paths = list(find_images(arguments.images))

    # Only now: --help and the mistakes above answer at once.
    import numpy as np

    from cnn_jax.inference import predict_probabilities
    from cnn_jax.run_folder import load, read_classes

    model, variables, preprocess = load(arguments.run)
    classes = read_classes(arguments.run)
    images, bad = {}, []
    for path in paths:
        try:
            images[path] = preprocess.read(path)
        except UserError as error:
            bad.append(str(path))
            print(f"warning: {error}", file=sys.stderr)
    if bad and not arguments.skip_bad_images:
        raise UserError(
            f"given {', '.join(bad)}, which cannot be read; expected images; drop them or add --skip-bad-images"
        )
    if not images:
        raise UserError(f"given {len(bad)} images, all unreadable; expected at least one image that can be read")
    batch_size = arguments.batch_size
    probabilities = predict_probabilities(model, variables, preprocess, np.stack(list(images.values())), batch_size)
    found = [best(path, row, classes, arguments.top) for path, row in zip(images, probabilities, strict=True)]
    if arguments.csv is not None:
        with _open(arguments.csv) as file:
            write_csv(found, file)
    if arguments.json is not None:
        with _open(arguments.json) as file:
            write_json(found, file)
    if "-" not in (arguments.csv, arguments.json):
        _print(found)


def find_images(given: Iterable[str | Path]) -> Iterator[Path]:
    """Yields the given files as they are, and of folders every image file in and below them, sorted by path.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    for path in map(Path, given):
        if path.is_dir():
            files = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            inside = sorted(p for p in files if p.is_file())
            if not inside:
                raise UserError(f"given folder {path}, with no images; expected files ending in {' '.join(SUFFIXES)}")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise UserError(f"given image {path}, which does not exist; expected image files or folders of them")


def best(image: Path, probabilities_K: "np.ndarray", classes: Sequence[str], top: int) -> Prediction:
    """Picks the `top` most probable classes; of equal ones the first."""
    order = (-probabilities_K).argsort(kind="stable")[:top]
    return Prediction(image, [classes[int(k)] for k in order], [float(probabilities_K[k]) for k in order])


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
        prog="python -m cnn_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders that are searched for them")
    parser.add_argument("--top", type=positive, default=5, help="classes shown for each image (default: 5)")
    parser.add_argument("--csv", metavar="FILE", help="write CSV; - for stdout")
    parser.add_argument("--json", metavar="FILE", help="write JSON; - for stdout")
    parser.add_argument("--batch-size", type=positive, default=256, help="images a forward pass (default: 256)")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be read")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Reads a whole number of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


@contextmanager
def _open(name: str) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdout
    else:
        with open(name, "w", encoding="utf-8", newline="") as file:
            yield file


def _print(found: Sequence[Prediction]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("image", overflow="fold"), "class", "probability", box=None, pad_edge=False)
    for image, names, shares in found:
        for rank, (name, share) in enumerate(zip(names, shares, strict=True)):
            table.add_row(*map(Text, ("" if rank else str(image), name, f"{share:7.2%}")))
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a file has no edge


if __name__ == "__main__":
    guard(main)
