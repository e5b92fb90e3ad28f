"""`folder:PATH`: your own images, one sub-folder per class.

Two layouts:

  PATH/train/CLASS/*.jpg, optionally also PATH/validation (or val, or valid) and PATH/test
  PATH/CLASS/*.jpg, divided into about 80 % train, 10 % validation and 10 % test

In the second, the hash of a file's class and name chooses its split, so adding files does not move the others. Every
class with at least three files occurs in every split; smaller classes may be missing from validation and test, never
from train. Files within a split are ordered by hash, so a slice such as train[90%:] is a random sample.

`all` is the whole folder.

With `group_by`, a regular expression, training images of a class whose file names agree in its first group belong
together, such as the frames of one video. The hash of class and group then takes the place of the hash of class and
file name, a slice has the same share of the groups of each class, and ends of slices move to the nearest end of a
group, so no group is divided. Images in folders of their own for validation and test are not grouped.

Images are JPEG, PNG, WebP, AVIF, TIFF, BMP, PGM or PPM, grey or colour, of any size; `preprocess.fit_image` makes them
alike. Values of more than 8 bits are scaled by the range in use over the training images.

Folder names are spelled with composed letters and without control characters, see `storage.file_names`: folders whose
names differ only in that are one class.
"""

import collections
import functools
import hashlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cnn_jax.data.file_order import File, compiled, divide, groups_of, ordered, placed, whole_groups
from cnn_jax.data.headers import MAY_BE_DEEP, Header, headers, stamp, value_ranges
from cnn_jax.data.image_file import Levels, levels_in_use, pixel_limit
from cnn_jax.data.preprocess import read_image
from cnn_jax.data.sources import Example, Splits, parse_split
from cnn_jax.errors import UserError, counted
from cnn_jax.storage.file_names import composed, readable
from cnn_jax.storage.lock import LOCK

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm"}
_JUNK = {"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini"}
_PARTS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_LARGEST_OWN_SIZE = 256
_DEFAULT_SIZE = 64


@dataclass(frozen=True)
class FolderSource:
    """A split of a folder of images.

    `skipped` lists the unreadable files that were left out. For `levels`, see `Preprocess`.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    files: tuple[File, ...]
    skipped: tuple[Path, ...] = ()
    levels: Levels | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, exchanged or rewritten, or the levels change."""
        digest = hashlib.sha256(b"" if self.levels is None else f"{self.levels}\n".encode())
        for file in self.files:
            digest.update(os.fsencode(f"{file.path.absolute()} {file.label} {stamp(file.path)}\n"))
        return digest.hexdigest()

    @property
    def contents(self) -> str:
        """Class folder, name and size of every file, in order, see `describe_contents`."""
        return "\n".join(f"{'/'.join(file.path.parts[-2:])} {file.path.stat().st_size}" for file in self.files)

    @property
    def labels(self) -> np.ndarray:
        """The label of every image, int32."""
        return np.array([file.label for file in self.files], np.int32)

    @property
    def groups(self) -> np.ndarray | None:
        """The number of every image's group, int32; None without groups."""
        if all(file.group is None for file in self.files):
            return None
        sizes = [len(group) for group in groups_of(self.files)]
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Example:
        file = self.files[index]
        return {"image": read_image(file.path, self.image_shape, self.levels), "label": file.label}


