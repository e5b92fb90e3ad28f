"""`benchmarks.inference` at its smallest: the same labels from both, and figures for both ways."""

import math
import os

import numpy as np
import pytest
from PIL import Image

from benchmarks import inference, speed
from cnn_jax.errors import TrainingStopped
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.runs.predict import Prediction, find_images, predict


def test_the_run_that_it_makes_predicts_and_evaluates_its_photos(tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    inference.make_photos(photos, 20, (40, 30))
    inference.make_run(run, "resnet20", 8, photos)
    paths = list(find_images([photos]))
    with Image.open(paths[0]) as image:
        assert image.size == (40, 30) and image.format == "JPEG"
    found = predict(run, paths, top=10)
    assert [prediction.image for prediction in found] == paths
    assert all(len(prediction.rows) == 10 for prediction in found)
    scores = evaluate(run, "all")
    named = [prediction.rows[0]["class"] == prediction.image.parent.name for prediction in found]
    assert scores["count"] == 20 and scores["accuracy"] == pytest.approx(np.mean(named))


def test_another_result_is_not_timed(tmp_path):
    rows = [{"class": name, "probability": 0.1} for name in inference.CLASSES]
    theirs = np.full((1, 10), 0.1)
    assert inference.check([Prediction(tmp_path, rows)], theirs).value == pytest.approx(0)
    theirs[0, 0] = 0.2
    with pytest.raises(TrainingStopped, match=r"differ by up to 0\.1: the two do not compute the same"):
        inference.check([Prediction(tmp_path, rows)], theirs)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_both_are_timed_and_recorded(tmp_path, capsys, ending):
    pytest.importorskip("torch")
    table, cache = tmp_path / "speed.csv", os.environ["CNN_JAX_CACHE"]
    small = ["--size", "8", "--images", "20", "--photo", "40", "30", "--batch-size", "8", "--blocks", "2"]
    inference.main(["--model", "resnet20", *small, "--format", ending, "--output", str(table)])
    values = {(row["case"], row["measure"]): float(row["value"]) for row in speed.read(table)}
    case = f"resnet20 8x8 batch 8, {ending} 40x30, "
    measures = ("ours / torch", "ours", "torch")
    assert list(values) == [(case + way, measure) for way in ("predict", "evaluate") for measure in measures]
    assert all(map(math.isfinite, values.values())) and min(values.values()) > 0
    assert "100.0% of the labels are the same" in capsys.readouterr().out
    assert os.environ["CNN_JAX_CACHE"] == cache
