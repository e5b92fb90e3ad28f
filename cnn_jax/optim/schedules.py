"""Learning-rate schedules: pure functions from training progress in [0, 1] to a factor of the peak rate."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.arguments import parse_arguments
from cnn_jax.errors import UserError, unknown

Schedule = Callable[[int | jax.Array], jax.Array]


def constant(progress: jax.Array) -> jax.Array:
    """The peak rate throughout."""
    return jnp.ones_like(progress)


def step(progress: jax.Array, *, boundaries: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1) -> jax.Array:
    """Multiplies the rate by `factor` at each boundary, a fraction of training (He et al. 2016, §4.2: 1/2, 3/4)."""
    if not all(0 <= boundary <= 1 for boundary in boundaries):
        raise UserError(
            f"boundaries={'/'.join(map(str, boundaries))} are not all in [0, 1]: give fractions of training"
        )
    if factor <= 0:
        raise UserError(f"factor={factor} for step is not above 0: raise it")
    passed = sum(
        (progress + 1e-6 >= boundary).astype(jnp.float32)  # float32 must not put a boundary off by a step
        for boundary in boundaries
    )
    return jnp.asarray(factor, jnp.float32) ** passed


def cosine(progress: jax.Array, *, final: float = 0.0) -> jax.Array:
    """Cosine decay from 1 to `final` (Loshchilov & Hutter 2017, eq. 5, without restarts)."""
    _not_negative("cosine", final=final)
    return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(np.pi * progress))


def one_cycle(progress: jax.Array, *, peak: float = 0.3, initial: float = 0.04, final: float = 0.0) -> jax.Array:
    """Triangle: linear from `initial` up to 1 at the fraction `peak`, linear down to `final` (Smith 2018).

    The first step uses `initial`, since a rate of 0 would waste it. 1/25 is the default of PyTorch and Optax.
    `final` is reached after the last step.
    """
    if not 0 < peak < 1:
        raise UserError(f"peak={peak} for one_cycle is not between 0 and 1: give a fraction of training")
    _not_negative("one_cycle", initial=initial, final=final)
    up = initial + (1.0 - initial) * progress / peak
    down = 1.0 - (1.0 - final) * (progress - peak) / (1.0 - peak)
    return jnp.where(progress < peak, up, down)


def exponential(progress: jax.Array, *, final: float = 0.01) -> jax.Array:
    """Geometric decay from 1 to `final` at the end."""
    if final <= 0:
        raise UserError(f"final={final} for exponential is not above 0: raise it")
    return jnp.asarray(final, jnp.float32) ** progress


def _not_negative(owner: str, **factors: float) -> None:
    """Rejects negative factors, which would climb the loss."""
    for name, factor in factors.items():
        if factor < 0:
            raise UserError(f"{name}={factor} for {owner} is negative: set it to 0 or more")


SCHEDULES: dict[str, Callable[..., jax.Array]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "triangular": one_cycle,  # another common name for it
    "exponential": exponential,
}


def make_schedule(
    name: str, args: Sequence[str] = (), *, peak: float, warmup_steps: int = 0, total_steps: int
) -> Schedule:
    """Builds `schedule(step) -> learning rate` (float32 scalar): linear warm-up, then the named schedule.

    Args:
        name: a key of `SCHEDULES`.
        args: its arguments, each key=value; parts of a tuple are separated by "/".
        peak: the rate that the factors multiply.
        warmup_steps: before this step the rate is peak·(step + 1)/(warmup_steps + 1), never 0.
        total_steps: the schedule runs from warmup_steps to this step, then stays at its final value.

    Raises:
        UserError: an unknown name or argument, a value out of range, or a warm-up as long as the run.

    >>> schedule = make_schedule("cosine", ["final=0.1"], peak=2.0, warmup_steps=10, total_steps=110)
    >>> tuple(round(float(schedule(step)), 3) for step in (0, 4, 10, 60, 110))
    (0.182, 0.909, 2.0, 1.1, 0.2)
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    shape = SCHEDULES[name]
    values = parse_arguments(f"schedule {name}", shape, args, hidden=["progress"])
    if warmup_steps and warmup_steps >= total_steps:
        raise UserError(
            f"the warm-up of {warmup_steps} steps is not shorter than the run of {total_steps}: "
            "lower `warmup_epochs` or train for longer"
        )
    span = max(1, total_steps - warmup_steps)

    def schedule(step: int | jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        factor = shape(jnp.clip((step - warmup_steps) / span, 0.0, 1.0), **values)
        return peak * jnp.where(step < warmup_steps, (step + 1.0) / (warmup_steps + 1.0), factor)

    jax.eval_shape(schedule, 0)  # find out-of-range values now, not when training starts
    return schedule
