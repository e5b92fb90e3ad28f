"""What a comparison shows of each candidate: the figures behind its table, pictures and sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnn_jax.report.metric import Metric
from cnn_jax.studies import statistics
from cnn_jax.studies.statistics import Interval
from cnn_jax.studies.study import Study, Trial

RATE = "learning_rate"
UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Outcome:
    """What a study shows of a candidate. All metrics are the one that selects; a number that is not known yet is NaN.

    Attributes:
        candidate: its label.
        searched: number of search trials.
        diverged: how many of them diverged.
        best: the search trial with the best validation; None if none finished.
        finals: number of final runs that finished.
        lost: number of final runs that diverged.
        validation: of the final runs, the mean over seeds.
        test: likewise.
        steps: median over the final runs of the steps to the target; ∞ if half of them or more missed it, or if every
            search trial diverged, so that there are none.
        seconds: likewise.
        seconds_per_step: median over its trials.
        score_steps: the score B of the performance profile over seeds, in [0, 1], by steps.
        score_seconds: the same by seconds.
        difference: mean over seeds of its test metric minus the baseline's, with a bootstrap interval.
        p_value: of this difference, by a paired t-test, adjusted for the number of candidates (Holm).
    """

    candidate: str
    searched: int
    diverged: int
    best: Trial | None
    finals: int
    lost: int
    validation: Interval
    test: Interval
    steps: float
    seconds: float
    seconds_per_step: float
    score_steps: float
    score_seconds: float
    difference: Interval
    p_value: float


def outcomes(study: Study) -> list[Outcome]:
    """Returns the candidates, best first.

    They are ranked by validation, as the test set must not select: by the mean of the final runs if the study is
    finished, otherwise by the best search trial. A candidate with final runs that diverged comes after all without.
    """
    labels, baseline = labels_of(study), baseline_of(study)
    differences = {label: paired(study, label, baseline) for label in labels if label != baseline}
    adjusted = statistics.holm([statistics.paired_p_value(found) for found in differences.values()])
    p_values = dict(zip(differences, adjusted, strict=True))
    scores = {of: profile_scores(study, of) for of in ("steps", "seconds")}
    found = []
    for label in labels:
        search, final = trials(study, label, "search"), trials(study, label, "final")
        finished = [trial for trial in final if trial.status == "finished"]
        every = [trial for trial in (final or search) if trial.steps and trial.seconds and trial.together == 1]
        outcome = Outcome(
            candidate=label,
            searched=len(search),
            diverged=sum(trial.status == "diverged" for trial in search),
            best=best_trial(study, label),
            finals=len(finished),
            lost=len(final) - len(finished),
            validation=statistics.mean_interval(_known(study, [trial.validation for trial in finished])),
            test=statistics.mean_interval(_known(study, [trial.test for trial in finished])),
            steps=_median(study, label, "steps"),
            seconds=_median(study, label, "seconds"),
            seconds_per_step=statistics.median_time([trial.seconds / trial.steps for trial in every]),
            score_steps=scores["steps"].get(label, math.nan),
            score_seconds=scores["seconds"].get(label, math.nan),
            difference=UNKNOWN if label == baseline else statistics.bootstrap_interval(differences[label]),
            p_value=p_values.get(label, math.nan),
        )
        found.append(outcome)
    return sorted(found, key=lambda outcome: _rank(study, outcome), reverse=True)  # stable: ties keep their order


def _rank(study: Study, outcome: Outcome) -> tuple[bool, bool, float]:
    if finished(study):
        value = outcome.validation.value
        return outcome.finals > 0, outcome.lost == 0, -math.inf if math.isnan(value) else sign(study) * value
    best = -math.inf if outcome.best is None else sign(study) * outcome.best.validation[study.selection.metric]
    return outcome.best is not None, True, best


def trials(study: Study, label: str, phase: str) -> list[Trial]:
    """Returns the trials of a candidate in a phase, "search" or "final"."""
    return [trial for trial in study.trials if trial.candidate == label and trial.phase == phase]


def best_trial(study: Study, label: str) -> Trial | None:
    """Returns the finished search trial with the best validation; of equal ones the first; None if there is none."""
    valid = [trial for trial in trials(study, label, "search") if not math.isnan(validation(study, trial))]
    return valid[study.selection.best([trial.validation for trial in valid])] if valid else None


def finished(study: Study) -> bool:
    """Whether every trial has been run: of candidates whose search trials all diverged, no final ones."""
    return all(
        len(trials(study, candidate.label, "search")) >= candidate.searches(study.points)
        and (best_trial(study, candidate.label) is None or len(trials(study, candidate.label, "final")) >= study.seeds)
        for candidate in study.candidates
    )


def sign(study: Study) -> float:
    """1 if more of the selecting metric is better, otherwise −1."""
    return 1.0 if study.selection.higher_is_better else -1.0


def shown(study: Study) -> Metric:
    """How the selecting metric is shown."""
    return study.metrics[study.selection.metric]


def validation(study: Study, trial: Trial) -> float:
    """Returns a trial's selecting metric on validation; NaN if it diverged."""
    value = trial.validation.get(study.selection.metric, math.nan)
    return value if trial.status == "finished" and math.isfinite(value) else math.nan


