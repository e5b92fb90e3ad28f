"""Cache directory for compiled programs and decoded images; safe to delete."""

import contextlib
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

from cnn_jax.errors import UserError

_LIMIT_GB = 20.0  # of decoded images, and of facts about images
_ABANDONED = 86400.0  # seconds after which nobody is writing any more


def cache_folder() -> Path:
    """Returns $CNN_JAX_CACHE, else ~/.cache/cnn_jax."""
    return Path(os.environ.get("CNN_JAX_CACHE") or "~/.cache/cnn_jax").expanduser()


def entry_folder(kind: str, label: str, key: bytes) -> Path:
    """Returns the folder of a cache entry: its name says what it holds, and changes with `key`."""
    words = re.sub(r"[^\w.-]+", "-", label)[-60:].strip("-")
    return cache_folder() / kind / f"{words}-{hashlib.sha256(key).hexdigest()[:16]}"


def touch(entry: Path) -> None:
    """Marks an entry as used now, see `remove_least_recent`."""
    with contextlib.suppress(OSError):  # of another user
        os.utime(entry)


def remove_least_recent(newest: Path) -> None:
    """Removes the entries beside `newest` that were not used for longest, until all take at most $CNN_JAX_CACHE_GB.

    The default is 20 GB. `newest` itself stays. Processes that have mapped the files of an entry keep them.

    Raises:
        UserError: CNN_JAX_CACHE_GB is not a number.
    """
    limit = _limit()
    entries = [entry for entry in newest.parent.iterdir() if entry.is_dir()]
    for entry in entries:  # what a killed process was writing or removing
        if entry.name.startswith(".") and _last_use(entry) < time.time() - _ABANDONED:
            shutil.rmtree(entry, ignore_errors=True)
    sizes = {entry: _size(entry) for entry in entries if not entry.name.startswith(".")}
    total = sum(sizes.values())
    for entry in sorted(sizes.keys() - {newest}, key=_last_use):
        if total <= limit:
            return
        removed = entry.with_name(f".removed-{entry.name}")
        with contextlib.suppress(OSError):  # another process was faster
            entry.rename(removed)  # first: other processes must not see half of it
            shutil.rmtree(removed, ignore_errors=True)
        total -= sizes[entry]


def _limit() -> float:
    text = os.environ.get("CNN_JAX_CACHE_GB") or str(_LIMIT_GB)
    try:
        return float(text) * 1e9
    except ValueError as error:
        raise UserError(f"CNN_JAX_CACHE_GB is {text!r}: set it to a number of gigabytes, such as 20") from error


def _size(entry: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # another process removes it
        total = sum(path.stat().st_size for path in entry.iterdir() if path.is_file())
    return total


def _last_use(entry: Path) -> float:
    with contextlib.suppress(OSError):
        return entry.stat().st_mtime
    return 0.0
