"""Scores of finished runs against the same scores computed with NumPy alone."""

import json

import numpy as np
import pytest
from made_up_run import CONFIG, digits, expected_logits, make_run
from parts import classification
from PIL import Image

from cnn_jax.commands import evaluate as command
from cnn_jax.commands.parser import guard
from cnn_jax.data import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.runs import evaluate
from cnn_jax.storage.weights_file import save_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made_up") / "run")


def expected(split):
    images, labels = digits(split)
    logits = expected_logits(images).astype(np.float64)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    best_five = np.argsort(-logits, axis=1)[:, :5]
    return {
        "count": len(labels),
        "accuracy": np.mean(logits.argmax(axis=1) == labels),
        "loss": np.mean(log_sums - logits[np.arange(len(labels)), labels]),
        "top5_accuracy": np.mean([label in row for label, row in zip(labels, best_five, strict=True)]),
    }


def refuse(capsys, argv):
    """Runs the command, expects exit code 2 and one line on stderr, and returns that line."""
    with pytest.raises(SystemExit) as stop:
        guard(lambda: command.main([str(a) for a in argv]))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error:")
    return line


@pytest.mark.parametrize("split, batch_size", [("test", None), ("validation", 1000), ("train[:101]", 7)])
def test_scores_are_exact_for_any_batch_size(run, split, batch_size):
    scores = evaluate.evaluate(run, split, batch_size=batch_size)
    right = expected(split)
    assert {name: scores[name] for name in right} == pytest.approx(right, rel=1e-5)
    assert scores["accuracy_low"] < scores["accuracy"] < scores["accuracy_high"]
    assert (scores["run"], scores["dataset"], scores["split"]) == (str(run), "digits", split)


def test_split_words_mean_the_splits_of_the_run(tmp_path):
    run = make_run(tmp_path / "run", CONFIG.override(test_split="train[5:60]"))
    scores = evaluate.evaluate(run)
    assert scores["split"] == "train[5:60]"
    assert scores["accuracy"] == pytest.approx(expected("train[5:60]")["accuracy"])
    # With another data set, they mean that data set's own splits.
    assert evaluate.evaluate(run, dataset="digits:", split="validation")["split"] == "validation"


