"""Writes the output of a command to a file or to stdout."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_jax.errors import UserError
from cnn_jax.storage import durable

if TYPE_CHECKING:
    from rich.console import Console


def write_output(flag: str, name: str, content: str | bytes) -> None:
    """Writes `content` to the file `name`, atomically; "-" is stdout.

    Args:
        flag: the option that took `name`, for the error.
        name: a file, which is replaced, or a device or pipe, which is written to.
        content: text is written as UTF-8.

    Raises:
        UserError: the file cannot be written; names it and the reason.
    """
    path = Path(name)
    try:
        data = content.encode() if isinstance(content, str) else content
        if name == "-":
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            durable.write(path.resolve(), data)  # resolved, so that a symbolic link is kept
    except BrokenPipeError:
        raise  # the reader has exited; see `guard`
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not valid UTF-8"
        raise UserError(f"{flag} {name} cannot be written ({reason}): choose another file") from error


def console() -> "Console":
    """Returns a console for tables on stdout, as wide as the terminal; in a file, lines are not wrapped.

    If nobody reads the output any more, printing raises BrokenPipeError, for `guard`; rich's own exits with code 1.
    """
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  (rich calls this while it handles the error)

    return Piped(width=None if sys.stdout.isatty() else 200, highlight=False)
