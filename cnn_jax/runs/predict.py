"""What a trained model makes of your own images."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn_jax.data.folder import SUFFIXES
from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.runs.inference import predict_outputs
from cnn_jax.weights.trained import load_trained


class Prediction(NamedTuple):
    """What a model says about one image.

    Attributes:
        image: its file.
        rows: the best guess first, each of the columns that the task has: of classification "class" and "probability".
        picture: uint8 (H, W, C), of tasks whose outputs are images, else None.
    """

    image: Path
    rows: Sequence[dict[str, Any]]
    picture: np.ndarray | None = None


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
        top: guesses kept of each image.
        batch_size: images a forward pass.
        skip_bad_images: leaves out images that cannot be read, with a warning on stderr, instead of refusing them.

    Returns:
        The predictions of the images that can be read, in their order.

    Raises:
        UserError: no finished run, or images that cannot be read: all of these are named.
    """
    trained = load_trained(run)
    preprocess, variables = trained.preprocess, jax.device_put(trained.variables)
    found: list[Prediction] = []
    bad: dict[Path, UserError] = {}
    for members, images in _batches(paths, preprocess, min(batch_size, len(paths)), bad):
        if bad and not skip_bad_images:
            continue  # to the end, for the names of the other bad ones
        outputs = predict_outputs(trained.model, variables, preprocess, images, batch_size)
        predictions, inputs = trained.task.predict(outputs), preprocess.normalize(images)
        for path, prediction, image in zip(members, predictions, inputs):
            rows = trained.task.rows(prediction, image, top)
            picture = preprocess.denormalize(prediction) if prediction.shape == preprocess.image_shape else None
            found.append(Prediction(path, rows, picture))
    if bad and not skip_bad_images:
        names, reason = ", ".join(map(str, bad)), next(iter(bad.values())).__cause__
        raise UserError(
            f"{names} cannot be read ({str(reason).partition(chr(10))[0]}): drop them, or set `skip_bad_images`"
        )
    if not found:
        raise UserError(f"none of the {len(bad)} images can be read: name at least one that can")
    for error in bad.values():
        print(f"warning: {error}", file=sys.stderr)
    return found


def _batches(
    paths: Iterable[Path], preprocess: Preprocess, size: int, bad: dict[Path, UserError]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Yields up to `size` paths and their images, uint8 (size, H, W, C), in the first rows of one and the same array.

    All batches have one shape, so the model is compiled once. Unreadable images are left out, and put into `bad`.
    """
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
