"""Records metrics: to metrics.jsonl, to loggers such as TensorBoard, and to the screen."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.config import Member
from cnn_jax.optim.schedules import Schedule
from cnn_jax.storage.run_folder import open_metrics, read_metrics, write_metrics
from cnn_jax.training.compiled import call_once
from cnn_jax.training.loggers import Logger
from cnn_jax.training.loop import Plan
from cnn_jax.training.progress import Display


@dataclass
class _Sums:
    """(sum, count) of each metric of M members over some steps, (M, 2); `since`: their start in seconds of training."""

    since: float = 0.0
    steps: int = 0
    totals: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, values: dict[str, np.ndarray], steps: int) -> None:
        self.steps += steps
        for name, pairs in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + pairs


class Recorder:
    """Adds up the metrics of steps and writes a row every `plan.log_every` steps.

    Args:
        run: the run folder; None to write nothing (in processes other than the first).
        plan: how often to log.
        schedule: step → learning rate, if known.
        batch_size: images per step.
        display: the screen, whose clock starts now.
        first_step: number of updates so far; rows of later steps, left by an interrupted run, are ignored.
        loggers: where else rows go; closed with the recorder.
        compared: what members that are kept apart have of their own; each gets rows of its own, with its number as
            "member", and a row of kind "diverged" at the first step at which its loss is not finite.

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
        compared: Sequence[Member] = (),
    ):
        self._plan, self._display, self._compared = plan, display, compared
        # All at once: asking the device for one later would wait for everything queued on it.
        self._rates = None if schedule is None else rates_of(schedule, plan.total_steps)
        self._batch_size = batch_size
        before = [row for row in read_metrics(run) if row["step"] <= first_step] if run and first_step else []
        self.history = [row for row in before if row["kind"] == "validation"]
        self._diverged = {row["member"] for row in before if row["kind"] == "diverged"}
        self._loggers = loggers
        self._file = open_metrics(run) if run else None
        self._seconds = max((row["seconds"] for row in before), default=0.0)  # spent in earlier processes of this run
        self._train_seconds, self._running_since = 0.0, None
        self._row = _Sums()  # since the last row
        self._epoch = _Sums()  # since the last validation, for the line on the screen
        display.clock.start()

    def close(self) -> None:
        """Closes the metrics file and the loggers."""
        for open_one in (*self._loggers, self._file):
            if open_one:
                open_one.close()

    @property
    def seconds(self) -> float:
        """Seconds of the run so far over all its processes, validations included and compilation not."""
        return self._seconds + self._display.clock.seconds

    def training_clock(self, running: bool) -> None:
        """Starts or stops the clock of images/s, which leaves out validation and saving."""
        now = time.perf_counter()
        if self._running_since is not None:
            self._train_seconds += now - self._running_since
        self._running_since = now if running else None

    def losses(self, step: int, losses: np.ndarray) -> None:
        """Writes a row for each member that diverges; `losses`: of the steps from `step` on, (steps, members)."""
        for member in np.flatnonzero(~np.isfinite(losses).all(axis=0)).tolist() if self._compared else ():
            if member not in self._diverged:
                self._diverged.add(member)
                self._write("diverged", step + int(np.argmin(np.isfinite(losses[:, member]))), {}, member)

    def train(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Adds the metrics of the steps that end at `step`: (sum, count) pairs, (steps, members, 2)."""
        count, done = len(metrics["loss"]), 0
        while done < count:
            at = step - count + done
            here = min(self._plan.log_every - at % self._plan.log_every, count - done)  # until the next row
            sums = {name: values[done : done + here].sum(0, dtype=float) for name, values in metrics.items()}
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
        means, speed = _means(self._row), self._speed(self._row)
        for member, of_one in enumerate(means):
            row = of_one | {"images_per_second": speed}
            if self._rates is not None:
                row["learning_rate"] = float(self._rates[step - 1] * self._share(member))
            self._write("train", step, row, member)
        self._display.train(step, min((row["loss"] for row in means), key=_nan_last), speed)
        self._row = _Sums(self._train_seconds)

    def _share(self, member: int) -> float:
        """The learning rate of a member, as a multiple of that of the schedule."""
        return self._compared[member].learning_rate / self._compared[0].learning_rate if self._compared else 1.0

    def _speed(self, sums: _Sums) -> float:
        """Images per second, of each member."""
        return sums.steps * self._batch_size / max(self._train_seconds - sums.since, 1e-9)

    def validation(self, step: int, each: Sequence[dict[str, float]]) -> None:
        """Writes a validation row and prints a line; of each member that is kept apart."""
        for member, metrics in enumerate(each):
            self._write("validation", step, metrics, member)
        for logger in self._loggers:
            logger.flush()
        epoch = self._epoch
        train = _means(epoch) if epoch.steps else [{} for _ in each]
        speed = self._speed(epoch) if epoch.steps else None
        self._display.validation(step, train, each, speed, self.seconds)
        self._epoch = _Sums(self._train_seconds)

    def gauges(self, step: int, each: Sequence[dict[str, float]]) -> None:
        """Writes a row of gauges; of each member that is kept apart."""
        for member, values in enumerate(each):
            self._write("gauges", step, values, member)

    def _write(self, kind: str, step: int, values: dict[str, float], member: int) -> None:
        if self._file is None:
            return
        row = {"kind": kind, "step": step, "epoch": step / self._plan.steps_per_epoch}
        which = ""
        if self._compared:
            of = self._compared[member]
            row |= {"member": member, "peak_learning_rate": of.learning_rate}
            row |= {"optimizer_args": " ".join(of.args)} if of.args else {}
            which = f"/rate_{'_'.join(str(of).split())}"
        write_metrics(self._file, row | values | {"seconds": self.seconds})
        for logger in self._loggers:
            logger.log({f"{kind}/{name}{which}": value for name, value in values.items()}, step)


def _means(sums: _Sums) -> list[dict[str, float]]:
    """The means of each member."""
    with np.errstate(invalid="ignore"):
        means = {name: (pairs[:, 0] / pairs[:, 1]).tolist() for name, pairs in sums.totals.items()}
    return [dict(zip(means, row, strict=True)) for row in zip(*means.values(), strict=True)]


def _nan_last(value: float) -> tuple[bool, float]:
    return value != value, value


def rates_of(schedule: Schedule, steps: int) -> np.ndarray:
    """Returns the learning rate of every step, float32 (steps,)."""
    rates = jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))
    return np.asarray(call_once(rates, np.arange(steps)))
