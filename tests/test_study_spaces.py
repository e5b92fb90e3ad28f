"""Ranges of one's own for the search, and warnings about winners at their ends."""

from typing import Any

import optax
import pytest
from test_study_statistics import finals, make_study, make_trial

import cnn_jax
from cnn_jax.commands import compare as command
from cnn_jax.commands.parser import with_flags
from cnn_jax.errors import UserError
from cnn_jax.optim.spaces import SPACES, Parameter, range_between, widened
from cnn_jax.studies import sentences
from cnn_jax.studies.candidates import draw_points, warnings_of
from cnn_jax.studies.study import Candidate


def own_descent(learning_rate: float = 0.1, drag: float = 0.5, sign: float = 1.0) -> optax.GradientTransformation:
    """An optimizer that nobody has declared a search space for."""
    return optax.chain(optax.trace(decay=drag), optax.scale(-learning_rate * sign))


OWN = f"{__name__}:own_descent"


def asked(*flags: str) -> Any:
    return command.parse(list(flags))


def test_ranges_replace_declared_ones_and_add_to_them():
    flags = ("--spaces", "adam:learning_rate=1e-5..1e-1", "adam:b1=0.5..0.99", "adam:eps_root=0..0.5")
    (candidate,) = asked("--optimizers", "adam", *flags).candidates
    assert dict(candidate.space) == {
        "learning_rate": Parameter(1e-5, 0.1),
        "b1": Parameter(0.01, 0.5, complement=True),
        "b2": SPACES["adam"]["b2"],
        "eps": SPACES["adam"]["eps"],
        "eps_root": Parameter(0.0, 0.5, log=False),
    }
    points = draw_points([candidate], 16, 0)["adam"]
    for name, low, high in (("learning_rate", 1e-5, 1e-1), ("b1", 0.5, 0.99), ("eps_root", 0.0, 0.5)):
        values = sorted(point[name] for point in points)
        assert low <= values[0] < values[-1] <= high
    middle = sorted(point["learning_rate"] for point in points)[7:9]
    assert middle[0] < 1e-3 < middle[1], "half of the points are below the middle of the logarithms"


def test_an_own_factory_gets_more_than_its_rate():
    question = asked("--optimizers", OWN, "sgd", "--spaces", f"{OWN}:drag=0..0.9", f"{OWN}:learning_rate=0.01..1")
    candidate = question.candidates[0]
    assert candidate.space == {"learning_rate": Parameter(0.01, 1.0), "drag": Parameter(0.0, 0.9, log=False)}
    assert question.candidates[1].space == SPACES["sgd"]
    assert warnings_of(question.candidates, question.base, 16) == []
    (said,) = warnings_of(asked("--optimizers", OWN).candidates, question.base, 16)
    assert "no declared search space" in said and "--spaces" in said


def test_spaces_from_python_are_part_of_the_study(monkeypatch):
    monkeypatch.setattr("cnn_jax.studies.compare.run_study", lambda question: question)
    spaces = {optax.adam: {"learning_rate": (1e-4, 1e-2), "b1": Parameter(0.1, 1.0, complement=True)}}
    question: Any = cnn_jax.compare("mlp", "digits", optimizers=["adam"], spaces=spaces)
    other: Any = cnn_jax.compare("mlp", "digits", optimizers=["adam"])
    assert question.candidates[0].space["b1"] == Parameter(0.1, 1.0, complement=True)
    differ = {name for name, value in question.settings.items() if value != other.settings[name]}
    assert differ == {"space of adam"}
    assert question.settings["space of adam"]["learning_rate"]["high"] == 1e-2


