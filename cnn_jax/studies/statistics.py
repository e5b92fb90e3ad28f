"""The statistics of a comparison: functions of arrays, which know nothing of studies."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import gammaln

CONFIDENCE = 0.95
FEW = 5  # of fewer values, resampling finds little but their extremes
RESAMPLES = 9999
MOST = 4.0  # performance profiles end here: four times as slow as the fastest


class Interval(NamedTuple):
    """An estimate and its confidence interval; the bounds are NaN if there are too few values for one."""

    value: float
    low: float
    high: float

    def includes(self, value: float) -> bool:
        """Whether the interval includes a value; an interval without bounds includes every one.

        >>> Interval(1.0, 0.5, 1.5).includes(0.0), Interval(1.0, math.nan, math.nan).includes(0.0)
        (False, True)
        """
        return not (value < self.low or value > self.high)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Returns the mean of a sample and its interval by Student's t; NaN for no values."""
    count = len(values)
    if not count:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(np.mean(values))
    if count == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Returns the mean of a sample and its bootstrap interval, bias-corrected and accelerated (Efron 1987).

    Of few values it is too narrow: of five normal ones, it holds the true mean in about 84 % of cases instead of 95 %;
    of two, it is from one to the other. Equal values say nothing about their spread, so they have no interval, unless
    all are 0: then it is [0, 0].

    Args:
        values: the sample; of fewer than five the interval is NaN.
        confidence: the share of intervals that are to hold the true mean.
        seed: of the resampling.
    """
    if len(values) < 2:
        return mean_interval(values, confidence)
    mean = float(np.mean(values))
    if _equal(values):
        return Interval(mean, mean, mean) if mean == 0 else Interval(mean, math.nan, math.nan)
    if len(values) < FEW:
        return Interval(mean, math.nan, math.nan)
    found = stats.bootstrap(
        (np.asarray(values, np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def paired_p_value(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of the paired t-test that the mean difference is 0.

    NaN for fewer than two differences, and for equal ones other than 0, whose spread is not known.
    """
    count = len(differences)
    if count < 2:
        return math.nan
    if _equal(differences):
        return 1.0 if differences[0] == 0 else math.nan
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(count)
    return float(2 * stats.t.sf(abs(mean) / error, count - 1))


def _equal(values: Sequence[float]) -> bool:
    return float(np.ptp(values)) <= 1e-12 * float(np.max(np.abs(values)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number (Holm 1979); those that are NaN stay so, and do not count.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, math.nan])]
    [0.03, 0.06, 0.06, nan]
    """
    order = [i for i in np.argsort(p_values) if not math.isnan(p_values[i])]
    adjusted, most = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = most
    return adjusted


def median_time(times: Sequence[float]) -> float:
    """Returns the median of times of which some are infinite (the target was missed); NaN for no times.

    Of an even number with a finite and an infinite one in the middle, it is infinite.

    >>> median_time([3.0, math.inf, 1.0]), median_time([3.0, math.inf])
    (3.0, inf)
    """
    return float(np.median(times)) if len(times) else math.nan


def best_of(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the expected maximum of k values drawn without replacement from the N given, for k = 1, …, N: (N,).

    The i-th smallest is the largest of the drawn in C(i−1, k−1) of the C(N, k) draws, so this is a sum and no
    simulation (order statistics of a finite population). The values are finite.

    >>> best_of([3.0, 1.0, 2.0])
    array([2.        , 2.66666667, 3.        ])
    """
    count = len(values)
    ordered, i = np.sort(np.asarray(values, np.float64)), np.arange(1, count + 1)
    expected = np.empty(count)
    for k in range(1, count + 1):
        share = np.zeros(count)
        share[k - 1 :] = np.exp(_log_choose(i[k - 1 :] - 1, k - 1) - _log_choose(count, k))
        expected[k - 1] = share @ ordered
    return expected


def _log_choose(n: np.ndarray | int, k: int) -> np.ndarray:
    return gammaln(np.add(n, 1.0)) - gammaln(k + 1.0) - gammaln(np.subtract(n, k - 1.0))


def time_ratios(times_CxP: np.ndarray) -> np.ndarray:
    """Returns the times of C candidates on P problems, divided by the shortest on each problem: (C, P), at least 1.

    A time is infinite where the target was missed; a ratio is infinite there, also if every candidate missed it.
    """
    fastest_P = times_CxP.min(axis=0)
    reached = np.isfinite(times_CxP)
    ratios = np.where(reached & (times_CxP == fastest_P), 1.0, math.inf)  # also if the shortest time is 0
    return np.divide(times_CxP, fastest_P, out=ratios, where=reached & (fastest_P > 0))


def profile(ratios_P: np.ndarray, tau: np.ndarray | float) -> np.ndarray:
    """Returns ρ(τ), the share of problems on which a candidate's time is at most τ times the shortest.

    Dolan and Moré 2002, "Benchmarking optimization software with performance profiles". A missed problem
    counts at no τ.
    """
    return np.mean(np.asarray(ratios_P)[:, None] <= np.atleast_1d(tau), axis=0)


def profile_score(ratios_P: np.ndarray, most: float = MOST) -> float:
    """Returns B = 1/(most − 1) · ∫ ρ(τ) dτ from 1 to `most`, in [0, 1] (Dahl et al. 2023, "AlgoPerf", §4).

    ρ is a step function: a problem with the ratio r adds to it from r on, so its share of the integral is
    (most − r)/(most − 1), and nothing from `most` on.
    """
    return float(np.mean(np.clip((most - np.asarray(ratios_P)) / (most - 1), 0.0, 1.0)))


def running_quartiles(values: Sequence[float], reach: int = 2) -> np.ndarray:
    """Returns lower quartile, median and upper quartile of each value and its neighbours on both sides: (3, N).

    Args:
        values: in order; those that are NaN, of trials that diverged, count as less than every other (−∞).
        reach: how many neighbours on each side; fewer near the ends, where a side has fewer.

    >>> running_quartiles([1.0, 5.0, 2.0])[1]
    array([1., 2., 2.])
    """
    filled = np.nan_to_num(np.asarray(values, np.float64), nan=-math.inf)
    found = []
    for i in range(len(filled)):
        near = min(reach, i, len(filled) - 1 - i)
        own = np.sort(filled[i - near : i + near + 1])
        quarter = len(own) // 4
        found.append((own[quarter], own[near], own[-1 - quarter]))
    return np.array(found).reshape(-1, 3).T


def position(value: float, low: float, high: float, log: bool) -> float:
    """Returns where a value lies in its range: 0 at the lower end, 1 at the upper one.

    >>> round(position(0.01, 0.0001, 1.0, log=True), 12), position(3.0, 1.0, 5.0, log=False)
    (0.5, 0.5)
    """
    if high <= low:
        return 0.5
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)
