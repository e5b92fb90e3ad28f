"""Shared by the benchmarks: cases, a compiled training step that runs without the loop, and alternating timing."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from cnn_jax.config import Config
from cnn_jax.training import runtime
from cnn_jax.training.compiled import TrainStep
from cnn_jax.training.experiment import Experiment, make_experiment
from cnn_jax.training.progress import Display

BATCH = 128
BASE = Config("benchmark").override(optimizer="momentum", learning_rate=0.01, batch_size=BATCH)
CASES = {  # with as many images as MNIST and CIFAR-10 train on, so that rows of metrics and shuffles come as often
    "lenet5": BASE.override(dataset="synthetic:28x28x1:10:55000", model="lenet5"),
    "resnet20": BASE.override(dataset="synthetic:32x32x3:10:45000", model="resnet20"),
}


@dataclass
class Bench:
    """A compiled training step and its state."""

    experiment: Experiment
    steps: TrainStep
    state: Any

    def bare(self, steps: int, ahead: int | None = None) -> float:
        """Returns seconds per step over `steps` steps in a row, on items that are on the device already.

        Args:
            steps: rounded up to whole calls, if one call runs several steps.
            ahead: maximum of calls in flight; None leaves it to the runtime, which makes short steps slower on a CPU.
        """
        count = self.experiment.plan.scan_steps
        item = self.steps.prepare(self.state, first_items(self.experiment))
        placed = jax.device_put(item, self.experiment.parallel.rows(stacked=count > 1))
        call, arrays, state = self.steps.programs[count], self.steps.arrays, self.state
        calls, metrics = -(-steps // count), None
        start = time.perf_counter()
        for number in range(1, calls + 1):
            before, (state, metrics) = metrics, call(state, arrays, placed)
            if ahead and number % ahead == 0:
                jax.block_until_ready(before)
        jax.block_until_ready(state)
        self.state = state
        return (time.perf_counter() - start) / (calls * count)

    def steps_in(self, seconds: float) -> int:
        """Returns how many steps take about `seconds`, at least one; runs a few, so that caches are warm afterwards."""
        self.bare(1)
        once = self.bare(1)
        return 1 if once > seconds else max(1, round(seconds / min(once, self.bare(3), self.bare(3))))

    @property
    def scratch(self) -> int:
        """Bytes of intermediate results of one call, on one device."""
        memory = self.steps.programs[self.experiment.plan.scan_steps].memory_analysis()
        return 0 if memory is None else memory.temp_size_in_bytes


def make_bench(config: Config, steps: int = 1, turns: int = 1, options: Mapping[str, Any] | None = None) -> Bench:
    """Builds an experiment and compiles its training step; writes nothing.

    Args:
        config: the run's config.
        steps: length of the run, with one validation at its end; rounded up so that each turn has whole calls.
        turns: number of equal parts that the steps must divide into.
        options: XLA's flags for the step alone, without dashes.
    """
    runtime.prepare(config.train)  # the settings of a real run, before the first use of a device
    unit = turns * (1 if jax.default_backend() == "cpu" else config.train.scan_steps)  # on CPU steps are not scanned
    whole = -(-steps // unit) * unit
    experiment = make_experiment(config.override(steps=whole, epochs=None, eval_every=1e9))
    state, display = experiment.parallel.place(experiment.state), make_display(experiment)
    scan = experiment.plan.scan_steps > 1
    steps_of = TrainStep(
        experiment.train_step,
        experiment.data["train"],
        experiment.parallel,
        scan=scan,
        say=display.say,
        options=options,
    )
    bench = Bench(experiment, steps_of, state)
    bench.steps.prepare(state, first_items(experiment))
    return bench


def first_items(experiment: Experiment) -> list[Any]:
    """Returns the items of the first call."""
    items = experiment.data["train"].train_items(0)
    return [next(items) for _ in range(experiment.plan.scan_steps)]


def make_display(experiment: Experiment) -> Display:
    """Returns the progress display that the loop needs."""
    plan, batch = experiment.plan, experiment.config.data.batch_size
    return Display(
        metrics=experiment.task.metrics,
        total_steps=plan.total_steps,
        first_step=0,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=batch,
        flops=0.0,
        devices=1,
    )


def timed_pair(one: Callable[[], float], other: Callable[[], float], turn: int) -> tuple[float, float]:
    """Times both, `other` first in odd turns; returns (seconds of `one`, seconds of `other`).

    >>> order = []
    >>> timed_pair(lambda: order.append("one") or 1.0, lambda: order.append("other") or 2.0, turn=1), order
    ((1.0, 2.0), ['other', 'one'])
    """
    if turn % 2:
        seconds = other()
        return one(), seconds
    return one(), other()
