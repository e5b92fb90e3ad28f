"""The training loop: the order of steps, validations and checkpoints."""

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
from cnn_jax.errors import Diverged, TrainingStopped, UserError
from cnn_jax.interrupts import interrupt, quit_at_once
from cnn_jax.tasks import Selection
from cnn_jax.training.callbacks import Callback
from cnn_jax.training.checkpoint import Checkpoints, InMemory
from cnn_jax.training.state import TrainState

# Dispatch about 0.1 s of calls before blocking on the metrics of an earlier one: waking after each short call costs a
# few per cent on a CPU. At least one call, so that the device never waits; at most 16, because items in flight take
# memory and Ctrl-C waits for them.
MAX_AHEAD = 16
AHEAD_SECONDS = 0.1
STOP_CODE = 130  # what shells report for an interrupted command


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to validate, log and finish, in steps."""

    total_steps: int
    eval_every: int
    log_every: int
    steps_per_epoch: float
    scan_steps: int

    def due(self, step: int) -> bool:
        """Whether to validate and save a checkpoint after `step`."""
        return step > 0 and (step % self.eval_every == 0 or step == self.total_steps)

    def next_chunk(self, step: int) -> int:
        """Number of steps in the call after `step`: equal parts of up to `scan_steps`, never past a validation."""
        until = min(self.total_steps, (step // self.eval_every + 1) * self.eval_every)
        calls = -(-self.eval_every // self.scan_steps)
        return min(-(-self.eval_every // calls), until - step)

    def chunk_sizes(self, first_step: int) -> list[int]:
        """All values of `next_chunk` in a run from `first_step` on: each must be compiled."""
        sizes, step = set(), first_step
        while step < self.total_steps:
            sizes.add(self.next_chunk(step))
            step += self.next_chunk(step)
        return sorted(sizes)


def make_plan(config: Config, num_examples: int, scan: bool) -> Plan:
    """Converts epochs to steps for a training split of `num_examples`.

    Raises:
        UserError: there are 2**31 steps or more.
    """
    per_epoch = num_examples / config.data.batch_size
    steps = config.train.steps or max(1, math.ceil(round((config.train.epochs or 1) * per_epoch, 6)))
    if steps >= 2**31:
        raise UserError(f"`epochs` is {config.train.epochs}, which is {steps} steps: lower it to under 2**31 steps")
    eval_every = min(steps, max(1, round(config.train.eval_every * per_epoch)))
    log_every = config.train.log_every or max(10, math.ceil(per_epoch / 20))
    return Plan(steps, eval_every, log_every, per_epoch, config.train.scan_steps if scan else 1)


class Recorder(Protocol):
    """Records metrics; see `cnn_jax.training.record`."""

    def losses(self, step: int, losses: np.ndarray) -> None: ...

    def train(self, step: int, metrics: dict[str, np.ndarray]) -> None: ...

    def flush(self, step: int) -> None: ...

    def validation(self, step: int, each: Sequence[dict[str, float]]) -> None: ...

    def training_clock(self, running: bool) -> None: ...


def run_loop(
    state: TrainState,
    first_step: int,
    plan: Plan,
    *,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    items: Iterator[Any],
    validate: Callable[[TrainState], Sequence[dict[str, float]]],
    checkpoints: Checkpoints | InMemory,
    recorder: Recorder,
    stop: "StopRequest",
    callbacks: Sequence[Callback] = (),
) -> tuple[int, TrainState]:
    """Trains from `first_step` to `plan.total_steps`, or until a callback asks to stop; returns the step and the state.

    The order is an invariant: evaluate → save → next items → step. The checkpoint of step s is written before the items
    of step s are drawn, so a resumed run sees the same data as an uninterrupted one.

    Args:
        state: after `first_step` updates.
        first_step: number of updates so far.
        plan: when to validate and save.
        train_step: (state, items of the next steps) → (state, their sums); does not wait for the device. Sums are
            (sum, count) pairs; leading axes are the steps of the call and the members that are kept apart, if several.
        items: yields the items of step `first_step` and of those that follow.
        validate: computes the metrics of the validation split: of the run, or of each member that is kept apart.
        checkpoints: where states are saved.
        recorder: where metrics are recorded.
        stop: set by Ctrl-C.
        callbacks: called after each validation, once the save of its checkpoint has started; they get the metrics of
            the best member.

    Raises:
        TrainingStopped: asked to stop; the state is saved.
        Diverged: a loss is not finite; the last good checkpoint is kept.
    """
    step, pending, ahead, settled = first_step, [], 1, time.perf_counter()
    recorder.training_clock(True)
    while True:
        if plan.due(step) or stop.requested:
            _settle(recorder, pending, checkpoints)  # save no state before its loss is known to be finite
            pending = []
        if plan.due(step) and step > first_step:
            jax.block_until_ready(state)
            recorder.flush(step)
            recorder.training_clock(False)
            metrics = _validate(state, step, validate, checkpoints, recorder)
            # A list, not a generator: call all of them, even after one asks to stop.
            if any([callback.on_evaluation(step, metrics, state) for callback in callbacks]):
                return step, state
            recorder.training_clock(True)
        if step >= plan.total_steps:
            return step, state
        if stop.requested:
            if step > first_step:  # otherwise the state is the restored checkpoint
                checkpoints.save(step, state, None)
            raise _stopped(step, state, checkpoints, recorder)
        count = plan.next_chunk(step)
        # Keep no reference to the items: a worker reuses the memory of a streamed batch after the step.
        state, sums = train_step(state, list(itertools.islice(items, count)))
        step += count
        pending.append((step, count, sums))
        if len(pending) > ahead:
            _settle(recorder, pending[:-1], checkpoints)  # the device is already working on the last one
            seconds = (time.perf_counter() - settled) / len(pending[:-1])
            pending, settled = pending[-1:], time.perf_counter()
            # `seconds` may include a validation: let one long wait no more than halve the lookahead.
            ahead = min(max(1, ahead // 2, int(AHEAD_SECONDS / max(seconds, 1e-6))), MAX_AHEAD)
            checkpoints.check()


def _validate(
    state: TrainState,
    step: int,
    validate: Callable[[TrainState], Sequence[dict[str, float]]],
    checkpoints: Checkpoints | InMemory,
    recorder: Recorder,
) -> dict[str, float]:
    each = validate(state)
    metrics = best_of(each, checkpoints.selection)
    recorder.losses(step, np.array([[of_one["loss"] for of_one in each]]))
    if not math.isfinite(metrics["loss"]):  # only validation computes a loss after the last update
        raise _diverged("validation loss", metrics["loss"], step, checkpoints)
    recorder.validation(step, each)
    checkpoints.save(step, state, metrics)
    return metrics


def best_of(each: Sequence[dict[str, float]], selection: Selection) -> dict[str, float]:
    """Returns the metrics of the best member, with its number as "member" if there are several.

    >>> best_of([{"loss": 0.2}, {"loss": 0.1}], Selection("loss", higher_is_better=False))
    {'loss': 0.1, 'member': 1}
    """
    best = selection.best(each)
    return each[best] | ({"member": best} if len(each) > 1 else {})


def _stopped(step: int, state: TrainState, checkpoints: Checkpoints | InMemory, recorder: Recorder) -> TrainingStopped:
    checkpoints.wait()
    recorder.flush(step)
    if step == 0:
        saved = "before the first: there is nothing to save"
    elif checkpoints.resumable:
        saved = "state saved: the same command resumes from here"
    else:
        saved = "nothing saved, as `checkpoints` is off: the same command starts over"
    return TrainingStopped(f"stopped at step {step}, {saved}", STOP_CODE, state)


def _settle(recorder: Recorder, pending: Sequence[tuple[int, int, Any]], checkpoints: Checkpoints | InMemory) -> None:
    """Waits for the metrics of calls and records them in order; stops the run if no member's loss is finite."""
    if not pending:
        return
    last, names = pending[-1][0], pending[0][2]
    # All calls at once: a few microseconds per step are a few per cent of a short one.
    metrics = {
        name: np.concatenate([np.asarray(call[name]).reshape(count, -1, 2) for _, count, call in pending])
        for name in names
    }
    losses = metrics["loss"][:, 0, 0]
    finite = np.isfinite(metrics["loss"][..., 0]).any(axis=1)
    good = len(losses) if finite.all() else int(np.argmin(finite))
    first = last - len(losses) + 1
    recorder.losses(first, metrics["loss"][..., 0])
    recorder.train(first + good - 1, {name: values[:good] for name, values in metrics.items()})
    if good < len(losses):
        raise _diverged("loss", float(losses[good]), first + good, checkpoints)


def _diverged(what: str, value: float, step: int, checkpoints: Checkpoints | InMemory) -> Diverged:
    checkpoints.wait()
    saved = checkpoints.steps()
    good = f"last good checkpoint: step {saved[-1]} in {checkpoints.folder}" if saved else "no checkpoint yet"
    return Diverged(
        f"error: the {what} is {value} at step {step} ({good}): lower `learning_rate`, or set `clip_norm` or "
        "`warmup_epochs` to 1",
        step,
    )


class StopRequest:
    """Makes the first Ctrl-C (or SIGTERM) stop the loop after the current step, and a second one at once.

    At once, a command ends the process, and the library raises KeyboardInterrupt: the process is the caller's.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and self._previous[signal.SIGINT] in (quit_at_once, interrupt):  # set by the commands
            quit_at_once(number, frame)  # safe, as writes are atomic; an exception would wait for the device and Orbax
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not print: the signal may arrive in the middle of one.
        os.write(2, b"\nstopping after this step and saving; press Ctrl-C again to stop at once\n")

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set signal handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
