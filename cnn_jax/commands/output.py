"""Writes the output of a command to a file or to stdout."""

import sys
from pathlib import Path

from cnn_jax.errors import UserError
from cnn_jax.storage import durable


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
