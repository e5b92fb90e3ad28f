"""Shows training progress on stdout: a bar on a terminal, and one line per validation."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cnn_jax.config import Member
from cnn_jax.report.metric import Metric
from cnn_jax.training.runtime import peak_flops

BESIDE = 33  # columns of the times, of "left", of the gaps and of the shortest bar


class Clock:
    """Counts seconds from `start` on, except while it is paused.

    >>> clock = Clock(iter([10.0, 13.0, 20.0, 21.0]).__next__)
    >>> clock.start()
    >>> with clock.paused(): pass
    >>> clock.seconds
    4.0
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._counted = now, 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._counted + (0.0 if self._since is None else self._now() - self._since)

    def start(self) -> None:
        """Starts to count, if it does not yet."""
        if self._since is None:
            self._since = self._now()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context that is not counted."""
        self._counted, self._since = self.seconds, None
        try:
            yield
        finally:
            self.start()


class Display:
    """Shows progress on stdout.

    Args:
        metrics: the metrics to print, name → how it is shown.
        total_steps: steps of the whole run.
        first_step: where this process starts.
        steps_per_epoch: converts steps to epochs.
        batch_size: images per step.
        flops: FLOP per step, forward and backward; gives the MFU where the chip's peak is known.
        devices: number of devices that share a step.
        compared: what members that are kept apart have of their own; each gets lines of its own.

    Attributes:
        clock: seconds of training in this process; started by the recorder.
    """

    def __init__(
        self,
        *,
        metrics: Mapping[str, Metric],
        total_steps: int,
        first_step: int,
        steps_per_epoch: float,
        batch_size: int,
        flops: float,
        devices: int,
        compared: Sequence[Member] = (),
    ):
        self._metrics, self._compared = metrics, compared
        self._total, self._per_epoch, self._from = total_steps, steps_per_epoch, first_step
        self._batch_size, self._flops, self._peak = batch_size, flops, peak_flops(devices)
        self.clock = Clock()
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[say]}"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = bar = Progress(*columns, *times, get_time=lambda: self.clock.seconds, expand=True)
            self._task = bar.add_task("training", total=total_steps, completed=first_step, say="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar:
            self._bar.stop()

    def train(self, step: int, loss: float, images_per_second: float) -> None:
        """Updates the bar."""
        if self._bar:
            mfu = ""
            if self._peak:
                mfu = f" MFU {images_per_second / self._batch_size * self._flops / self._peak:.0%}"
            description, speed = self._description(step), f"  {images_per_second:,.0f} images/s{mfu}"
            say = f"loss {loss:.4f}"
            if len(description + say + speed) + BESIDE <= shutil.get_terminal_size().columns:
                say += speed
            self._bar.update(self._task, completed=step, description=description, say=say)

    def validation(
        self,
        step: int,
        train: Sequence[Mapping[str, float]],
        validation: Sequence[Mapping[str, float]],
        images_per_second: float | None,
        seconds: float,
    ) -> None:
        """Prints the line of a validation: one, or one for each learning rate.

        Args:
            step: number of updates so far.
            train: means over the steps since the last validation; empty if there were none.
            validation: metrics of the validation.
            images_per_second: while training; None if there were no steps.
            seconds: since the start of the run.
        """
        left = (self._total - step) * self.clock.seconds / max(step - self._from, 1)
        # A bar shows speed and times, too.
        about = [f"{seconds:5.0f} s", f"left {left:5.0f} s"]
        if images_per_second is not None:
            about.insert(0, f"{images_per_second:9,.0f} images/s")
        width = shutil.get_terminal_size().columns if self._bar else None
        names = [f"rate {name}" for name in aligned(self._compared)] or [""]
        for name, of_train, of_validation in zip(names, train, validation, strict=True):
            start = [f"epoch {self._epoch(step)}", f"step {step:{len(str(self._total))}d}", name]
            means = self._words(of_train) if of_train else ""
            self.say(fitting(start, means, f"validation {self._words(of_validation)}", about, width))

    def _words(self, values: Mapping[str, float]) -> str:
        return " ".join(f"{name} {metric.cell(values[name])}" for name, metric in self._metrics.items())

    def _epoch(self, step: int) -> str:
        """One decimal, but whole epochs as integers; always as wide."""
        widest = len(f"{self._total / self._per_epoch:.1f}")
        return f"{_decimal(step / self._per_epoch):>{widest}}"

    def _description(self, step: int) -> str:
        return f"epoch {self._epoch(step)}/{_decimal(self._total / self._per_epoch)}"

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(line, highlight=False, soft_wrap=True, markup=False)
        else:
            print(line, flush=True)


def aligned(members: Sequence[Member]) -> list[str]:
    """Says what each of the compared members has, all as wide.

    >>> aligned([Member(1e-05), Member(0.1, ("momentum=0.9",))])
    ['1e-05           ', '0.1 momentum=0.9']
    """
    names = list(map(str, members))
    return [f"{name:<{max(8, *map(len, names))}}" for name in names]


def fitting(start: Sequence[str], train: str, validation: str, about: Sequence[str], width: int | None) -> str:
    """Joins the parts of a validation's line; leaves out what matters least until it fits in `width` columns.

    >>> parts = (["epoch 1", "step 9", ""], "loss 0.5", "validation loss 0.6", ["7 s"])
    >>> fitting(*parts, None)
    'epoch 1  step 9  loss 0.5  validation loss 0.6  7 s'
    >>> fitting(*parts, 45)
    'epoch 1  loss 0.5  validation loss 0.6'
    >>> fitting(*parts, 30)
    'epoch 1  validation loss 0.6'
    """
    epoch, step, name = start
    ways = (
        [epoch, step, name, train, validation, *about],
        [epoch, step, name, train, validation],
        [epoch, name, train, validation],
        [epoch, name, validation],
    )
    lines = ["  ".join(filter(None, parts)) for parts in ways]
    return next((line for line in lines if width is None or len(line) <= width), lines[-1])


def _decimal(epochs: float) -> str:
    return f"{epochs:.1f}".removesuffix(".0")
