"""`python -m cnn_jax VERB …`, or `cnn_jax VERB …`: commands for data, models and finished runs."""

from cnn_jax.interrupts import quit_on_signals

if __name__ == "__main__":
    quit_on_signals()  # before anything else is imported

import importlib
import sys
from collections.abc import Sequence

from cnn_jax.commands.parser import guard, version
from cnn_jax.errors import UserError, nearest

# verb → one line for the help. The module cnn_jax.commands.VERB, with _ for -, has main(argv).
VERBS = {
    "evaluate": "evaluate finished runs on a split of their data, or on another data set",
    "predict": "classify (or reconstruct) your own images with a finished run",
    "committee": "average the predictions of several trained networks",
    "compare": "compare optimizers, or values of any other setting, with equal tuning",
    "models": "list the networks, or print the layers of one",
    "data": "prepare, list, show and export data sets",
    "weights": "list public weights, or export a run's weights for PyTorch",
    "optimizer-paths": "draw the paths of optimizers on 2-D surfaces",
    "results": "list, compare and plot runs; collect them into tables",
}


def usage() -> str:
    """Returns the text of `--help`."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, line in VERBS.items()]
    return "\n".join(
        [
            "usage: python -m cnn_jax VERB …        (or: cnn_jax VERB …)",
            "",
            *lines,
            "",
            "Details: python -m cnn_jax VERB --help. To train, run an experiment,",
            "such as python -m experiments.digits_lenet5 (--help lists its flags), or call cnn_jax.fit in Python.",
        ]
    )


def run(argv: Sequence[str]) -> None:
    """Runs the command named by the first argument.

    Raises:
        UserError: an unknown verb, or a mistake in its arguments.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    verb = argv[0]
    if verb == "--version":
        print(version())
        return
    if verb not in VERBS:
        close = " or ".join(nearest(verb, VERBS))
        hint = f"perhaps you meant {close}" if close else f"use one of {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb}; {hint} (see python -m cnn_jax --help)")
    importlib.import_module(f"cnn_jax.commands.{verb.replace('-', '_')}").main(argv[1:])


def main() -> None:
    """Entry point of the console script; exits 2 on a user's mistake."""
    guard(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
