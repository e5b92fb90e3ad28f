"""What a comparison shows, in words: who is best and by how much, and what a reader must beware of."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cnn_jax.errors import counted
from cnn_jax.optim.spaces import RATE
from cnn_jax.studies import statistics, tables
from cnn_jax.studies.outcome import Outcome, baseline_of, finished, outcomes, paired, shown, sign, times, trials
from cnn_jax.studies.statistics import FEW, Interval
from cnn_jax.studies.study import Candidate, Parameter, Study, Trial

EDGE = 0.05  # of the range of a hyperparameter
BEYOND = 10  # a range is widened to this factor
SIGNIFICANT = 1 - statistics.CONFIDENCE
CLOCK = 0.1  # seconds are a budget that is kept to within 10 %


def headline(study: Study) -> str:
    """Says which candidate is best and by how much, or that no difference is shown; of an unfinished study, its state.

    The best two are those of `outcomes`, ranked by validation; their difference is that of the test set.
    """
    ranked = [found for found in outcomes(study) if found.finals]
    if not finished(study):
        search = sum(trial.phase == "search" for trial in study.trials)
        final = len(study.trials) - search
        count = len(study.candidates)
        planned = sum(candidate.searches(study.points) for candidate in study.candidates)
        leader = outcomes(study)[0]
        ahead = f" {leader.candidate} has the best validation so far." if leader.best and count > 1 else ""
        return (
            f"Unfinished: {search} of {counted(planned, 'search trial')} and {final} of "
            f"{counted(count * study.seeds, 'final run')} are done.{ahead}"
        )
    if not any(found.best for found in outcomes(study)):
        return "Every search trial diverged: nothing can be said. Lower the learning rates."
    if not ranked:
        return "Every final run diverged: nothing can be said. Lower the learning rates."
    best = ranked[0]
    name, metric = study.selection.metric.replace("_", " "), shown(study)
    if math.isnan(best.test.value):
        value = metric.text(best.validation.value)
        return f"{best.candidate} is best by validation, with {name} {value}; there are no results on the test set."
    result = f"{best.candidate} has a test {name} of {metric.text(best.test.value)}"
    if len(ranked) == 1:
        others = [found.candidate for found in outcomes(study) if not found.finals]
        return f"{result}; all others diverged: {', '.join(others)}." if others else f"{result}."
    second = ranked[1].candidate
    between, p_value = compare(study, best.candidate, second)
    by = _difference(study, between, p_value, len(paired(study, best.candidate, second)))
    if not is_shown(between, p_value):
        return (
            f"No difference is shown between {best.candidate} and {second}, the best two by validation: {by}. {result}."
        )
    direction = "better" if sign(study) * between.value > 0 else "worse on the test set"
    return f"{best.candidate} is best by validation, and {direction} than {second}, the second: {by}. {result}."


def compare(study: Study, label: str, other: str) -> tuple[Interval, float]:
    """Returns the mean difference of two candidates' test metrics over seeds with its interval, and its p-value."""
    differences = paired(study, label, other)
    return statistics.bootstrap_interval(differences), statistics.paired_p_value(differences)


def is_shown(difference: Interval, p_value: float) -> bool:
    """Whether a difference is shown: by its bootstrap interval, which is narrow for few seeds, and by its p-value."""
    return not difference.includes(0.0) and p_value < SIGNIFICANT


def warnings(study: Study) -> list[str]:
    """Returns what a reader must beware of, one sentence each: those of the study, then those seen in its results."""
    found = outcomes(study)
    return [
        *study.warnings,
        *_seeds(study),
        *_baseline(study),
        *_target(study),
        *_budgets(study),
        *(sentence for outcome in found for sentence in _diverged(study, outcome)),
        *(sentence for outcome in found for sentence in _edges(study, outcome)),
        *_equal(study, found),
    ]


def _seeds(study: Study) -> Iterator[str]:
    if study.seeds < FEW:
        yield (
            f"{counted(study.seeds, 'seed')} a candidate: fewer than {FEW} say little about the spread, so "
            "differences have no interval."
        )


def _baseline(study: Study) -> Iterator[str]:
    first, baseline = study.candidates[0].label, baseline_of(study)
    if baseline != first:
        yield (
            f"No search trial of {first} finished, so {baseline} is the baseline: differences are from it, and it sets "
            "the target if none was given."
        )


def _target(study: Study) -> Iterator[str]:
    reached = times(study, study.trials, "steps")
    if finished(study) and reached and all(map(math.isinf, reached)):
        yield (
            f"No trial reached the target, a validation {study.selection.metric.replace('_', ' ')} of "
            f"{shown(study).text(study.target or 0.0)}: all times are ∞. Set an easier target or a longer budget."
        )


def _budgets(study: Study) -> Iterator[str]:
    labels = [candidate.label for candidate in study.candidates]
    if finished(study):
        tried = {label: len(trials(study, label, "search")) for label in labels}
        if len(set(tried.values())) > 1:
            yield f"Numbers of search trials differ: {_list(tried)}. More trials find better settings."
    unit = study.budget.lstrip("0123456789. _")
    lengths: dict[str, float] = {}
    for label in labels:
        own = [trial for trial in study.trials if trial.candidate == label and trial.status == "finished"]
        known = [length for trial in own if (length := _length(trial, unit)) is not None]
        if known:
            lengths[label] = float(np.median(known))
    most = max(lengths.values(), default=0.0)
    if most > (1 + (CLOCK if unit == "seconds" else 1e-3)) * min(lengths.values(), default=0.0):
        yield f"Budgets differ, in {unit}: {_list({label: f'{length:.4g}' for label, length in lengths.items()})}."


