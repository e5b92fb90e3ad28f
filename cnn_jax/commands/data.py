"""Prepares, lists, shows and exports data sets: `python -m cnn_jax data prepare mnist`, `… show digits`."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_jax.commands.output import write_output
from cnn_jax.commands.parser import ArgumentParser, file_path
from cnn_jax.errors import UserError, counted

if TYPE_CHECKING:
    from PIL import Image


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the sub-command in the arguments (default: those of the command line).

    Raises:
        UserError: wrong arguments, an unknown or unavailable data set, or a file that cannot be written.
    """
    options = _parser().parse_args(arguments)
    from cnn_jax.data import open_source  # slow to import
    from cnn_jax.data.pictures import draw_grid, export, list_datasets
    from cnn_jax.data.prepare import prepare

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns at every retry; our error says it once
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
            images = counted(len(source), "image")
            print(f"{source.name} {source.split}: {images} of {source.image_shape}; {options.output}")
        case "export":
            source = open_source(options.dataset, options.split, data_dir=options.data_dir)
            export(source, Path(options.output), options.force)
            images = counted(len(source), "image")
            print(f"{source.name} {source.split}: {images} in {options.output}, one subfolder per class")


def _parser() -> ArgumentParser:
    data_dir = ArgumentParser(add_help=False)
    data_dir.add_argument(
        "--data-dir", type=file_path, help="folder of TFDS sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets)"
    )
    parser = ArgumentParser(prog="python -m cnn_jax data", description="Prepare, list and look at data sets.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("prepare", parents=[data_dir], help="download and prepare a TFDS data set")
    command.add_argument("dataset", help="name in TFDS, such as mnist or cifar10")
    command.add_argument(
        "--manual-dir", type=file_path, help="take the original archives from this folder instead of downloading"
    )

    commands.add_parser("list", parents=[data_dir], help="list the data sets available on this machine")

    command = commands.add_parser("show", parents=[data_dir], help="draw the first 64 images with their labels")
    command.add_argument("dataset", help="such as digits, mnist, folder:PATH or xo")
    command.add_argument("--split", default="train", help="such as test or train[90%%:] (default: train)")
    command.add_argument("--image-size", type=int, help="height and width in pixels")
    command.add_argument("--channels", type=int, choices=(1, 3), help="1 for grey, 3 for colour (default: as they are)")
    command.add_argument("--output", type=file_path, default="grid.png", help="image file to write (default: grid.png)")

    command = commands.add_parser("export", parents=[data_dir], help="write images as PNG files, one folder per class")
    command.add_argument("dataset", help="such as digits, mnist or xo")
    command.add_argument("--split", default="test", help="such as test or train[:100] (default: test)")
    command.add_argument("--output", type=file_path, required=True, help="folder to write into")
    command.add_argument(
        "--force", action="store_true", help="also into a folder that has files; those of the same names are replaced"
    )
    return parser


def _save(image: "Image.Image", path: str) -> None:
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"--output {path} is not an image format that can be written: name a file such as grid.png")
    data = io.BytesIO()
    image.save(data, kind)
    write_output("--output", path, data.getvalue())
