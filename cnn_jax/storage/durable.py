"""Files that survive power loss and reveal damage.

A file is written to a temporary name, synced, renamed, and its folder synced: after a crash it is the old file or the
new one, whole. Checksums (CRC-32, against accidents, not attacks) are in `checksums.json` of the same folder. They are
written before the file, next to that of the version it replaces, so a crash between the two leaves no apparent damage.
"""

import json
import os
import zlib
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError

CHECKSUMS = "checksums.json"


class Damaged(UserError):
    """A file differs from what was written, or is missing."""


class ChecksumsDamaged(Damaged):
    """The checksums cannot be read; the files may be whole."""


def write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, and returns once it would survive power loss."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_checked(path: Path, data: bytes) -> None:
    """Writes a file as `write` does, with its checksum, unless it already has this content."""
    new, sums = f"{zlib.crc32(data):08x}", _known(path.parent)
    there = [_digest(path)] if path.is_file() else []
    recorded = sums.get(path.name)
    known = [digest for digest in there if recorded is None or digest in recorded]
    if known == [new] and recorded is not None:
        return
    sums[path.name] = [new, *(digest for digest in known if digest != new)]
    _write_known(path.parent, sums)
    write(path, data)


def check(path: Path) -> None:
    """Compares a file with its checksum; passes if none was recorded.

    Raises:
        ChecksumsDamaged: the checksums cannot be read.
        Damaged: the file is missing or has other content.
    """
    expected = _known(path.parent, strict=True).get(path.name)
    if expected is not None and not path.is_file():
        raise Damaged(f"{path} is missing")
    if expected is not None and _digest(path) not in expected:
        raise Damaged(f"{path} is damaged: its content is not what was written")


def seal(folder: Path, but: Container[str] = ()) -> None:
    """Syncs everything in a folder and records the files' checksums in its `checksums.json`, for `verify`.

    Args:
        folder: with its subfolders.
        but: files, by their paths in the folder, that may still change.
    """
    sums = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            sync([path])
            name = path.relative_to(folder).as_posix()
            if name not in but and path != folder / CHECKSUMS:
                sums[name] = [_digest(path)]
        sync_folder(Path(parent))
    _write_known(folder, sums)


def verify(folder: Path, below: str = "") -> str | None:
    """Returns what is wrong with a sealed folder, or None if it is whole.

    Args:
        folder: written by `seal`.
        below: only files whose path in the folder starts with this are checked.
    """
    try:
        return _problem(folder, below)
    except (Damaged, OSError) as error:  # OSError: a failing disk, or a file of another user
        return str(error)


def _problem(folder: Path, below: str) -> str | None:
    sums = _known(folder, strict=True)
    if not sums:
        return f"it was not finished: it has no {CHECKSUMS}"
    for name, expected in sums.items():
        if name.startswith(below):
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if _digest(path) not in expected:
                return f"{name} is not what was written"
    return None


def set_aside(path: Path) -> None:
    """Renames a damaged file or folder to `damaged-NAME`, or `damaged-NAME-2` and so on: nothing is deleted."""
    target, number = path.with_name(f"damaged-{path.name}"), 2
    while target.exists():
        target, number = path.with_name(f"damaged-{path.name}-{number}"), number + 1
    path.rename(target)


def sync(paths: Iterable[Path]) -> None:
    """Syncs files that exist, such as logs that are appended to."""
    for path in paths:
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Syncs a folder: the names in it survive power loss. Does nothing where folders cannot be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _known(folder: Path, strict: bool = False) -> dict[str, Any]:
    """Returns the recorded checksums by file name; empty if there are none.

    Raises:
        ChecksumsDamaged: with `strict`, if they cannot be read.
    """
    path = folder / CHECKSUMS
    try:
        sums = json.loads(path.read_bytes())
        if sums.pop("") == [_own(sums)]:
            return sums
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, KeyError, TypeError):
        pass
    if strict:
        raise ChecksumsDamaged(f"{path} is damaged: it does not hold checksums")
    return {}


def _write_known(folder: Path, sums: dict[str, Any]) -> None:
    write(folder / CHECKSUMS, (json.dumps({"": [_own(sums)], **sums}, indent=1, sort_keys=True) + "\n").encode())


def _own(sums: dict[str, Any]) -> str:
    """The checksum of checksums."""
    return f"{zlib.crc32(json.dumps(sums, sort_keys=True).encode()):08x}"


def _digest(path: Path) -> str:
    total = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            total = zlib.crc32(block, total)
    return f"{total:08x}"
