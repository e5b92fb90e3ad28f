"""Images per second from files on disk to labels, against the same network in PyTorch with a DataLoader.

    python -m benchmarks.inference --model resnet18 --output results/speed.csv

Makes a folder of JPEG files of a photo's size, and a finished run with random weights. Then `predict` and `evaluate` of
that run, as the commands call them, and a loop over a DataLoader with a reader process for each core are timed
alternately on all files. PyTorch has the same weights, batch size and preprocessing, channels_last tensors and
`inference_mode`, and its readers stay alive between passes. Both are warmed up by a pass that does not count; the
decoded images that `evaluate` keeps for later are removed before each pass, so that it decodes as well.

The probabilities of both must agree, or nothing is timed. The ratio is our images per second over PyTorch's: above 1,
ours is faster.
"""

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import jax_side, torch_side
from benchmarks.sides import pause
from benchmarks.speed import Figure, figure, record, table
from benchmarks.timing import timed_pair
from benchmarks.torch_photos import MEAN, STD, Classifier
from cnn_jax.commands.parser import ArgumentParser, guard, positive
from cnn_jax.config import Config, TrainConfig
from cnn_jax.data import Preprocess
from cnn_jax.errors import TrainingStopped
from cnn_jax.models.named import make_model
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.runs.predict import find_images, predict
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.cache import cache_folder
from cnn_jax.storage.weights_file import save_weights
from cnn_jax.training import runtime

SIZES = {"resnet18": 224, "resnet50": 224, "resnet20": 32}  # pixels
IMAGES = {"resnet18": 256, "resnet50": 128, "resnet20": 1024}
CLASSES = tuple(f"class{k}" for k in range(10))
PHOTO = (500, 375)  # width and height, as most images of ImageNet
TOLERANCE = 0.02  # largest difference of probabilities: JPEG may be decoded at a smaller size


def make_photos(folder: Path, images: int, size: tuple[int, int], ending: str = ".jpg") -> None:
    """Writes random images, smooth with some noise, as `folder/CLASS/NUMBER.jpg`: about 60 kB for 500x375."""
    random = np.random.default_rng(0)
    for number in range(images):
        place = folder / CLASSES[number % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        noise = random.normal(0, 6, (size[1], size[0], 1))
        image = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        image.save(place / f"{number:05d}{ending}", quality=90)  # PNG has none and ignores it


def make_run(folder: Path, model: str, size: int, photos: Path) -> dict[str, Any]:
    """Writes a finished run with random weights; returns its variables."""
    config = Config("inference").override(
        dataset=f"folder:{photos}", model=model, image_size=size, normalize="half", optimizer="momentum"
    )
    preprocess = Preprocess((size, size, 3), (MEAN,) * 3, (STD,) * 3)
    variables = jax_side.initial_variables(make_model(model, len(CLASSES)), preprocess.image_shape)
    folder.mkdir()
    (folder / files.CONFIG).write_text(config.to_json())
    (folder / files.CLASSES).write_text("".join(f"{name}\n" for name in CLASSES))
    (folder / files.PREPROCESS).write_text(preprocess.to_json())
    save_weights(folder / files.WEIGHTS, variables, {})
    return variables


def forget_decoded() -> None:
    """Removes the decoded images that `evaluate` has kept."""
    shutil.rmtree(cache_folder() / "decoded", ignore_errors=True)


def seconds(call: Callable[[], object]) -> float:
    """Times a call, after threads have gone to sleep."""
    forget_decoded()
    pause()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Context in which ours is kept in `folder`, so that a user's decoded images are left alone."""
    before = os.environ.get("CNN_JAX_CACHE")
    os.environ["CNN_JAX_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["CNN_JAX_CACHE"]
        if before is not None:
            os.environ["CNN_JAX_CACHE"] = before


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and records one model.

    Raises:
        UserError: PyTorch is not installed.
        TrainingStopped: the two do not compute the same.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="resnet18", help="default: resnet18")
    parser.add_argument("--images", type=positive, help="number of files (default: 1024 for resnet20, 256, 128)")
    parser.add_argument("--size", type=positive, help="input of the network in pixels (default: 32 or 224)")
    parser.add_argument(
        "--photo", type=positive, nargs=2, default=PHOTO, metavar=("WIDTH", "HEIGHT"), help="of files (default 500 375)"
    )
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of files (default: jpg)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per forward pass (default 64)")
    parser.add_argument("--blocks", type=positive, default=5, help="pairs of passes (default 5)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    torch_side.import_torch("cpu")
    from benchmarks.torch_networks import NETWORKS

    size = arguments.size or SIZES[arguments.model]
    count = arguments.images or IMAGES[arguments.model]
    with tempfile.TemporaryDirectory(prefix="cnn_jax-inference-") as name, _cache(Path(name, "cache")):
        runtime.prepare(TrainConfig(require="cpu"))
        photos, run = Path(name, "photos"), Path(name, "run")
        make_photos(photos, count, tuple(arguments.photo), f".{arguments.format}")
        variables = make_run(run, arguments.model, size, photos)
        paths = list(find_images([photos]))
        mean_bytes = sum(path.stat().st_size for path in paths) / count
        width, height = arguments.photo
        case = f"{arguments.model} {size}x{size} batch {arguments.batch_size}, {arguments.format} {width}x{height}"
        print(f"{case}: {count} files of {mean_bytes / 1e3:.0f} kB on average", flush=True)
        net = NETWORKS[arguments.model]((size, size, 3), len(CLASSES))
        other = Classifier(net, torch_side.torch_weights(variables), paths, size, arguments.batch_size)
        ways: dict[str, Callable[[], object]] = {
            "predict": lambda: predict(run, paths, batch_size=arguments.batch_size),
            "evaluate": lambda: evaluate(run, "all", batch_size=arguments.batch_size),
        }
        check(predict(run, paths, top=len(CLASSES), batch_size=arguments.batch_size), other.probabilities())
        figures = []
        for way, ours in ways.items():
            ours()
            pairs = [
                timed_pair(lambda: seconds(ours), lambda: seconds(other.probabilities), turn)  # noqa: B023
                for turn in range(arguments.blocks)
            ]
            figures += [
                figure(f"{case}, {way}", "ours / torch", [theirs / mine for mine, theirs in pairs], "x"),
                figure(f"{case}, {way}", "ours", [count / mine for mine, _ in pairs], "images/s"),
                figure(f"{case}, {way}", "torch", [count / theirs for _, theirs in pairs], "images/s"),
            ]
        print(*figures, sep="\n", flush=True)
    record(arguments.output, "inference", figures, ("torch", "pillow"))


def check(found: Sequence, theirs: np.ndarray) -> Figure:
    """Compares our probabilities with PyTorch's.

    Raises:
        TrainingStopped: they differ by more than `TOLERANCE`.
    """
    ours = np.array([[{r["class"]: r["probability"] for r in p.rows}[name] for name in CLASSES] for p in found])
    difference = float(abs(ours - theirs).max())
    same = float((ours.argmax(1) == theirs.argmax(1)).mean())
    print(f"probabilities differ by at most {difference:.2g}; {same:.1%} of the labels are the same", flush=True)
    if not difference <= TOLERANCE:
        raise TrainingStopped(
            f"probabilities differ by up to {difference:.2g}: the two do not compute the same, so nothing is timed",
            code=1,
        )
    return Figure("all", "largest difference of probabilities", difference, "")


if __name__ == "__main__":
    guard(main)
