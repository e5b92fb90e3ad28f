"""Seconds from a command to its first training step, with an empty compilation cache and with a full one.

    python -m benchmarks.startup --output results/speed.csv

Runs the command of an experiment as a user does, in its own process and run folder, until metrics.jsonl has a row, and
then kills it. The lines it prints mark the phases:

    imports        until "preparing": the interpreter, imports, arguments, first use of the device
    preparation    until "cnn_jax": data, initial weights, facts about the machine
    placing        until "compiling": the checkpoint manager, arrays and the first batch onto the device
    compilation    until "compiled": tracing and XLA, or reading from the cache
    first step     until the row is written

In each turn the command runs twice with a new cache folder: cold, then warm. For comparison, a Python process that only
imports the libraries needed by every training run is timed as well. The first turn is a warm-up and does not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed import figure, record, table
from cnn_jax.commands.parser import ArgumentParser, guard, positive
from cnn_jax.errors import UserError
from cnn_jax.storage.run_folder import METRICS

COMMANDS = {
    "digits_lenet5": ("experiments.digits_lenet5",),
    "cifar10_resnet": ("experiments.cifar10_resnet", "--dataset", "synthetic:32x32x3:10:10000"),
}
MARKS = {"preparing": "imports", "cnn_jax": "preparation", "compiling": "placing", "compiled": "compilation"}
LAST = "first step"
LIBRARIES = "import jax, flax.linen, optax, orbax.checkpoint"
LIMIT = 600  # seconds that a command may take


def parts_of_start(arguments: Sequence[str], cache: Path) -> dict[str, float]:
    """Runs `python -m ARGUMENTS` until its first row of metrics.

    Returns:
        Seconds of each part, and their sum as "total".

    Raises:
        UserError: the command ended before its first row, or took more than `LIMIT` seconds.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", *arguments, "--steps", "1", "--workdir", folder]
        # A folder of the user's own would be neither empty nor full.
        environment = os.environ | {"CNN_JAX_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": ""}
        metrics, line, times = Path(folder) / METRICS, "", {"start": time.perf_counter()}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            limit = threading.Timer(LIMIT, process.kill)
            limit.start()
            assert process.stdout is not None
            for line in process.stdout:
                part = MARKS.get(line.partition(" ")[0])
                if part:
                    times.setdefault(part, time.perf_counter())
                if part == "compilation":
                    break
            while process.poll() is None and LAST not in times:
                if metrics.exists() and metrics.stat().st_size:
                    times[LAST] = time.perf_counter()
                time.sleep(0.002)
            limit.cancel()
            process.kill()
    if LAST not in times:
        told = " ".join(command[1:])
        raise UserError(f"`{told}` ended before its first step ({line.strip()}): run it by itself to see why")
    stamps = list(times.items())
    parts = {name: at - before for (_, before), (name, at) in zip(stamps, stamps[1:])}
    return parts | {"total": times[LAST] - times["start"]}


def seconds_to_import(statement: str) -> float:
    """Returns the seconds that a new Python process takes to run the statement and exit."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records, for each command, the parts of a cold and a warm start, and the ratio of the totals."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--turns", type=positive, default=5, help="turns that count (default 5)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    for name in arguments.commands:
        turns = []
        for _ in range(arguments.turns + 1):
            with tempfile.TemporaryDirectory() as cache:
                cold, warm = (parts_of_start(COMMANDS[name], Path(cache)) for _ in range(2))
            turns.append((cold, warm, seconds_to_import(LIBRARIES)))
        turns = turns[1:]
        figures = [
            figure(f"{name}, {cache} cache", part, [turn[which][part] for turn in turns], "s")
            for which, cache in enumerate(("cold", "warm"))
            for part in turns[0][which]
        ]
        figures.append(figure(name, "cold / warm", [cold["total"] / warm["total"] for cold, warm, _ in turns], "x"))
        figures.append(figure(name, "imports of libraries alone", [seconds for *_, seconds in turns], "s"))
        print(*figures, sep="\n", flush=True)
        record(arguments.output, "startup", figures)


if __name__ == "__main__":
    guard(main)
