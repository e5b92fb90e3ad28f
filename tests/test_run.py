"""Whole runs in a folder: exact resume, interruption, bad losses, damaged checkpoints, foreign folders."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import cnn_jax
from cnn_jax.config import Config
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.optim.spaces import SPACES
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.lock import LOCK
from cnn_jax.storage.weights_file import load_weights
from cnn_jax.tasks import Selection
from cnn_jax.training import experiment, loop, run, runtime
from cnn_jax.training.checkpoint import Checkpoints
from cnn_jax.training.compiled import TrainStep, call_once
from cnn_jax.training.experiment import make_experiment

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Config("small").override(
    dataset="synthetic:8x8x1:3:120",
    model="resnet20",
    model_args=("blocks=1/1", "width=8"),
    optimizer="momentum",
    learning_rate=0.05,
    ema_decay=0.9,
    batch_size=16,
    devices=1,
    augment=("pad_crop:padding=1",),
    epochs=None,
    steps=20,
    eval_every=0.7,  # every 5 steps (16 of 120 images each)
    log_every=4,
    report=False,  # it takes as long as the training
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run.train(CONFIG.override(workdir=str(folder), report=True))
    return folder


def state_at(folder, step):
    with Checkpoints(folder / files.CHECKPOINTS, Selection("accuracy", True)) as checkpoints:
        parts = make_experiment(CONFIG)
        restored = checkpoints.restore(parts.state, parts.parallel.replicated, step)
        assert restored is not None and restored[0] == step
        return jax.device_get(restored[1])


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def interrupted(monkeypatch, config, at: int, said: str = "state saved"):
    """Runs `config` and sends Ctrl-C during the first step after step `at`."""
    original, done = TrainStep.__call__, 0

    def call(steps, state, items):
        nonlocal done
        if done == at:
            os.kill(os.getpid(), signal.SIGINT)
        done += len(items)
        return original(steps, state, items)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", call)
        with pytest.raises(TrainingStopped, match=said) as stopped:
            run.train(config)
    assert stopped.value.code == 130 and at < done < 20


def test_outputs_that_are_nested_in_another_way_are_another_program():
    assert call_once(lambda x: (2 * x,), np.float32(1)) == (2,)
    assert call_once(lambda x: (2 * x, ()), np.float32(1)) == (2, ())


def test_the_state_of_every_optimizer_is_its_own():
    small = CONFIG.override(model="softmax_regression", model_args=(), ema_decay=None)
    for name in [*SPACES, *reversed(SPACES)]:  # the programs that make them are kept
        made = make_experiment(small.override(optimizer=name, learning_rate=0.01))
        own = jax.eval_shape(made.optimizer.tx.init, made.state.params)
        assert jax.tree.structure(made.state.opt_state) == jax.tree.structure(own), name


def test_the_command_of_a_package_can_be_typed_again(monkeypatch):
    main = SimpleNamespace(__spec__=SimpleNamespace(name="cnn_jax.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["…/cnn_jax/__main__.py", "compare", "--vary", "seed=1, 2"])
    assert runtime.command_line() == "python -m cnn_jax compare --vary 'seed=1, 2'"


def test_a_run_leaves_a_complete_folder(finished):
    wanted = {files.CONFIG, files.ENVIRONMENT, files.CLASSES, files.PREPROCESS, files.METRICS, files.TENSORBOARD}
    wanted |= {files.DATA, files.CHECKPOINTS, files.WEIGHTS, files.SUMMARY, files.REPORT}
    assert wanted <= {p.name for p in finished.iterdir()}
    assert Config.load(finished / files.CONFIG).difference(CONFIG) == []
    summary = json.loads((finished / files.SUMMARY).read_text())
    rows = files.read_metrics(finished)
    validation = {row["step"]: row["accuracy"] for row in rows if row["kind"] == "validation"}
    assert sorted(validation) == [5, 10, 15, 20]
    assert summary["validation_accuracy"] == pytest.approx(max(validation.values()))
    assert summary["seconds"] > 0 and summary["evaluation_seconds"] > 0
    assert validation[summary["best_step"]] == max(validation.values())
    assert [row["step"] for row in rows if row["kind"] == "train"] == [4, 5, 8, 10, 12, 15, 16, 20]
    weights, _ = load_weights(finished / files.WEIGHTS)
    best = state_at(finished, summary["best_step"])
    assert_same(weights["params"], best.ema["params"])


@pytest.mark.parametrize("at", [6, 9])
def test_an_interrupted_run_resumes_bit_for_bit(finished, tmp_path, monkeypatch, at):
    config = CONFIG.override(workdir=str(tmp_path / "run"))
    interrupted(monkeypatch, config, at)
    assert not (tmp_path / "run" / files.SUMMARY).exists()
    run.train(config)
    assert_same(state_at(tmp_path / "run", 20), state_at(finished, 20))
    whole, resumed = (
        {(r["kind"], r["step"]): (r["loss"], r["accuracy"]) for r in files.read_metrics(f) if r["kind"] != "train"}
        for f in (finished, tmp_path / "run")
    )
    assert whole == resumed


def test_a_run_may_write_less_and_ends_with_the_same_weights(finished, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    less = {"checkpoints": False, "report": False, "test_split": "none", "logger": ()}
    config = CONFIG.override(workdir=str(folder), **less)
    interrupted(monkeypatch, config, 9, "nothing saved, as `checkpoints` is off: the same command starts over")
    assert not (folder / files.CHECKPOINTS).exists()
    capsys.readouterr()
    summary = run.train(config, quiet=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "no checkpoint in" in shown.err
    assert_same(load_weights(folder / files.WEIGHTS)[0], load_weights(finished / files.WEIGHTS)[0])
    wanted = json.loads((finished / files.SUMMARY).read_text())
    figures = {name for name in wanted if name.startswith(("validation_", "test_"))}
    assert {name for name in figures if name in summary} == {name for name in figures if name.startswith("validation_")}
    assert all(summary[name] == wanted[name] for name in figures & summary.keys())
    assert set(json.loads((folder / files.DATA).read_text())) == {"train", "validation"}
    assert not {files.CHECKPOINTS, files.REPORT, files.PLOTS, files.TENSORBOARD} & {p.name for p in folder.iterdir()}
    assert evaluate(folder)["accuracy"] == wanted["test_accuracy"], "whoever asks for the test set gets it"
    run.train(config)
    assert f"finished already: {folder}; set" in capsys.readouterr().out


def test_signal_handlers_are_restored(finished):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_same_command_on_a_finished_run_does_nothing(finished, capsys):
    before = (finished / files.WEIGHTS).stat().st_mtime_ns
    config, told = CONFIG.override(workdir=str(finished), report=True), []
    summary = run.train(config)
    assert summary["finished"] and "finished already" in capsys.readouterr().out
    assert run.train(config, tell=told.append) == summary
    assert told == [f"finished already: {finished / files.REPORT}; set `fresh` to start over, or another `workdir`"]
    assert (finished / files.WEIGHTS).stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_refused_with_the_fields_that_differ(finished):
    with pytest.raises(UserError, match=r"learning_rate: 0.1 here, 0.05 there.*`fresh`"):
        run.train(CONFIG.override(workdir=str(finished), learning_rate=0.1))


def test_a_run_that_failed_at_its_start_can_be_corrected_in_its_folder(tmp_path):
    config = CONFIG.override(workdir=str(tmp_path / "run"), model="mlp", ema_decay=None)
    with pytest.raises(TrainingStopped):
        run.train(config.override(learning_rate=1e30, log_every=1))
    assert (tmp_path / "run" / files.CONFIG).exists()
    run.train(config.override(steps=2))
    assert {row["step"] for row in files.read_metrics(tmp_path / "run") if row["kind"] == "train"} <= {1, 2}
    assert files.read_config(tmp_path / "run").optim.learning_rate == config.optim.learning_rate


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_in_the_place_of_the_folder(tmp_path, fresh):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file: name a folder"):
        run.train(CONFIG.override(workdir=str(tmp_path / "run"), fresh=fresh))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_damaged_config_in_the_folder_is_named_with_the_remedies(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / files.CONFIG).write_text((finished / files.CONFIG).read_text()[:50])
    remedies = "; put it back, or train again with `fresh`, or set another `workdir`$"
    with pytest.raises(UserError, match=f"config.json is damaged: .*{remedies}"):
        run.train(CONFIG.override(workdir=str(tmp_path)))


def test_damaged_checksums_can_be_deleted(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / durable.CHECKSUMS).write_bytes(b"\0" * 40)
    for use in (lambda: run.train(CONFIG.override(workdir=str(tmp_path))), lambda: evaluate(tmp_path)):
        with pytest.raises(UserError, match="checksums.json is damaged: .*; delete it, and .* without being checked$"):
            use()
    (tmp_path / durable.CHECKSUMS).unlink()
    assert run.train(CONFIG.override(workdir=str(tmp_path)))["finished"] and evaluate(tmp_path)
    assert sorted(tmp_path.glob("damaged-*")) == []


def test_a_resumed_run_does_not_need_its_initial_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = CONFIG.override(model="mlp", model_args=("hidden=8",))
    run.train(small.override(workdir="source", steps=2))
    config = small.override(init_from=str(tmp_path / "source"), normalize="half", ema_decay=None)
    run.train(config.override(workdir="whole"))
    began = cnn_jax.load("source").preprocess
    assert cnn_jax.load("whole").preprocess == began, "mean and deviation come with the weights"
    interrupted(monkeypatch, config.override(workdir="parts"), 9)
    shutil.rmtree("source")
    run.train(config.override(workdir="parts", init_from="source"))  # as the user typed it, though it is gone
    weights = [load_weights(tmp_path / name / files.WEIGHTS)[0] for name in ("whole", "parts")]
    assert_same(*weights)
    assert cnn_jax.load("parts").preprocess == began
    with pytest.raises(UserError, match="source"):
        run.train(config.override(workdir="anew"))


def test_fresh_starts_over_and_leaves_foreign_files(tmp_path):
    folder = tmp_path / "run"
    run.train(CONFIG.override(workdir=str(folder), steps=2))
    (folder / "notes.txt").write_text("mine")
    summary = run.train(CONFIG.override(workdir=str(folder), steps=3, fresh=True))
    assert summary["steps"] == 3 and (folder / "notes.txt").read_text() == "mine"
    assert not (folder / files.BEFORE).exists()
    assert [r["step"] for r in files.read_metrics(folder) if r["kind"] == "validation"] == [3]


@pytest.mark.parametrize("killed", [False, True])
def test_fresh_keeps_the_old_run_if_the_new_one_cannot_start(killed, tmp_path, monkeypatch, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def fail(*arguments):
        raise UserError("cannot be compiled")

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "prepare", fail)
        if killed:
            patch.setattr(files, "bring_back", lambda run: None)
        with pytest.raises(UserError, match="cannot be compiled"):
            run.train(CONFIG.override(workdir=str(folder), steps=2, fresh=True))
    run.train(CONFIG.override(workdir=str(folder)))  # still a finished run

    def contents(run):
        return {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != LOCK}

    assert contents(folder) == contents(finished)


def test_ctrl_c_while_the_new_run_compiles_keeps_the_old_one(tmp_path, monkeypatch, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    prepare = TrainStep.prepare

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return prepare(*arguments)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match="kept"):
        patch.setattr(TrainStep, "prepare", interrupted)
        run.train(CONFIG.override(workdir=str(folder), steps=2, fresh=True))
    assert (folder / files.WEIGHTS).read_bytes() == (finished / files.WEIGHTS).read_bytes()
    assert (folder / files.REPORT).exists() and not (folder / files.BEFORE).exists()


def test_lost_weights_are_rewritten_and_a_lost_checkpoint_is_reported(tmp_path, capsys, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / files.WEIGHTS).unlink()
    run.train(CONFIG.override(workdir=str(folder)))
    assert (folder / files.WEIGHTS).read_bytes() == (finished / files.WEIGHTS).read_bytes()
    steps = sorted(int(path.name) for path in (folder / files.CHECKPOINTS).iterdir() if path.name.isdigit())
    shutil.rmtree(folder / files.CHECKPOINTS / str(steps[-1]))
    (folder / files.SUMMARY).unlink()
    capsys.readouterr()
    run.train(CONFIG.override(workdir=str(folder)))
    told = f"warning: the checkpoint of step {steps[-1]} is missing; falling back to step {steps[-2]}"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("before", [None, [], ["notes.txt"]])
def test_a_new_run_that_cannot_start_leaves_nothing(before, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    if before is not None:
        folder.mkdir()
        for name in before:
            (folder / name).write_text("mine")

    def fail(*arguments):
        assert (folder / files.CONFIG).exists()
        raise UserError("cannot be compiled")

    monkeypatch.setattr(TrainStep, "prepare", fail)
    with pytest.raises(UserError, match="cannot be compiled"):
        run.train(CONFIG.override(workdir=str(folder), model="softmax_regression", ema_decay=None))
    assert (os.listdir(folder) if folder.exists() else None) == before


@pytest.mark.parametrize("name", [files.SUMMARY, files.WEIGHTS])
@pytest.mark.parametrize("damage", ["empty", "half", "bit", "gone"])
def test_a_damaged_result_is_set_aside_and_written_again(finished, tmp_path, capsys, name, damage):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = (finished / name).read_bytes()
    flipped = before[:-9] + bytes([before[-9] ^ 4]) + before[-8:]
    damaged = {"empty": b"", "half": before[: len(before) // 2], "bit": flipped, "gone": b""}[damage]
    (tmp_path / name).write_bytes(damaged)
    if damage == "gone":
        (tmp_path / name).unlink()
    else:
        with pytest.raises(UserError, match=f"{name} is damaged"):
            files.check(tmp_path / name)
    again = run.train(CONFIG.override(workdir=str(tmp_path)))
    assert f"{name} is " in capsys.readouterr().err
    assert again["test_accuracy"] == files.read_json(finished, files.SUMMARY)["test_accuracy"]
    assert (tmp_path / files.WEIGHTS).read_bytes() == (finished / files.WEIGHTS).read_bytes()
    if damage != "gone":
        assert (tmp_path / f"damaged-{name}").read_bytes() == damaged
        (tmp_path / name).write_bytes(b"damaged again")
        run.train(CONFIG.override(workdir=str(tmp_path)))
        assert (tmp_path / f"damaged-{name}").read_bytes() == damaged
        assert (tmp_path / f"damaged-{name}-2").read_bytes() == b"damaged again"


@pytest.mark.parametrize("name", [files.CLASSES, files.PREPROCESS, files.WEIGHTS, files.CONFIG])
def test_a_run_with_a_changed_file_is_not_evaluated(finished, tmp_path, name):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    data = bytearray((finished / name).read_bytes())
    match name:
        case files.CLASSES:
            data = bytearray(b"1\n0\n" + data[4:])  # two lines swapped
        case files.PREPROCESS:
            at = data.index(b"0.") + 2
            data[at] = data[at] ^ 1  # a digit of the mean
        case _:
            data[-3] ^= 128
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        evaluate(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    config = CONFIG.override(workdir=str(tmp_path / "run"), learning_rate=1e30, model="mlp", ema_decay=None)
    with pytest.raises(TrainingStopped, match=r"loss is (nan|inf) at step \d+ \(.*\): .*learning_rate") as stopped:
        run.train(config)
    assert stopped.value.code == 1
    assert list((tmp_path / "run" / files.CHECKPOINTS).glob("[0-9]*")) == [], "a state after a bad loss was saved"


@pytest.mark.parametrize("at", [7, 10])
def test_a_bad_loss_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, at):
    original, done = TrainStep.__call__, 0

    def call(steps, state, items):
        nonlocal done
        done += len(items)
        state, metrics = original(steps, state, items)
        return state, metrics | {"loss": metrics["loss"] * (np.inf if done == at else 1)}

    monkeypatch.setattr(TrainStep, "__call__", call)
    with pytest.raises(TrainingStopped, match=rf"loss is inf at step {at} \(last good checkpoint: step 5 in "):
        run.train(CONFIG.override(workdir=str(tmp_path / "run"), model="mlp", model_args=("hidden=8",)))
    assert [folder.name for folder in (tmp_path / "run" / files.CHECKPOINTS).glob("[0-9]*")] == ["5"]


def test_weights_ruined_by_the_last_update_are_not_saved(tmp_path):
    config = CONFIG.override(model="softmax_regression", ema_decay=None, steps=1, augment=())
    config = config.override(optimizer="gradient_descent", learning_rate=1e38, workdir=str(tmp_path / "run"))
    with pytest.raises(TrainingStopped, match=r"validation loss is (nan|inf) at step 1 \(no checkpoint yet\): "):
        run.train(config)
    assert list((tmp_path / "run" / files.CHECKPOINTS).glob("[0-9]*")) == []
    assert not (tmp_path / "run" / files.WEIGHTS).exists()


def test_a_killed_and_resumed_run_ends_like_an_undisturbed_one(tmp_path):
    small = ["--image-size", "8", "--model", "mlp", "--model-args", "hidden=32", "--epochs", "8", "--eval-every", "0.5"]
    command = [sys.executable, "-m", "experiments.digits_lenet5", *small, "--no-report", "--workdir"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = subprocess.Popen([*command, str(whole)], stdout=subprocess.DEVNULL)
    victim = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL)
    while victim.poll() is None and not any(p.name.isdigit() for p in (killed / files.CHECKPOINTS).glob("*")):
        time.sleep(0.002)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL, "it ended by itself"
    assert not (killed / files.WEIGHTS).exists()
    assert undisturbed.wait() == 0
    again = subprocess.run([*command, str(killed)], capture_output=True, text=True)
    assert again.returncode == 0 and "resuming   from step" in again.stdout, again.stderr
    assert (killed / files.WEIGHTS).read_bytes() == (whole / files.WEIGHTS).read_bytes()
    rows = [
        [(r["kind"], r["step"], r["loss"], r["accuracy"]) for r in files.read_metrics(f) if r["kind"] != "train"]
        for f in (whole, killed)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 17, "16 validations and one test"


def test_ctrl_c_ends_the_reader_processes_and_frees_their_memory(tmp_path):
    small = ["--image-size", "8", "--model", "softmax_regression", "--epochs", "1000", "--eval-every", "0.2"]
    command = [sys.executable, "-m", "experiments.digits_lenet5", *small, "--pipeline", "stream", "--workers", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--workdir", str(tmp_path / "run")], start_new_session=True, **pipes) as going:
        assert going.stdout is not None
        assert any(line.startswith("epoch") for line in going.stdout)
        os.killpg(going.pid, signal.SIGINT)  # as a terminal does
        _, wrong = going.communicate(timeout=120)
    assert going.returncode == 130
    said = wrong.splitlines()  # no warning of leaked shared memory
    assert len(said) == 3 and said[1].startswith("stopping after this step") and "state saved" in said[2], wrong
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):  # raised once the process group is empty
        while time.monotonic() < deadline:
            os.killpg(going.pid, 0)
            time.sleep(0.1)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path, finished, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / files.SUMMARY).unlink()
    for part in (folder / files.CHECKPOINTS / "20" / "state").rglob("*"):
        if part.is_file():
            part.write_bytes(part.read_bytes()[:10])
    run.train(CONFIG.override(workdir=str(folder)))
    said = capsys.readouterr().err
    assert "cannot be read" in said and "falling back to the checkpoint of step 15" in said
    assert (folder / files.CHECKPOINTS / "damaged-20").exists()
    assert_same(state_at(folder, 20), state_at(finished, 20))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # hidden by `quiet_failures` in a run
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "metrics/metrics", "state/_METADATA"])
def test_a_truncated_checkpoint_file_falls_back_to_the_previous_one(name, tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / files.SUMMARY).unlink()
    file = folder / files.CHECKPOINTS / "20" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run.train(CONFIG.override(workdir=str(folder)))
    assert_same(state_at(folder, 20), state_at(finished, 20))


def test_checkpoints_that_are_all_damaged_are_left_as_they_are(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / files.SUMMARY).unlink()
    for file in (folder / files.CHECKPOINTS).rglob("metrics"):
        if file.is_file():
            file.write_text("{")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="none of the checkpoints .* can be read: set `fresh`"):
        run.train(CONFIG.override(workdir=str(folder)))
    assert sorted(folder.rglob("*")) == before


def test_checkpoints_of_an_unknown_run_or_other_classes_are_not_resumed(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / files.SUMMARY).unlink()
    files.write_text(folder / files.CLASSES, "\n".join("abcdefghij") + "\n")
    with pytest.raises(UserError, match="now has the classes 0, 1, .* trained on a, b, .*`fresh`"):
        run.train(CONFIG.override(workdir=str(folder)))
    assert (folder / files.CLASSES).read_text().startswith("a")
    (folder / files.CONFIG).unlink()
    with pytest.raises(UserError, match="no config.json: put it back, set `fresh`"):
        run.train(CONFIG.override(workdir=str(folder)))


@pytest.mark.parametrize("members", [1, 2])
def test_the_program_of_a_run_does_not_depend_on_its_seed(members):
    programs, losses = [], []
    for seed in (0, 1):
        parts = make_experiment(
            CONFIG.override(dataset="synthetic:28x28x1:3:120", model="mnist_cnn", seed=seed, members=members)
        )
        steps = TrainStep(parts.train_step, parts.data["train"], parts.parallel, scan=False)
        _, metrics = steps(parts.parallel.place(parts.state), [next(parts.data["train"].train_items(0))])
        instructions = [line for line in steps.programs[1].as_text().splitlines() if " = " in line]
        programs.append([re.sub(r", metadata=\{.*?\}", "", line) for line in instructions])  # metadata has source lines
        losses.append(float(metrics["loss"][0]))
    differing = [pair for pair in zip(*programs, strict=True) if pair[0] != pair[1]]
    assert programs[0] and not differing[:3]
    assert losses[0] != losses[1]


def test_a_run_without_its_checkpoints_starts_anew_and_says_so(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / files.SUMMARY).unlink()
    shutil.rmtree(folder / files.CHECKPOINTS)
    run.train(CONFIG.override(workdir=str(folder)))
    assert "no checkpoint" in capsys.readouterr().err
    lines = [(finished / files.METRICS).read_text(), (folder / files.METRICS).read_text()]
    assert lines[0].count("\n") == lines[1].count("\n")


def test_nothing_is_written_when_something_is_wrong(tmp_path):
    for wrong in ({"model": "resnet21"}, {"dataset": "no_such_set"}, {"augment": ("spin",)}, {"optimizer": "adm"}):
        with pytest.raises(UserError):
            run.train(CONFIG.override(workdir=str(tmp_path / "run"), **wrong))
    assert not (tmp_path / "run").exists()


def test_scanned_steps_give_the_same_run_even_when_resumed(tmp_path, monkeypatch):
    config = CONFIG.override(model="mlp", model_args=("hidden=8",), scan_steps=3)
    run.train(config.override(workdir=str(tmp_path / "single")))
    monkeypatch.setattr(experiment, "_scans", lambda parallel, resident: True)  # as on GPU or TPU
    interrupted(monkeypatch, config.override(workdir=str(tmp_path / "together")), 8)
    run.train(config.override(workdir=str(tmp_path / "together")))
    weights = [load_weights(tmp_path / name / files.WEIGHTS)[0] for name in ("single", "together")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *weights)
    one, other = (files.read_metrics(tmp_path / name) for name in ("single", "together"))
    rows = [{(r["kind"], r["step"]): r["loss"] for r in f if r["kind"] == "validation"} for f in (one, other)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_a_chunk_never_passes_a_validation_and_few_sizes_are_compiled():
    plan = loop.Plan(total_steps=1000, eval_every=351, log_every=10, steps_per_epoch=351.6, scan_steps=50)
    step, ends = 0, []
    while step < plan.total_steps:
        step += plan.next_chunk(step)
        ends.append(step)
    assert {351, 702, 1000} <= set(ends) and plan.chunk_sizes(0) == [34, 43, 44]


def test_splits_that_share_images_are_refused(tmp_path):
    for wrong in (
        {"validation_split": "test[:50%]"},
        {"test_split": "train"},
        {"validation_split": "test"},
        {"validation_split": "train[:10]"},
        {"train_split": "train[:60%]", "validation_split": "train[50%:]"},
    ):
        with pytest.raises(UserError, match="share images"):
            run.train(CONFIG.override(workdir=str(tmp_path / "run"), **wrong))


def test_sums_of_splits_are_compared_part_by_part():
    sizes = {"train": 100, "test": 50}
    for one, other in (
        ("train[:10]+test", "test"),
        ("train[:60]", "test + train[50%:]"),
        ("all", "test"),
        ("test", "all"),
    ):
        assert experiment._overlap(one, other, sizes), (one, other)
    assert not experiment._overlap("train[:50]+test[:10]", "train[50:]+test[10:]", sizes)


def test_bad_images_do_not_shift_the_splits_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / "photos" / "train" / name / f"{i}.png")
    (tmp_path / "photos" / "train" / "a" / "0.png").write_bytes(b"no image")
    splits = {"train_split": "train[:14]", "validation_split": "train[14:17]", "test_split": "train[17:]"}
    config = CONFIG.override(dataset=f"folder:{tmp_path / 'photos'}", skip_bad_images=True, batch_size=4, **splits)
    assert sum(len(source) for source in make_experiment(config).sources.values()) == 19


def test_fresh_is_not_saved_in_the_config(tmp_path):
    run.train(CONFIG.override(workdir=str(tmp_path / "run"), steps=1, model="mlp", ema_decay=None, fresh=True))
    assert not Config.load(tmp_path / "run" / files.CONFIG).train.fresh


def test_streaming_and_resident_runs_are_the_same_run(tmp_path):
    results = []
    for mode in ("resident", "stream"):
        run.train(CONFIG.override(workdir=str(tmp_path / mode), steps=3, pipeline=mode))
        results.append(load_weights(tmp_path / mode / files.WEIGHTS)[0])
    assert_same(*results)
