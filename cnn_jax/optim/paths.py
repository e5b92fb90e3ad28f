"""Paths of optimizers on surfaces of two variables, at rates chosen for all by one rule.

An optimizer is one of `make_optimizer`, so that what is drawn is what trains. Arithmetic is in float64 on the CPU,
whatever JAX's settings, so that a picture does not depend on the accelerator.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError
from cnn_jax.optim.optimizers import check_update, get_optimizer_spec, make_optimizer
from cnn_jax.optim.surfaces import Surface, get_surface

CLASSICS = (
    "gradient_descent", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamax", "nadam",
)  # fmt: skip
STEPS, MOST_STEPS = 100, 100_000
# Eight rates a decade from 1e-5 to 1e3. Wide, because AdaDelta's natural rate is a thousand times Adam's; the same for
# all, so that no optimizer is favoured by its own grid.
RATES = np.logspace(-5, 3, 65)
EQUAL = 1e-12
RULE = "of 65 rates from 0.00001 to 1000, the one with the lowest mean of f over the last tenth of the steps shown"


@dataclass(frozen=True)
class Path:
    """The path of one optimizer.

    Attributes:
        optimizer: its name, and its arguments if any were given.
        learning_rate: None if the optimizer is a ready-made transformation, which has its own.
        chosen: whether the rate was chosen from `RATES`.
        points: (steps + 1, 2) from the start on; infinite or NaN once it has diverged.
        values: (steps + 1,) of f at these points.
    """

    optimizer: str
    learning_rate: float | None
    chosen: bool
    points: np.ndarray
    values: np.ndarray

    @property
    def at_edge(self) -> bool:
        """Whether the rate was chosen, and a rate beyond the ends of `RATES` might be better."""
        return self.chosen and self.learning_rate in (RATES[0], RATES[-1])

    @property
    def diverged_at(self) -> int | None:
        """The first step at which the point or f is not finite."""
        bad = ~(np.isfinite(self.points).all(axis=1) & np.isfinite(self.values))
        return int(np.argmax(bad)) if bad.any() else None


@dataclass(frozen=True)
class Race:
    """Several optimizers on one surface.

    Attributes:
        surface: the surface.
        start: where all paths begin.
        steps: number of updates of each.
        paths: one per optimizer.
    """

    surface: Surface
    start: tuple[float, float]
    steps: int
    paths: Sequence[Path]


def path(
    optimizer: str | OptimConfig,
    surface: str | Surface,
    start: tuple[float, float] | None = None,
    steps: int = STEPS,
) -> np.ndarray:
    """Returns the points that an optimizer visits.

    Args:
        optimizer: a name as for `make_optimizer`, at its paper's rate, or a config with any rate, arguments, schedule.
        surface: a key of `SURFACES`, or your own.
        start: default: the surface's.
        steps: number of updates.

    Returns:
        float64 (steps + 1, 2), the start first; not finite once it has diverged.

    Raises:
        UserError: an unknown name or wrong argument, or an optimizer that needs more than gradients.

    >>> path("gradient_descent", "bowl", start=(1, 0), steps=2).round(4)[:, 0].tolist()  # 0.99ᵗ
    [1.0, 0.99, 0.9801]
    """
    config = _config(optimizer)
    return _points(config, _surface(surface), start, steps, None)[0]


def race(
    surface: str | Surface,
    optimizers: Sequence[str | OptimConfig] = CLASSICS,
    learning_rates: Mapping[str, float] = {},
    start: tuple[float, float] | None = None,
    steps: int = STEPS,
) -> Race:
    """Runs optimizers from one start, each at the rate of `RATES` that leaves it lowest.

    That is the rate with the lowest mean of f over the last tenth of the steps: those shown, so that no optimizer is
    tuned for a shorter run, and a mean, because one that leaps about may be low at the very last step by luck. Means
    that differ by less than 1e-12 of f at the start are equal; of equal rates, the lowest is chosen.

    Args:
        surface: a key of `SURFACES`, or your own.
        optimizers: names as for `make_optimizer`, or configs; a config with a rate keeps it.
        learning_rates: rates that are given rather than chosen, by name of the optimizer.
        start: default: the surface's.
        steps: number of updates.

    Raises:
        UserError: as `path`; a start outside the picture; more than `MOST_STEPS`; a rate for an optimizer that does
            not take part.
    """
    surface = _surface(surface)
    start = surface.start if start is None else start
    if not surface.contains(np.asarray(start, np.float64)):
        (left, right), (low, high) = surface.x_range, surface.y_range
        x, y = start
        raise UserError(
            f"`start` {x:g},{y:g} is outside the picture of {surface.name}: set x between {left:g} and {right:g}, "
            f"y between {low:g} and {high:g}"
        )
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"`steps` is {steps}: set it between 1 and {MOST_STEPS}")
    configs = [_config(optimizer) for optimizer in optimizers]
    names = [config.optimizer for config in configs]
    if strangers := sorted(set(learning_rates) - set(names)):
        raise UserError(f"`learning_rate` is set for {strangers[0]}, which does not take part: add it to `optimizers`")
    rated = [replace(c, learning_rate=learning_rates.get(c.optimizer, c.learning_rate)) for c in configs]
    return Race(surface, start, steps, [_best(config, surface, start, steps) for config in rated])


def _best(config: OptimConfig, surface: Surface, start: tuple[float, float], steps: int) -> Path:
    """The path at the config's rate, or else at the best of `RATES`."""
    searched = config.learning_rate is None and _takes_rate(config.optimizer)
    points = _points(config, surface, start, steps, RATES if searched else None)
    with _double():
        values = np.asarray(surface.at(jnp.asarray(points)))
    name = " ".join([config.optimizer, *config.optimizer_args])
    if not searched:
        return Path(name, config.learning_rate, False, points[0], values[0])
    late = values[:, -max(1, steps // 10) :].mean(axis=1)
    late = np.where(np.isfinite(late), late, np.inf)
    best = int(np.argmax(late <= late.min() + EQUAL * abs(values[0, 0])))
    return Path(name, float(RATES[best]), True, points[best], values[best])


def _points(
    config: OptimConfig, surface: Surface, start: tuple[float, float] | None, steps: int, rates: np.ndarray | None
) -> np.ndarray:
    """Runs an optimizer at each of R rates, or at its own: (R, steps + 1, 2)."""
    if rates is not None:
        config = replace(config, learning_rate=float(rates[0]))  # some have no usual rate
    optimizer = make_optimizer(config, total_steps=steps)
    gradient = jax.grad(surface.at)

    def run(tx: optax.GradientTransformation, start: jax.Array) -> Any:
        def step(carry, _):
            w, state = carry
            update, state = tx.update(gradient(w), state, w)
            w = optax.apply_updates(w, update)
            return (w, state), w

        return jax.lax.scan(step, (start, tx.init(start)), None, length=steps)[1]

    with _double():
        first = jnp.asarray(surface.start if start is None else start, jnp.float64)
        check_update(optimizer, first)
        if rates is None:
            after = jax.jit(lambda start: run(optimizer.tx, start)[None])(first)
        else:
            at_rates = jax.vmap(lambda rate, start: run(optimizer.at(rate), start), in_axes=(0, None))
            after = jax.jit(at_rates)(jnp.asarray(rates), first)
        return np.concatenate([np.broadcast_to(first, (len(after), 1, 2)), after], axis=1)


@contextmanager
def _double() -> Iterator[None]:
    """Float64 on the CPU, in this thread only; on the default device if JAX_PLATFORMS leaves the CPU out."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        cpu = None
    with jax.enable_x64(True), jax.default_device(cpu):
        yield


def _config(optimizer: str | OptimConfig) -> OptimConfig:
    return OptimConfig(optimizer=optimizer) if isinstance(optimizer, str) else optimizer


def _surface(surface: str | Surface) -> Surface:
    return get_surface(surface) if isinstance(surface, str) else surface


def _takes_rate(name: str) -> bool:
    return "learning_rate" in inspect.signature(get_optimizer_spec(name).factory).parameters
