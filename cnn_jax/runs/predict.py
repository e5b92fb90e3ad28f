"""What a trained model sees in images of one's own.

python -m cnn_jax predict runs/mnist_lenet5 digit.png photos/ --top 3
python -m cnn_jax predict runs/mnist_lenet5 photos/ --csv - > predictions.csv
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cnn_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from cnn_jax.data.preprocess import Preprocess


class Prediction(NamedTuple):
    """The most probable classes of one image, the best first."""

    image: Path
    classes: Sequence[str]
    probabilities: Sequence[float]


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

    from cnn_jax.runs.inference import predict_probabilities
    from cnn_jax.storage.run_folder import read_classes
    from cnn_jax.weights.trained import load

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
