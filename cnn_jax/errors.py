"""Errors that a user can act on: one line, no traceback, exit code 2 (see `guard` in `cnn_jax.commands.parser`).

The library does not know whether its values came from a command line or a notebook, so its messages name a field or
parameter in backticks, spelled as in Python: "`batch_size` is 0: it must be more than 0". Commands print that as
"--batch-size is 0: it must be more than 0". Backticks around a single lower-case name mean nothing else in a message.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake in the user's input. The message is one line: what is wrong, then what to do."""


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """Returns up to three of `choices` spelled like `name`, best first.

    >>> nearest("lenet-5", ["lenet5", "resnet20"])
    ['lenet5']
    """
    return difflib.get_close_matches(name.lower(), list(choices), n=3, cutoff=0.6)


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Builds the error for a `name` that is not among `choices`.

    >>> str(unknown("model", "resnet21", ["lenet5", "resnet20"]))
    "unknown model 'resnet21'; perhaps you meant resnet20 (known: lenet5, resnet20)"
    """
    choices = sorted(choices)
    close = nearest(name, choices)
    known = ", ".join(choices) if len(choices) <= 40 else f"{len(choices)} names, such as {', '.join(choices[:8])}"
    hint = f"perhaps you meant {' or '.join(close)} " if close else "choose another "
    return UserError(f"unknown {kind} {name!r}; {hint}(known: {known})")


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun, for messages.

    >>> counted(1, "image"), counted(1200, "image"), counted(2, "class")
    ('1 image', '1,200 images', '2 classes')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


class TrainingStopped(Exception):
    """A run ended early for a reason other than a mistake in the command.

    Attributes:
        code: the exit code.
        state: the last usable train state, if any.
        experiment: the parts of the run, once built.
    """

    def __init__(self, message: str, code: int, state: Any = None):
        super().__init__(message)
        self.code, self.state = code, state
        self.experiment: Any = None


class Diverged(TrainingStopped):
    """A loss became infinite or NaN.

    Attributes:
        step: the number of updates after which it did.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message, 1)
        self.step = step
