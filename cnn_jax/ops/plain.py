"""Operations in the plain forms of JAX and Flax, on demand."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PLAIN = ContextVar("plain", default=False)


@contextmanager
def plain_operations() -> Iterator[None]:
    """Within it convolutions, pools and norms are traced as such, without faster forms: for readers of the program."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def are_plain() -> bool:
    """Whether this is within `plain_operations`."""
    return _PLAIN.get()
