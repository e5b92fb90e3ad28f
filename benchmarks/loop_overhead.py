"""Measures what the training loop adds to its bare compiled step: shuffling, placement, metrics, files, checkpoints.

    python -m benchmarks.loop_overhead --output results/speed.csv

The real loop runs (`cnn_jax.training.loop.run_loop` with its recorder, items and checkpoints). Every half second it is
paused for the same number of bare calls of the compiled step, on one placed item and the same state, made in two ways:
all in a row, and with no more of them in flight than the loop has. (All in a row, they hit a limit of the runtime that
makes steps of 4 ms up to 3 % slower on two cores, and so flatters the loop.) All three alternate, so drift of the
machine affects them alike. The overhead of a turn is loop seconds over bare seconds, less one; the table has the median
over all turns and its quartiles. A checkpoint is written every 16 turns; the median time until it is on disk is added,
as a share of the bare seconds of 16 turns. Validation is not included, and the first 16 turns do not count.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.speed import Figure, figure, record, table
from benchmarks.timing import BATCH, CASES, Bench, make_bench, make_display, timed_pair
from cnn_jax.commands.parser import ArgumentParser, guard, positive, positive_number
from cnn_jax.storage.run_folder import CHECKPOINTS
from cnn_jax.training.checkpoint import Checkpoints
from cnn_jax.training.loop import MAX_AHEAD, StopRequest, run_loop
from cnn_jax.training.record import Recorder

TURNS = 16  # per block


class Turns(Checkpoints):
    """Alternates the loop's steps with bare steps; a checkpoint is on disk when `save` returns.

    Both use the same state, at the same place in memory: with separate states, times differed by up to 5 %, and by
    a different amount in every process.

    Attributes:
        seconds: (bare, bare with as many calls in flight as the loop has, loop) of each turn.
        saving: seconds of each checkpoint.
    """

    def __init__(self, bench: Bench, folder: Path):
        super().__init__(folder, bench.experiment.task.selection)
        self._bench, self._length = bench, bench.experiment.plan.total_steps // TURNS
        self._step, self._since, self._loop = 0, 0.0, 0.0
        self.seconds: list[tuple[float, float, float]] = []
        self.saving: list[float] = []

    def train_step(self, state: Any, items: list[Any]) -> tuple[Any, Any]:
        """Runs the loop's steps; before the first of a turn, times the bare ones."""
        if self._step % self._length == 0:
            self._end_turn(state)
            self._bench.state = state
            ways = (lambda: self._bench.bare(self._length), lambda: self._bench.bare(self._length, MAX_AHEAD))
            bare = [self._length * seconds for seconds in timed_pair(*ways, self._step // self._length)]
            state = self._bench.state
            if self._loop:
                self.seconds.append((bare[0], bare[1], self._loop))
            self._since, self._loop = time.perf_counter(), 0.0
        self._step += len(items)
        return self._bench.steps(state, items)

    def save(self, step: int, state: Any, validation: dict[str, float] | None) -> None:
        """Ends a block: saves, and times it."""
        self._end_turn(state)
        start = time.perf_counter()
        super().save(step, state, validation)
        self.wait()
        self.saving.append(time.perf_counter() - start)

    def _end_turn(self, state: Any) -> None:
        jax.block_until_ready(state)
        if self._since:
            self._since, self._loop = 0.0, time.perf_counter() - self._since


def run(bench: Bench, blocks: int) -> Turns:
    """Runs one warm-up block and `blocks` timed ones, each as long as the plan of `bench`."""
    experiment = bench.experiment
    plan = replace(experiment.plan, total_steps=experiment.plan.total_steps * (blocks + 1))
    state = jax.tree.map(jax.numpy.copy, bench.state)
    with tempfile.TemporaryDirectory() as folder, Turns(bench, Path(folder) / CHECKPOINTS) as turns:
        display, batch = make_display(experiment), experiment.config.data.batch_size
        recorder = Recorder(Path(folder), plan, experiment.optimizer.schedule, batch, display, 0)
        with StopRequest() as stop:
            run_loop(
                state,
                0,
                plan,
                train_step=turns.train_step,
                items=experiment.data["train"].train_items(0),
                validate=lambda state: [{"loss": 0.0, "accuracy": 0.0}],
                checkpoints=turns,
                recorder=recorder,
                stop=stop,
            )
        recorder.close()
    turns.seconds, turns.saving = turns.seconds[TURNS:], turns.saving[1:]
    return turns


def figures_of(case: str, turns: Turns, steps: int) -> list[Figure]:
    """Returns the figures of a case; `steps` is the number of steps in a turn."""
    rows = turns.seconds
    low, middle, high = statistics.quantiles(100 * (loop / bare - 1) for bare, _, loop in rows)
    paced = statistics.quantiles(100 * (loop / bare - 1) for _, bare, loop in rows)
    block = TURNS * statistics.median(bare for bare, _, _ in rows)
    saving = [100 * seconds / block for seconds in turns.saving]
    whole = middle + statistics.median(saving)
    return [
        figure(case, "bare step", [1e3 * bare / steps for bare, _, _ in rows], "ms"),
        Figure(case, "overhead of steps, with quartiles", middle, "%", low, high, len(rows)),
        Figure(case, "overhead of steps over paced calls", paced[1], "%", paced[0], paced[2], len(rows)),
        figure(case, "overhead of checkpoints", saving, "%"),
        Figure(case, "overhead", whole, "%"),
        Figure(case, "loop / bare, in images/s", 100 / (100 + whole), "x"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records six figures for each model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=positive, default=BATCH, help=f"images per step (default {BATCH})")
    parser.add_argument("--blocks", type=positive, default=12, help="blocks (default 12)")
    parser.add_argument(
        "--seconds", type=positive_number, default=8.0, help="target length of each part of a block (default 8)"
    )
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    for name in arguments.models:
        config = CASES[name].override(batch_size=arguments.batch)
        bench = make_bench(config, make_bench(config).steps_in(arguments.seconds), TURNS)
        turns = run(bench, arguments.blocks)
        case = f"{name} batch {arguments.batch}"
        figures = figures_of(case, turns, bench.experiment.plan.total_steps // TURNS)
        print(*figures, sep="\n", flush=True)
        record(arguments.output, "loop_overhead", figures)


if __name__ == "__main__":
    guard(main)
