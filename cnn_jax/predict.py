"""What a trained model sees in images of one's own.

python -m cnn_jax.predict runs/mnist_lenet5 digit.png photos/ --top 3
python -m cnn_jax.predict runs/mnist_lenet5 photos/ --csv - > predictions.csv
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from cnn_jax.cli import ArgumentParser, guard, positive
from cnn_jax.errors import UserError
from cnn_jax.run_folder import write_bytes

if TYPE_CHECKING:
    import numpy as np

    from cnn_jax.data.preprocess import Preprocess


class Prediction(NamedTuple):
    """The most probable classes of one image, the best first."""

    image: Path
    classes: Sequence[str]
    probabilities: Sequence[float]


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


def predict(
    run: str | Path,
    paths: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 256,
    skip_bad_images: bool = False,
) -> list[Prediction]:
    """Reads images and runs the trained model on them, a batch at a time: memory does not grow with their number.

    Args:
        run: the folder of a finished run.
        paths: image files, at least one.
        top: classes kept of each image.
        batch_size: images a forward pass.
        skip_bad_images: leaves out images that cannot be read, with a warning on stderr, instead of refusing them.

    Returns:
        The predictions of the images that can be read, in their order.

    Raises:
        UserError: no finished run, or images that cannot be read: all of these are named.
    """
    # Only now: --help and mistakes in the arguments answer at once.
    import jax

    from cnn_jax.inference import predict_probabilities
    from cnn_jax.run_folder import load, read_classes

    model, variables, preprocess = load(run)
    variables, classes = jax.device_put(variables), read_classes(run)
    found: list[Prediction] = []
    bad: dict[Path, UserError] = {}
    for members, images in _batches(paths, preprocess, min(batch_size, len(paths)), bad):
        if bad and not skip_bad_images:
            continue  # to the end, for the names of the other bad ones
        probabilities = predict_probabilities(model, variables, preprocess, images, batch_size)
        found += [best(path, row, classes, top) for path, row in zip(members, probabilities)]
    if bad and not skip_bad_images:
        names, reason = ", ".join(map(str, bad)), next(iter(bad.values())).__cause__
        raise UserError(
            f"given {names}, which cannot be read ({str(reason).partition(chr(10))[0]}); expected whole images; "
            "drop them or add --skip-bad-images"
        )
    if not found:
        raise UserError(f"given {len(bad)} images, all unreadable; expected at least one that can be read; add one")
    for error in bad.values():
        print(f"warning: {error}", file=sys.stderr)
    return found


def _batches(
    paths: Iterable[Path], preprocess: "Preprocess", size: int, bad: dict[Path, UserError]
) -> Iterator[tuple[list[Path], "np.ndarray"]]:
    """Yields up to `size` paths and their images, uint8 (size, H, W, C), in the first rows of one and the same array.

    All batches have one shape, so the model is compiled once. Unreadable images are left out, and put into `bad`.
    """
    import numpy as np

    images, members = np.zeros((size, *preprocess.image_shape), np.uint8), []
    for path in paths:
        try:
            images[len(members)] = preprocess.read(path)
        except UserError as error:
            bad[path] = error
            continue
        members.append(path)
        if len(members) == size:
            yield members, images
            members = []
    if members:
        yield members, images


def find_images(given: Iterable[str | Path]) -> Iterator[Path]:
    """Yields the given files as they are, and of folders every image file in and below them, sorted by path.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    from cnn_jax.data.folder import SUFFIXES

    for path in map(Path, given):
        if path.is_dir():
            files = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            inside = sorted(p for p in files if p.is_file())
            if not inside:
                endings = " ".join(sorted(SUFFIXES))
                raise UserError(f"given folder {path}, with no images; expected files ending in {endings}; add some")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise UserError(
                f"given image {path}, which does not exist; expected image files or folders of them; correct the path"
            )


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


def write_output(flag: str, name: str, found: str | bytes) -> None:
    """Writes what a command has found to the file `name`, whole or not at all; "-" is stdout.

    Args:
        flag: the option that the name was given for, for the error.
        name: a file, which is replaced, or a device or pipe, which is written to.
        found: all of it; text is written as UTF-8.

    Raises:
        UserError: naming the file and the reason, when it cannot be written.
    """
    path = Path(name)
    try:
        data = found.encode() if isinstance(found, str) else found
        if name == "-":
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            write_bytes(path.resolve(), data)  # resolved: a link stays one
    except BrokenPipeError:
        raise  # the reader of stdout or of a pipe has seen enough
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is, or would be, no UTF-8 text"
        raise UserError(
            f"given {flag} {name}, which cannot be written ({reason}); expected a place with room; choose another"
        ) from error


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
