"""The statistics of comparisons, from numbers small enough to compute by hand or by enumeration."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cnn_jax.report.metric import Metric
from cnn_jax.studies import sentences, statistics, tables
from cnn_jax.studies.outcome import best_after, outcomes, paired, profile_scores, ratios
from cnn_jax.studies.statistics import Interval
from cnn_jax.studies.study import Candidate, Parameter, Study, Trial
from cnn_jax.tasks import Selection

INF, NAN = math.inf, math.nan


def test_mean_interval_is_students():
    # mean 2, standard deviation 1, t of 2 degrees of freedom 4.30265: half the width is 4.30265/√3
    assert statistics.mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-6)
    assert statistics.mean_interval([5.0]) == pytest.approx((5.0, NAN, NAN), nan_ok=True)
    assert all(map(math.isnan, statistics.mean_interval([])))


def test_bootstrap_interval_is_that_of_all_resamples():
    values = np.array([1.0, 2.0, 4.0, 7.0, 11.0])
    means = np.sort([np.mean(drawn) for drawn in itertools.product(values, repeat=5)])
    bias = stats.norm.ppf((np.mean(means < 5.0) + np.mean(means <= 5.0)) / 2)
    left_out = np.array([np.delete(values, i).mean() for i in range(5)])
    spread = left_out.mean() - left_out
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    bounds = []
    for z in stats.norm.ppf([0.025, 0.975]):
        bounds.append(np.quantile(means, stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))))
    found = statistics.bootstrap_interval(list(values))
    assert found.value == 5.0
    assert found[1:] == pytest.approx(bounds, abs=0.2)  # a step between two means is 0.2
    assert found == statistics.bootstrap_interval(list(values))


def test_bootstrap_interval_of_little():
    assert statistics.bootstrap_interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, NAN, NAN), nan_ok=True)
    assert statistics.bootstrap_interval([0.0, 0.0]) == (0.0, 0.0, 0.0)
    assert statistics.bootstrap_interval([2.0]) == pytest.approx((2.0, NAN, NAN), nan_ok=True)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0, 5.0], [-0.3, 0.1, 0.05], [0.2, 0.1]])
def test_paired_p_value_is_the_t_tests(values):
    assert statistics.paired_p_value(values) == pytest.approx(stats.ttest_1samp(values, 0.0)[1])


def test_paired_p_value_of_equal_differences():
    assert statistics.paired_p_value([0.0, 0.0]) == 1.0
    assert math.isnan(statistics.paired_p_value([0.1, 0.1, 0.1]))  # two seeds of 100 images each: not certainty
    assert math.isnan(statistics.paired_p_value([0.1]))


def test_holm_multiplies_by_those_that_are_left_and_never_falls():
    # sorted: .01·4 = .04, .015·3 = .045, .03·2 = .06, .8·1 = .8
    assert statistics.holm([0.03, 0.01, 0.8, 0.015]) == pytest.approx([0.06, 0.04, 0.8, 0.045])
    assert statistics.holm([0.01, 0.9, 0.6]) == pytest.approx([0.03, 1.0, 1.0])
    assert statistics.holm([]) == []


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 2.0, -5.0, 0.5], [1.0], list(np.arange(12.0) ** 2)])
def test_best_of_is_the_mean_over_all_draws(values):
    expected = [np.mean([max(draw) for draw in itertools.combinations(values, k)]) for k in range(1, len(values) + 1)]
    assert statistics.best_of(values) == pytest.approx(expected)


# Three candidates on three problems; nobody solves the last one.
TIMES = np.array([[1.0, 2.0, INF], [2.0, 2.0, INF], [4.0, 5.0, INF]])


def test_time_ratios_are_to_the_fastest_on_each_problem():
    assert statistics.time_ratios(TIMES).tolist() == [[1, 1, INF], [2, 1, INF], [4, 2.5, INF]]
    assert statistics.time_ratios(np.array([[0.0], [3.0], [0.0]])).tolist() == [[1], [INF], [1]]


def test_profile_counts_problems_within_a_factor():
    first, second, third = statistics.time_ratios(TIMES)
    tau = np.array([1.0, 1.99, 2.0, 2.5, 4.0, 1e9])
    assert statistics.profile(first, tau) == pytest.approx(np.full(6, 2 / 3))
    assert statistics.profile(second, tau) == pytest.approx(np.array([1, 1, 2, 2, 2, 2]) / 3)
    assert statistics.profile(third, tau) == pytest.approx(np.array([0, 0, 0, 1, 2, 2]) / 3)


def test_profile_score_is_the_area_under_the_steps():
    # ρ of the second: 1/3 from 1 to 2, 2/3 from 2 to 4: (1/3 + 4/3)/3; of the third: 1/3 from 2.5 to 4: 0.5/3
    scores = [statistics.profile_score(own) for own in statistics.time_ratios(TIMES)]
    assert scores == pytest.approx([2 / 3, 5 / 9, 1 / 6])
    assert statistics.profile_score(np.array([1.0, 1.0])) == 1.0
    assert statistics.profile_score(np.array([INF, 4.0, 7.0])) == 0.0


def test_profile_score_equals_the_integral_piece_by_piece():
    own = 1 + 5 * np.random.default_rng(0).random(7)
    edges = np.unique([1.0, *own[own < 4], 4.0])
    area = np.sum(np.diff(edges) * statistics.profile(own, edges[:-1]))
    assert statistics.profile_score(own) == pytest.approx(area / 3)


def test_running_quartiles_use_neighbours_on_both_sides():
    low, middle, high = statistics.running_quartiles([1.0, 2.0, 9.0, 3.0, 5.0, 4.0, NAN])
    assert middle.tolist() == [1, 2, 3, 4, 4, 4, -INF]
    assert low.tolist() == [1, 1, 2, 3, 3, -INF, -INF]
    assert high.tolist() == [1, 9, 5, 5, 5, 5, -INF]


# Studies of two or three candidates, each with a rate that is searched from 0.001 to 1.

ACCURACY = {"loss": Metric("loss"), "accuracy": Metric("accuracy", percent=True)}


def make_trial(candidate: str, phase: Any, number: int, value: float | None, **more: Any) -> Trial:
    """A trial with a validation accuracy; None diverged. Final trials have the number as seed."""
    found = {} if value is None else {"loss": 1 - value, "accuracy": value}
    return Trial(
        **{
            "candidate": candidate,
            "phase": phase,
            "number": number,
            "seed": number if phase == "final" else 0,
            "settings": {"learning_rate": 0.03},
            "status": "diverged" if value is None else "finished",
            "steps": 100,
            "validation": found,
            "seconds": 10.0,
            "rows": [{"kind": "validation", "step": 100, "epoch": 2.0, "seconds": 10.0, **found}],
            **more,
        }
    )


def finals(
    candidate: str, validation: Sequence[float | None], test: Sequence[float], steps: Sequence[int | None]
) -> list[Trial]:
    """Final trials with these validation and test accuracies and steps to the target, a tenth of a second each."""
    return [
        make_trial(
            candidate,
            "final",
            seed,
            value,
            test={} if value is None else {"loss": 1 - tested, "accuracy": tested},
            steps_to_target=reached,
            seconds_to_target=None if reached is None else reached / 10,
        )
        for seed, (value, tested, reached) in enumerate(zip(validation, test, steps, strict=True), 1)
    ]


def make_study(trials: list[Trial], **more: Any) -> Study:
    """A finished study of these trials, with candidates in the order of appearance."""
    labels = list(dict.fromkeys(trial.candidate for trial in trials))
    count = {phase: sum(t.phase == phase and t.candidate == labels[0] for t in trials) for phase in ("search", "final")}
    space = {"learning_rate": Parameter(0.001, 1.0)}
    return Study(
        **{
            "folder": Path("study"),
            "candidates": [Candidate(label, {"optimizer": label}, space) for label in labels],
            "points": count["search"],
            "seeds": count["final"],
            "budget": "2epochs",
            "target": 0.9,
            "selection": Selection("accuracy", higher_is_better=True),
            "metrics": ACCURACY,
            "trials": trials,
            "facts": {},
            **more,
        }
    )


@pytest.fixture
def study() -> Study:
    """Two candidates with five seeds: b is 0.02 better on validation and 0.01 on test, and three times as fast."""
    return make_study(
        [
            *(make_trial("a", "search", i, value) for i, value in enumerate([0.90, None, 0.94])),
            *finals("a", [0.93, 0.94, 0.95, 0.94, 0.94], [0.92, 0.93, 0.94, 0.93, 0.93], [60, 60, 90, None, 60]),
            *(make_trial("b", "search", i, value) for i, value in enumerate([0.96, 0.80, 0.95])),
            *finals("b", [0.95, 0.96, 0.97, 0.96, 0.96], [0.93, 0.942, 0.95, 0.938, 0.94], [20, 20, 90, 20, 30]),
        ]
    )


def test_outcomes_of_a_finished_study(study):
    best, baseline = outcomes(study)
    assert (best.candidate, baseline.candidate) == ("b", "a")
    assert (best.searched, best.diverged, best.finals, best.lost) == (3, 0, 5, 0)
    assert (baseline.searched, baseline.diverged) == (3, 1)
    assert best.best is study.trials[8] and baseline.best is study.trials[2]
    assert best.validation.value == pytest.approx(0.96) and best.test.value == pytest.approx(0.94)
    assert (best.steps, best.seconds, baseline.steps, baseline.seconds) == (20, 2.0, 60, 6.0)
    assert best.seconds_per_step == pytest.approx(0.1)
    # differences .01 .012 .01 .008 .01: mean .01, standard deviation .00141
    assert best.difference.value == pytest.approx(0.01)
    assert best.p_value == pytest.approx(stats.ttest_1samp([0.01, 0.012, 0.01, 0.008, 0.01], 0)[1])
    assert math.isnan(baseline.p_value) and math.isnan(baseline.difference.value)


def test_each_seed_is_a_problem_of_the_profile(study):
    found = ratios(study, "steps")
    assert found["a"].tolist() == [3, 3, 1, INF, 2] and found["b"].tolist() == [1, 1, 1, 1, 1]
    assert profile_scores(study, "steps") == pytest.approx({"a": (1 / 3 + 1 / 3 + 1 + 0 + 2 / 3) / 5, "b": 1.0})
    assert profile_scores(study, "seconds") == pytest.approx(profile_scores(study, "steps"))
    assert profile_scores(replace(study, target=None), "steps") == {}


def test_a_candidate_without_final_runs_misses_every_target(study):
    lost = [make_trial("c", "search", i, None) for i in range(3)]
    with_lost = replace(study, candidates=[*study.candidates, Candidate("c", {}, {})], trials=[*study.trials, *lost])
    assert profile_scores(with_lost, "steps")["c"] == 0.0
    assert [found.candidate for found in outcomes(with_lost)] == ["b", "a", "c"]
    assert "3 of 3 search trials of c diverged" in " ".join(sentences.warnings(with_lost))


def test_candidates_are_ranked_by_validation_not_by_test(study):
    flipped = [
        replace(trial, test={"loss": 0.0, "accuracy": 1.0}) if trial.candidate == "a" and trial.test else trial
        for trial in study.trials
    ]
    assert [found.candidate for found in outcomes(replace(study, trials=flipped))] == ["b", "a"]


def test_a_final_run_that_diverged_comes_after_all_others(study):
    lost = [
        make_trial("b", "final", 1, None) if trial.candidate == "b" and trial.seed == 1 else trial
        for trial in study.trials
    ]
    found = outcomes(replace(study, trials=lost))
    assert [outcome.candidate for outcome in found] == ["a", "b"]
    assert (found[1].finals, found[1].lost) == (4, 1)
    assert found[1].test.value == pytest.approx(np.mean([0.942, 0.95, 0.938, 0.94]))
    assert paired(replace(study, trials=lost), "b", "a") == pytest.approx([0.012, 0.01, 0.008, 0.01])
    assert any(
        said.startswith("1 of 5 final runs of b diverged") for said in sentences.warnings(replace(study, trials=lost))
    )


def test_lower_is_better(study):
    inverted = replace(study, selection=Selection("loss", higher_is_better=False))
    found = outcomes(inverted)
    assert [outcome.candidate for outcome in found] == ["b", "a"]
    assert found[0].difference.value == pytest.approx(-0.01)
    # losses of a: .1, diverged (counts as the worst of all, .2), .06; the expected best of one, two, three
    assert best_after(inverted)["a"] == pytest.approx([0.36 / 3, (0.1 + 0.06 + 0.06) / 3, 0.06])
    assert "b is best by validation, and better than a" in sentences.headline(inverted)


def test_best_after_counts_a_diverged_trial_as_the_worst_of_the_study(study):
    found = best_after(study)
    assert found["a"] == pytest.approx([(0.9 + 0.8 + 0.94) / 3, (0.9 + 0.94 + 0.94) / 3, 0.94])
    assert found["b"] == pytest.approx([(0.96 + 0.8 + 0.95) / 3, (0.96 + 0.96 + 0.95) / 3, 0.96])


def test_headline_says_by_how_much(study):
    said = sentences.headline(study)
    assert said.startswith("b is best by validation, and better than a, the second: +1.00 points of test accuracy")
    assert "5 seeds" in said and "p < 0.001" in said and "b has a test accuracy of 94.00%." in said


def test_headline_without_a_difference():
    test = [0.91, 0.93, 0.92, 0.94, 0.90]
    one, other = [0.95] * 5, [0.94] * 5
    study = make_study(
        [
            *[make_trial("a", "search", 0, 0.94), *finals("a", other, test, [10] * 5)],
            *[make_trial("b", "search", 0, 0.95), *finals("b", one, [0.92, 0.92, 0.91, 0.93, 0.925], [10] * 5)],
        ]
    )
    assert sentences.headline(study).startswith("No difference is shown between b and a, the best two by validation")
    assert "No difference from a is shown for b." in sentences.warnings(study)


def test_headline_of_an_unfinished_study(study):
    unfinished = replace(study, trials=[trial for trial in study.trials if trial.phase == "search"][:4])
    said = sentences.headline(unfinished)
    assert said == (
        "Unfinished: 4 of 6 search trials and 0 of 10 final runs are done. b has the best validation so far."
    )
    assert sentences.headline(replace(study, trials=[])) == (
        "Unfinished: 0 of 6 search trials and 0 of 10 final runs are done."
    )


def test_headline_without_a_test_set(study):
    untested = replace(study, trials=[replace(trial, test={}) for trial in study.trials])
    assert sentences.headline(untested) == (
        "b is best by validation, with accuracy 96.00%; there are no results on the test set."
    )
    assert sentences.warnings(untested) == []


def test_headline_where_validation_and_test_disagree(study):
    swapped = [
        replace(t, test={"loss": t.test["loss"], "accuracy": t.test["accuracy"] - 0.03})
        if t.candidate == "b" and t.test
        else t
        for t in study.trials
    ]
    assert "b is best by validation, and worse on the test set than a" in sentences.headline(
        replace(study, trials=swapped)
    )


def test_a_good_study_has_no_warnings(study):
    assert sentences.warnings(study) == []
    assert sentences.warnings(replace(study, warnings=("c has no declared space.",))) == ["c has no declared space."]


@pytest.mark.parametrize(("rate", "side"), [(0.00141, "lower"), (0.00142, None), (0.707, None), (0.709, "upper")])
def test_a_winner_at_the_edge_of_its_space(study, rate, side):
    # 5 % of three decades: 0.001·10^0.15 = 0.001413, and 10^-0.15 = 0.7079
    trials = [
        replace(trial, settings={"learning_rate": rate}) if trial is study.trials[8] else trial
        for trial in study.trials
    ]
    found = sentences.warnings(replace(study, trials=trials))
    if side is None:
        assert found == []
    else:
        assert len(found) == 1 and f"The best learning_rate of b, {rate:.3g}, lies at the {side} end" in found[0]


def test_edges_of_a_decay_rate_are_those_of_its_distance_from_one():
    space = {"b1": Parameter(0.01, 0.3, complement=True), "power": Parameter(1, 3, log=False)}
    found = sentences.places({"b1": 0.99, "power": 2, "schedule": "cosine"}, space)
    assert found["b1"] == pytest.approx((1.0, 0.7, 0.99)) and found["power"] == pytest.approx((0.5, 1, 3))
    middle = 1 - math.sqrt(0.01 * 0.3)
    assert sentences.places({"b1": middle}, space)["b1"][0] == pytest.approx(0.5)


def test_few_seeds_and_a_target_nobody_reached(study):
    few = [
        replace(trial, steps_to_target=None, seconds_to_target=None)
        for trial in study.trials
        if trial.phase == "search" or trial.seed <= 2
    ]
    found = sentences.warnings(replace(study, trials=few, seeds=2))
    assert found[0].startswith("2 seeds a candidate: fewer than 5")
    assert found[1].startswith("No trial reached the target, a validation accuracy of 90.00%")
    assert [outcome.steps for outcome in outcomes(replace(study, trials=few, seeds=2))] == [INF, INF]


@pytest.mark.parametrize(
    ("budget", "change"),
    [
        ("2epochs", {"rows": [{"kind": "train", "step": 100, "epoch": 1.0}]}),
        ("100steps", {"steps": 90}),
        ("10seconds", {"seconds": 12.0}),
    ],
)
def test_budgets_that_differ(study, budget, change):
    assert sentences.warnings(replace(study, budget=budget)) == []
    trials = [replace(trial, **change) if trial.candidate == "b" else trial for trial in study.trials]
    found = sentences.warnings(replace(study, budget=budget, trials=trials))
    assert len(found) == 1 and found[0].startswith(f"Budgets differ, in {budget.lstrip('0123456789')}: a ")


def test_unequal_numbers_of_trials(study):
    more = [*study.trials, make_trial("b", "search", 3, 0.9)]
    assert sentences.warnings(replace(study, trials=more)) == [
        "Numbers of search trials differ: a 3, b 4. More trials find better settings."
    ]


def test_table_has_a_row_for_each_candidate(study):
    first, second = tables.table(study)
    half = 100 * stats.t.ppf(0.975, 4) * np.std([0.93, 0.942, 0.95, 0.938, 0.94], ddof=1) / math.sqrt(5)
    assert first["test accuracy (%)"] == f"94.00 ± {half:.2f}"
    assert first["difference from a"].startswith("+1.00 [+0.") and first["p (Holm)"] == "< 0.001"
    assert {name: first[name] for name in ("candidate", "steps to target", "seconds to target", "ms per step")} == {
        "candidate": "b",
        "steps to target": "20",
        "seconds to target": "2",
        "ms per step": "100",
    }
    assert (first["B (steps)"], first["diverged"], first["best of search (%)"]) == ("1.00", "0 of 3", "96.00")
    assert (second["difference from a"], second["p (Holm)"], second["B (steps)"]) == ("–", "–", "0.47")
    assert second["its settings"] == "learning_rate 0.03" and second["diverged"] == "1 of 3"


def test_csv_does_not_depend_on_the_clock(study):
    slower = [
        replace(t, seconds=2.7 * t.seconds, seconds_to_target=t.seconds_to_target and 1.3 * t.seconds_to_target)
        for t in study.trials
    ]
    text = tables.csv_text(study)
    assert tables.csv_text(replace(study, trials=slower)) == text
    assert "seconds" not in text and "ms per step" not in text and text.count("\n") == 3
    assert tables.markdown(replace(study, trials=slower)) != tables.markdown(study)


def test_a_mean_has_the_digits_of_its_spread():
    loss = Metric("loss")
    assert tables._mean(Interval(0.029453, 0.027753, 0.031153), loss) == "0.0295 ± 0.0017"
    assert tables._mean(Interval(123.456, 103.456, 143.456), loss) == "123 ± 20"
    assert tables._mean(Interval(0.5, NAN, NAN), loss) == "0.5"


# Candidates with nothing to search, and those that diverge.


@pytest.fixture
def fixed(study) -> Study:
    """The same study, but a has nothing to search: one trial."""
    first, second = study.candidates
    kept = [trial for trial in study.trials if (trial.candidate, trial.phase, trial.number) != ("a", "search", 0)]
    kept = [trial for trial in kept if (trial.candidate, trial.phase, trial.number) != ("a", "search", 1)]
    return replace(study, candidates=[replace(first, space={}), second], trials=kept)


def test_a_candidate_with_nothing_to_search_is_finished_after_one_trial(fixed):
    assert [found.candidate for found in outcomes(fixed)] == ["b", "a"]
    assert profile_scores(fixed, "steps")["b"] == 1.0
    assert sentences.headline(fixed).startswith("b is best by validation, and better than a")
    assert sentences.warnings(fixed) == ["Numbers of search trials differ: a 1, b 3. More trials find better settings."]
    assert sentences.headline(replace(fixed, trials=fixed.trials[:1])) == (
        "Unfinished: 1 of 4 search trials and 0 of 10 final runs are done. a has the best validation so far."
    )


def test_finished_studies_rank_by_their_final_runs(fixed):
    # b has the best search trial, .96, but its final runs are worse than those of a.
    worse = [replace(t, validation={"loss": 0.1, "accuracy": 0.9}) if (t.candidate, t.phase) == ("b", "final") else t
             for t in fixed.trials]  # fmt: skip
    assert [found.candidate for found in outcomes(replace(fixed, trials=worse))] == ["a", "b"]


def test_everything_diverged():
    lost = make_study([make_trial("a", "search", 0, None), make_trial("b", "search", 0, None)], seeds=5, target=None)
    lost = replace(lost, candidates=[replace(candidate, space={}) for candidate in lost.candidates])
    assert sentences.headline(lost) == "Every search trial diverged: nothing can be said. Lower the learning rates."
    assert "1 of 1 search trial of a diverged: lower its learning rate." in sentences.warnings(lost)
    assert best_after(lost) == {}


def test_the_baseline_is_the_first_that_finished(study):
    lost = [make_trial("z", "search", i, None) for i in range(3)]
    space = {"learning_rate": Parameter(0.001, 1.0)}
    found = replace(study, candidates=[Candidate("z", {}, space), *study.candidates], trials=[*lost, *study.trials])
    best, second, last = outcomes(found)
    assert (best.candidate, second.candidate, last.candidate) == ("b", "a", "z")
    assert best.difference.value == pytest.approx(0.01) and math.isnan(second.difference.value)
    # b is the only comparison with the baseline that can be made, so that its p-value stays as it is
    assert best.p_value == pytest.approx(stats.ttest_1samp([0.01, 0.012, 0.01, 0.008, 0.01], 0)[1])
    assert tables.table(found)[0]["difference from a"].startswith("+1.00 [")
    assert (last.steps, last.seconds, last.score_steps) == (INF, INF, 0.0), "a miss is infinite"
    assert tables.table(found)[2]["steps to target"] == "∞"
    assert any(
        said.startswith("No search trial of z finished, so a is the baseline") for said in sentences.warnings(found)
    )


def test_best_after_leaves_out_who_never_finished(study):
    lost = [make_trial("c", "search", i, None) for i in range(3)]
    found = replace(study, candidates=[*study.candidates, Candidate("c", {}, {})], trials=[*study.trials, *lost])
    assert set(best_after(found)) == {"a", "b"}
    assert best_after(found)["a"] == pytest.approx([(0.9 + 0.8 + 0.94) / 3, (0.9 + 0.94 + 0.94) / 3, 0.94])


def test_headline_of_one_candidate_and_of_one_that_is_left(study):
    alone = make_study([trial for trial in study.trials if trial.candidate == "b"])
    assert sentences.headline(alone) == "b has a test accuracy of 94.00%."
    lost = [make_trial("c", "search", i, None) for i in range(3)]
    left = make_study([*(trial for trial in study.trials if trial.candidate == "b"), *lost])
    assert sentences.headline(left) == "b has a test accuracy of 94.00%; all others diverged: c."


def test_headline_counts_the_pairs_of_seeds(study):
    lost = [
        make_trial("b", "final", 1, None) if (trial.candidate, trial.phase, trial.seed) == ("b", "final", 1) else trial
        for trial in study.trials
    ]
    said = sentences.headline(replace(study, trials=lost))
    assert "4 seeds" in said and "5 seeds" not in said


def test_a_rate_that_is_set_has_no_range_to_lower(study):
    fixed = [replace(candidate, space={}) for candidate in study.candidates]
    lost = [make_trial("a", "search", i, None) for i in range(3)]
    others = [trial for trial in study.trials if trial.candidate == "b"]
    (said,) = [
        said for said in sentences.warnings(replace(study, candidates=fixed, trials=[*lost, *others]))
        if "search trials of a" in said
    ]  # fmt: skip
    assert said == "3 of 3 search trials of a diverged: lower its learning rate."


def test_few_values_have_no_bootstrap_interval():
    for values in ([0.1, 0.3], [0.1, 0.2, 0.3, 0.5]):
        found = statistics.bootstrap_interval(values)
        assert found.value == pytest.approx(np.mean(values)) and math.isnan(found.low) and math.isnan(found.high)
    assert not math.isnan(statistics.bootstrap_interval([0.1, 0.2, 0.3, 0.5, 0.6]).low)
