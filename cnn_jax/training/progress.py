"""Shows training progress on stdout: a bar on a terminal, and one line per validation."""

import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cnn_jax.training.runtime import peak_flops


class Display:
    """Shows progress on stdout.

    Args:
        metrics: names of the metrics to print.
        total_steps: steps of the whole run.
        first_step: where this process starts.
        steps_per_epoch: converts steps to epochs.
        batch_size: images per step.
        flops: FLOP per step, forward and backward; gives the MFU where the chip's peak is known.
        devices: number of devices that share a step.
    """

    def __init__(
        self,
        *,
        metrics: Sequence[str],
        total_steps: int,
        first_step: int,
        steps_per_epoch: float,
        batch_size: int,
        flops: float,
        devices: int,
    ):
        self._metrics = metrics
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._batch_size, self._flops, self._peak = batch_size, flops, peak_flops(devices)
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[say]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step, say="")
        self._since, self._from = time.perf_counter(), first_step

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
            say = f"loss {loss:.4f}  {images_per_second:,.0f} images/s{mfu}"
            description = f"epoch {step / self._per_epoch:.1f}/{self._total / self._per_epoch:.1f}"
            self._bar.update(self._task, completed=step, description=description, say=say)

    def validation(self, step: int, train: dict[str, float], validation: dict[str, float], seconds: float) -> None:
        """Prints the line of a validation."""
        left = (self._total - step) * (time.perf_counter() - self._since) / max(step - self._from, 1)
        parts = [f"epoch {step / self._per_epoch:6.2f}", f"step {step:6d}"]
        if train:
            parts += [in_words(name, train[name]) for name in self._metrics]
        of_validation = [in_words(name, validation[name]) for name in self._metrics]
        parts += [f"validation {of_validation[0]}", *of_validation[1:]]
        if train:
            parts.append(f"{train['images_per_second']:,.0f} images/s")
        self.say("  ".join([*parts, f"{seconds:.0f} s", f"left {left:.0f} s"]))

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)


def in_words(name: str, value: float) -> str:
    """Formats a metric for printing.

    >>> in_words("accuracy", 0.5), in_words("loss", 0.5)
    ('accuracy 50.00%', 'loss 0.5000')
    """
    return f"{name} {value:.2%}" if name.endswith("accuracy") else f"{name} {value:.4f}"
