"""What a study does with its folder: damage, removed trials, another device, Ctrl-C at any moment, other data."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cnn_jax
from cnn_jax import interrupts
from cnn_jax.commands import compare as command
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.studies import engine, outcome, prepare, record
from cnn_jax.studies.candidates import warnings_of
from cnn_jax.studies.plan import open_study
from cnn_jax.studies.study import Study
from cnn_jax.studies.texts import parse_vary
from cnn_jax.training import loop
from cnn_jax.training.compiled import TrainStep

pytestmark = pytest.mark.usefixtures("quick_pages")

FLAGS = "--model softmax_regression --optimizers sgd momentum --learning-rate 0.1 --trials 2 --seeds 1 --budget 2steps"
FIELDS: dict[str, Any] = {"devices": 1, "report": False, "logger": (), "log_every": 1, "learning_rate": 0.1}


def race(folder: Path) -> Study:
    """Two optimizers on digits, of which one has nothing to search: five trials."""
    done = cnn_jax.compare(
        *("softmax_regression", "digits"),
        **{"optimizers": ["sgd", "momentum"], "trials": 2, "seeds": 1, "budget": "2steps", "workdir": str(folder)},
        **FIELDS,
    )
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick_pages) -> Study:
    return race(tmp_path_factory.mktemp("study") / "whole")


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of the finished study, to damage."""
    return Path(shutil.copytree(whole.folder, tmp_path / "copy"))


def test_an_optimizer_with_nothing_to_search_is_tried_once(whole):
    found = [(trial.candidate, trial.phase) for trial in whole.trials]
    assert found == [("sgd", "search"), ("sgd", "final"), *[("momentum", "search")] * 2, ("momentum", "final")]
    assert outcome.finished(whole) and {found.finals for found in outcome.outcomes(whole)} == {1}


def without_checksum(run: Path) -> None:
    """Makes the trial one of an earlier version, which had neither a checksum nor a number of rows."""
    sums = durable._known(run)
    del sums["trial.json"]
    durable._write_known(run, sums)
    result = json.loads((run / "trial.json").read_text())
    (run / "trial.json").write_text(json.dumps({name: value for name, value in result.items() if name != "rows"}))


