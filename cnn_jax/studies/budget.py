"""How long a trial is: epochs, steps or seconds, all converted to steps, so that schedules know their length."""

import math
import re
import time
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import jax

from cnn_jax.errors import UserError
from cnn_jax.training.compiled import TrainStep
from cnn_jax.training.experiment import Experiment

MEASURED_SECONDS = 1.0
VALIDATIONS = 16  # of a trial, at most


class Budget(NamedTuple):
    """The length of a trial: an amount of "epochs", "steps" or "seconds"."""

    amount: float
    unit: str


def parse_budget(text: str) -> Budget:
    """Parses a length such as "3epochs", "500steps" or "60seconds".

    Raises:
        UserError: it is something else, or not more than 0.

    >>> parse_budget("2.5epochs")
    Budget(amount=2.5, unit='epochs')
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(epoch|step|second)s?", text) if isinstance(text, str) else None
    if match is None:
        raise UserError(f"`budget` is {text!r}: write a number and a unit together, as 3epochs, 500steps or 60seconds")
    budget = Budget(float(match[1]), f"{match[2]}s")
    if budget.amount <= 0 or (budget.unit == "steps" and not budget.amount.is_integer()):
        needed = "more than 0" if budget.amount <= 0 else "a whole number of steps"
        raise UserError(f"`budget` is {text}: it must be {needed}")
    return budget


def steps_of(budget: Budget, steps_per_epoch: float, seconds_per_step: float | None = None) -> int:
    """Converts a budget to steps; `seconds_per_step` is needed for seconds.

    >>> steps_of(Budget(2, "epochs"), 9.5), steps_of(Budget(60, "seconds"), 9.5, 0.25)
    (19, 240)
    """
    if budget.unit == "epochs":
        return max(1, math.ceil(round(budget.amount * steps_per_epoch, 6)))
    if budget.unit == "steps":
        return int(budget.amount)
    assert seconds_per_step is not None
    return max(1, int(budget.amount / seconds_per_step))


def usual_eval_every(steps: int, steps_per_epoch: float) -> float:
    """Epochs between validations, for up to `VALIDATIONS` of them in a trial: times to a target are as fine as that.

    >>> round(usual_eval_every(100, 10.0) * 10.0)
    7
    """
    return math.ceil(steps / VALIDATIONS) / steps_per_epoch


def measure_step(experiment: Experiment) -> float:
    """Measures the seconds of a training step, compilation and the first steps left out; writes nothing."""
    pipeline, plan, parallel = experiment.data["train"], experiment.plan, experiment.parallel
    step = TrainStep(experiment.train_step, pipeline, parallel, scan=plan.scan_steps > 1, say=lambda line: None)
    state, count = parallel.place(experiment.state), plan.next_chunk(0)
    with closing(pipeline.train_items(0)) as items:

        def run(calls: int) -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(calls):
                state, _ = step(state, list(islice(items, count)))
            jax.block_until_ready(state)
            return time.perf_counter() - start

        run(2)  # compiles
        calls = 2
        while (seconds := run(calls)) < MEASURED_SECONDS:
            calls *= 2
    return seconds / (calls * count)
