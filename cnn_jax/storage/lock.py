"""One process at a time writes to a run folder.

The lock is on a file that stays in the folder, marks it as ours, and names the last holder. The system releases the
lock when its holder ends, however it ends.

On Linux it is an open-file-description lock: a process would lose a POSIX record lock by closing any descriptor of the
file, for instance after copying the folder. Forked processes, such as readers, would share it, and close it at once.
"""

import contextlib
import errno
import json
import os
import socket
import struct
import sys
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

_LINUX = sys.platform == "linux" and sys.maxsize > 2**32  # the layout of `struct flock` differs elsewhere
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_USE = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of the file system, such as some network mounts
_TRIES = 100  # to lock a folder while other processes remove it

_held: dict[str, int | None] = {}  # descriptors by folder, of this process


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context in which this process alone may write to a folder, which is created if there is none.

    A folder that cannot be written to is not locked. If nothing was written there, the lock's file goes, and so do the
    folders that were created.

    Raises:
        UserError: another process, or another call in this one, holds the lock; names the holder.
    """
    real = os.path.realpath(folder)
    if real in _held:
        raise UserError(f"{folder} is in use by this process: set another `workdir`")
    created = [path for path in (folder, *folder.parents) if not path.exists()]  # the deepest first
    try:
        before, _held[real] = _acquire(folder)
    except BaseException:
        _remove_empty(created)
        raise
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # not a forked process, whose copy is closed already
            _clean_up(folder, created, before)
            _release(real)


def is_locked(folder: Path) -> bool:
    """Whether a process, such as this one, is writing to a folder. Changes nothing there."""
    if os.path.realpath(folder) in _held:  # without Linux's locks, opening and closing the file would release it
        return True
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY if _LINUX else os.O_RDWR)
    except OSError:  # there is none, or it is not ours to open
        return False
    try:
        if _LINUX:  # asks without locking, since a process that is starting would be refused
            kind = struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_GETLK, _whole_file()))[0]
            return kind != fcntl.F_UNLCK
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _IN_USE
    finally:
        os.close(descriptor)
    return False


def _acquire(folder: Path) -> tuple[list[str], int | None]:
    """Creates and locks the folder; returns the names that were there and the descriptor, None if it is read-only."""
    made = False
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = True
            before = sorted(os.listdir(folder))
            descriptor = _open(folder / LOCK)
        except FileNotFoundError:  # a process that wrote nothing has just removed the folder
            continue
        if descriptor is None:
            return before, None
        try:
            _lock(descriptor, folder)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                _sign(descriptor)
                return before, descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed the file in the meantime
    if not made:  # such as in /proc
        raise UserError(f"{folder} cannot be created in that file system: set another `workdir`")
    raise UserError(f"{folder} is removed by other processes again and again: set another `workdir`")


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno in _READ_ONLY:
            return None
        raise


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        _set_lock(descriptor)
    except OSError as error:
        if error.errno in _IN_USE:
            raise UserError(
                f"{folder} is in use by {_holder(folder / LOCK)}: wait until it ends, or set another `workdir`"
            ) from error
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {folder} cannot be locked ({error.strerror}): let no other process write to it", file=sys.stderr
        )


def _set_lock(descriptor: int) -> None:
    if _LINUX:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _whole_file())
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # a system that imitates Linux and lacks these locks
                raise
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _whole_file() -> bytes:
    """A `struct flock` of 64-bit Linux: an exclusive lock on the whole file."""
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _sign(descriptor: int) -> None:
    """Writes who holds the lock."""
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
    with contextlib.suppress(OSError):  # a full disk
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _clean_up(folder: Path, created: list[Path], before: list[str]) -> None:
    """Removes the lock's file and the created folders if nothing else was written."""
    with contextlib.suppress(OSError):  # the error that ended the run matters more
        if LOCK not in before and sorted(os.listdir(folder)) == sorted([*before, LOCK]):
            os.unlink(folder / LOCK)
    _remove_empty(created)


def _remove_empty(created: list[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty: this process or another has written there
        for path in created:
            path.rmdir()


def _release(real: str) -> None:
    descriptor = _held.pop(real)
    if descriptor is not None:
        os.close(descriptor)


def _release_all() -> None:
    """In a forked process: the lock is its parent's."""
    for real in list(_held):
        _release(real)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)