def test_trials_of_an_earlier_version_can_be_read(whole, copy):
    for run in (*(copy / "trials").iterdir(), *(copy / "finals").iterdir()):
        without_checksum(run)
    assert open_study(copy).trials == whole.trials


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("part", "value"), [("accuracy", None), ("accuracy", "high"), ("status", "great"), ("steps", None)]
)
def test_a_damaged_result_is_refused(copy, part, value, old):
    run = copy / "trials" / "momentum-01"
    if old:
        without_checksum(run)
    result = json.loads((run / "trial.json").read_text())
    (result if part in result else result["validation"])[part] = value
    (run / "trial.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"momentum-01 is damaged \(.*\): delete it, and the trial is run again"):
        race(copy)


@pytest.mark.parametrize(("lines", "old"), [(0, False), (0, True), (2, False)])
def test_lost_rows_are_noticed(copy, lines, old):
    run = copy / "finals" / "sgd-seed-1"
    if old:
        without_checksum(run)
    kept = (run / files.METRICS).read_text().splitlines(keepends=True)[:lines]
    (run / files.METRICS).write_text("".join(kept))
    with pytest.raises(UserError, match=r"sgd-seed-1 is damaged \(rows of metrics.jsonl are missing\): delete it"):
        race(copy)


def test_a_removed_trial_is_run_again_and_the_page_written_anew(whole, copy, capsys):
    (copy / record.PAGE).write_text("old")
    (copy / record.TRIALS).write_text("old")
    shutil.rmtree(copy / "trials" / "momentum-00")
    again = race(copy)
    assert capsys.readouterr().out.count("\ntrial ") == 1
    assert (copy / record.PAGE).read_text() == repr(again.table)
    assert (copy / record.TRIALS).read_bytes() == (whole.folder / record.TRIALS).read_bytes()


def test_another_device_is_said_and_kept(copy, monkeypatch, capsys):
    here = prepare.runtime.environment("")
    monkeypatch.setattr(prepare.runtime, "environment", lambda command: {**here, "device": "1 x other"})
    race(copy)
    assert not any("began on" in said for said in open_study(copy).warnings), "nothing was run there"
    text = (
        f"The study began on {here['device']} and went on on 1 x other: seconds of trials from both are not comparable."
    )
    for name in ("momentum-00", "momentum-01"):
        shutil.rmtree(copy / "trials" / name)
        capsys.readouterr()
        done = race(copy)
        assert capsys.readouterr().out.count(f"warning    {text}") == 1
        assert list(done.warnings).count(text) == 1 == list(open_study(copy).warnings).count(text)
    monkeypatch.undo()
    assert open_study(copy).facts["device"] == here["device"]


@pytest.fixture
def as_command():
    """Signal handlers as a command has them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts.quit_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopping(patch: pytest.MonkeyPatch, place: Any, name: str, number: int, at: int = 1) -> None:
    """Sends a signal when a function is called for the `at`-th time."""
    original, calls = getattr(place, name), []

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*arguments, **more)

    patch.setattr(place, name, call)


@pytest.mark.parametrize(
    ("number", "place", "name", "at", "done"),
    [
        (signal.SIGINT, engine, "prepare", 1, 0),
        (signal.SIGTERM, engine, "prepare", 1, 0),
        (signal.SIGTERM, TrainStep, "prepare", 1, 0),  # compilation
        (signal.SIGINT, engine, "run_trial", 2, 1),
    ],
)
def test_a_signal_at_any_moment_says_what_is_done(tmp_path, as_command, number, place, name, at, done):
    question = command.parse([*FLAGS.split(), "--no-report", "--logger", "csv", "--workdir", str(tmp_path / "study")])
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, place, name, number, at)
        with pytest.raises(TrainingStopped) as stopped:
            engine.run_study(question)
    assert str(stopped.value) == f"stopped after {done} of 5 trials, all saved: the same command goes on"
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is interrupts.quit_at_once
    assert len(list(tmp_path.glob("study/*/*/trial.json"))) == done


def test_a_signal_while_the_page_is_drawn(copy, as_command, capsys, monkeypatch):
    (copy / record.PAGE).unlink()
    stopping(monkeypatch, engine, "write_page", signal.SIGTERM)
    race(copy)
    assert "stopped after 5 of 5 trials, all saved: the same command goes on" in capsys.readouterr().out
    assert not (copy / record.PAGE).exists()


def test_ctrl_c_in_a_notebook_before_the_study_has_begun(tmp_path, monkeypatch):
    stopping(monkeypatch, engine, "prepare", signal.SIGINT)
    with pytest.raises(TrainingStopped, match="stopped after 0 of 5 trials"):
        race(tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_second_signal_ends_a_command_at_once(as_command, monkeypatch):
    with pytest.raises(KeyboardInterrupt), interrupts.interruptible():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGINT) is interrupts.quit_at_once
    ended = []
    monkeypatch.setattr(loop, "quit_at_once", lambda number, frame: ended.append(number))
    with interrupts.interruptible(), loop.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and not ended
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert ended == [signal.SIGINT]


def test_signals_are_the_callers_in_the_library():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts.interruptible():
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_data_that_differ_are_recorded_for_each_candidate():
    splits = "train[:500],train[:300]"
    question = command.parse(["--model", "softmax_regression", "--vary", f"train_split={splits}"])
    found = prepare.prepare(question)
    assert {name: of["examples"] for name, of in found.data.items() if name.startswith("train")} == {
        "train of train[:500]": 500,
        "train of train[:300]": 300,
    }
    assert (
        "train[:500]: 8x8x1; train 500" in found.facts["data"]
        and "train[:300]: 8x8x1; train 300" in found.facts["data"]
    )
    prepare.check_data(question, found)
    other = {**found.data, "train of train[:300]": {"examples": 299}}
    with pytest.raises(UserError, match=r"another study \(train of train\[:300\]"):
        prepare.check_data(question, replace(found, data=other))
    same = prepare.prepare(command.parse(["--model", "softmax_regression", "--vary", "batch_size=8,16"]))
    assert set(same.data) == {"train", "validation"} and same.facts["data"].startswith("digits, 8x8x1; train 1,")


def test_losses_of_different_kinds():
    flags = "--task reconstruction --model conv_autoencoder --vary loss=mse,l1"
    with pytest.raises(UserError, match="`vary` names loss, but this task is judged by its loss"):
        prepare.prepare(command.parse(flags.split()))
    for flags, kinds in (("loss=cross_entropy,mse", 1), ("label_smoothing=0,0.1", 1), ("batch_size=8,16", 0)):
        question = command.parse(["--vary", flags])
        said = warnings_of(question.candidates, question.base, 1)
        assert said == ["The training losses of the candidates differ in kind: they are not compared."] * kinds


def test_arguments_of_an_augmentation_end_where_the_next_one_begins():
    assert parse_vary("augment=none,affine:degrees=10,translate=0.1+pad_crop:padding=1") == (
        "augment",
        [(), ("affine:degrees=10,translate=0.1", "pad_crop:padding=1")],
    )
    assert parse_vary("augment=affine:degrees=10,pad_crop:padding=1+flip")[1] == [
        ("affine:degrees=10",),
        ("pad_crop:padding=1", "flip"),
    ]


def test_no_value_is_called_none():
    labels = [of.label for of in command.parse(["--vary", "clip_norm=none,1"]).candidates]
    assert labels == ["clip_norm=none", "clip_norm=1.0"]
