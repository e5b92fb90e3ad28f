"""Data sets on the command line: `python -m cnn_jax data prepare mnist`, `list`, `show digits`, `export digits`."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cnn_jax.commands.output import write_output
from cnn_jax.commands.parser import ArgumentParser
from cnn_jax.data import Source, open_source
from cnn_jax.data.prepare import prepare
from cnn_jax.data.tfds_source import data_folder
from cnn_jax.errors import UserError

_GRID = 8  # rows and columns
_CELL = 64  # pixels


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments (default: those of the command line), and does what they say.

    Raises:
        UserError: wrong arguments, a data set that is unknown or cannot be had, or a file that cannot be written.
    """
    options = _parser().parse_args(arguments)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # our own error says once what it says at every retry
    match options.command:
        case "prepare":
            print(f"prepared in {prepare(options.dataset, options.data_dir, options.manual_dir)}")
        case "list":
            list_datasets(options.data_dir)
        case "show":
            source = open_source(
                options.dataset,
                options.split,
                data_dir=options.data_dir,
                image_size=options.image_size,
                channels=options.channels,
            )
            _save(draw_grid(source), options.output)
            print(f"{source.name} {source.split}: {len(source)} images of {source.image_shape}; {options.output}")
        case "export":
            source = open_source(options.dataset, options.split, data_dir=options.data_dir)
            export(source, Path(options.output))
            print(f"{source.name} {source.split}: {len(source)} images in {options.output}, one sub-folder a class")


def _parser() -> ArgumentParser:
    data_dir = ArgumentParser(add_help=False)
    data_dir.add_argument("--data-dir", help="folder of TFDS sets (else TFDS_DATA_DIR, else ~/tensorflow_datasets)")
    parser = ArgumentParser(prog="python -m cnn_jax data", description="Prepare, list and look at data sets.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("prepare", parents=[data_dir], help="download a TFDS set and prepare it for reading")
    command.add_argument("dataset", help="its name in TFDS, such as mnist or cifar10")
    command.add_argument("--manual-dir", help="take the original archives from this folder instead of downloading")

    commands.add_parser("list", parents=[data_dir], help="list the data sets that can be used now")

    command = commands.add_parser("show", parents=[data_dir], help="draw the first 64 examples with their labels")
    command.add_argument("dataset", help="such as digits, mnist, folder:PATH or xo")
    command.add_argument("--split", default="train", help="such as test or train[90%%:] (default: train)")
    command.add_argument("--image-size", type=int, help="height and width in pixels")
    command.add_argument("--channels", type=int, choices=(1, 3), help="grey or colour (default: as they are)")
    command.add_argument("--output", default="grid.png", help="image file to write (default: grid.png)")

    command = commands.add_parser("export", parents=[data_dir], help="write examples as PNG files, a folder a class")
    command.add_argument("dataset", help="such as digits, mnist or xo")
    command.add_argument("--split", default="test", help="such as test or train[:100] (default: test)")
    command.add_argument("--output", required=True, help="folder to write into")
    return parser


def export(source: Source, folder: Path) -> None:
    """Writes example i of class NAME as `folder/NAME/i.png`: what `folder:` and `cnn_jax.runs.predict` read.

    Raises:
        UserError: images of other than 1 or 3 channels.
        OSError: the folder cannot be written.
    """
    if source.image_shape[-1] not in (1, 3):
        raise UserError(
            f"given {source.name} with {source.image_shape[-1]} channels; expected 1 or 3, as PNG has; choose another"
        )
    for index in range(len(source)):
        example = source[index]
        place = folder / source.class_names[example["label"]].replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        image = example["image"]
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(place / f"{index:05d}.png")


def list_datasets(data_dir: str | None) -> None:
    """Prints the sets that need no preparing, and those prepared in the data folder."""
    print("ship with the package: digits, xo, synthetic:HxWxC:K")
    print("your own images:       folder:PATH, with one sub-folder a class")
    folder = data_folder(data_dir)
    versions = sorted({path.parent.relative_to(folder) for path in folder.glob("*/**/dataset_info.json")})
    names = [f"{path.parent.as_posix()}:{path.name}" for path in versions]
    print(f"prepared in {folder}: {', '.join(names) or 'none'}")
    print("others of TFDS:        python -m cnn_jax data prepare NAME")


def draw_grid(source: Source) -> Image.Image:
    """Draws the first 64 examples, 8 a row, each with its class name below."""
    line = 12
    grid = Image.new("RGB", (_GRID * _CELL, _GRID * (_CELL + line)), "white")
    pen = ImageDraw.Draw(grid)
    for index in range(min(_GRID**2, len(source))):
        example = source[index]
        row, column = divmod(index, _GRID)
        corner = (column * _CELL, row * (_CELL + line))
        height, width, channels = example["image"].shape
        pixels = example["image"][..., : 3 if channels >= 3 else 1]
        picture = Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).copy())
        picture.thumbnail((_CELL, _CELL))
        scale = _CELL // max(picture.size)
        grid.paste(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST), corner)
        pen.text((corner[0] + 2, corner[1] + _CELL), source.class_names[example["label"]][:10], "black")
    return grid


def _save(image: Image.Image, path: str) -> None:
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"given --output {path}, of no known kind of image; expected an image file; write grid.png")
    data = io.BytesIO()
    image.save(data, kind)
    write_output("--output", path, data.getvalue())
