"""Comparisons: equal points and seeds for all, selection without the test set, studies that go on."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import optax
import pytest
from scipy.stats import qmc

import cnn_jax
from cnn_jax.commands import compare as command
from cnn_jax.commands.parser import with_flags
from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.models.linear import Mlp
from cnn_jax.optim.optimizers import METHODS, make_optimizer
from cnn_jax.optim.spaces import SPACES, Parameter, space_of
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.storage import run_folder as files
from cnn_jax.studies import budget, engine, prepare
from cnn_jax.studies.candidates import folder_names, warnings_of, with_settings
from cnn_jax.studies.plan import open_study
from cnn_jax.studies.study import Candidate, Study, Table, Trial
from cnn_jax.studies.texts import parse_vary
from cnn_jax.training import experiment as experiments
from cnn_jax.training.compiled import TrainStep

pytestmark = pytest.mark.usefixtures("one_device", "quick_pages")

SMALL: dict[str, Any] = {
    "model_args": "hidden=8",
    "devices": 1,
    "batch_size": 64,
    "report": False,
    "logger": (),
    "log_every": 1,
}
RACE: dict[str, Any] = {"optimizers": ["sgd", "adam"], "trials": 3, "seeds": 2, "budget": "6steps", **SMALL}


def race(folder, **changes) -> Study:
    """A small study of two optimizers on digits."""
    return cnn_jax.compare("mlp", "digits", **{**RACE, "workdir": str(folder), **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory, quick_pages):
    """A finished study, and how often the test split had been opened before each of its trials."""
    opened = []
    original = experiments.open_source

    def open_source(name, split, **settings):
        opened.append(split)
        return original(name, split, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "open_source", open_source)
        before, run_trial = [], engine.run_trial

        def counted(planned, *arguments):
            before.append((planned.phase, opened.count("test")))
            return run_trial(planned, *arguments)

        patch.setattr(engine, "run_trial", counted)
        done = race(tmp_path_factory.mktemp("study") / "race")
    return done, before


def of(study: Study, label: str, phase: str) -> list[Trial]:
    return [trial for trial in study.trials if (trial.candidate, trial.phase) == (label, phase)]


def test_points_are_those_of_one_scrambled_sobol_sequence(study):
    points = qmc.Sobol(4, scramble=True, rng=np.random.default_rng(0)).random_base2(2)
    for row, trial in enumerate(of(study[0], "sgd", "search")):
        assert trial.settings["learning_rate"] == pytest.approx(10 ** (-4 + 4 * points[row, 0]), rel=1e-5)
    for row, trial in enumerate(of(study[0], "adam", "search")):
        assert trial.settings["learning_rate"] == pytest.approx(10 ** (-5 + 4 * points[row, 0]), rel=1e-5)
        assert 1 - trial.settings["b1"] == pytest.approx(10 ** (-2 + 2 * points[row, 1]), rel=1e-5)
        assert 1 - trial.settings["b2"] == pytest.approx(10 ** (-4 + 2 * points[row, 2]), rel=1e-5)
        assert trial.settings["eps"] == pytest.approx(10 ** (-10 + 7 * points[row, 3]), rel=1e-5)
        args = dict(text.split("=") for text in config_of(study[0], "adam", row).optim.optimizer_args)
        assert {name: float(value) for name, value in args.items()} | {
            "learning_rate": config_of(study[0], "adam", row).optim.learning_rate
        } == trial.settings


def config_of(study: Study, label: str, number: int) -> Config:
    return Config.load(study.folder / "trials" / f"{label}-{number:02d}" / files.CONFIG)


def test_the_search_never_sees_the_test_set(study):
    done, opened = study
    assert [phase for phase, _ in opened] == 6 * ["search"] + 4 * ["final"]
    # Opened once at the start, to find a mistake in its name, and by the final runs.
    assert [count for _, count in opened] == [1] * 7 + [2, 3, 4]
    for trial in done.trials:
        assert set(trial.test) == ({"loss", "accuracy"} if trial.phase == "final" else set())
    for folder in (done.folder / "trials").iterdir():
        assert set(json.loads((folder / files.DATA).read_text())) == {"train", "validation"}
        assert {row["kind"] for row in files.read_metrics(folder)} == {"train", "validation"}
    for folder in (done.folder / "finals").iterdir():
        assert [row["kind"] for row in files.read_metrics(folder)].count("test") == 1


def test_all_trials_of_a_seed_start_from_the_same_weights_and_batches(study):
    first: dict[int, set[float]] = {}
    for trial in study[0].trials:
        first.setdefault(trial.seed, set()).add(trial.rows[0]["loss"])  # before the first update
    assert {seed: len(losses) for seed, losses in first.items()} == {0: 1, 1: 1, 2: 1}
    assert len(set.union(*first.values())) == 3, "other seeds have other weights"
    for label in ("sgd", "adam"):
        assert [trial.seed for trial in of(study[0], label, "search")] == [0, 0, 0]
        assert [trial.seed for trial in of(study[0], label, "final")] == [1, 2]


def test_the_best_by_validation_runs_again(study):
    for label in ("sgd", "adam"):
        every = of(study[0], label, "search")
        best = max(every, key=lambda trial: (trial.validation["accuracy"], -trial.validation["loss"]))
        assert {trial.number for trial in of(study[0], label, "final")} == {best.number}
        for trial in every:
            found = [row["accuracy"] for row in trial.rows if row["kind"] == "validation"]
            assert trial.validation["accuracy"] == max(found) and len(found) == 6
        for trial in of(study[0], label, "final"):
            assert trial.settings == best.settings


def test_the_target_is_what_the_baseline_reached_at_its_end(study):
    done = study[0]
    best = of(done, "sgd", "search")[of(done, "sgd", "final")[0].number]
    assert done.target == [row["accuracy"] for row in best.rows if row["kind"] == "validation"][-1]
    for trial in done.trials:
        reached = [r["step"] for r in trial.rows if r["kind"] == "validation" and r["accuracy"] >= done.target]
        assert trial.steps_to_target == min(reached, default=None)
        assert (trial.seconds_to_target is None) == (trial.steps_to_target is None)
        assert 0 < (trial.seconds_to_target or trial.seconds) <= trial.seconds


def test_tables_have_a_row_for_each_trial(study):
    done = study[0]
    with open(done.folder / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == 5 * ["sgd"] + 5 * ["adam"]
    for row, trial in zip(rows, done.trials, strict=True):
        assert (row["phase"], int(row["trial"]), int(row["seed"])) == (trial.phase, trial.number, trial.seed)
        assert json.loads(row["settings"]) == trial.settings and row["status"] == "finished" and row["steps"] == "6"
        assert float(row["validation_accuracy"]) == trial.validation["accuracy"]
        assert row["test_loss"] == ("" if trial.phase == "search" else str(trial.test["loss"]))
    with open(done.folder / "times.csv") as file:
        times = list(csv.DictReader(file))
    assert [float(row["seconds"]) for row in times] == pytest.approx([t.seconds for t in done.trials], abs=1e-6)
    assert open_study(done.folder).trials == done.trials


def test_search_trials_leave_neither_weights_nor_reports(study):
    for folder in (study[0].folder / "trials").iterdir():
        names = {path.name for path in folder.iterdir()}
        assert not names & {files.WEIGHTS, files.REPORT, files.PLOTS, files.CHECKPOINTS, files.TENSORBOARD}
    final = study[0].folder / "finals" / "adam-seed-1"
    trial = of(study[0], "adam", "final")[0]
    assert evaluate(final)["accuracy"] == pytest.approx(trial.test["accuracy"])


def test_a_finished_study_is_not_run_again(study, monkeypatch, capsys):
    monkeypatch.setattr(engine, "run_trial", None)
    again = race(study[0].folder)
    assert again.trials == study[0].trials
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": 4}, r"another study \(trials: 4 here, 3 there\): set another `workdir`"),
        ({"optimizers": ["sgd"]}, r"candidates: \['optimizer=sgd'\] here"),
        ({"batch_size": 32, "budget": "7steps"}, "budget: '7steps' here, '6steps' there; batch_size: 32 here"),
    ],
)
def test_a_folder_of_another_study_is_refused(study, changes, said):
    with pytest.raises(UserError, match=said):
        race(study[0].folder, **changes)


def test_a_folder_of_a_run_or_of_other_files_is_refused(study, tmp_path):
    with pytest.raises(UserError, match="is a run folder"):
        race(study[0].folder / "finals" / "adam-seed-1")
    (tmp_path / "trials.csv").write_text("mine")
    with pytest.raises(UserError, match="is not a study, but has trials.csv, which a study would overwrite"):
        race(tmp_path)
    assert os.listdir(tmp_path) == ["trials.csv"]


@pytest.mark.parametrize("at", [4, 21, 45])
def test_an_interrupted_study_goes_on_to_the_same_table(study, tmp_path, monkeypatch, at, capfd):
    original, done = TrainStep.__call__, 0

    def call(steps, state, items):
        nonlocal done
        done += 1
        if done == at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(steps, state, items)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", call)
        part = race(tmp_path / "race")
    assert len(part.trials) == (at - 1) // 6
    assert f"stopped after {len(part.trials)} of 10 trials" in capfd.readouterr().out
    whole = race(tmp_path / "race")
    assert len(re.findall("^trial ", capfd.readouterr().out, re.MULTILINE)) == 10 - len(part.trials)
    assert len(whole.trials) == 10
    assert (tmp_path / "race" / "trials.csv").read_bytes() == (study[0].folder / "trials.csv").read_bytes()


def test_a_killed_study_ends_like_an_undisturbed_one(tmp_path):
    flags = ["--optimizers", "sgd", "adam", "--trials", "3", "--seeds", "2", "--budget", "6steps", "--batch-size", "64"]
    flags += ["--model", "mlp", "--model-args", "hidden=8", "--no-report", "--logger", "csv", "--workdir"]
    program = [sys.executable, "-m", "cnn_jax", "compare", *flags]
    subprocess.run([*program, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    draw, kills = random.Random(0), 0
    while True:
        victim = subprocess.Popen([*program, str(tmp_path / "race")], stdout=subprocess.DEVNULL)
        enough = trials_over(tmp_path / "race") + draw.randint(1, 3)
        while victim.poll() is None and trials_over(tmp_path / "race") < enough:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.4))
        if victim.poll() is not None:
            break
        victim.kill()
        victim.wait()
        kills += 1
    assert victim.returncode == 0 and kills >= 3
    tables = [(tmp_path / name / "trials.csv").read_bytes() for name in ("whole", "race")]
    assert tables[0] == tables[1] and tables[0].count(b"\n") == 11


def trials_over(study) -> int:
    return len(list(study.glob("*/*/trial.json")))


def test_a_trial_that_diverges_is_a_result(tmp_path, capsys):
    done = race(
        tmp_path / "study",
        optimizers=None,
        trials=None,
        vary={"learning_rate": [0.1, 1e38]},
        optimizer="sgd",
        seeds=1,
        target=0.999,
    )
    assert [(t.candidate, t.phase, t.status) for t in done.trials] == [
        ("learning_rate=0.1", "search", "finished"),
        ("learning_rate=0.1", "final", "finished"),
        ("learning_rate=1e+38", "search", "diverged"),
    ]
    bad = done.trials[-1]
    assert 0 < bad.steps < 6 and bad.test == {} and bad.steps_to_target is None
    assert all(np.isfinite(value) for value in bad.validation.values())
    assert "Every trial of learning_rate=1e+38 diverged: it has no final runs." in done.warnings
    assert done.target == 0.999 and all(trial.steps_to_target is None for trial in done.trials)
    said = capsys.readouterr().out
    assert f"diverged at step {bad.steps}" in said and "target missed" in said
    assert len(re.findall("^trial ", said, re.MULTILINE)) == 3 and "epoch" not in said, "one line a trial"
    assert "finished already" not in said
    assert len(race(done.folder, optimizers=None, trials=None, vary="learning_rate=0.1,1e38", optimizer="sgd", seeds=1,
                    target=0.999).trials) == 3  # fmt: skip


def test_a_module_and_arrays_with_varied_batches(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 1), np.uint8)
    labels = np.arange(60) % 3
    fields = {"devices": 1, "report": False, "logger": (), "learning_rate": 0.01}
    done = cnn_jax.compare(
        Mlp(num_classes=3, hidden=(8,)),
        (images, labels),
        vary={"batch_size": [9, 18]},
        seeds=1,
        budget="2epochs",
        workdir=tmp_path / "study",
        **fields,
    )
    # 54 examples are left for training, so an epoch is 6 or 3 steps.
    assert [(t.candidate, t.steps) for t in done.trials] == [
        (f"batch_size={b}", s) for b, s in ((9, 12),) * 2 + ((18, 6),) * 2
    ]
    assert [trial.settings for trial in done.trials] == [{}] * 4, "a single trial keeps the values that are set"
    assert [candidate.space for candidate in done.candidates] == [{}] * 2 and done.warnings == []
    assert all(trial.test == {} for trial in done.trials), "arrays without a test set"


def test_seconds_become_steps_once(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "measure_step", lambda experiment: 0.5)
    fields = {"optimizers": ["adam"], "trials": 1, "seeds": 1, "budget": "2.5seconds"}
    done = race(tmp_path / "study", **fields)
    assert {trial.steps for trial in done.trials} == {5}
    kept = json.loads((done.folder / "study.json").read_text())
    assert kept["steps"] == {"adam": 5} and kept["seconds_per_step"] == {"adam": 0.5}
    assert "0.5" not in (done.folder / "trials.csv").read_text().partition("\n")[0]
    monkeypatch.setattr(prepare, "measure_step", None)
    assert race(tmp_path / "study", **fields).trials == done.trials


def test_the_step_time_leaves_out_compilation(monkeypatch):
    monkeypatch.setattr(budget, "MEASURED_SECONDS", 0.05)
    config = Config().override(dataset="digits", model="softmax_regression", test_split="none", batch_size=64)
    experiment = experiments.make_experiment(config.resolve())
    start = time.perf_counter()
    measured = budget.measure_step(experiment)
    whole = time.perf_counter() - start
    assert 1e-5 < measured < whole / 10


def test_what_is_set_is_not_searched(monkeypatch):
    monkeypatch.setattr("cnn_jax.studies.compare.run_study", lambda question: question)
    question: Any = race("runs/none", optimizers=[optax.adam, "sgd"], learning_rate=0.01)
    adam, sgd = question.candidates
    assert adam.label == "adam" and set(adam.space) == {"b1", "b2", "eps"} and sgd.space == {}
    assert question.config(adam).optim.learning_rate == question.config(sgd).optim.learning_rate == 0.01
    tuned = Config().override(optimizer="adam", learning_rate=0.5, weight_decay=0.1)
    question = race("runs/none", config=tuned)
    for candidate in question.candidates:
        optim = question.config(candidate).optim
        assert optim.learning_rate is None and optim.weight_decay == 0.0, "tuned for one of them"


def test_undeclared_spaces_are_searched_by_rate_and_said():
    assert SPACES.keys() == METHODS.keys()
    for name, space in SPACES.items():
        usual = METHODS[name].learning_rate
        if usual is not None:
            assert space["learning_rate"].at(0.5) == pytest.approx(usual)
        for share in (0.0, 0.5, 1.0):
            config = with_settings(Config().override(optimizer=name), {n: p.at(share) for n, p in space.items()})
            make_optimizer(config.optim, total_steps=10)
    assert space_of("radam") == {"learning_rate": Parameter(1e-5, 1.0)}
    question = command.parse(["--optimizers", "adam", "radam"])
    (said,) = warnings_of(question.candidates, question.base, 16)
    assert said == (
        "radam has no declared search space: only learning_rate from 1e-05 to 1 is searched. Add ranges by --spaces."
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--optimizers sgd adm", "unknown optimizer 'adm'; perhaps you meant adam"),
        ("--optimizers sgd sgd", "--optimizers names sgd twice: drop one"),
        ("--optimizers sgd --vary model=mlp", "--optimizers and --vary cannot be combined: drop one"),
        ("--optimizers sgd --optimizer adam", "--optimizer and --optimizers cannot be combined: drop one"),
        ("--optimizers sgd --trials 0", "--trials is 0: set 1 or more"),
        ("--optimizers sgd --seeds 0", "--seeds is 0: set 1 or more"),
        ("--optimizers sgd --epochs 3", "--epochs is for a single run: set --budget instead"),
        ("--optimizers sgd --fresh", "--fresh is for a single run: delete the study's folder"),
        ("--optimizers sgd --budget 3", "--budget is '3': write a number and a unit together, as 3epochs"),
        ("--optimizers sgd --budget 3hours", "--budget is '3hours': write a number and a unit together"),
        ("--optimizers sgd --budget 0steps", "--budget is 0steps: it must be more than 0"),
        ("--optimizers sgd --budget 1.5steps", "--budget is 1.5steps: it must be a whole number of steps"),
        ("--vary modle=a,b", "--vary names 'modle', which is no config field: perhaps you meant model"),
        ("--vary model", "--vary is 'model': write FIELD=VALUE,VALUE"),
        ("--vary schedule=", "--vary gives no values of schedule: write schedule=VALUE,VALUE"),
        ("--vary schedule=constant,cosin", "unknown schedule 'cosin'; perhaps you meant cosine"),
        ("--vary batch_size=64,x", "--batch-size is 'x': it must be a whole number"),
        ("--vary epochs=1,2", "--vary names epochs, but the length of a trial is the --budget: vary another field"),
        ("--vary batch_size=8,16 --batch-size 4", "--batch-size is varied and set: drop one"),
        ("", "there is nothing to compare: set --optimizers or --vary"),
        ("--optimizers sgd --model mpl", "unknown model 'mpl'; perhaps you meant mlp"),
        ("--optimizers sgd --optimizer-args b1=0.9", "--optimizer-args: optimizer sgd has no argument 'b1'"),
        ("--optimizers sgd --test-split tset", "unknown split 'tset'; perhaps you meant test"),
        ("--optimizers sgd --model cnn_jax.classical:knn", "cnn_jax.classical:knn is solved for, not trained"),
        ("--optimizers lamb --trials 1", "lamb has no usual learning rate: set --learning-rate"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(flags, said, tmp_path):
    with pytest.raises(UserError) as refused:
        command.run(command.parse([*flags.split(), "--workdir", str(tmp_path / "study")]))
    assert said in with_flags(str(refused.value))
    assert not (tmp_path / "study").exists()


def test_objects_that_cannot_be_imported_are_refused(tmp_path):
    with pytest.raises(UserError, match="which cannot be imported: pass names, Optax factories"):
        race(tmp_path / "study", optimizers=[lambda learning_rate: optax.sgd(learning_rate)])
    with pytest.raises(UserError, match="`vary` has 2 fields: vary one at a time"):
        race(tmp_path / "study", optimizers=None, vary={"schedule": ["cosine"], "batch_size": [8]})
    with pytest.raises(UserError, match="but the model is an object: pass the name of one"):
        cnn_jax.compare(Mlp(num_classes=10, hidden=(8,)), "digits", vary={"model": ["mlp"]})
    with pytest.raises(UserError, match="`eval_batch_size` is '8': it must be a whole number"):
        race(tmp_path / "study", optimizers=None, vary={"eval_batch_size": ["8"]})


def test_values_are_read_by_the_type_of_their_field():
    assert parse_vary("learning_rate=none,0.1") == ("learning_rate", [None, 0.1])
    assert parse_vary("decay_all=true,False") == ("decay_all", [True, False])
    assert parse_vary("normalize=none,half") == ("normalize", ["none", "half"])
    assert parse_vary("channels=1,3") == ("channels", [1, 3])
    assert parse_vary("batch-size=8,16") == ("batch_size", [8, 16])
    assert parse_vary("model=lenet5,mypackage.nets:Tiny") == ("model", ["lenet5", "mypackage.nets:Tiny"])


def test_rows_print_as_a_table():
    rows = Table([{"candidate": "adam", "test": "97.0%"}, {"candidate": "sgd <1>", "test": "9%"}])
    assert repr(rows) == "candidate  test\nadam       97.0%\nsgd <1>    9%"
    assert "<td>sgd &lt;1&gt;</td>" in rows._repr_html_()


def test_labels_are_distinct_folders():
    names = folder_names([Candidate(label, {}, {}) for label in ("a:b", "a/b", "A b")])
    assert sorted(names.values()) == ["0-a-b", "1-a-b", "2-A-b"]