def open_folder(
    path: str,
    split: str,
    image_size: int | None,
    skip_bad_images: bool,
    channels: int | None = None,
    levels: Levels | Literal["in use"] | None = "in use",
    group_by: str | None = None,
) -> FolderSource:
    """Opens a split of the folder at `path`.

    Args:
      path: the folder.
      split: `train`, `validation`, `test` or `all`, in split syntax.
      image_size: height and width; None keeps the images' size if they all have the same, at most 256x256, and
        otherwise means 64x64.
      skip_bad_images: reads every file once and leaves unreadable ones out, with a warning.
      channels: number of channels to convert to; None for colour if any image is in colour.
      levels: the values of images of more than 8 bits that become 0 and 255, see `Preprocess`.
      group_by: regular expression on the names of training images, whose first group names what is not divided.

    Raises:
      UserError: there are no classes, a class has no images, or the split is missing or empty; the range in use cannot
        be told; or `group_by` is not a regular expression with a group that matches every name.
    """
    pixel_limit()  # a wrong one is no file's fault
    class_names, splits = _scan(path, group_by)
    if split.startswith("train"):
        _require_train(path, splits)
    if split.partition("[")[0] == "all":
        splits = {"all": [file for files in splits.values() for file in files]}
    if not splits.get(split.partition("[")[0], [None]):
        raise UserError(
            f"folder:{path} has no class with three images, so none is left for {split}: give at least one class 3 "
            "images, one each for train, validation and test"
        )
    part, rows = parse_split(split, {name: len(files) for name, files in splits.items()})
    rows = whole_groups(path, split, rows, splits[part])
    every = [file.path for files in splits.values() for file in files]
    image_shape, deep = _survey(Path(path).expanduser(), every, image_size, channels)
    if levels == "in use":
        train = {file.path for file in splits.get("train", [])}
        levels = _levels_in_use(path, {p: kind for p, kind in deep.items() if p in train} or deep)
    files = splits[part][rows.start : rows.stop]
    skipped: tuple[Path, ...] = ()
    if skip_bad_images:
        skipped = tuple(file.path for file in files if not _readable(file.path, image_shape, levels))
        bad = set(skipped)
        files = [file for file in files if file.path not in bad]
        if skipped:
            print(
                f"warning: left out {len(skipped)} unreadable images, such as {readable(skipped[0])}", file=sys.stderr
            )
    if not files:
        raise UserError(f"folder:{path} {split!r} has no readable image: replace the files")
    return FolderSource(f"folder:{path}", split, class_names, image_shape, tuple(files), skipped, levels)


def default_splits(path: str, group_by: str | None = None) -> Splits:
    """Returns the folder's splits, taking tenths of `train` for missing ones.

    Raises:
      UserError: as `open_folder`; also if such a tenth is empty or leaves a class without training images.
    """
    class_names, parts = _scan(path, group_by)
    if "train" not in parts:  # enough to evaluate; `open_folder` asks for it where it is needed
        return Splits()
    match "validation" in parts, "test" in parts:
        case True, True:
            return Splits()
        case False, True:
            splits, least = Splits("train[:90%]", "train[90%:]", "test"), 5
        case True, False:
            splits, least = Splits("train[:90%]", "validation", "train[90%:]"), 5
        case _:
            splits, least = Splits("train[:80%]", "train[80%:90%]", "train[90%:]"), 8
    files = parts["train"]
    missing = ", ".join(part for part in ("validation", "test") if part not in parts)
    if (count := len(groups_of(files))) < least:
        what = "image" if group_by is None else "group"
        raise UserError(
            f"folder:{path} has {counted(count, what)} in train, too few to take some for {missing}: provide at least "
            f"{least}, or the missing folders"
        )
    _, rows = parse_split(splits.train, {"train": len(files)})
    rows = whole_groups(path, splits.train, rows, files)
    if unlearned := {*range(len(class_names))} - {file.label for file in files[rows.start : rows.stop]}:
        raise UserError(
            f"folder:{path} has so few images of class {class_names[min(unlearned)]!r} that all would be taken for "
            f"{missing}: add images of it, or the missing folders"
        )
    return splits


def _require_train(path: str, parts: Collection[str]) -> None:
    if "train" not in parts:
        raise UserError(f"folder:{path} has {' and '.join(parts)} but no train: add {path}/train/CLASS")


def _scan(path: str, group_by: str | None) -> tuple[tuple[str, ...], dict[str, list[File]]]:
    """Returns the class names in alphabetical order, and the files of each existing split."""
    root, grouping = Path(path).expanduser(), compiled(group_by)
    if not root.is_dir():
        raise UserError(f"folder:{path} is not a folder: give the path of one with a sub-folder per class")
    there = _folders(root)
    # A folder of images is a class, even one that is called train: bus, car, train.
    named = {part: [n for n in names if n in there and _folders(root / n)] for part, names in _PARTS.items()}
    parts = {part: root / found[0] for part, found in named.items() if found}
    empty = {name for names in _PARTS.values() for name in names if name in there and not any((root / name).iterdir())}
    others = sorted(set(there) - empty - {name for found in named.values() for name in found})
    if "train" not in parts and others or not parts:
        class_names = _class_names(root)
        if len(class_names) > 1 and set(class_names) <= set().union(*_PARTS.values()):
            raise UserError(
                f"folder:{path} has images in {' and '.join(class_names)}, but not sorted into classes: move them into "
                f"one sub-folder per class, such as {path}/{class_names[0]}/CLASS"
            )
        _warn_of_left_out(path, [root])
        return class_names, divide(_files(root, class_names, grouping))
    if twice := next((found for found in named.values() if len(found) > 1), None):
        raise UserError(f"folder:{path} has both {' and '.join(twice)}: keep one of them")
    if others:
        _warn(f"folder:{path}: ignoring {', '.join(others)} beside {', '.join(parts)}")
    _warn_of_left_out(path, parts.values())
    holding_classes = [parts["train"]] if "train" in parts else parts.values()
    class_names = tuple(sorted(set().union(*map(_folders, holding_classes))))
    grouped = {"train": grouping}
    return class_names, {part: _files(folder, class_names, grouped.get(part)) for part, folder in parts.items()}


