"""Search spaces: which hyperparameters of an optimizer are searched, and between which values.

They are data, so that a comparison can show them. All learning rates span four decades around that of the optimizer's
paper; the other ranges are what the paper tried or lets one choose.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from cnn_jax.config import OptimConfig, field_types
from cnn_jax.errors import UserError
from cnn_jax.optim.optimizers import get_optimizer_spec, make_optimizer

RATE, DECAY = "learning_rate", "weight_decay"


@dataclass(frozen=True)
class Parameter:
    """The range of a hyperparameter that is searched.

    Attributes:
        low: its smallest value.
        high: its largest value.
        log: whether it is drawn uniformly in its logarithm.
        complement: whether `low` and `high` are bounds of 1 − value, as for the decay rates of moving averages.
    """

    low: float
    high: float
    log: bool = True
    complement: bool = False

    def at(self, share: float) -> float:
        """Returns the value at a `share` in [0, 1] of the way from `low` to `high`, to six digits.

        >>> Parameter(1e-4, 1.0).at(0.25), Parameter(0.001, 0.1, complement=True).at(0.5)
        (0.001, 0.99)
        """
        low, high = (np.log([self.low, self.high])) if self.log else (self.low, self.high)
        drawn = low + share * (high - low)
        rounded = float(f"{np.exp(drawn) if self.log else drawn:.6g}")  # so that it can be typed again
        return round(1.0 - rounded, 12) if self.complement else rounded


Space = Mapping[str, Parameter]
Ranges = Mapping[str, Parameter | tuple[float, float]]  # lowest and highest value


def _rate(usual: float) -> Parameter:
    return Parameter(usual / 100, usual * 100)


def _forgets(low: float, high: float) -> Parameter:
    """The range of 1 − the decay rate of a moving average."""
    return Parameter(low, high, complement=True)


# Sutskever et al. 2013 try momentum 0, 0.9, 0.99, 0.995 and 0.999.
_MOMENTUM = {"momentum": _forgets(1e-3, 1.0)}
# Kingma & Ba 2015, section 6.4, try β₁ of 0 and 0.9, and β₂ of 0.99, 0.999 and 0.9999, with rates of 1e-5 to 1e-1.
_BETAS = {"b1": _forgets(1e-2, 1.0), "b2": _forgets(1e-4, 1e-2)}
# Papers leave ε small; Choi et al. 2019 show that a larger one can matter, up to where Adam becomes momentum.
_EPSILON = {"eps": Parameter(1e-10, 1e-3)}
# Loshchilov & Hutter 2019 decouple the decay, so that it can be tuned apart from the rate.
_DECAY = {"weight_decay": Parameter(1e-4, 1e-1)}

_DESCENT: Space = {RATE: _rate(0.01)}
_ADAM: Space = {RATE: _rate(0.001), **_BETAS, **_EPSILON}
SPACES: dict[str, Space] = {
    "gradient_descent": _DESCENT,
    "sgd": _DESCENT,
    "momentum": {RATE: _rate(0.01), **_MOMENTUM},
    "nesterov": {RATE: _rate(0.01), **_MOMENTUM},
    # Duchi et al. 2011 leave only the rate free; δ is there for the first steps.
    "adagrad": {RATE: _rate(0.01)},
    # Zeiler 2012, table 2: ρ of 0.9, 0.95 and 0.99, ε of 1e-8 to 1e-2.
    "adadelta": {RATE: _rate(1.0), "rho": _forgets(1e-2, 1e-1), "eps": Parameter(1e-8, 1e-2)},
    # Tieleman & Hinton 2012 average over about ten steps.
    "rmsprop": {RATE: _rate(0.001), "decay": _forgets(1e-3, 1.0), **_EPSILON},
    "adam": _ADAM,
    "adamax": {RATE: _rate(0.002), **_BETAS},  # algorithm 2 has no ε
    "nadam": {RATE: _rate(0.002), **_BETAS, **_EPSILON},
    "adamw": {**_ADAM, **_DECAY},
    # Zhuang et al. 2020: β as Adam's; ε is added to a smaller quantity, hence from 1e-16 on.
    "adabelief": {RATE: _rate(0.001), **_BETAS, "eps": Parameter(1e-16, 1e-3)},
    # Chen et al. 2023: β₁ of 0.9 and 0.95, β₂ of 0.99 and 0.98; a decay 3 to 10 times that of AdamW.
    "lion": {
        RATE: _rate(0.0001),
        "b1": _forgets(1e-2, 1.0),
        "b2": _forgets(1e-3, 1e-1),
        "weight_decay": Parameter(1e-3, 1.0),
    },
    # You et al. 2020: β as Adam's, rates of some thousandths, decay.
    "lamb": {RATE: _rate(0.002), **_BETAS, **_DECAY},
    # You et al. 2017: momentum 0.9; the rate is multiplied by a trust coefficient of 0.001.
    "lars": {RATE: _rate(1.0), **_MOMENTUM, "trust_coefficient": Parameter(1e-4, 1e-2)},
    # Zaheer et al. 2018: ε of 1e-3, larger than Adam's.
    "yogi": {RATE: _rate(0.01), **_BETAS, "eps": Parameter(1e-5, 1e-1)},
    # Jordan et al. 2024: momentum 0.95.
    "muon": {RATE: _rate(0.02), "beta": _forgets(1e-3, 1.0)},
}


def space_of(name: str) -> Space:
    """Returns the search space of an optimizer.

    An optimizer that `SPACES` does not list is searched in its rate alone: over four decades around its usual rate, or
    else from 1e-5 to 1. A ready-made transformation has nothing to search.

    Args:
        name: see `get_optimizer_spec`.

    Raises:
        UserError: there is no such optimizer.
    """
    if name in SPACES:
        return SPACES[name]
    method = get_optimizer_spec(name)
    if method.ready_made:
        return {}
    usual = method.learning_rate
    return {RATE: Parameter(1e-5, 1.0) if usual is None else _rate(usual)}


def widened(name: str, ranges: Ranges) -> Space:
    """Returns the search space of an optimizer with ranges of one's own, which replace declared ones or add to them.

    Args:
        name: see `get_optimizer_spec`.
        ranges: by argument; "learning_rate" and "weight_decay", too. See `range_between` for the scale of a pair.

    Raises:
        UserError: a range is empty, or the optimizer has no such argument or does not take its ends.
    """
    if ranges and get_optimizer_spec(name).ready_made:
        raise UserError(f"`spaces`: {name} is already built, so nothing of it can be searched: name a factory")
    found = dict(space_of(name))
    for argument, given in ranges.items():
        found[argument] = parameter = given if isinstance(given, Parameter) else range_between(argument, given)
        low, high = parameter.low, parameter.high
        if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not parameter.log)):
            bounds = "0 < low < high" if parameter.log else "low < high"
            raise UserError(f"`spaces`: {argument} of {name} has the range {low:g} to {high:g}: it must be {bounds}")
        for end in (parameter.at(0.0), parameter.at(1.0)):
            _check_value(name, argument, end)
    return found


def range_between(argument: str, ends: object) -> Parameter:
    """Returns the range of a hyperparameter from its lowest to its highest value, on the scale that suits it.

    Decay rates of moving averages are drawn uniformly in log(1 − value), other values in their logarithm, or evenly if
    the lowest is 0 or less.

    Raises:
        UserError: the ends are not two numbers, the first below the second.

    >>> range_between("b1", (0.5, 0.99)) == Parameter(0.01, 0.5, complement=True)
    True
    >>> range_between("eps", (1e-9, 1)).log, range_between("eps_root", (0, 1)).log
    (True, False)
    """
    numbers = list(ends) if isinstance(ends, tuple | list) else []
    if len(numbers) != 2 or not all(isinstance(of, int | float) and math.isfinite(of) for of in numbers):
        raise UserError(f"`spaces` gives {ends!r} for {argument}: give its lowest and highest value, as in (1e-5, 0.1)")
    low, high = map(float, numbers)
    if low >= high:
        raise UserError(f"`spaces`: {argument} has the range {low:g} to {high:g}: the first must be below the second")
    if argument in _DECAY_RATES:
        if not 0 <= low < high < 1:
            raise UserError(f"`spaces`: {argument} has the range {low:g} to {high:g}: it must be in [0, 1)")
        return Parameter(round(1 - high, 12), round(1 - low, 12), complement=True)
    return Parameter(low, high, log=low > 0)


_DECAY_RATES = {name for space in SPACES.values() for name, of in space.items() if of.complement}


def _check_value(name: str, argument: str, value: float) -> None:
    """Rejects a value that an optimizer does not take, and an argument that it does not have."""
    if argument in (RATE, DECAY):
        if value < 0 or (value == 0 and argument == RATE):
            limit = "more than 0" if argument == RATE else "0 or more"
            raise UserError(f"`spaces`: {argument} of {name} reaches {value:g}: it must be {limit}")
        return
    if argument in field_types():
        raise UserError(f"`spaces`: {argument} is a setting of its own, not an argument of {name}: drop it")
    usual = get_optimizer_spec(name).learning_rate
    config = OptimConfig(optimizer=name, optimizer_args=(f"{argument}={value!r}",), learning_rate=usual or 0.1)
    try:
        make_optimizer(config, total_steps=1)
    except UserError as error:
        raise UserError(f"`spaces`: {str(error).removeprefix('`optimizer_args`: ')}") from error


def sobol_points(dimensions: int, count: int, seed: int) -> np.ndarray:
    """Draws the first `count` points of a scrambled Sobol sequence: float64 (count, dimensions) in [0, 1).

    Sobol (1967), scrambled as by Owen (1998): every range is covered evenly, whatever the number of others.
    """
    sequence = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    return sequence.random_base2((count - 1).bit_length())[:count]  # its balance holds for powers of 2
