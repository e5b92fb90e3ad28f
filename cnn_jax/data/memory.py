"""The memory of this machine, to refuse what cannot fit before it is tried."""

import contextlib
import os
from pathlib import Path

from cnn_jax.errors import UserError

_CONTAINER = Path("/sys/fs/cgroup/memory.max")  # a container's limit on Linux


def machine_memory() -> int | None:
    """Returns the bytes of memory of this machine, or of its container; None if the system does not say."""
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        found.append(int(_CONTAINER.read_text()))
    return min(found, default=None)


def check_memory(needed: int, what: str, advice: str, memory: int | None = None) -> None:
    """Rejects what needs more memory than there is.

    Args:
      needed: bytes, at least.
      what: needs them, in words.
      advice: what to do.
      memory: bytes of memory; default: that of the machine.

    Raises:
      UserError: it does not fit.

    >>> check_memory(3 * 10**9, "a batch", "lower `batch_size`", memory=2 * 10**9)
    Traceback (most recent call last):
        ...
    cnn_jax.errors.UserError: a batch takes at least 3 GB of memory, and there are 2 GB: lower `batch_size`
    """
    memory = machine_memory() if memory is None else memory
    if memory is not None and needed > memory:
        raise UserError(f"{what} takes at least {_gb(needed)} of memory, and there are {_gb(memory)}: {advice}")


def _gb(count: int) -> str:
    return f"{count / 1e9:,.3g} GB" if count < 1e12 else f"{count / 1e9:,.0f} GB"