def _folders(folder: Path) -> dict[str, list[Path]]:
    """Returns the folders in a folder by class name."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not _hidden(entry) and not _has_runs(entry):
            found.setdefault(readable(composed(entry.name)), []).append(entry)
    return found


def _has_runs(folder: Path) -> bool:
    """Whether runs were written here or below: to train inside the data's folder must not add the class "runs"."""
    if _is_run(folder):
        return True
    with os.scandir(folder) as entries:  # unlike iterdir, tells files from folders without a look at each
        inside = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any(map(_has_runs, inside))


def check_outside_of_classes(path: str, workdir: Path) -> None:
    """Checks that a run folder is not inside a class of the data, which would then be taken for a folder of runs.

    Raises:
      UserError: names the class's folder.
    """
    root, run = Path(path).expanduser().resolve(), workdir.expanduser().resolve()
    if root not in run.parents:
        return
    between = [folder for folder in (run, *run.parents) if root in folder.parents]
    if inside := [folder for folder in between if folder.is_dir() and _holds(folder)]:
        raise UserError(
            f"`workdir` {readable(workdir)} is in {readable(inside[-1])}, a class of the data, which would be left "
            "out: name a folder outside of the data"
        )


def _is_run(folder: Path) -> bool:
    return (folder / LOCK).is_file()


def _warn_of_left_out(folder: str, parts: Iterable[Path]) -> None:
    """Names what lies among the classes and images but is neither."""
    kinds: collections.Counter[str] = collections.Counter()
    folders, loose = [], 0
    for part in parts:
        entries = list(part.iterdir())
        folders += [e.name for e in entries if e.is_dir() and e.name.startswith("__") and e.name not in _JUNK]
        folders += [
            f"{readable(entry.name)} (it holds runs)"
            for entry in entries
            if entry.is_dir() and not _hidden(entry) and _has_runs(entry) and _holds(entry)
        ]
        loose += sum(is_image(entry) and not entry.is_dir() for entry in entries)
        for name, place in ((name, place) for name, places in _folders(part).items() for place in places):
            with os.scandir(place) as entries:
                for entry in entries:
                    path = Path(entry.name)
                    if _hidden(path) or entry.name in _JUNK:
                        continue
                    if entry.is_dir():
                        folders.append(f"{name}/{readable(entry.name)}")
                    elif not is_image(path):
                        kinds[readable(path.suffix or path.name)] += 1
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(5))
    told = [f"{counted(sum(kinds.values()), 'file')} ({counts})"] if kinds else []
    told += [f"{counted(loose, 'image')} outside of the classes' folders"] if loose else []
    told += [f"the folders {', '.join(sorted(folders)[:5])}{', …' if len(folders) > 5 else ''}"] if folders else []
    if told:
        _warn(f"folder:{folder}: left out {' and '.join(filter(None, (', '.join(told[:-1]), told[-1])))}")


@functools.cache
def _warn(message: str) -> None:
    """Prints a warning, once per process: a folder is scanned for each of its splits."""
    print(f"warning: {message}", file=sys.stderr)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(_folders(folder)))
    if not names:
        raise _no_classes(folder)
    return names


def _no_classes(folder: Path) -> UserError:
    return UserError(f"{folder} has no sub-folders: move the images into one sub-folder per class")


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__"))  # .ipynb_checkpoints, __MACOSX, ._image.jpg


def _files(folder: Path, class_names: tuple[str, ...], grouping: re.Pattern[str] | None) -> list[File]:
    """Returns the images below `folder`, ordered by hash; images of one group follow each other."""
    there = _folders(folder)
    if not there:
        raise _no_classes(folder)
    if unknown_names := set(there) - set(class_names):
        raise UserError(
            f"{folder} has the class {min(unknown_names)!r}, which train lacks (it has {', '.join(class_names[:8])}): "
            "add it there, or remove it here"
        )
    files = [
        placed(file, label, name, grouping)
        for label, name in enumerate(class_names)
        for place in there.get(name, [])
        for file in _images(place)
    ]
    filled = {class_names[file.label] for file in files}
    if empty := [name for name in there if name not in filled]:
        raise UserError(
            f"{folder}: class {empty[0]!r} has no images: add some ({', '.join(sorted(SUFFIXES))}) or remove its folder"
        )
    return ordered(files)


