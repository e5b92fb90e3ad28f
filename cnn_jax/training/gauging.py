"""Reads the gauges of a run: at its start and at each validation, on the first batch of its training order."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import numpy as np

from cnn_jax.data.pipeline import Pipeline
from cnn_jax.optim.optimizers import is_gradient_descent
from cnn_jax.training.compiled import compile_for_batch
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.gauges import Gauges, largest_eigenvalue
from cnn_jax.training.members import gauge_members
from cnn_jax.training.record import rates_of
from cnn_jax.training.state import TrainState, Tree


class GaugeReader:
    """Gauges of the states of a run: `step, rows = reader(state)`.

    The batch is always the first of the training order: the same at each point, and the same when a run is resumed.

    Args:
        experiment: the run.
        say: prints how long compiling took.
    """

    def __init__(self, experiment: Experiment, say: Callable[[str], None] = print):
        self._parallel, self._say, members = experiment.parallel, say, experiment.config.train.members
        self._shape = () if members == 1 else (members,)
        self._apart = experiment.config.compares_rates
        gauges = experiment.gauges if members == 1 else gauge_members(experiment.gauges)
        self._direction, (self._measure, self._step) = gauges.direction, _programs(gauges)
        self._batch = self._parallel.place_item(_first_batch(experiment.data["train"]))
        self._limits, self._last = _stability_limits(experiment), experiment.plan.total_steps
        self._compiled: tuple[Any, Any] | None = None

    def prepare(self, state: TrainState) -> None:
        """Compiles, if that has not been done, so that it can be left out of a time."""
        if self._compiled is None:
            start = time.perf_counter()
            measure = compile_for_batch(self._parallel, self._measure, state, self._batch)
            vector = jax.eval_shape(self._direction, state)
            at = (state, vector, np.zeros(self._shape, np.float32))
            step = compile_for_batch(self._parallel, self._step, at, self._batch)
            self._compiled = measure, step
            self._say(f"gauges     compiled in {time.perf_counter() - start:.1f} s")

    def __call__(self, state: TrainState) -> tuple[int, list[dict[str, float]]]:
        """Returns the step, and the gauges of each network that is kept apart; of a committee, the means over it.

        Beside those of `make_gauges`, of which "update_ratio" is left out after the last step, "sharpness" is the
        largest eigenvalue of the Hessian, "sharpness_error" the residual of its power iteration as a share of it and,
        for gradient descent, "stability_limit" is 2 ÷ the learning rate of the next step.
        """
        self.prepare(state)
        assert self._compiled is not None
        measure, step = self._compiled
        vector, measured = measure(state, {}, self._batch)

        def power_step(vector: Tree, shift: np.ndarray) -> tuple[Tree, Any, Any]:
            vector, (value, residual) = step((state, vector, shift), {}, self._batch)
            return vector, value, residual

        value, residual = largest_eigenvalue(power_step, vector, shape=self._shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {**jax.device_get(measured), "sharpness": value, "sharpness_error": residual / np.abs(value)}
        at = int(np.max(jax.device_get(state.step)))  # the members' are equal
        if self._limits is not None:
            found["stability_limit"] = self._limits[..., min(at, self._last - 1)]
        if at == self._last:  # no update follows, and many schedules have ended at a rate of 0
            found = {name: value for name, value in found.items() if not name.startswith("update_ratio/")}
        each = {name: np.asarray(values, np.float64).reshape(-1) for name, values in found.items()}
        if not self._apart:
            return at, [{name: float(values.mean()) for name, values in each.items()}]
        return at, [{name: float(values[i]) for name, values in each.items()} for i in range(*self._shape)]


def _programs(gauges: Gauges) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two programs of a reading, in the form of `compile_for_batch`."""

    def measure(state: TrainState, batch: Any) -> tuple[Tree, Tree]:
        return gauges.direction(state), gauges.measure(state, batch)

    def step(at: tuple[TrainState, Tree, Any], batch: Any) -> tuple[Tree, Tree]:
        vector, *found = gauges.power_step(*at, batch)
        return vector, tuple(found)

    return measure, step


def _first_batch(pipeline: Pipeline) -> dict[str, np.ndarray]:
    with closing(pipeline.train_items()) as items:
        # Copies: a reader reuses its memory.
        return {name: np.array(rows) for name, rows in pipeline.gather(pipeline.arrays, next(items)).items()}


def _stability_limits(experiment: Experiment) -> np.ndarray | None:
    """2 ÷ learning rate of every step, (steps,), or of each of M compared networks, (M, steps); None if not known."""
    optim, schedule = experiment.config.optim, experiment.optimizer.schedule
    if schedule is None or not is_gradient_descent(optim):
        return None
    rates = rates_of(schedule, experiment.plan.total_steps).astype(np.float64)
    if peaks := optim.member_learning_rates:
        rates = np.multiply.outer(np.divide(peaks, peaks[0]), rates)
    with np.errstate(divide="ignore"):
        limits = 2 / rates
    return limits if experiment.config.compares_rates else limits.reshape(-1)
