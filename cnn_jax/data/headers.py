"""Facts about image files, kept in the cache until a file changes: size and kind, and the range of values in use."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnn_jax.data.image_file import coding, is_deep, open_image
from cnn_jax.storage import durable
from cnn_jax.storage.cache import entry_folder, remove_least_recent, touch
from cnn_jax.storage.file_names import readable

MAY_BE_DEEP = {".png", ".tif", ".tiff", ".pgm"}  # endings of images that may have more than 8 bits
_GREY_MODES = {"1", "L", "LA", "La"}
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_CHUNK = 1000  # files whose facts are found at a time
_VERSION = 1  # increment when the same file has other facts


class Header(NamedTuple):
    """What the first bytes of an image say.

    Attributes:
      width, height: in pixels, as displayed.
      grey: no colour.
      deep: "" for values of 8 bits; else "integer" or "float", or "colour" for 16 bits of which Pillow reads 8.
    """

    width: int
    height: int
    grey: bool
    deep: str


def stamp(path: Path) -> tuple[int, ...]:
    """Changes when another file takes this name, even one of the same size and time, or when it is rewritten."""
    try:
        status = path.stat()
    except OSError:  # a link to nothing, which cannot be read as an image either
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def headers(root: Path, paths: Sequence[Path]) -> Iterator[Header | None]:
    """Yields the header of each file below `root`; None for one that `read_image` will report as unreadable."""
    for fact in _facts("headers", root, paths, _header):
        yield None if fact is None else Header(*fact)


def value_ranges(root: Path, paths: Sequence[Path]) -> Iterator[tuple[float, float] | None]:
    """Yields the smallest and largest finite value in each file; None for an unreadable one."""
    for fact in _facts("ranges", root, paths, _range):
        yield None if fact is None else (fact[0], fact[1])


def _header(path: Path) -> list[Any] | None:
    try:
        with open_image(path) as image:
            width, height = image.size
            # Where a PNG file has no EXIF before the pixels, getexif would decode these to look behind them.
            sideways = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112) in _ROTATED
            grey = image.mode in _GREY_MODES or is_deep(image) or coding(image).startswith("LA")
            deep = ("float" if image.mode == "F" else "integer") if is_deep(image) else ""
            deep = deep or ("colour" if ";16" in coding(image) else "")
            return [height, width, grey, deep] if sideways else [width, height, grey, deep]
    except Exception:  # Pillow raises a dozen kinds of error on damaged files
        return None


def _range(path: Path) -> list[float] | None:
    try:
        with open_image(path) as image:
            values = np.asarray(image)
    except Exception:  # as above
        return None
    values = values[np.isfinite(values)]
    return [float(values.min()), float(values.max())] if len(values) else None


_tables: dict[Path, dict[str, list[Any]]] = {}  # by cache folder: path → [stamp, fact]


def _facts(kind: str, root: Path, paths: Sequence[Path], find: Callable[[Path], Any]) -> Iterator[Any]:
    """Yields `find(path)` for each file, or what was found before if the file has not changed."""
    folder = _folder(kind, root)
    table = _tables.setdefault(folder, {}) or _load(folder)
    _tables[folder] = table
    changed = False
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(paths), _CHUNK):
                chunk = paths[start : start + _CHUNK]
                stamps = {path: list(stamp(path)) for path in chunk}
                new = [path for path in chunk if table.get(str(path), [None])[0] != stamps[path]]
                found = dict(zip(new, pool.map(find, new), strict=True))
                # What could not be found is looked for again: the cause may be outside of the file.
                table |= {str(path): [stamps[path], fact] for path, fact in found.items() if fact is not None}
                changed = changed or any(fact is not None for fact in found.values())
                yield from (found[path] if path in found else table[str(path)][1] for path in chunk)
    finally:
        if changed:
            kept = set(map(str, paths))
            _save(folder, {path: entry for path, entry in table.items() if path in kept})


def _folder(kind: str, root: Path) -> Path:
    key = os.fsencode(f"{_VERSION} {kind} {root.absolute()}")
    return entry_folder(kind, readable(root.name), key)


def _load(folder: Path) -> dict[str, list[Any]]:
    path = folder / "table.json"
    with contextlib.suppress(OSError, ValueError, durable.Damaged):  # then found again
        durable.check(path)
        touch(folder)
        return json.loads(path.read_bytes())
    return {}


def _save(folder: Path, table: dict[str, list[Any]]) -> None:
    with contextlib.suppress(OSError):  # a full or read-only disk must not stop the run
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_checked(folder / "table.json", json.dumps(table).encode())
        remove_least_recent(folder)