def test_command_prints_a_table_and_writes_json(run, tmp_path, capsys):
    other = make_run(tmp_path / "other")
    command.main([str(run), str(other), "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [row["run"] for row in scores] == [str(run), str(other)]
    assert scores[0]["accuracy"] == pytest.approx(expected("test")["accuracy"])
    table = capsys.readouterr().out
    assert table.count(f"{expected('test')['accuracy']:.2%}") == 2 and "top 5" in table


@pytest.fixture
def photos(tmp_path):
    """An image folder with ten threes and ten eights: two of the run's classes, at different indices."""
    images, labels = digits("test")
    for name in ("8", "3"):
        for part in ("train", "test"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i in np.flatnonzero(labels == int(name))[:10]:
                Image.fromarray(images[i, ..., 0]).save(tmp_path / "set" / part / name / f"{i}.png")
    return tmp_path / "set"


def test_other_data_sets_are_matched_by_class_name(run, photos, monkeypatch, tmp_path):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
    scores = evaluate.evaluate(run, dataset=f"folder:{photos}")
    images, labels = digits("test")
    chosen = np.concatenate([np.flatnonzero(labels == k)[:10] for k in (3, 8)])
    right = np.mean(expected_logits(images[chosen]).argmax(axis=1) == labels[chosen])
    assert scores["count"] == 20
    assert scores["accuracy"] == pytest.approx(right)
    assert right > 0.6  # impossible if the labels were taken as 0 and 1


def test_bad_images_are_reported_or_skipped(run, photos, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
    bad = next((photos / "test" / "3").iterdir())
    bad.write_bytes(bad.read_bytes()[:40])
    argv = [str(run), "--dataset", f"folder:{photos}"]
    line = refuse(capsys, argv)
    assert str(bad) in line and "--skip-bad-images" in line
    command.main([*argv, "--skip-bad-images", "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())[0]["count"] == 19
    assert capsys.readouterr().err == f"warning: left out 1 unreadable images, such as {bad}\n"


def test_classes_the_run_does_not_know(run, photos, capsys):
    for part in ("train", "test"):
        (photos / part / "8").rename(photos / part / "platypus")
    line = refuse(capsys, [run, "--dataset", f"folder:{photos}"])
    assert "platypus" in line and "0, 1, 2" in line


def test_images_of_another_shape(run, capsys):
    line = refuse(capsys, [run, "--dataset", "synthetic:16x16x1:10"])
    assert f"synthetic:16x16x1:10 has 16x16x1 grey images, but {run} was trained on 8x8x1 grey" in line
    assert line.endswith(": set --image-size to 8")
    line = refuse(capsys, [run, "--dataset", "synthetic:8x8x3:10"])
    assert f"8x8x3 colour images, but {run} was trained on 8x8x1 grey" in line
    assert line.endswith(": choose a grey --dataset")


def test_folder_of_other_channels_is_converted(run, photos, tmp_path, capsys):
    argv = [str(run), "--dataset", f"folder:{photos}", "--json", str(tmp_path / "scores.json")]
    command.main(argv)
    grey = json.loads((tmp_path / "scores.json").read_text())
    for path in photos.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    command.main(argv)
    assert json.loads((tmp_path / "scores.json").read_text()) == grey
    line = refuse(capsys, [run, "--dataset", f"folder:{photos}", "--image-size", "9"])
    assert f"has 9x9x1 grey images, but {run} was trained on 8x8x1 grey" in line
    assert line.endswith(": set --image-size to 8")

    for path in photos.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    colour = make_run(tmp_path / "colour")
    (colour / "preprocess.json").write_text(Preprocess((8, 8, 3), (0.0,) * 3, (1.0,) * 3).to_json())
    kernel, bias = np.zeros((192, 10), np.float32), np.zeros(10, np.float32)
    save_weights(colour / "final.safetensors", {"params": {"output": {"kernel": kernel, "bias": bias}}}, {})
    command.main([str(colour), *argv[1:]])
    assert json.loads((tmp_path / "scores.json").read_text())[0]["count"] == grey[0]["count"]


def test_scores_that_cannot_be_written(run, tmp_path, capsys):
    line = refuse(capsys, [run, "--json", tmp_path / "absent" / "scores.json"])
    assert f"--json {tmp_path / 'absent' / 'scores.json'} cannot be written (" in line and "No such file" in line
    (tmp_path / "scores.json").mkdir()
    assert "Is a directory" in refuse(capsys, [run, "--json", tmp_path / "scores.json"])


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--split", "tset"], "tset"),
        (["--split", "test[:10"], "test[:10"),
        (["--dataset", "digitz", "--data-dir", "nowhere"], "digitz"),
    ],
)
def test_mistakes_are_reported_in_one_line(run, capsys, arguments, told):
    assert told in refuse(capsys, [run, *arguments])


def test_folder_that_is_not_a_finished_run(run, tmp_path, capsys):
    assert "config.json" in refuse(capsys, [run, tmp_path])
    assert f"there is no folder {tmp_path / 'absent'}: name that of a run" in refuse(capsys, [tmp_path / "absent"])


@pytest.mark.parametrize("argv", [[], ["run", "--batch-size", "0"], ["run", "--nonsense"]])
def test_wrong_usage_is_one_line(argv):
    with pytest.raises(UserError) as error:
        command.main(argv)
    assert "--help" in str(error.value) and "\n" not in str(error.value)


def test_loss_is_the_one_the_run_used():
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], np.float32)
    labels = np.array([0, 2])
    squares = np.mean([[1.0, 0, 1], [0, 9, 1]])
    assert classification(3, loss_name="mse").measures({"logits": logits, "label": labels})["loss"] == pytest.approx(
        squares
    )
    assert "top5_accuracy" not in classification(3, loss_name="mse").measures({"logits": logits, "label": labels})
