"""What the training loop costs over its bare compiled step: shuffling, placing items, metrics, files, checkpoints.

    python -m benchmarks.loop_overhead --output results/benchmarks/loop_overhead.csv

Blocks of the real loop (`cnn_jax.training.loop.run_loop` with real recorder, items and checkpoints; each goes on where
the one before stopped, and ends with a checkpoint on disk) and of the bare compiled step on one placed item are timed
in turns, every second time in the other order, so that a machine that grows slower or faster favours neither. A pair's
overhead is loop seconds over bare seconds, less one. The first pair is not counted.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from cnn_jax.cli import ArgumentParser, guard
from cnn_jax.config import Config
from cnn_jax.run_folder import CHECKPOINTS
from cnn_jax.training import runtime
from cnn_jax.training.checkpoint import Checkpoints
from cnn_jax.training.experiment import Experiment, make_experiment
from cnn_jax.training.loop import Plan, StopRequest, run_loop
from cnn_jax.training.progress import Display
from cnn_jax.training.record import Recorder
from cnn_jax.training.run import CompiledSteps

BATCH = 128
CASES = {
    "lenet5": Config("loop_overhead").override(
        dataset="synthetic:28x28x1:10:10000", model="lenet5", optimizer="momentum", learning_rate=0.01
    ),
    "resnet20": Config("loop_overhead").override(
        dataset="synthetic:32x32x3:10:10000", model="resnet20", optimizer="momentum", learning_rate=0.01
    ),
}


@dataclass
class Bench:
    """One model, compiled once, that can run a block of `plan.total_steps` steps either way."""

    experiment: Experiment
    steps: CompiledSteps
    state: Any
    plan: Plan

    def bare(self) -> float:
        """Seconds of a block of calls of the compiled step, on items that lie on the device already."""
        count = self.plan.scan_steps
        parallel = self.experiment.parallel
        item = self.steps.prepare(self.state, _first_items(self.experiment, count))
        placed = jax.device_put(item, parallel.rows(stacked=count > 1))
        call, arrays, state = self.steps.compiled[count], self.steps.arrays, self.state
        start = time.perf_counter()
        for _ in range(self.plan.total_steps // count):
            state, _ = call(state, arrays, placed)
        jax.block_until_ready(state)
        self.state = state
        return time.perf_counter() - start

    def loop(self, first_step: int, checkpoints: Checkpoints, recorder: Recorder) -> float:
        """Seconds of a block of the real loop, with its files and a checkpoint; validation itself is not part of it."""
        plan = replace(self.plan, total_steps=first_step + self.plan.total_steps)
        start = time.perf_counter()
        with StopRequest() as stop:
            state = run_loop(
                self.state,
                first_step,
                plan,
                run_steps=self.steps,
                items=self.experiment.data["train"].train_items(first_step),
                validate=lambda state: {"loss": 0.0, "accuracy": 0.0},
                checkpoints=checkpoints,
                recorder=recorder,
                stop=stop,
            )
        checkpoints.wait()
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        self.state = state
        return seconds

    def pairs(self, blocks: int) -> list[tuple[float, float]]:
        """(bare, loop) seconds of so many pairs of blocks: one real run, that waits while a bare block is timed."""
        steps = self.plan.total_steps
        plan = replace(self.plan, total_steps=steps * (blocks + 1))
        with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / CHECKPOINTS) as checkpoints:
            recorder = Recorder(Path(folder), plan, self.experiment.optimizer.schedule, BATCH, _display(plan), 0)
            seconds = [
                timed_pair(self.bare, partial(self.loop, turn * steps, checkpoints, recorder), turn)
                for turn in range(blocks + 1)
            ]
            recorder.close()
        return seconds[1:]


def _first_items(experiment: Experiment, count: int) -> list[Any]:
    items = experiment.data["train"].train_items(0)
    return [next(items) for _ in range(count)]


def _display(plan: Plan) -> Display:
    epoch = plan.steps_per_epoch
    return Display(
        total_steps=plan.total_steps, first_step=0, steps_per_epoch=epoch, batch_size=BATCH, flops=0.0, devices=1
    )


def make_bench(config: Config, steps: int) -> Bench:
    """Builds and compiles; `steps` a block, rounded up to whole calls."""
    call = 1 if jax.default_backend() == "cpu" else config.train.scan_steps  # on CPU steps are not scanned
    whole = -(-steps // call) * call
    experiment = make_experiment(config.override(steps=whole, epochs=None, eval_every=1e9, batch_size=BATCH))
    parallel, data = experiment.parallel, experiment.data["train"]
    arrays, state = parallel.place(data.arrays), parallel.place(experiment.state)
    runner = CompiledSteps(experiment, arrays, _display(experiment.plan))
    runner.prepare(state, _first_items(experiment, experiment.plan.scan_steps))
    return Bench(experiment, runner, state, experiment.plan)


def timed_pair(one: Callable[[], float], other: Callable[[], float], turn: int) -> tuple[float, float]:
    """Seconds of both, `other` first in odd turns."""
    if turn % 2:
        seconds = other()
        return one(), seconds
    return one(), other()


def main() -> None:
    """Prints and writes one row a model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10, help="pairs of blocks (default 10)")
    parser.add_argument("--seconds", type=float, default=8.0, help="aimed length of a block (default 8)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    facts = runtime.environment(runtime.command_line())
    rows = []
    for name, config in CASES.items():
        probe = make_bench(config, 10)
        per_step = min(probe.bare() for _ in range(2)) / probe.plan.total_steps
        bench = make_bench(config, round(arguments.seconds / per_step))
        pairs = bench.pairs(arguments.blocks)
        overheads = [loop / bare - 1 for bare, loop in pairs]
        row = {
            "model": name,
            "batch_size": BATCH,
            "steps_per_block": bench.plan.total_steps,
            "blocks": len(pairs),
            "bare_ms_per_step": round(1e3 * statistics.median(b for b, _ in pairs) / bench.plan.total_steps, 3),
            "overhead_median_percent": round(100 * statistics.median(overheads), 2),
            "overhead_min_percent": round(100 * min(overheads), 2),
            "overhead_max_percent": round(100 * max(overheads), 2),
        }
        rows.append(row | {key: facts[key] for key in ("device", "jax", "commit", "command")})
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_rows(arguments.output, rows)


def write_rows(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Writes rows of equal keys as CSV; nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    guard(main)
