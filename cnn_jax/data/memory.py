"""The memory of this machine, to refuse what cannot fit before it is tried."""

import contextlib
import os
import re
from pathlib import Path

from cnn_jax.errors import UserError

_SYSTEM = Path("/proc/meminfo")  # Linux
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # its limit


class DoesNotFit(UserError):
    """Something needs more memory than there is."""


def free_memory() -> int | None:
    """Returns the bytes of memory that are not in use on this machine, within the limit of its container.

    Where the system does not say, the bytes of memory of the machine; None if not even these are known.
    """
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # no container, or "max"
            found.append(int(path.read_text()))
    with contextlib.suppress(OSError):
        found += [1024 * int(kib) for kib in re.findall(r"MemAvailable: *(\d+) kB", _SYSTEM.read_text())]
    return min(found, default=None)


def check_memory(needed: int, what: str, advice: str, memory: int | None = None) -> None:
    """Rejects what needs more memory than there is.

    Args:
      needed: bytes, at least.
      what: needs them, in words.
      advice: what to do.
      memory: bytes of memory; default: what is free on the machine.

    Raises:
      DoesNotFit: it does not.

    >>> check_memory(3 * 10**9, "a batch", "lower `batch_size`", memory=2 * 10**9)
    Traceback (most recent call last):
        ...
    cnn_jax.data.memory.DoesNotFit: a batch takes at least 3 GB of memory, and 2 GB are free: lower `batch_size`
    """
    memory = free_memory() if memory is None else memory
    if memory is not None and needed > memory:
        raise DoesNotFit(f"{what} takes at least {_gb(needed)} of memory, and {_gb(memory)} are free: {advice}")


def _gb(count: int) -> str:
    return f"{count / 1e9:,.3g} GB" if count < 1e12 else f"{count / 1e9:,.0f} GB"
