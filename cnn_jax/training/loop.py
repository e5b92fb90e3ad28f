"""The loop over steps: the only place where things happen in an order of time."""

import dataclasses
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol, Self

import jax
import numpy as np

from cnn_jax.config import Config
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.interrupts import quit_at_once
from cnn_jax.training.callbacks import Callback
from cnn_jax.training.checkpoint import Checkpoints
from cnn_jax.training.state import TrainState

# Calls in flight while the metrics of an earlier one are waited for: at least one, so that the device never waits; so
# many as take this time, for waking up after each of many short ones costs per cents on a CPU; no more, for items in
# flight need memory and Ctrl-C waits for them.
MAX_AHEAD = 16
AHEAD_SECONDS = 0.1
STOP_CODE = 130  # as a shell reports an interrupted command


@dataclasses.dataclass(frozen=True)
class Plan:
    """When things happen, in steps."""

    total_steps: int
    eval_every: int
    log_every: int
    steps_per_epoch: float
    scan_steps: int

    def due(self, step: int) -> bool:
        """Whether `step` is followed by validation and a checkpoint."""
        return step > 0 and (step % self.eval_every == 0 or step == self.total_steps)

    def next_chunk(self, step: int) -> int:
        """Steps that are one call from `step` on: up to `scan_steps`, equal parts, never past a validation."""
        until = min(self.total_steps, (step // self.eval_every + 1) * self.eval_every)
        calls = -(-self.eval_every // self.scan_steps)
        return min(-(-self.eval_every // calls), until - step)

    def chunk_sizes(self, first_step: int) -> list[int]:
        """All sizes of `next_chunk` in a run from `first_step` on: each has to be compiled."""
        sizes, step = set(), first_step
        while step < self.total_steps:
            sizes.add(self.next_chunk(step))
            step += self.next_chunk(step)
        return sorted(sizes)


def make_plan(config: Config, num_examples: int, scan: bool) -> Plan:
    """Turns epochs into steps for a training split of `num_examples`."""
    per_epoch = num_examples / config.data.batch_size
    steps = config.train.steps or max(1, math.ceil(round((config.train.epochs or 1) * per_epoch, 6)))
    if steps >= 2**31:
        raise UserError(f"given --epochs {config.train.epochs}, {steps} steps; expected less than 2**31; lower it")
    eval_every = min(steps, max(1, round(config.train.eval_every * per_epoch)))
    log_every = config.train.log_every or max(10, math.ceil(per_epoch / 20))
    return Plan(steps, eval_every, log_every, per_epoch, config.train.scan_steps if scan else 1)


class Recorder(Protocol):
    """Where metrics go, see `cnn_jax.training.record`."""

    def train(self, step: int, metrics: Any) -> None: ...

    def flush(self, step: int) -> None: ...

    def validation(self, step: int, metrics: dict[str, float]) -> None: ...

    def training_clock(self, running: bool) -> None: ...


def run_loop(
    state: TrainState,
    first_step: int,
    plan: Plan,
    *,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    items: Iterator[Any],
    validate: Callable[[TrainState], dict[str, float]],
    checkpoints: Checkpoints,
    recorder: Recorder,
    stop: "StopRequest",
    callbacks: Sequence[Callback] = (),
) -> tuple[int, TrainState]:
    """Trains from `first_step` to `plan.total_steps`, or until a callback asks to stop; returns the step and the state.

    The order is an invariant: evaluate → save → next items → step. A checkpoint of step s is written before the items
    of step s are drawn, so a resumed run sees the data that an uninterrupted one sees.

    Args:
        state: after `first_step` updates.
        first_step: number of updates done.
        plan: when to validate and save.
        train_step: (state, items of the next steps) → (state, their sums, stacked); does not wait for the device.
        items: yields the item of step `first_step`, and so on.
        validate: metrics of the validation split.
        checkpoints: where states go.
        recorder: where metrics go.
        stop: set by Ctrl-C.
        callbacks: called after each validation, once its checkpoint is being written.

    Raises:
        TrainingStopped: asked to stop (state saved), or a loss is not finite (last good checkpoint left as it is).
    """
    step, pending, ahead, settled = first_step, [], 1, time.perf_counter()
    recorder.training_clock(True)
    while True:
        if plan.due(step) or stop.requested:
            _settle(recorder, pending, checkpoints)  # a state is only saved when its loss is known to be finite
            pending = []
        if plan.due(step) and step > first_step:
            jax.block_until_ready(state)
            recorder.flush(step)
            recorder.training_clock(False)
            metrics = _validate(state, step, validate, checkpoints, recorder)
            # All of them are called, also those after one that asks to stop.
            if any([callback.on_evaluation(step, metrics, state) for callback in callbacks]):
                return step, state
            recorder.training_clock(True)
        if step >= plan.total_steps:
            return step, state
        if stop.requested:
            if step > first_step:  # else what is there is what was restored
                checkpoints.save(step, state, None)
            raise _stopped(step, state, checkpoints, recorder)
        count = plan.next_chunk(step)
        # No name keeps the items: a streamed batch is memory that a worker wants back after the step.
        state, sums = train_step(state, list(itertools.islice(items, count)))
        step += count
        pending.append((step, sums))
        if len(pending) > ahead:
            _settle(recorder, pending[:-1], checkpoints)  # the device is already at work on the last one
            seconds = (time.perf_counter() - settled) / len(pending[:-1])
            pending, settled = pending[-1:], time.perf_counter()
            # Validation is not in the pace of a step: one long wait no more than halves it.
            ahead = min(max(1, ahead // 2, int(AHEAD_SECONDS / max(seconds, 1e-6))), MAX_AHEAD)
            checkpoints.check()


def _validate(
    state: TrainState,
    step: int,
    validate: Callable[[TrainState], dict[str, float]],
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> dict[str, float]:
    metrics = validate(state)
    if not math.isfinite(metrics["loss"]):  # the last update was one too many; its own loss is never computed
        raise _diverged("validation loss", metrics["loss"], step, checkpoints)
    recorder.validation(step, metrics)
    checkpoints.save(step, state, metrics)
    return metrics


def _stopped(step: int, state: TrainState, checkpoints: Checkpoints, recorder: Recorder) -> TrainingStopped:
    checkpoints.wait()
    recorder.flush(step)
    saved = "state saved; the same command goes on from here" if step else "before the first; nothing to save"
    return TrainingStopped(f"stopped at step {step}, {saved}", STOP_CODE, state)


def _settle(recorder: Recorder, pending: Sequence[tuple[int, Any]], checkpoints: Checkpoints) -> None:
    """Fetches and records the metrics of calls, in order; stops the run if a loss is not finite."""
    if not pending:
        return
    last, names = pending[-1][0], pending[0][1]
    # Of all calls together: a few microseconds a step are per cents of a short one.
    metrics = {name: np.concatenate([np.asarray(call[name]).reshape(-1, 2) for _, call in pending]) for name in names}
    losses = metrics["loss"][:, 0]
    finite = np.isfinite(losses)
    good = len(losses) if finite.all() else int(np.argmin(finite))
    first = last - len(losses) + 1
    recorder.train(first + good - 1, {name: values[:good] for name, values in metrics.items()})
    if good < len(losses):
        raise _diverged("loss", float(losses[good]), first + good, checkpoints)


def _diverged(what: str, value: float, step: int, checkpoints: Checkpoints) -> TrainingStopped:
    checkpoints.wait()
    saved = checkpoints.steps()
    good = f"last good checkpoint: step {saved[-1]} in {checkpoints.folder}" if saved else "no checkpoint yet"
    return TrainingStopped(
        f"error: the {what} is {value} at step {step}; expected a finite number; {good}; "
        "lower `learning_rate`, or set `clip_norm` or `warmup_epochs` to 1",
        1,
    )


class StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a wish that the loop grants between two steps; a second one quits."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            quit_at_once(number, frame)  # an exception would wait for the device and for Orbax; files are written whole
        self.requested = True
        # Not print: a signal may arrive inside one.
        os.write(2, b"\nstopping after this step and saving; again to quit at once\n")

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
