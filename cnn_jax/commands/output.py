"""Writes what a command has found, to a file or to stdout."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_jax.errors import UserError
from cnn_jax.storage.run_folder import write_bytes

if TYPE_CHECKING:
    pass


def write_output(flag: str, name: str, found: str | bytes) -> None:
    """Writes what a command has found to the file `name`, whole or not at all; "-" is stdout.

    Args:
        flag: the option that the name was given for, for the error.
        name: a file, which is replaced, or a device or pipe, which is written to.
        found: all of it; text is written as UTF-8.

    Raises:
        UserError: naming the file and the reason, when it cannot be written.
    """
    path = Path(name)
    try:
        data = found.encode() if isinstance(found, str) else found
        if name == "-":
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            write_bytes(path.resolve(), data)  # resolved: a link stays one
    except BrokenPipeError:
        raise  # the reader of stdout or of a pipe has seen enough
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is, or would be, no UTF-8 text"
        raise UserError(
            f"given {flag} {name}, which cannot be written ({reason}); expected a place with room; choose another"
        ) from error
