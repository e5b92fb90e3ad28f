"""One process at a time writes to a run folder.

The lock is on a file that stays in the folder, marks it as ours, and names the last holder. The system releases the
lock when its holder ends, however it ends. (A POSIX record lock: forked processes, such as readers, do not inherit it.)
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where runs are not locked
    fcntl: Any = None

LOCK = ".cnn_jax.lock"

_held: set[str] = set()  # a process does not conflict with its own record locks


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context in which this process alone may write to a folder, which is created if there is none.

    A folder that cannot be written to is not locked. If nothing was written there, the lock's file and a new folder go.

    Raises:
        UserError: another process, or another call in this one, holds the lock; names the holder.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    real, before = os.path.realpath(folder), sorted(os.listdir(folder))
    if real in _held:
        raise UserError(f"{folder} is in use by this process: set another `workdir`")
    try:
        descriptor = _acquire(folder / LOCK, folder)
    except PermissionError:
        descriptor = None
    _held.add(real)
    try:
        yield
    finally:
        if descriptor is not None and LOCK not in before and sorted(os.listdir(folder)) == sorted([*before, LOCK]):
            os.unlink(folder / LOCK)
        if new and not os.listdir(folder):
            folder.rmdir()
        _held.discard(real)
        if descriptor is not None:
            os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether another process is writing to a folder. Changes nothing there."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # there is none, or it is not ours to write
        return False
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
                return descriptor
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise UserError(
                f"{folder} is in use by {_holder(path)}: wait until it ends, or set another `workdir`"
            ) from error
        os.close(descriptor)  # its holder has removed the file in the meantime


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
