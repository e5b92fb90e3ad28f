"""Search trials that are trained at once end as those run one by one do, however the study is interrupted."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

import cnn_jax
from cnn_jax.commands import compare as command
from cnn_jax.commands.parser import with_flags
from cnn_jax.config import Config, Member
from cnn_jax.data.memory import DoesNotFit
from cnn_jax.errors import UserError
from cnn_jax.optim import spaces
from cnn_jax.report.metric import Metric
from cnn_jax.storage import run_folder as files
from cnn_jax.studies import engine, record, together
from cnn_jax.studies.candidates import with_settings
from cnn_jax.studies.outcome import outcomes
from cnn_jax.studies.plan import open_study
from cnn_jax.studies.study import Parameter, Study
from cnn_jax.studies.tables import trial_rows
from cnn_jax.studies.trials import Planned, read_trial
from cnn_jax.tasks import Selection
from cnn_jax.training.compiled import TrainStep
from cnn_jax.training.experiment import Given

pytestmark = pytest.mark.usefixtures("quick_pages")

WIDE = {"learning_rate": Parameter(1e-3, 1e36)}  # of SGD, of whose trials some diverge
RACE: dict[str, Any] = {
    "model_args": "hidden=8",
    "optimizers": ["sgd", "adam"],
    "trials": 4,
    "seeds": 1,
    "budget": "6steps",
    "devices": 1,
    "batch_size": 64,
    "report": False,
    "logger": (),
    "log_every": 4,
    "eval_every": 0.1,
}


def race(folder, **changes) -> Study:
    """A small study of two optimizers on digits."""
    return cnn_jax.compare("mlp", "digits", **{**RACE, "workdir": str(folder), **changes})


@pytest.fixture(scope="module")
def studies(tmp_path_factory, quick_pages):
    """The same study, trained one by one and at once."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(spaces.SPACES, "sgd", WIDE)
        return race(folder / "apart", together="no"), race(folder / "together", together="yes")


def check_same(ours: Study, theirs: Study) -> None:
    """Checks that two studies agree up to rounding."""
    assert len(ours.trials) == len(theirs.trials) > 0
    for a, b in zip(ours.trials, theirs.trials, strict=True):
        for name in ("candidate", "phase", "number", "seed", "settings", "status", "steps"):
            assert getattr(a, name) == getattr(b, name), name
        assert a.validation == pytest.approx(b.validation, rel=1e-4) and a.test == pytest.approx(b.test, rel=1e-4)
        assert [(row["kind"], row["step"]) for row in a.rows] == [(row["kind"], row["step"]) for row in b.rows]
        for row, other in zip(a.rows, b.rows, strict=True):
            assert row.keys() == other.keys()
            for name in row.keys() - {"seconds", "images_per_second", "kind"}:
                assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


def test_a_study_trained_at_once_has_the_same_trials(studies):
    apart, at_once = studies
    check_same(at_once, apart)
    assert {trial.status for trial in apart.trials if trial.candidate == "sgd"} == {"finished", "diverged"}
    assert [trial.together for trial in at_once.trials] == [4 if of.phase == "search" else 1 for of in at_once.trials]
    assert {trial.together for trial in apart.trials} == {1}
    assert open_study(at_once.folder).trials == at_once.trials


