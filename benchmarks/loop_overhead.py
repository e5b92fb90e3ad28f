"""What the training loop costs over its bare compiled step: shuffling, placing items, metrics, files, checkpoints.

    python -m benchmarks.loop_overhead --output results/benchmarks/loop_overhead.csv

The real loop runs (`cnn_jax.training.loop.run_loop` with its recorder, items and checkpoints), and every half a second
it is held up for as many bare calls of the compiled step on one placed item: however the speed of the machine drifts,
it drifts for both. Loop seconds over bare seconds, less one, is the overhead of a turn; the table has the median over
all turns and its quartiles. Every 16 turns there is a checkpoint; the median time until it is on disk counts besides,
as a share of the bare seconds of 16 turns. Validation is in neither; the first 16 turns are not counted.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
TURNS = 16  # of a block
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
    """One model, compiled once, with a state of its own for bare steps; `plan` has a validation at the end."""

    experiment: Experiment
    steps: CompiledSteps
    state: Any
    plan: Plan

    def bare(self, steps: int | None = None) -> float:
        """Seconds of so many steps (default: all of the plan) of the compiled step, on items that lie on the device."""
        count = self.plan.scan_steps
        parallel = self.experiment.parallel
        item = self.steps.prepare(self.state, _first_items(self.experiment, count))
        placed = jax.device_put(item, parallel.rows(stacked=count > 1))
        call, arrays, state = self.steps.compiled[count], self.steps.arrays, self.state
        start = time.perf_counter()
        for _ in range((steps or self.plan.total_steps) // count):
            state, _ = call(state, arrays, placed)
        jax.block_until_ready(state)
        self.state = state
        return time.perf_counter() - start

    def loop(self, blocks: int) -> tuple[list[tuple[float, float]], list[float]]:
        """(bare, loop) seconds of each turn, a `TURNS`th of `plan.total_steps`, and the seconds of each checkpoint."""
        plan = replace(self.plan, total_steps=self.plan.total_steps * (blocks + 1))
        state = jax.tree.map(jax.numpy.copy, self.state)
        with tempfile.TemporaryDirectory() as folder, _Turns(self, Path(folder) / CHECKPOINTS) as turns:
            recorder = Recorder(Path(folder), plan, self.experiment.optimizer.schedule, BATCH, _display(plan), 0)
            with StopRequest() as stop:
                run_loop(
                    state,
                    0,
                    plan,
                    run_steps=turns.run_steps,
                    items=self.experiment.data["train"].train_items(0),
                    validate=lambda state: {"loss": 0.0, "accuracy": 0.0},
                    checkpoints=turns,
                    recorder=recorder,
                    stop=stop,
                )
            recorder.close()
        return turns.seconds[TURNS:], turns.saving[1:]


class _Turns(Checkpoints):
    """Runs the steps of the loop and, in turns, bare steps; its checkpoints are on disk when `save` returns."""

    def __init__(self, bench: Bench, folder: Path):
        super().__init__(folder)
        self._bench, self._length = bench, bench.plan.total_steps // TURNS
        self._step, self._since = 0, 0.0
        self.seconds: list[tuple[float, float]] = []
        self.saving: list[float] = []

    def run_steps(self, state: Any, items: list[Any], count: int) -> tuple[Any, Any]:
        """What the loop calls."""
        if self._step % self._length == 0:
            self._end_turn(state)
        self._step += count
        return self._bench.steps(state, items, count)

    def save(self, step: int, state: Any, validation: dict[str, float] | None) -> None:
        """Ends a block."""
        self._end_turn(state)
        start = time.perf_counter()
        super().save(step, state, validation)
        self.wait()
        self.saving.append(time.perf_counter() - start)
        self._since = 0.0

    def _end_turn(self, state: Any) -> None:
        jax.block_until_ready(state)
        if self._since:
            loop = time.perf_counter() - self._since
            self.seconds.append((self._bench.bare(self._length), loop))
        self._since = time.perf_counter()


def _first_items(experiment: Experiment, count: int) -> list[Any]:
    items = experiment.data["train"].train_items(0)
    return [next(items) for _ in range(count)]


def _display(plan: Plan) -> Display:
    epoch = plan.steps_per_epoch
    return Display(
        total_steps=plan.total_steps, first_step=0, steps_per_epoch=epoch, batch_size=BATCH, flops=0.0, devices=1
    )


def make_bench(config: Config, steps: int, turns: int = 1) -> Bench:
    """Builds and compiles; `steps` a block, rounded up to whole calls in each of its turns."""
    call = turns * (1 if jax.default_backend() == "cpu" else config.train.scan_steps)  # on CPU steps are not scanned
    whole = -(-steps // call) * call
    experiment = make_experiment(config.override(steps=whole, epochs=None, eval_every=1e9, batch_size=BATCH))
    parallel, data = experiment.parallel, experiment.data["train"]
    arrays, state = parallel.place(data.arrays), parallel.place(experiment.state)
    runner = CompiledSteps(experiment, arrays, _display(experiment.plan))
    runner.prepare(state, _first_items(experiment, experiment.plan.scan_steps))
    return Bench(experiment, runner, state, experiment.plan)


def main() -> None:
    """Prints and writes one row a model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10, help="blocks (default 10)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=8.0,
        help="aimed length of a block, of the loop and of the bare steps each (default 8)",
    )
    parser.add_argument("--output", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    facts = runtime.environment(runtime.command_line())
    rows = []
    for name, config in CASES.items():
        probe = make_bench(config, 10)
        per_step = min(probe.bare() for _ in range(2)) / probe.plan.total_steps
        bench = make_bench(config, round(arguments.seconds / per_step), TURNS)
        turns, saving = bench.loop(arguments.blocks)
        bare = statistics.median(bare for bare, _ in turns)
        low, middle, high = statistics.quantiles(100 * (loop / bare - 1) for bare, loop in turns)
        checkpoint = 100 * statistics.median(saving) / (bare * TURNS)
        row = {
            "model": name,
            "batch_size": BATCH,
            "steps_per_turn": bench.plan.total_steps // TURNS,
            "turns": len(turns),
            "bare_ms_per_step": round(1e3 * bare * TURNS / bench.plan.total_steps, 3),
            "steps_percent": round(middle, 2),
            "steps_percent_quartiles": f"{low:.2f}..{high:.2f}",
            "checkpoint_percent": round(checkpoint, 2),
            "overhead_percent": round(middle + checkpoint, 2),
        }
        rows.append(row | {key: facts[key] for key in ("device", "jax", "commit", "command")})
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_rows(arguments.output, rows)


def timed_pair(one: Callable[[], float], other: Callable[[], float], turn: int) -> tuple[float, float]:
    """Seconds of both, `other` first in odd turns."""
    if turn % 2:
        seconds = other()
        return one(), seconds
    return one(), other()


def ratio_columns(pairs: Sequence[tuple[float, float]]) -> dict[str, float | int]:
    """How many times faster the second of each pair is: median, least and most, and the number of pairs."""
    ratios = [slow / fast for slow, fast in pairs]
    return {
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "blocks": len(pairs),
    }


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