def _images(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:  # unlike iterdir, tells files from folders without a look at each
        yield from (path for entry in entries if is_image(path := Path(entry.path)) and not entry.is_dir())


def _holds(folder: Path) -> bool:
    """Whether there are images in a folder itself."""
    return any(True for _ in _images(folder))


def is_image(path: Path) -> bool:
    """Whether a file is read as an image: by its ending, and if it is not hidden."""
    return path.suffix.lower() in SUFFIXES and not _hidden(path)


def find_images(folder: Path) -> list[Path]:
    """Returns the images in and below a folder, by the same rules as those of a class, sorted."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [n for n in folders if not _hidden(Path(n)) and not _is_run(Path(parent, n))]  # runs have plots
        if (real := os.path.realpath(parent)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        found += [path for path in (Path(parent, name) for name in names) if is_image(path)]
    return sorted(found)


def _survey(
    root: Path, paths: Sequence[Path], image_size: int | None, channels: int | None
) -> tuple[tuple[int, int, int], dict[Path, str]]:
    """Completes the image shape, the same for all splits, from the files' headers.

    Returns the shape, and the files of more than 8 bits with their kind, see `headers.Header`.
    """
    deep: dict[Path, str] = {}
    sizes: set[tuple[int, int]] = set()
    coloured = False

    def add(header: Header) -> None:
        nonlocal coloured
        coloured = coloured or not header.grey
        if len(sizes) < 2:
            sizes.add((header.height, header.width))

    # All files that may be deep must be looked at; of the others, no more than decide.
    first = sorted(paths, key=lambda path: path.suffix.lower() not in MAY_BE_DEEP)
    for path, header in zip(first, headers(root, first), strict=False):
        if header is not None:
            add(header)
            if header.deep:
                deep[path] = header.deep
        decided = (channels is not None or coloured) and (image_size is not None or _own_size(sizes) is None)
        if decided and sizes and path.suffix.lower() not in MAY_BE_DEEP:
            break
    channels = channels or (3 if coloured or not sizes else 1)
    height, width = (image_size, image_size) if image_size else _own_size(sizes) or (_DEFAULT_SIZE, _DEFAULT_SIZE)
    return (height, width, channels), deep


def _own_size(sizes: set[tuple[int, int]]) -> tuple[int, int] | None:
    """The size of all images, if it is one that they may keep."""
    only = next(iter(sizes)) if len(sizes) == 1 else None
    return only if only and max(only) <= _LARGEST_OWN_SIZE else None


def _levels_in_use(path: str, deep: dict[Path, str]) -> Levels | None:
    """Returns the levels of images of more than 8 bits, given these files and their kinds; None if there are none.

    Raises:
      UserError: both integers and floats; or colours of which only bits that cannot be read are in use.
    """
    if not deep:
        return None
    kinds = {kind: file for file, kind in deep.items()}
    if "integer" in kinds and "float" in kinds:
        raise UserError(
            f"folder:{path} has images of integers and of floats, such as {readable(kinds['integer'])} and "
            f"{readable(kinds['float'])}: convert them to one kind"
        )
    files = sorted(deep)
    ranges: dict[str, list[tuple[float, float]]] = {}
    for file, found in zip(files, value_ranges(Path(path).expanduser(), files), strict=True):
        if found is not None:
            ranges.setdefault(deep[file], []).append(found)
    ends = {kind: (min(low for low, _ in of), max(high for _, high in of)) for kind, of in ranges.items()}
    if "colour" in ends and ends["colour"][1] < 128:  # of the upper byte
        raise UserError(
            f"folder:{path} has colour images of 16 bits, such as {readable(kinds['colour'])}, whose upper bits are "
            "not in use, and only 8 bits are read: convert them to 8 bits"
        )
    scaled = next((kind for kind in ("integer", "float") if kind in ends), None)
    return None if scaled is None else levels_in_use(scaled, *ends[scaled])


def _readable(path: Path, image_shape: tuple[int, int, int], levels: Levels | None) -> bool:
    try:
        read_image(path, image_shape, levels)
    except UserError:
        return False
    return True