def _length(trial: Trial, unit: str) -> float | None:
    """The length of a trial in steps, seconds or epochs; None if it is not known."""
    if unit == "steps":
        return float(trial.steps)
    if unit == "seconds":
        return trial.seconds if trial.together == 1 else None
    return float(trial.rows[-1]["epoch"]) if trial.rows and "epoch" in trial.rows[-1] else None


def _diverged(study: Study, found: Outcome) -> Iterator[str]:
    if found.searched and 2 * found.diverged > found.searched:
        many = f"{found.diverged} of {counted(found.searched, 'search trial')} of {found.candidate} diverged"
        if RATE in _candidate(study, found.candidate).space:
            yield f"{many}: its range of learning rates reaches too high."
        else:
            yield f"{many}: lower its learning rate."
    if found.lost:
        yield (
            f"{found.lost} of {counted(found.finals + found.lost, 'final run')} of {found.candidate} diverged: its "
            "means are over the others, and it is ranked after candidates without."
        )


def _candidate(study: Study, label: str) -> Candidate:
    return next(candidate for candidate in study.candidates if candidate.label == label)


def _edges(study: Study, found: Outcome) -> Iterator[str]:
    if found.best is None:
        return
    space = _candidate(study, found.candidate).space
    for name, (place, low, high) in places(found.best.settings, space).items():
        value, extreme = found.best.settings[name], _extreme(study, found, name)
        upper = place > 1 - EDGE or extreme == "largest"
        if not (upper or place < EDGE or extreme) or (not upper and low == 0):  # 0 is no end that could be widened
            continue
        where = f"lies at the {'upper' if upper else 'lower'} end of its range, {low:g} to {high:g}"
        if EDGE <= place <= 1 - EDGE:
            where = f"is the {extreme} that was tried in its range, {low:g} to {high:g}"
        yield (
            f"The best {name} of {found.candidate}, {tables.setting(value)}, {where}: a better one may lie beyond. "
            f"Widen it (--spaces {_optimizer(study, found.candidate)}:{name}={_wider(space[name], upper)})."
        )


def _extreme(study: Study, found: Outcome, name: str) -> str | None:
    """Whether the best learning rate is the "smallest" or "largest" of all that were tried, diverged trials included.

    Few points come near enough to an end to be seen by `EDGE`. Other hyperparameters matter less, so that chance makes
    many of the best ones extreme. Two values are both extreme.
    """
    assert found.best is not None
    tried = {trial.settings[name] for trial in trials(study, found.candidate, "search") if name in trial.settings}
    if name != RATE or len(tried) < 3:
        return None
    return {min(tried): "smallest", max(tried): "largest"}.get(found.best.settings[name])


def _optimizer(study: Study, label: str) -> str:
    """The optimizer of a candidate, as `spaces` names it."""
    return str(_candidate(study, label).fields.get("optimizer", study.facts.get("optimizer", "OPTIMIZER")))


def _wider(parameter: Parameter, upper: bool) -> str:
    """The range that reaches further at one end, as `spaces` takes it."""
    low, high = parameter.low, parameter.high
    if upper != parameter.complement:
        high = high * BEYOND if parameter.log else high + (high - low)
    else:
        low = low / BEYOND if parameter.log else max(0.0, low - (high - low))
    low, high = (1 - min(high, 1.0), 1 - low) if parameter.complement else (low, high)
    return f"{low:.12g}..{high:.12g}"


def places(settings: Mapping[str, Any], space: Mapping[str, Parameter]) -> dict[str, tuple[float, float, float]]:
    """Returns where each hyperparameter lies in its range, from 0 to 1, and the ends of the range."""
    found = {}
    for name, parameter in space.items():
        value, low, high = settings.get(name), parameter.low, parameter.high
        if not isinstance(value, int | float):
            continue
        if parameter.complement:
            found[name] = (1 - statistics.position(1 - value, low, high, parameter.log), 1 - high, 1 - low)
        else:
            found[name] = (statistics.position(value, low, high, parameter.log), low, high)
    return found


def _equal(study: Study, found: Sequence[Outcome]) -> Iterator[str]:
    baseline = baseline_of(study)
    others = [
        outcome for outcome in found if outcome.candidate != baseline and not math.isnan(outcome.difference.value)
    ]
    equal = [outcome.candidate for outcome in others if not is_shown(outcome.difference, outcome.p_value)]
    if equal:
        yield f"No difference from {baseline} is shown for {', '.join(equal)}."


def _difference(study: Study, found: Interval, p_value: float, pairs: int) -> str:
    """Such as "0.12 points of test accuracy, 95 % interval 0.02 to 0.21, p = 0.012, 5 seeds"."""
    name, metric = study.selection.metric.replace("_", " "), shown(study)
    text = tables.difference(found, metric)
    unit = f"points of test {name}" if metric.percent else f"of test {name}"
    value, _, bounds = text.partition(" ")
    within = f", {100 * statistics.CONFIDENCE:.0f} % interval {bounds}" if bounds else ""
    p = tables.p_value(p_value)
    p = "" if p == "–" else f", p {p}" if "<" in p else f", p = {p}"
    return f"{value} {unit}{within}{p}, {counted(pairs, 'seed')}"


def _list(values: Mapping[str, object]) -> str:
    return ", ".join(f"{label} {value}" for label, value in values.items())