def test_folders_are_those_of_single_trials(studies):
    apart, at_once = studies
    assert not (at_once.folder / record.TOGETHER).exists()
    for ours in (at_once.folder / "trials").iterdir():
        theirs = apart.folder / "trials" / ours.name
        lock = {".cnn_jax.lock"}
        assert {path.name for path in ours.iterdir()} - lock == {path.name for path in theirs.iterdir()} - lock
        config = files.read_config(theirs).override(workdir=str(ours))
        assert files.read_config(ours) == config, "the trial alone would have this config"
        if (theirs / files.SUMMARY).exists():
            summary, expected = (files.read_json(run, files.SUMMARY) for run in (ours, theirs))
            assert summary.keys() == expected.keys() and summary["best_step"] == expected["best_step"]
            assert summary["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)


def test_the_shared_time_of_trials_is_not_compared(studies):
    at_once = studies[1]
    searched = [trial for trial in at_once.trials if trial.phase == "search" and trial.candidate == "adam"]
    assert len({trial.seconds for trial in searched}) == 1
    times = (at_once.folder / "times.csv").read_text().splitlines()
    assert times[0].split(",")[4] == "together" and {line.split(",")[4] for line in times[1:]} == {"1", "4"}
    head, rows = trial_rows(at_once)
    cells = {row[head.index("seconds")].endswith(" for 4") for row in rows if row[head.index("phase")] == "search"}
    assert cells == {True}
    unfinished = replace(at_once, trials=searched)
    assert all(math.isnan(found.seconds_per_step) for found in outcomes(unfinished))


def test_an_interrupted_study_goes_on_to_the_same_table(studies, tmp_path, monkeypatch):
    monkeypatch.setitem(spaces.SPACES, "sgd", WIDE)
    original, done = TrainStep.__call__, 0

    def call(steps, state, items):
        nonlocal done
        done += 1
        if done == 9:  # in the third step of the second group
            os.kill(os.getpid(), signal.SIGINT)
        return original(steps, state, items)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", call)
        part = race(tmp_path / "race", together="yes")
    assert [trial.candidate for trial in part.trials] == ["sgd"] * 4
    race(tmp_path / "race", together="yes")
    assert (tmp_path / "race" / "trials.csv").read_bytes() == (studies[1].folder / "trials.csv").read_bytes()


def test_a_study_killed_between_the_folders_of_trials_goes_on_from_there(studies, tmp_path, monkeypatch):
    monkeypatch.setitem(spaces.SPACES, "sgd", WIDE)
    write, wrote = together.write_result, []

    def write_result(folder, result):
        if len(wrote) == 1:
            raise KeyboardInterrupt
        wrote.append(folder)
        write(folder, result)

    with monkeypatch.context() as patch:
        patch.setattr(together, "write_result", write_result)
        assert len(race(tmp_path / "race", together="yes").trials) == 1
    trained, train = [], together.train
    monkeypatch.setattr(
        together, "train", lambda config, *args, **more: trained.append(config) or train(config, *args, **more)
    )
    race(tmp_path / "race", together="yes")
    assert [config.optim.optimizer for config in trained] == ["adam"], "the first group is not trained again"
    assert (tmp_path / "race" / "trials.csv").read_bytes() == (studies[1].folder / "trials.csv").read_bytes()


def test_a_study_may_go_on_the_other_way(studies, tmp_path, monkeypatch):
    monkeypatch.setitem(spaces.SPACES, "sgd", WIDE)
    run_trial, done = engine.run_trial, []

    def stop(planned, *arguments):
        if done:
            raise KeyboardInterrupt
        done.append(planned)
        return run_trial(planned, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_trial", stop)
        assert len(race(tmp_path / "race", together="no").trials) == 1
    mixed = race(tmp_path / "race", together="yes")
    check_same(mixed, studies[0])
    assert [trial.together for trial in mixed.trials if trial.phase == "search"] == [1, 1, 2, 2, 4, 4, 4, 4]


def test_a_candidate_of_which_every_trial_diverges_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setitem(spaces.SPACES, "sgd", {"learning_rate": Parameter(1e28, 1e30)})
    done = [race(tmp_path / name, optimizers=["sgd"], trials=2, together=name) for name in ("no", "yes")]
    check_same(*done)
    assert {(trial.status, trial.phase) for trial in done[1].trials} == {("diverged", "search")}
    assert race(tmp_path / "yes", optimizers=["sgd"], trials=2).trials == done[1].trials, "finished"


def test_too_little_memory_halves_a_group(tmp_path, monkeypatch):
    train, tried = together.train, []
    errors = [DoesNotFit("too large"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")]

    def limited(config, *arguments, **more):
        tried.append(config.train.members)
        if config.train.members > 2:
            raise errors.pop()
        return train(config, *arguments, **more)

    monkeypatch.setattr(together, "train", limited)
    done = race(tmp_path / "race", optimizers=["sgd"], trials=5, together="yes")
    assert tried == [5, 2, 3, 2]
    assert [trial.together for trial in done.trials] == [2, 2, 1, 2, 2, 1]
    assert not (tmp_path / "race" / record.TOGETHER).exists()


def test_other_errors_are_not_taken_for_too_little_memory(tmp_path, monkeypatch):
    def broken(config, *arguments, **more):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(together, "train", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        race(tmp_path / "race", optimizers=["sgd"], together="yes")


def planned_trials(folder, label="momentum", count=3) -> list[Planned]:
    settings = [{"learning_rate": 0.1, "momentum": 0.5 + number / 10} for number in range(count)]
    return [
        Planned(label, "search", number, 0, of, folder / "trials" / f"{label}-{number:02d}")
        for number, of in enumerate(settings)
    ]


def configs_of(planned, **fields) -> list[Config]:
    base = Config("compare").override(dataset="digits", optimizer="momentum", epochs=None, steps=6, **fields)
    return [with_settings(base.override(workdir=str(of.folder)), of.settings).resolve() for of in planned]


def test_the_run_of_all_has_what_each_has(tmp_path):
    planned = planned_trials(tmp_path)
    whole = together.together_config(planned, configs_of(planned), tmp_path / "together")
    assert whole.compared == tuple(Member(0.1, (f"momentum={momentum}",)) for momentum in (0.5, 0.6, 0.7))
    assert whole.optim.optimizer_args == () and whole.train.workdir == str(tmp_path / "together")
    planned = [replace(of, settings={"weight_decay": 0.1 * of.number}) for of in planned]
    whole = together.together_config(planned, configs_of(planned, optimizer_args=("nesterov=true",)), tmp_path)
    assert whole.compared == tuple(Member(0.01, (f"weight_decay={decay}",)) for decay in (0.0, 0.1, 0.2)), "usual rate"
    assert whole.optim.weight_decay == 0.0 and whole.optim.optimizer_args == ("nesterov=true",)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"patience": 2}, "`patience` may stop each trial at another step"),
        ({"members": 2}, "each trial has several `members`"),
        ({"head_learning_rate": 0.1}, "`head_learning_rate` is another share of each trial's rate"),
        ({"init_from": "runs/mine"}, "`init_from` starts one network at a time"),
    ],
)
def test_what_cannot_be_trained_at_once(tmp_path, fields, said):
    planned = planned_trials(tmp_path)
    assert together.apart_because(planned, configs_of(planned, **fields)[0]) == said


def test_one_trial_or_equal_trials_are_not_trained_at_once(tmp_path):
    planned = planned_trials(tmp_path)
    config = configs_of(planned)[0]
    assert together.apart_because(planned[:1], config) == "there is one trial"
    equal = [replace(of, settings=planned[0].settings) for of in planned]
    assert together.apart_because(equal, config) == "trials have the same settings"


def test_every_trial_gets_the_rows_that_it_would_have_alone(tmp_path, monkeypatch):
    """Of three networks, the first is best in the middle, the second diverges in training, the third in validation."""
    nan, planned = math.nan, planned_trials(tmp_path)
    losses = {"train": {2: (3, 3, 3), 4: (2, nan, 4), 6: (1, nan, nan)}}
    losses["validation"] = {2: (3, 2, 5), 4: (1, nan, nan), 6: (1.5, nan, nan)}

    def train(config, *_, **__):
        run = Path(config.train.workdir)
        run.mkdir(parents=True)
        for name in (files.ENVIRONMENT, files.CLASSES, files.PREPROCESS, files.DATA):
            files.write_text(run / name, f"the {name} of all")
        with files.open_metrics(run) as file:
            for step in (2, 4, 6):
                for kind in ("train", "validation"):
                    for member, loss in enumerate(losses[kind][step]):
                        row = {"member": member, "peak_learning_rate": 0.1, "optimizer_args": "momentum=…"}
                        speed = {"images_per_second": 64.0} if kind == "train" else {}
                        files.write_metrics(
                            file, {"kind": kind, "step": step, **row, "loss": loss, **speed, "seconds": 0}
                        )
                    for member, end, found in ((1, 3, "train"), (2, 4, "validation")):
                        if step == 4 and kind == found:
                            row = {"kind": "diverged", "step": end, "member": member, "peak_learning_rate": 0.1}
                            files.write_metrics(file, row | {"seconds": 0})
        shared = {"steps": 6, "best_step": 6, "validation_loss": 9.0, "best_member": 2, "rates": []}
        files.write_text(run / files.SUMMARY, json.dumps(shared))

    monkeypatch.setattr(together, "train", train)
    about: Any = SimpleNamespace(metrics={"loss": Metric("loss")}, selection=Selection("loss", higher_is_better=False))
    configs = configs_of(planned, batch_size=64)
    assert together.run_together(planned, configs, Given(), about)
    first, second, third = (read_trial(of) for of in planned)
    assert first and second and third and {of.together for of in (first, second, third)} == {3}
    assert (first.status, first.steps, first.validation) == ("finished", 6, {"loss": 1.0})
    assert (second.status, second.steps, second.validation) == ("diverged", 3, {"loss": 2.0})
    assert (third.status, third.steps, third.validation) == ("diverged", 4, {"loss": 5.0})
    assert [(row["kind"], row["step"]) for row in first.rows] == [
        (kind, step) for step in (2, 4, 6) for kind in ("train", "validation")
    ]
    assert [(row["kind"], row["step"]) for row in second.rows] == [("train", 2), ("validation", 2)]
    assert [(row["kind"], row["step"]) for row in third.rows] == [("train", 2), ("validation", 2), ("train", 4)]
    assert [row["seconds"] for row in first.rows] == [2, 2, 4, 4, 6, 6], "the clock of all"
    assert not any("member" in row or "optimizer_args" in row for row in first.rows)
    assert files.read_json(planned[0].folder, files.SUMMARY) == {"steps": 6, "best_step": 4, "validation_loss": 1.0}
    assert not (planned[1].folder / files.SUMMARY).exists()
    assert [files.read_config(of.folder) for of in planned] == configs
    assert not together.together_folder(planned).exists()


def groups_of(*flags: str, tell=print) -> list[int]:
    """The sizes of the groups in which the three trials of SGD and of Adam are run."""
    question = command.parse(["--optimizers", "sgd", "adam", "--trials", "3", *flags])
    about: Any = SimpleNamespace(
        settings={"seed": 0, "trials": 3},
        candidates=question.candidates,
        steps={"sgd": 6, "adam": 6},
        steps_per_epoch={"sgd": 2.0, "adam": 2.0},
    )
    return [len(group) for group in engine._together(question, about, tell)]


@pytest.mark.parametrize(("backend", "auto"), [("cpu", [1] * 6), ("gpu", [3, 3]), ("tpu", [3, 3])])
def test_auto_means_at_once_where_there_is_an_accelerator(backend, auto, monkeypatch):
    monkeypatch.setattr(engine.jax, "default_backend", lambda: backend)
    assert groups_of() == groups_of("--together", "auto") == auto
    assert groups_of("--together", "yes") == [3, 3] and groups_of("--together", "no") == [1] * 6


def test_what_runs_one_by_one_is_said_if_at_once_was_asked_for(monkeypatch):
    monkeypatch.setattr(engine.jax, "default_backend", lambda: "gpu")
    said: list[str] = []
    assert groups_of("--patience", "2", tell=said.append) == [1] * 6 and said == []
    assert groups_of("--patience", "2", "--together", "yes", tell=said.append) == [1] * 6
    assert list(map(with_flags, said)) == ["one by one sgd, adam: --patience may stop each trial at another step"]


def test_wrong_words_are_refused(tmp_path):
    with pytest.raises(UserError, match="`together` is 'maybe': choose auto, yes or no"):
        race(tmp_path / "race", together="maybe")
    assert not (tmp_path / "race").exists()
    (tmp_path / "together").mkdir()
    with pytest.raises(UserError, match="has together, which a study would overwrite"):
        race(tmp_path)
