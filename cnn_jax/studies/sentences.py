"""What a comparison shows, in words: who is best and by how much, and what a reader must beware of."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cnn_jax.studies import statistics, tables
from cnn_jax.studies.outcome import Outcome, finished, outcomes, paired, shown, sign, times, trials
from cnn_jax.studies.statistics import Interval
from cnn_jax.studies.study import Parameter, Study, Trial

EDGE = 0.05  # of the range of a hyperparameter
FEW = 5  # seeds
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
        leader = outcomes(study)[0]
        ahead = f" {leader.candidate} has the best validation so far." if leader.best and count > 1 else ""
        return (
            f"Unfinished: {search} of {count * study.points} search trials and {final} of {count * study.seeds} final "
            f"runs are done.{ahead}"
        )
    if not ranked:
        return "Every search trial diverged: nothing can be said. Lower the ranges of the learning rate."
    best = ranked[0]
    name, metric = study.selection.metric.replace("_", " "), shown(study)
    if math.isnan(best.test.value):
        value = metric.text(best.validation.value)
        return f"{best.candidate} is best by validation, with {name} {value}; there are no results on the test set."
    result = f"{best.candidate} has a test {name} of {metric.text(best.test.value)}"
    if len(ranked) == 1:
        return f"{result}; no other candidate has finished."
    second = ranked[1].candidate
    between, p_value = compare(study, best.candidate, second)
    by = _difference(study, between, p_value)
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
        *_target(study),
        *_budgets(study),
        *(sentence for outcome in found for sentence in _diverged(outcome)),
        *(sentence for outcome in found for sentence in _edges(study, outcome)),
        *_equal(study, found),
    ]


def _seeds(study: Study) -> Iterator[str]:
    if study.seeds < FEW:
        yield (
            f"{study.seeds} {'seed' if study.seeds == 1 else 'seeds'} a candidate: fewer than {FEW} say little about "
            "the spread, and intervals are too narrow."
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


def _diverged(found: Outcome) -> Iterator[str]:
    if found.searched and 2 * found.diverged > found.searched:
        yield (
            f"{found.diverged} of {found.searched} search trials of {found.candidate} diverged: its range of learning "
            "rates reaches too high."
        )
    if found.lost:
        yield (
            f"{found.lost} of {found.finals + found.lost} final runs of {found.candidate} diverged: its means are over "
            "the others, and it is ranked after candidates without."
        )


def _edges(study: Study, found: Outcome) -> Iterator[str]:
    if found.best is None:
        return
    space = next(candidate for candidate in study.candidates if candidate.label == found.candidate).space
    for name, (place, low, high) in places(found.best.settings, space).items():
        if not EDGE <= place <= 1 - EDGE:
            side = "lower" if place < EDGE else "upper"
            yield (
                f"The best {name} of {found.candidate}, {tables.setting(found.best.settings[name])}, lies at the "
                f"{side} end of its range, {low:g} to {high:g}: a better one may lie beyond. Widen it."
            )


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
    baseline = study.candidates[0].label
    others = [
        outcome for outcome in found if outcome.candidate != baseline and not math.isnan(outcome.difference.value)
    ]
    equal = [outcome.candidate for outcome in others if not is_shown(outcome.difference, outcome.p_value)]
    if equal:
        yield f"No difference from {baseline} is shown for {', '.join(equal)}."


def _difference(study: Study, found: Interval, p_value: float) -> str:
    """Such as "0.12 points of test accuracy, 95 % interval 0.02 to 0.21, p = 0.012, 5 seeds"."""
    name, metric = study.selection.metric.replace("_", " "), shown(study)
    text = tables.difference(found, metric)
    unit = f"points of test {name}" if metric.percent else f"of test {name}"
    value, _, bounds = text.partition(" ")
    within = f", {100 * statistics.CONFIDENCE:.0f} % interval {bounds}" if bounds else ""
    p = tables.p_value(p_value)
    return f"{value} {unit}{within}{'' if p == '–' else f', p {p}' if '<' in p else f', p = {p}'}, {study.seeds} seeds"


def _list(values: Mapping[str, object]) -> str:
    return ", ".join(f"{label} {value}" for label, value in values.items())
