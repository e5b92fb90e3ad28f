"""Switches the operations of this package to those of JAX and Flax."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PLAIN = ContextVar("plain", default=False)


@contextmanager
def plain_operations() -> Iterator[None]:
    """Context that traces convolutions, pools and norms as JAX's own, so that the jaxpr can be analysed or exported."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def are_plain() -> bool:
    """Whether the caller is inside `plain_operations`."""
    return _PLAIN.get()
