"""Argument parser of the `python -m cnn_jax` commands, and one-line errors for all commands."""

import argparse
import contextlib
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from cnn_jax.errors import TrainingStopped, UserError, nearest
from cnn_jax.interrupts import quit_on_signals

FEW = 5  # choices


def _unknown_option(word: str, options: Iterable[str]) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word}; drop it"
    close = nearest(word.replace("_", "-"), options)
    hint = f"perhaps you meant {' or '.join(close)}" if close else "drop it"
    return f"unknown option {word}; {hint}"


def _not_a_choice(action: argparse.Action, given: Any, known: Iterable[Any]) -> str:
    known = sorted(map(str, known))
    close = nearest(str(given), known) if len(known) > FEW else []  # a few choices are read at a glance
    hint = f"; perhaps you meant {' or '.join(close)}" if close else ""
    if action.option_strings:
        return f"{_name(action)} is {given}: it must be {' or '.join(known)}{hint}"
    return f"there is no {given}: choose {' or '.join(known)}{hint}"


def file_path(text: str) -> str:
    """Reads a path and expands `~`, for `argparse`: shells leave it alone in quotes and after `=`."""
    return os.path.expanduser(text)


def positive(text: str) -> int:
    """Parses a whole number of at least 1; a `type` for argparse.

    Raises:
        ValueError: the text is something else.
    """
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive_number(text: str) -> float:
    """Parses a finite number greater than 0; a `type` for argparse.

    Raises:
        ValueError: the text is something else.
    """
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


# argparse's messages → ours
_REPHRASED = {
    r"the following arguments are required: (.*)": r"missing \1",
    r"argument (\S+): expected .*arguments?": r"\1 has no value: add one",
    r"argument (\S+): ignored explicit argument '(.*)'": r"\1 takes no value: drop \2",
    r"ambiguous option: (\S+) could match (.*)": r"\1 is ambiguous: write one of \2",
}


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but mistakes raise a one-line UserError instead of printing the usage and exiting."""

    def __init__(self, **settings: Any):
        super().__init__(**{"prog": _program(), **settings})
        self._negative_number_matcher = re.compile(r"-\.?\d")  # also -1,2 is a value, not an option

    def error(self, message: str) -> NoReturn:
        """Raises the message as a UserError, with a pointer to `--help`."""
        for pattern, words in _REPHRASED.items():
            message = re.sub(f"^{pattern}$", words, message)
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but rejects leftover arguments here, where the options of a sub-command are known."""
        parsed, extra = super().parse_known_args(args, namespace)
        if not extra:
            return parsed, extra
        self.error(_unknown_option(extra[0].partition("=")[0], self._option_string_actions))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            self.error(_not_a_choice(action, value, action.choices))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, UserError):  # more specific than argparse's message
                raise error.__context__ from None
            kinds: dict[Any, str] = {
                int: "a whole number",
                float: "a number",
                positive: "a whole number of at least 1",
                positive_number: "a number greater than 0",
            }
            advice = f"it must be {kinds[action.type]}" if action.type in kinds else "correct it"
            self.error(f"{_name(action)} is {arg_string}: {advice}")


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _program() -> str:
    """The program as the user calls it, `python -m MODULE`; argparse before Python 3.14 shows only the file name."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {module.name.removesuffix('.__main__')}" if module else os.path.basename(sys.argv[0])


def with_flags(message: str) -> str:
    """Replaces each backticked field name in a message by its command-line flag.

    >>> with_flags("`batch_size` is 0: set it above 0")
    '--batch-size is 0: set it above 0'
    """
    return re.sub(r"`([a-z][a-z_]*)`", lambda found: f"--{found[1].replace('_', '-')}", message)


def version() -> str:
    """Name and version of the installed package, for `--version`."""
    import importlib.metadata

    return f"cnn_jax {importlib.metadata.version('cnn_jax')}"


def guard(main: Callable[[], None]) -> None:
    """Runs `main` as the whole of the process: a user's mistake becomes one line on stderr and exit code 2.

    Ctrl-C and SIGTERM exit at once with code 130, from now to the end of the process; training installs a gentler
    handler. If nobody reads our output any more, the process ends with code 141, as others do, and says nothing.
    """
    quit_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal must not crash on "…"
    try:
        try:
            _run(main)
        finally:
            sys.stdout.flush()  # here, as at Python's exit a closed pipe would be reported
            sys.stderr.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # not a real file, as in a notebook
                os.dup2(nowhere, stream.fileno())
        sys.exit(141)


def _run(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        _leave(f"error: {with_flags(str(error))}", 2)
    except TrainingStopped as stop:
        _leave(with_flags(str(stop)), stop.code)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = error.filename or "a file of the run, or the output"
        _leave(f"error: {where}: {error.strerror}; check the path, its permissions and the free space", 2)
    except MemoryError as error:
        needed = str(error).partition("\n")[0] or "for the images and what is computed from them"
        _leave(f"error: not enough memory ({needed}): lower --image-size or --batch-size", 2)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = "lower --batch-size, or give --accumulate 2 or --precision bfloat16"
        _leave(f"error: a training step does not fit in the device's memory: {advice}", 2)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
