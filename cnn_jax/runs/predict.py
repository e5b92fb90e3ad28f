"""Runs a trained model on your own images."""

import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn_jax.data import folder
from cnn_jax.data.image_file import pixel_limit
from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.runs.inference import predict_outputs
from cnn_jax.storage.file_names import readable
from cnn_jax.weights.trained import load_trained


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
        image: the file.
        rows: guesses, best first, with the task's columns: "class" and "probability" for classification.
        picture: uint8 (H, W, C) if the task's outputs are images, otherwise None.
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
        top: number of guesses per image.
        batch_size: images per forward pass.
        skip_bad_images: leave out unreadable images, with a warning on stderr, instead of raising an error.

    Returns:
        The predictions for the readable images, in order.

    Raises:
        UserError: no finished run, or unreadable images; the message names all of them.
    """
    pixel_limit()  # a wrong one is no file's fault
    trained = load_trained(run)
    preprocess, variables = trained.preprocess, jax.device_put(trained.variables)
    found: list[Prediction] = []
    bad: dict[Path, UserError] = {}
    for members, images in _batches(paths, preprocess, min(batch_size, len(paths)), bad):
        if bad and not skip_bad_images:
            continue  # read on only to name all bad images
        outputs = predict_outputs(trained.model, variables, preprocess, images, batch_size)
        predictions, inputs = trained.task.predict(outputs), preprocess.normalize(images)
        for path, prediction, image in zip(members, predictions, inputs):
            rows = trained.task.rows(prediction, image, top)
            picture = preprocess.denormalize(prediction) if prediction.shape == preprocess.image_shape else None
            found.append(Prediction(path, rows, picture))
    if bad and not skip_bad_images:
        names, reason = ", ".join(map(readable, bad)), next(iter(bad.values())).__cause__
        raise UserError(
            f"{names} cannot be read ({str(reason).partition(chr(10))[0]}): drop them, or set `skip_bad_images`"
        )
    if not found:
        what = f"none of the {len(bad)} images can" if len(bad) > 1 else "the image cannot"
        raise UserError(f"{what} be read: name at least one that can")
    for error in bad.values():
        print(f"warning: {error}", file=sys.stderr)
    return found


def _batches(
    paths: Iterable[Path], preprocess: Preprocess, size: int, bad: dict[Path, UserError]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Yields up to `size` paths and their images, in the first rows of an array (size, H, W, C), uint8, that is reused.

    All batches have one shape, so the model compiles once. Unreadable images are left out and added to `bad`.
    """
    images, members = np.zeros((size, *preprocess.image_shape), np.uint8), []
    # With the image in hand and the one being read, no more than a batch besides the array.
    for path, image in _read(paths, preprocess, ahead=max(0, size - 2)):
        if isinstance(image, UserError):
            bad[path] = image
            continue
        images[len(members)] = image
        members.append(path)
        if len(members) == size:
            yield members, images
            members = []
    if members:
        yield members, images


def _read(
    paths: Iterable[Path], preprocess: Preprocess, ahead: int
) -> Generator[tuple[Path, np.ndarray | UserError], None, None]:
    """Yields each path with its image, or with the reason why it cannot be read.

    Threads read up to `ahead` images in advance while the caller computes; image decoders release the GIL.
    """

    def read(path: Path) -> tuple[Path, np.ndarray | UserError]:
        try:
            return path, preprocess.read(path)
        except UserError as error:
            return path, error

    pool, waiting = ThreadPoolExecutor(os.cpu_count()), deque[Future[tuple[Path, np.ndarray | UserError]]]()
    try:
        for path in paths:
            waiting.append(pool.submit(read, path))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def find_images(given: Iterable[str | Path]) -> Iterator[Path]:
    """Yields the given files, and all image files in and below the given folders, sorted by path within each.

    Raises:
        UserError: a path does not exist, or a folder holds no images.
    """
    for path in map(Path, given):
        if path.is_dir():
            inside = folder.find_images(path)
            if not inside:
                endings = " ".join(sorted(folder.SUFFIXES))
                raise UserError(f"no images in {path}: add files that end in {endings}")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise UserError(f"no file or folder {path}: check the path")
