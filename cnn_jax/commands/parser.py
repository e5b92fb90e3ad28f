"""Arguments of the small commands, and one-line errors for all commands."""

import argparse
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from cnn_jax.errors import TrainingStopped, UserError, nearest
from cnn_jax.interrupts import quit_at_once

_KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text"}


def _no_option(word: str, options: Iterable[str]) -> str:
    close = nearest(word.replace("_", "-"), options) if word.startswith("-") else []
    hint = f"perhaps you meant {' or '.join(close)}" if close else "drop it"
    return f"given {word}, which is no option; expected --name value; {hint}"


def _no_choice(flag: str, given: Any, known: Iterable[Any]) -> str:
    known = sorted(map(str, known))
    close = nearest(str(given), known)
    hint = f"perhaps you meant {' or '.join(close)}" if close else "choose one"
    return f"given {flag} {given}; expected {' or '.join(known)}; {hint}"


def positive(text: str) -> int:
    """Reads a whole number of at least 1, for `argparse`.

    Raises:
        ValueError: the text is something else.
    """
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive_number(text: str) -> float:
    """Reads a number greater than 0, and not infinite, for `argparse`.

    Raises:
        ValueError: the text is something else.
    """
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


# How messages of argparse begin, and what we say for them.
_REPHRASED = {
    r"the following arguments are required: (.*)": r"given no \1; expected it in the command; add it",
    r"argument (\S+): expected .*arguments?": r"given \1 without its value; expected one after it; add it",
    r"argument (\S+): ignored explicit argument '(.*)'": r"given \1 with the value \2; expected none; drop the value",
    r"ambiguous option: (\S+) could match (.*)": r"given \1, short for several; expected one of \2; write it in full",
}


class ArgumentParser(argparse.ArgumentParser):
    """Argparse for the small commands, with the house's one-line errors."""

    def __init__(self, **settings: Any):
        super().__init__(**{"prog": _program(), **settings})

    def error(self, message: str) -> NoReturn:
        """Raises a UserError instead of printing usage and leaving."""
        for pattern, words in _REPHRASED.items():
            message = re.sub(f"^{pattern}$", words, message)
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but refuses what is left over: here, where the options of the sub-command are known."""
        parsed, extra = super().parse_known_args(args, namespace)
        if not extra:
            return parsed, extra
        self.error(_no_option(extra[0].partition("=")[0], self._option_string_actions))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            self.error(_no_choice(_name(action), value, action.choices))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, UserError):  # which says more
                raise error.__context__ from None
            kinds: dict[Any, str] = {
                int: _KINDS["INT"],
                float: _KINDS["FLOAT"],
                positive: "a whole number of at least 1",
                positive_number: "a number greater than 0",
            }
            self.error(f"given {_name(action)} {arg_string}; expected {kinds.get(action.type, 'another')}; correct it")


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _program() -> str:
    """The program as it is called: argparse, before Python 3.14, names the file only."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {module.name.removesuffix('.__main__')}" if module else os.path.basename(sys.argv[0])


def with_flags(message: str) -> str:
    """Turns fields in a message, written `name`, into the flags of the command line.

    >>> with_flags("`batch_size` is 0: set it above 0")
    '--batch-size is 0: set it above 0'
    """
    return re.sub(r"`([a-z][a-z_]*)`", lambda found: f"--{found[1].replace('_', '-')}", message)


def version() -> str:
    """The version of the installed package."""
    import importlib.metadata

    return f"cnn_jax {importlib.metadata.version('cnn_jax')}"


def guard(main: Callable[[], None]) -> None:
    """Runs `main`; a user's mistake becomes one line on stderr and exit code 2, never a traceback.

    Ctrl-C ends the program at once, with code 130, also in the middle of an import; training asks for a gentler end.
    """
    previous = signal.signal(signal.SIGINT, quit_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ellipsis is no reason to end
    try:
        main()
    except UserError as error:
        _leave(f"error: {with_flags(str(error))}", 2)
    except TrainingStopped as stop:
        _leave(with_flags(str(stop)), stop.code)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = error.filename or "a file of the run"
        _leave(f"error: given {where}: {error.strerror}; check the path, its permissions and the free space", 2)
    except MemoryError as error:
        needed = str(error).partition("\n")[0] or "the images and what is made of them"
        _leave(
            f"error: given more than the memory holds ({needed}); expected less; lower --image-size or --batch-size", 2
        )
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = "lower --batch-size, or give --accumulate 2 or --precision bfloat16"
        _leave(f"error: the device has not enough memory for this step; {advice}", 2)
    finally:
        signal.signal(signal.SIGINT, previous)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