def test_spaces_are_those_of_the_optimizer_whatever_is_varied():
    flags = ("--vary", "batch_size=8,16", "--trials", "4", "--optimizer", "sgd", "--spaces", "sgd:learning_rate=1..2")
    assert [dict(of.space) for of in asked(*flags).candidates] == [{"learning_rate": Parameter(1.0, 2.0)}] * 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("sgd:learning_rate=1..0.1", "learning_rate has the range 1 to 0.1: the first must be below the second"),
        ("sgd:learning_rate=0..1", "learning_rate of sgd reaches 0: it must be more than 0"),
        ("sgd:learning_rate=1..inf", "gives (1.0, inf) for learning_rate: give its lowest and highest value"),
        ("sgd:learning_rate=0.1", "--spaces has 'sgd:learning_rate=0.1': write OPTIMIZER:ARGUMENT=LOW..HIGH"),
        ("learning_rate=0.1..1", "--spaces has 'learning_rate=0.1..1': write OPTIMIZER:ARGUMENT=LOW..HIGH"),
        ("sgd:lerning_rate=0.1..1", "--spaces: optimizer sgd has no argument 'lerning_rate'"),
        ("sgd:momentum=0.5..1", "momentum has the range 0.5 to 1: it must be in [0, 1)"),
        ("sgd:momentum=-0.5..0.9", "momentum has the range -0.5 to 0.9: it must be in [0, 1)"),
        ("sgd:weight_decay=-1..0.1", "weight_decay of sgd reaches -1: it must be 0 or more"),
        ("sgd:batch_size=8..64", "--spaces: batch_size is a setting of its own, not an argument of sgd"),
        ("adm:b1=0..0.9", "--spaces names adm, which is not compared: perhaps you meant adam"),
        ("adam:b3=0..0.9", "--spaces: optimizer adam has no argument 'b3'"),
        ("adam:eps=-1..0.9", "eps=-1.0 for optimizer adam is not more than 0"),
        ("sgd:learning_rate=0.1..1 sgd:learning_rate=1..2", "--spaces has two ranges for learning_rate of sgd"),
        ("adam:b1=0..0.9 --trials 1", "--spaces are searched with 2 trials or more: set --trials, or drop them"),
        (
            "adam:learning_rate=0.1..1 --learning-rate 1",
            "--spaces has a range for learning_rate, which is set: drop one",
        ),
    ],
)
def test_mistakes_in_ranges(flags, said):
    with pytest.raises(UserError) as refused:
        asked("--optimizers", "sgd", "adam", "--spaces", *flags.split())
    assert said in with_flags(str(refused.value))


def test_a_parameter_is_checked_like_a_pair():
    with pytest.raises(UserError, match="learning_rate of sgd has the range 0 to 1: it must be 0 < low < high"):
        widened("sgd", {"learning_rate": Parameter(0.0, 1.0)})
    with pytest.raises(UserError, match="lowest and highest value"):
        range_between("eps", 1e-3)


# Warnings about winners at the ends of their ranges.


def study_of(rates: list[float], best: int, diverged: tuple[int, ...] = (), space: Any = None) -> Any:
    """A study of one optimizer with these learning rates, the best one by validation."""
    searched = [
        make_trial(
            "a", "search", i, None if i in diverged else 0.9 + 0.01 * (i == best), settings={"learning_rate": rate}
        )
        for i, rate in enumerate(rates)
    ]
    study = make_study(
        [*searched, *finals("a", [0.9] * 5, [0.9] * 5, [10] * 5)], **({"candidates": space} if space else {})
    )
    return sentences.warnings(study)


def test_the_largest_rate_that_was_tried_may_be_too_small():
    rates = [0.005, 0.6, 0.02, 0.1]  # 0.6 is at 93 % of the range from 0.001 to 1
    (said,) = study_of(rates, best=1)
    assert said == (
        "The best learning_rate of a, 0.6, is the largest that was tried in its range, 0.001 to 1: a better one may "
        "lie beyond. Widen it (--spaces a:learning_rate=0.001..10)."
    )
    (said,) = study_of(rates, best=0)
    assert "0.005, is the smallest that was tried" in said and "a:learning_rate=0.0001..1)" in said
    assert study_of(rates, best=2) == []


def test_a_rate_below_one_that_diverged_is_not_too_small():
    assert study_of([0.005, 0.6, 0.02, 0.1], best=3, diverged=(1,)) == []


def test_the_default_points_reach_no_end():
    space = [Candidate("a", {"optimizer": "adam"}, SPACES["adam"])]
    points = [point["learning_rate"] for point in draw_points(space, 16, 0)["a"]]
    assert max(points) < 0.1 * 10 ** (-4 * sentences.EDGE), "so the 5 % rule alone never fires at the upper end"
    (said,) = study_of(points, best=points.index(max(points)), space=space)
    assert (
        "is the largest that was tried in its range, 1e-05 to 0.1" in said
        and "--spaces adam:learning_rate=1e-05..1)" in said
    )


def test_zero_is_no_end_to_widen():
    space = {"b1": Parameter(0.01, 1.0, complement=True)}

    def said(b1: float) -> list[str]:
        searched = [make_trial("a", "search", 0, 0.9, settings={"b1": b1})]
        study = make_study([*searched, *finals("a", [0.9] * 5, [0.9] * 5, [10] * 5)])
        candidates = [Candidate("a", {"optimizer": "adam"}, space)]
        return sentences.warnings(make_study(list(study.trials), candidates=candidates))

    assert said(0.01) == [] and said(0.15) == [] and said(0.5) == []
    (upper,) = said(0.989)
    assert "lies at the upper end of its range, 0 to 0.99" in upper and "(--spaces adam:b1=0..0.999)" in upper
