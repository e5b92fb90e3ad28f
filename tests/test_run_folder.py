"""Metrics files that survive crashes and resumed runs, and loading the model of a run folder."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from made_up_run import CONFIG, digits, expected_logits, make_run, row

import cnn_jax
from cnn_jax.errors import UserError
from cnn_jax.runs.inference import predict_outputs
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import load_weights, save_weights
from cnn_jax.weights.trained import load_trained


def refusal(call, *args, **kwargs):
    """Calls the function, expects a one-line UserError, and returns its message."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_metrics_round_trip(tmp_path):
    rows = [row("train", 1, 2.5, 0.1, learning_rate=0.1), row("validation", 1, 2.25, 0.25)]
    for r in rows:
        files.append_metrics(tmp_path, r)
    assert files.read_metrics(tmp_path) == rows
    files.append_metrics(tmp_path, {"kind": "train", "step": np.int64(2), "loss": jax.numpy.float32(0.5)})
    assert files.read_metrics(tmp_path)[-1] == {"kind": "train", "step": 2, "loss": 0.5}


def test_every_line_is_standard_json(tmp_path):
    files.append_metrics(tmp_path, row("train", 1, math.nan, -math.inf))

    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    (line,) = (tmp_path / files.METRICS).read_text().splitlines()
    assert json.loads(line, parse_constant=no_constants)["loss"] is None
    (read,) = files.read_metrics(tmp_path)
    assert math.isnan(read["loss"]) and math.isnan(read["accuracy"])


@pytest.mark.parametrize(
    "torn", ['{"kind": "train", "st', "{", '{"kind": "train", "step": 3, "loss": 0.5}', "x" * 9000]
)
def test_torn_last_line_is_ignored_and_then_cut_off(tmp_path, torn):
    for step in (1, 2):
        files.append_metrics(tmp_path, row("train", step, 1.0, 0.5))
    with open(tmp_path / files.METRICS, "a") as file:
        file.write(torn)
    assert [r["step"] for r in files.read_metrics(tmp_path)] == [1, 2]
    files.append_metrics(tmp_path, row("train", 3, 1.0, 0.5))
    assert [r["step"] for r in files.read_metrics(tmp_path)] == [1, 2, 3]
    assert len((tmp_path / files.METRICS).read_text().splitlines()) == 3


def test_file_that_is_one_torn_line(tmp_path):
    (tmp_path / files.METRICS).write_text('{"kind"')
    assert files.read_metrics(tmp_path) == []
    files.append_metrics(tmp_path, row("train", 1, 1.0, 0.5))
    assert len(files.read_metrics(tmp_path)) == 1


def test_damage_inside_the_file_is_reported_with_its_line(tmp_path):
    files.append_metrics(tmp_path, row("train", 1, 1.0, 0.5))
    with open(tmp_path / files.METRICS, "a") as file:
        file.write("oops\n")
    assert "line 2" in refusal(files.read_metrics, tmp_path)


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    def told(kind, step, loss):
        files.append_metrics(tmp_path, row(kind, step, loss, 0.5))

    for step in (10, 20, 30, 40):
        told("train", step, 1.0)
        if step % 20 == 0:
            told("validation", step, 1.0)
    # Resumed from the checkpoint of step 20, then crashed before reaching step 40 again.
    told("train", 30, 2.0)
    assert [(r["kind"], r["step"], r["loss"]) for r in files.read_metrics(tmp_path)] == [
        ("train", 10, 1.0),
        ("train", 20, 1.0),
        ("validation", 20, 1.0),
        ("train", 30, 2.0),
    ]
    told("train", 40, 2.0)
    told("validation", 40, 2.0)
    told("validation", 40, 3.0)  # validated again, as after another interruption
    assert [r["loss"] for r in files.read_metrics(tmp_path)] == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]


