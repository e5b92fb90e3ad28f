"""Draws a grid of examples, exports examples as PNG files and lists the data sets at hand."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cnn_jax.data.sources import Source
from cnn_jax.data.tfds_source import data_folder
from cnn_jax.errors import UserError

_GRID = 8  # rows and columns


_CELL = 64  # pixels


def export(source: Source, folder: Path, force: bool = False) -> None:
    """Writes example i of class NAME to `folder/NAME/i.png`, the layout that `folder:` and `cnn_jax.runs.predict` read.

    Args:
        source: the examples.
        folder: where to; must be new or empty.
        force: write to a folder with other files, too; those of the same names are replaced.

    Raises:
        UserError: the images have neither 1 nor 3 channels, there are files in the folder, or the names of the classes
            make no names of folders.
        OSError: the folder cannot be written.
    """
    if source.image_shape[-1] not in (1, 3):
        raise UserError(
            f"{source.name} has {source.image_shape[-1]} channels, and PNG has 1 or 3: choose another data set"
        )
    folder = folder.resolve()  # a/../b is b only where a exists, and a is about to be made
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is not empty, and what is exported would mix with it: choose a new folder, or set `force`"
        )
    places = [name.replace("/", "-") for name in source.class_names]
    if unfit := [name for name in places if places.count(name) > 1 or name.startswith((".", "__")) or not name]:
        raise UserError(
            f"the class {unfit[0]!r} of {source.name} cannot be the name of a folder: choose another data set"
        )
    for index in range(len(source)):
        example = source[index]
        place = folder / places[example["label"]]
        place.mkdir(parents=True, exist_ok=True)
        image = example["image"]
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(place / f"{index:05d}.png")


def list_datasets(data_dir: str | None) -> None:
    """Prints the data sets that need no preparation, and those prepared in the data folder."""
    print("ship with the package: digits, xo, synthetic:HxWxC:K")
    print("your own images:       folder:PATH, with one sub-folder per class")
    folder = data_folder(data_dir)
    versions = sorted({path.parent.relative_to(folder) for path in folder.glob("*/**/dataset_info.json")})
    names = [f"{path.parent.as_posix()}:{path.name}" for path in versions]
    print(f"prepared in {folder}: {', '.join(names) or 'none'}")
    print("more from TFDS:        python -m cnn_jax data prepare NAME")


def draw_grid(source: Source) -> Image.Image:
    """Draws the first 64 examples, 8 per row, each with its class name below."""
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