def times(study: Study, final: Sequence[Trial], of: str) -> list[float]:
    """Returns the "steps" or "seconds" to the target of final trials; ∞ for a miss; none if there is no target."""
    if study.target is None:
        return []
    found = [trial.steps_to_target if of == "steps" else trial.seconds_to_target for trial in final]
    return [math.inf if time is None else float(time) for time in found]


def _median(study: Study, label: str, of: str) -> float:
    """The median of the times of a candidate's final runs; ∞ if it has none at the end: it has missed the target."""
    found = times(study, trials(study, label, "final"), of)
    if not found and study.target is not None and finished(study):
        return math.inf
    return statistics.median_time(found)


def best_after(study: Study) -> dict[str, np.ndarray]:
    """Returns the expected best validation of the first k search trials in random order, by candidate: (N,) each.

    A trial that diverged counts as the worst finished one of the whole study. A candidate of which none finished is
    left out.
    """
    found = {
        candidate.label: [validation(study, trial) for trial in trials(study, candidate.label, "search")]
        for candidate in study.candidates
    }
    scores = sign(study) * np.concatenate([np.array(values, np.float64) for values in found.values()])
    if np.isnan(scores).all():
        return {}
    worst = float(np.nanmin(scores))
    return {
        label: sign(study) * statistics.best_of(np.nan_to_num(sign(study) * np.array(values), nan=worst))
        for label, values in found.items()
        if not np.isnan(values).all()
    }


def paired(study: Study, label: str, other: str) -> list[float]:
    """Returns the test metric of a candidate minus that of another one, for each seed with which both finished."""
    by_seed = [
        {
            trial.seed: trial.test[study.selection.metric]
            for trial in trials(study, name, "final")
            if trial.status == "finished" and study.selection.metric in trial.test
        }
        for name in (label, other)
    ]
    return [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]


def ratios(study: Study, of: str) -> dict[str, np.ndarray]:
    """Returns the ratios to the shortest time for each seed, by candidate: (seeds,) each. Each seed is a problem.

    {} until the study is finished, and without a target. A candidate without final runs has missed every target.

    Args:
        study: the study.
        of: "steps" or "seconds".
    """
    if not finished(study) or study.target is None:
        return {}
    by_seed: dict[str, Mapping[int, float]] = {}
    for candidate in study.candidates:
        final = trials(study, candidate.label, "final")
        by_seed[candidate.label] = dict(zip([t.seed for t in final], times(study, final, of), strict=True))
    seeds = sorted(set().union(*by_seed.values()))
    if not seeds:
        return {}
    rows = np.array([[own.get(seed, math.inf) for seed in seeds] for own in by_seed.values()])
    return dict(zip(by_seed, statistics.time_ratios(rows), strict=True))


def profile_scores(study: Study, of: str) -> dict[str, float]:
    """Returns the score B of each candidate; see `ratios` and `statistics.profile_score`."""
    return {label: statistics.profile_score(own) for label, own in ratios(study, of).items()}


def _known(study: Study, found: Sequence[Mapping[str, float]]) -> list[float]:
    return [metrics[study.selection.metric] for metrics in found if study.selection.metric in metrics]


def rated_trials(study: Study, label: str) -> list[tuple[float, float]]:
    """The search trials of a candidate as (rate, validation as plotted), by rate; NaN for those that diverged."""
    found = [
        (float(trial.settings[RATE]), validation(study, trial) * shown(study).scale)
        for trial in trials(study, label, "search")
        if RATE in trial.settings
    ]
    return sorted(found)


def compared_pairs(study: Study) -> list[tuple[str, str, int]]:
    """What is compared: candidate, the one it is compared with, and whose colour; the best two come last."""
    labels = labels_of(study)
    baseline = baseline_of(study)
    pairs = [(label, baseline, index) for index, label in enumerate(labels)]
    ranked = [outcome.candidate for outcome in outcomes(study) if outcome.finals]
    best = [(ranked[0], ranked[1], labels.index(ranked[0]))] if len(ranked) > 1 and finished(study) else []
    others = [label for label in labels if label != baseline]
    return [*pairs, *best] if any(paired(study, label, baseline) for label in others) else []


def baseline_of(study: Study) -> str:
    """Returns the candidate that others are compared with: the first that has a finished search trial."""
    labels = labels_of(study)
    return next((label for label in labels if best_trial(study, label) is not None), labels[0])


def labels_of(study: Study) -> list[str]:
    """Returns the labels of the candidates."""
    return [candidate.label for candidate in study.candidates]
