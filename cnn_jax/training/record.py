"""Records metrics: to metrics.jsonl, to loggers such as TensorBoard, and to the screen."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.optim.schedules import Schedule
from cnn_jax.storage.run_folder import open_metrics, read_metrics, write_metrics
from cnn_jax.training.compiled import call_once
from cnn_jax.training.loggers import Logger
from cnn_jax.training.loop import Plan
from cnn_jax.training.progress import Display


@dataclass
class _Sums:
    """(sum, count) of each metric over some steps; `since` is their start in seconds of training."""

    since: float = 0.0
    steps: int = 0
    totals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, values: dict[str, tuple[float, float]], steps: int) -> None:
        self.steps += steps
        for name, (value, number) in values.items():
            old = self.totals.get(name, (0.0, 0.0))
            self.totals[name] = (old[0] + value, old[1] + number)


class Recorder:
    """Adds up the metrics of steps and writes a row every `plan.log_every` steps.

    Args:
        run: the run folder; None to write nothing (in processes other than the first).
        plan: how often to log.
        schedule: step → learning rate, if known.
        batch_size: images per step.
        display: the screen.
        first_step: number of updates so far; rows of later steps, left by an interrupted run, are ignored.
        loggers: where else rows go; closed with the recorder.

    Attributes:
        history: validation rows of earlier processes of this run, in order.
    """

    def __init__(
        self,
        run: Path | None,
        plan: Plan,
        schedule: Schedule | None,
        batch_size: int,
        display: Display,
        first_step: int,
        loggers: Sequence[Logger] = (),
    ):
        self._plan, self._display = plan, display
        # All at once: asking the device for one later would wait for everything queued on it.
        self._rates = None if schedule is None else _rates(schedule, plan.total_steps)
        self._batch_size = batch_size
        before = [row for row in read_metrics(run) if row["step"] <= first_step] if run and first_step else []
        self.history = [row for row in before if row["kind"] == "validation"]
        self._loggers = loggers
        self._file = open_metrics(run) if run else None
        self._seconds = max((row["seconds"] for row in before), default=0.0)  # spent in earlier processes of this run
        self._train_seconds, self._running_since = 0.0, None
        self._row = _Sums()  # since the last row
        self._epoch = _Sums()  # since the last validation, for the line on the screen
        self._start = time.perf_counter()

    def close(self) -> None:
        """Closes the metrics file and the loggers."""
        for open_one in (*self._loggers, self._file):
            if open_one:
                open_one.close()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run so far over all its processes, validations included."""
        return self._seconds + time.perf_counter() - self._start

    def training_clock(self, running: bool) -> None:
        """Starts or stops the clock of images/s, which leaves out validation and saving."""
        now = time.perf_counter()
        if self._running_since is not None:
            self._train_seconds += now - self._running_since
        self._running_since = now if running else None

    def train(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds the metrics of the steps that end at `step`: each (steps, 2), the (sum, count) of every step."""
        count, done = len(metrics["loss"]), 0
        while done < count:
            at = step - count + done
            here = min(self._plan.log_every - at % self._plan.log_every, count - done)  # until the next row
            sums = {name: values[done : done + here].sum(0, dtype=float).tolist() for name, values in metrics.items()}
            self._row.add(sums, here)
            self._epoch.add(sums, here)
            done += here
            if (at + here) % self._plan.log_every == 0:
                self.flush(at + here)

    def flush(self, step: int) -> None:
        """Writes a row with the means since the last one."""
        if not self._row.steps:
            return
        self.training_clock(self._running_since is not None)
        row = self._means(self._row)
        if self._rates is not None:
            row["learning_rate"] = float(self._rates[step - 1])
        self._write("train", step, row)
        self._display.train(step, row["loss"], row["images_per_second"])
        self._row = _Sums(self._train_seconds)

    def _means(self, sums: "_Sums") -> dict[str, float]:
        seconds = max(self._train_seconds - sums.since, 1e-9)
        means = {name: value / number for name, (value, number) in sums.totals.items()}
        return means | {"images_per_second": sums.steps * self._batch_size / seconds}

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Writes a validation row and prints a line."""
        self._write("validation", step, metrics)
        for logger in self._loggers:
            logger.flush()
        train = self._means(self._epoch) if self._epoch.steps else {}
        self._display.validation(step, train, metrics, self.seconds)
        self._epoch = _Sums(self._train_seconds)

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        row = {"kind": kind, "step": step, "epoch": step / self._plan.steps_per_epoch}
        write_metrics(self._file, row | values | {"seconds": self.seconds})
        for logger in self._loggers:
            logger.log({f"{kind}/{name}": value for name, value in values.items()}, step)


def _rates(schedule: Schedule, steps: int) -> np.ndarray:
    rates = jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))
    return np.asarray(call_once(rates, np.arange(steps)))