def test_test_row_of_an_earlier_step_rewinds_nothing(tmp_path):
    for kind, step in (
        ("train", 10),
        ("validation", 10),
        ("train", 20),
        ("validation", 20),
        ("test", 10),
        ("test", 10),
    ):
        files.append_metrics(tmp_path, row(kind, step, 1.0, 0.5))
    kinds = [(r["kind"], r["step"]) for r in files.read_metrics(tmp_path)]
    assert kinds == [("train", 10), ("validation", 10), ("train", 20), ("validation", 20), ("test", 10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made_up") / "run")


def opened(run):
    """Loads the model, variables and preprocessing of a run."""
    trained = load_trained(run)
    model: Any = trained.model
    return model, trained.variables, trained.preprocess


def test_load_gives_the_trained_model(run):
    loaded = cnn_jax.load(str(run))
    model, variables, preprocess = loaded.model, loaded.variables, loaded.preprocess
    images, _ = digits("test")
    logits = model.apply(variables, preprocess.normalize(images), train=False)
    np.testing.assert_allclose(logits, expected_logits(images), atol=1e-4)


@pytest.mark.parametrize("count, batch_size", [(1, 256), (5, 256), (64, 64), (65, 64), (130, 64), (3, 1)])
def test_predictions_do_not_depend_on_the_batch(run, count, batch_size):
    images, _ = digits("train[:130]")
    logits = predict_outputs(*opened(run), images[:count], batch_size)
    assert logits.shape == (count, 10) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected_logits(images)[:count], atol=1e-4)


def test_ragged_numbers_of_images_compile_once(run):
    model, variables, preprocess = opened(run)
    images, _ = digits("train[:100]")
    counted = []

    class Counting(type(preprocess)):
        def normalize(self, images):
            counted.append(images.shape)
            return super().normalize(images)

    counting = Counting(preprocess.image_shape, preprocess.mean, preprocess.std)
    for count in (100, 33, 50, 64):
        predict_outputs(model, variables, counting, images[:count], batch_size=32)
    assert counted == [(32, 8, 8, 1)]


def test_probabilities_are_the_softmax(run):
    images, _ = digits("train[:20]")
    probabilities = cnn_jax.load(run).predict(images, batch_size=16)
    odds = np.exp(expected_logits(images).astype(np.float64))
    np.testing.assert_allclose(probabilities, odds / odds.sum(axis=1, keepdims=True), atol=1e-5)


def test_images_of_another_shape_or_type(run):
    parts = opened(run)
    assert "(N, 8, 8, 1)" in refusal(predict_outputs, *parts, np.zeros((2, 9, 8, 1), np.uint8))
    assert "uint8" in refusal(predict_outputs, *parts, np.zeros((2, 8, 8, 1), np.float32))
    assert "at least 1" in refusal(predict_outputs, *parts, np.zeros((0, 8, 8, 1), np.uint8))


def test_folder_that_is_not_a_run(tmp_path):
    assert "no config.json" in refusal(opened, tmp_path)
    assert "there is no folder" in refusal(opened, tmp_path / "absent")


def test_unfinished_run_names_the_command_that_resumes_it(tmp_path):
    run = make_run(tmp_path / "run")
    (run / files.WEIGHTS).unlink()
    message = refusal(opened, run)
    assert "unfinished" in message
    assert f"python -m experiments.made_up --config {run / 'config.json'} --workdir {run}" in message


def test_classes_that_are_not_the_weights(tmp_path):
    run = make_run(tmp_path / "run")
    (run / files.CLASSES).write_text("cat\ndog\n")
    message = refusal(opened, run)
    assert "2 classes" in message and "params/output/kernel (64, 10) instead of (64, 2)" in message


def test_unknown_model(tmp_path):
    run = make_run(tmp_path / "run", CONFIG.override(model="softmax_regresion"))
    assert "softmax_regression" in refusal(opened, run)


def test_model_arguments_and_precision_are_those_of_the_run(tmp_path):
    config = CONFIG.override(model="mlp", model_args=("hidden=7",), precision="bfloat16")
    run = make_run(tmp_path / "run", config)
    assert "missing: params/fc1/bias, params/fc1/kernel; wrong shape: params/output/kernel (64, 10)" in refusal(
        opened, run
    )
    output = {"kernel": np.ones((7, 10), np.float32), "bias": np.zeros(10, np.float32)}
    first = {"kernel": np.ones((64, 7), np.float32), "bias": np.zeros(7, np.float32)}
    save_weights(run / files.WEIGHTS, {"params": {"fc1": first, "output": output}}, {})
    model, variables, preprocess = opened(run)
    assert model.dtype == jax.numpy.bfloat16
    assert predict_outputs(model, variables, preprocess, np.ones((1, 8, 8, 1), np.uint8)).shape == (1, 10)


@pytest.mark.parametrize("name", [files.CLASSES, files.PREPROCESS])
def test_missing_files_are_named(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    assert name in refusal(opened, run)


@pytest.mark.parametrize(
    ("name", "damage", "advice"),
    [
        (files.METRICS, None, r"the metrics of a run \(No such file or directory\): put it back, or train again"),
        (
            files.METRICS,
            '{"kind": "train", "step": null}\n',
            "line 1 of .* is not a row of metrics, .*: delete that line",
        ),
        (
            files.ENVIRONMENT,
            "",
            "environment.json is not valid JSON .*: put it back, or train again",
        ),
        (files.SUMMARY, "", "summary.json is not valid JSON .*: delete it and repeat the command of the run"),
        (files.SUMMARY, "[]", "list instead of a JSON object: delete it and repeat the command of the run"),
    ],
)
def test_damaged_files_are_reported_with_the_remedy(tmp_path, name, damage, advice):
    if damage is not None:
        (tmp_path / name).write_text(damage)
    read = files.read_metrics if name == files.METRICS else lambda run: files.read_json(run, name)
    assert re.search(advice, refusal(read, tmp_path))


def test_every_file_of_a_run_is_listed(run):
    assert {path.name for path in run.iterdir()} <= set(files.ALL)
    assert load_weights(run / files.WEIGHTS)[0]["params"].keys() == {"output"}


class Killed(BaseException):
    pass


def killed_at(call: int, patch: pytest.MonkeyPatch) -> None:
    """Replaces the calls that change a folder: from the given one on, counted from 0, they do nothing but raise."""
    count = iter(range(10**6))

    def watch(real):
        def watched(*args, **kwargs):
            if next(count) >= call:
                raise Killed
            return real(*args, **kwargs)

        return watched

    for name in ("replace", "mkdir", "rmdir", "unlink", "fsync"):
        patch.setattr(os, name, watch(getattr(os, name)))


def contents(run: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(run)): p.read_bytes() if p.is_file() else None for p in sorted(run.rglob("*"))}


def old_run(run: Path) -> dict[str, bytes | None]:
    """Writes a run and a file of the user's; returns what was written."""
    for name in (files.CONFIG, files.METRICS, files.WEIGHTS, "checkpoints/20/state", "plots/a.png", "notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"old {name}")
    return contents(run)


def new_run(run: Path) -> None:
    for name in (files.CONFIG, files.CLASSES, "checkpoints/3/state"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"new {name}")


def interrupted(step, run: Path, call: int) -> bool:
    """Whether the step was killed at the call, rather than completed before it."""
    with pytest.MonkeyPatch.context() as patch:
        killed_at(call, patch)
        try:
            step(run)
        except Killed:
            return True
    return False


def test_a_kill_while_the_old_run_is_set_aside_loses_nothing(tmp_path):
    for call in range(100):
        run = tmp_path / str(call)
        before = old_run(run)
        if not interrupted(files.set_aside, run, call):
            break
        files.bring_back(run)
        assert contents(run) == before, call
    assert call > 8


def test_kills_while_the_old_run_is_brought_back_lose_nothing(tmp_path):
    for call in range(100):
        run = tmp_path / str(call)
        before = old_run(run)
        files.set_aside(run)
        new_run(run)
        if not interrupted(files.bring_back, run, call):
            break
        for again in range(1, 4):
            interrupted(files.bring_back, run, again)
        files.bring_back(run)
        assert contents(run) == before, call
    assert call > 12


def test_a_kill_while_the_old_run_is_deleted_leaves_the_new_one(tmp_path):
    for call in range(100):
        run = tmp_path / str(call)
        before = old_run(run)
        files.set_aside(run)
        new_run(run)
        after = {name: data for name, data in contents(run).items() if not name.startswith(files.BEFORE)}
        if not interrupted(files.forget, run, call):
            break
        files.bring_back(run)
        assert contents(run) == (after if call else before), call  # the first call renames
    assert call > 3 and contents(run) == after


def test_a_run_folder_with_links_is_set_aside_and_deleted(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    before = old_run(run)
    (run / files.CHECKPOINTS).rename(elsewhere)
    (run / files.CHECKPOINTS).symlink_to(elsewhere)
    (run / files.SUMMARY).symlink_to("nowhere")
    files.set_aside(run)
    new_run(run)
    files.bring_back(run)
    assert (run / files.SUMMARY).is_symlink() and (run / files.CHECKPOINTS / "20" / "state").exists()
    files.set_aside(run)
    files.forget(run)
    assert sorted(os.listdir(run)) == ["notes.txt"] and len(before) > 5
    assert (elsewhere / "20" / "state").exists(), "only the link is the run's"


def test_nothing_is_changed_where_there_is_nothing_to_bring_back(tmp_path):
    before = old_run(tmp_path)
    for step in (files.bring_back, files.remove_partial, files.forget):  # on a read-only file system
        assert not interrupted(step, tmp_path, 0)
    assert contents(tmp_path) == before


def test_files_left_by_killed_processes_are_removed(tmp_path):
    ours = [f".{files.WEIGHTS}.123", f".{files.CONFIG}.7", "plots/.training.png.99"]
    others = [".notes.txt.5", f".{files.CONFIG}.bak", files.CONFIG, "plots/training.png"]
    (tmp_path / files.PLOTS).mkdir()
    for name in (*ours, *others):
        (tmp_path / name).touch()
    files.remove_partial(tmp_path)
    assert {name for name in (*ours, *others) if (tmp_path / name).exists()} == set(others)
