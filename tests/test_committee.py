"""Members trained together match single runs; committees average probabilities; views average transformed images."""

import csv
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.commands.committee import main
from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.models import build
from cnn_jax.models.ensembles import Committee, Views, average, flip, member, shift, ten_crop
from cnn_jax.runs.evaluate import evaluate, member_predictions
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.run import train

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Config("members").override(
    dataset="synthetic:8x8x1:3:40",
    model="mlp",
    model_args=("hidden=8",),
    batch_size=16,
    steps=2,
    epochs=None,
    seed=4,
    report=False,
)


def trained(**changes):
    """Trains for two steps; returns the experiment, state and last metrics."""
    experiment = make_experiment(CONFIG.override(**changes))
    data = experiment.data["train"]
    arrays, state, items = jax.device_put(data.arrays), experiment.state, data.train_items(0)
    step = jax.jit(experiment.train_step)
    metrics = {}
    for _ in range(2):
        state, metrics = step(state, data.gather(arrays, next(items)))
    return experiment, state, metrics


def test_each_member_matches_a_run_with_its_seed():
    experiment, state, metrics = trained(members=3, augment=("pad_crop:padding=1",))
    assert experiment.parameters == 8 * 8 * 8 + 8 + 8 * 3 + 3
    assert metrics["loss"][1] == 3 * 16
    # The third member has the random draws of seed 6 but the batches of seed 4.
    alone = make_experiment(CONFIG.override(seed=6, augment=("pad_crop:padding=1",)))
    data = experiment.data["train"]
    arrays, items, own = jax.device_put(data.arrays), data.train_items(0), alone.state
    for _ in range(2):
        own, _ = jax.jit(alone.train_step)(own, data.gather(arrays, next(items)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), member(state.params, 2), own.params)


def test_a_committee_is_evaluated_as_the_mean_of_its_members():
    experiment, state, _ = trained(members=2)
    metrics, collected = experiment.evaluator("test").predictions({"params": state.params})
    labels, logits = collected["label"], collected["logits"]
    source = experiment.sources["test"]
    images = experiment.preprocess.normalize(np.stack([source[i]["image"] for i in range(len(source))]))
    network: Any = experiment.model
    each = [network.apply(member({"params": state.params}, i), images, train=False) for i in (0, 1)]
    mean = np.mean([jax.nn.softmax(x) for x in each], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(logits), mean, atol=1e-6)
    assert metrics["accuracy"] == pytest.approx(np.mean(mean.argmax(-1) == labels))


def test_average_is_of_probabilities_not_of_logits():
    logits_MxBxK = jnp.array([[[10.0, 0.0]], [[0.0, 1.0]]])
    expected = np.mean(jax.nn.softmax(logits_MxBxK), axis=0)
    np.testing.assert_allclose(jnp.exp(average(logits_MxBxK)), expected, rtol=1e-6)


def test_views():
    images = jnp.arange(2 * 4 * 5, dtype=jnp.float32).reshape(2, 4, 5, 1)
    (mirrored,) = flip(images)
    np.testing.assert_array_equal(flip(mirrored)[0], images)
    up_left, down_right = shift(images, pixels=1)
    np.testing.assert_array_equal(up_left[:, 1:, 1:], images[:, :-1, :-1])
    np.testing.assert_array_equal(down_right[:, :-1, :-1], images[:, 1:, 1:])


def test_ten_crops_are_the_corners_the_middle_and_their_mirrors():
    height, width, part = 16, 8, 0.75
    y, x = np.mgrid[:height, :width].astype(np.float32)
    images = jnp.stack([x, y], axis=-1)[None]  # each pixel holds its own coordinates
    views = ten_crop(images, part=part)
    assert len(views) == 10 and all(view.shape == images.shape for view in views)
    for view, mirrored in zip(views[:5], views[5:], strict=True):
        np.testing.assert_array_equal(mirrored, view[:, :, ::-1])
    inside = [np.asarray(view)[0, 1:-1, 1:-1] for view in views[:5]]  # edge pixels lack a neighbour to interpolate
    for view in inside:
        np.testing.assert_allclose(np.diff(view[..., 0], axis=1), part, atol=1e-5)
        np.testing.assert_allclose(np.diff(view[..., 1], axis=0), part, atol=1e-5)
    middles = [view.mean(axis=(0, 1)) for view in inside]
    np.testing.assert_allclose(middles, [[2.5, 5.5], [4.5, 5.5], [2.5, 9.5], [4.5, 9.5], [3.5, 7.5]], atol=1e-4)
    whole = ten_crop(images, part=1.0)
    np.testing.assert_allclose(whole[:5], np.broadcast_to(images, (5, *images.shape)), atol=1e-6)


def test_number_of_views():
    class Sees:
        seen: list[int] = []

        def apply(self, variables: Any, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
            self.seen.append(1)
            return x_BxHxWxC.reshape(len(x_BxHxWxC), -1)

    network = Sees()
    Views(network, ("flip", "shift")).apply({}, jnp.zeros((1, 4, 4, 1)), train=False)
    assert len(network.seen) == 6
    Views(network, ("ten_crop",)).apply({}, jnp.zeros((1, 4, 4, 1)), train=False)
    assert len(network.seen) == 16


def test_views_make_a_network_invariant_to_mirroring():
    model: Any = build("mlp", 3, args=["hidden=8"])
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = model.init(jax.random.key(1), images, train=False)
    views = Views(model, ("flip", "shift:pixels=2"))
    plain = views.apply(variables, images, train=False)
    assert not np.allclose(model.apply(variables, images, train=False), plain)
    np.testing.assert_allclose(jnp.exp(plain).sum(-1), 1.0, rtol=1e-5)
    only = Views(model, ("flip",))
    np.testing.assert_allclose(
        only.apply(variables, images, train=False), only.apply(variables, images[:, :, ::-1], train=False), atol=1e-5
    )
    committee = Committee(model).apply(jax.tree.map(lambda x: jnp.stack([x, x]), variables), images, train=False)
    np.testing.assert_allclose(committee, jax.nn.log_softmax(model.apply(variables, images, train=False)), atol=1e-5)


def test_the_table_of_finished_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = CONFIG.override(dataset="digits", epochs=2, steps=None, batch_size=64)
    train(plain.override(workdir="one", members=1))
    train(plain.override(workdir="two", members=2))
    capsys.readouterr()
    main(["one", "two", "--views", "shift", "--csv", "table.csv", "--plot", "table.png"])
    with open("table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["member"], row["committee_of"]) for row in rows] == [
        ("one", "0", "1"),
        ("two", "0", "2"),
        ("two", "1", "3"),
    ]
    assert rows[0]["accuracy"] == rows[0]["committee_accuracy"] and float(rows[2]["agreement"]) < 1
    assert "3 networks, 360 images" in capsys.readouterr().out
    assert Path("table.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="^--plot absent/table.png cannot be written"):
        main(["one", "--plot", "absent/table.png"])
    # Evaluating the run gives the same committee as combining its members' predictions.
    logits, labels, _ = member_predictions("two")
    together = np.mean(np.asarray(average(jnp.asarray(logits))).argmax(-1) == labels)
    assert evaluate("two")["accuracy"] == pytest.approx(together)
    assert evaluate("two", views=["shift"])["loss"] != evaluate("two")["loss"]
    with pytest.raises(UserError, match="one would vote twice: name each run once"):
        main(["one", "two", "./one"])
    with pytest.raises(UserError, match="have different classes or test images"):
        train(plain.override(workdir="other", dataset="xo", model_args=("hidden=4",), epochs=1))
        main(["one", "other"])


def test_an_unknown_view_is_refused_when_it_is_named():
    with pytest.raises(UserError, match="unknown view 'flop'; perhaps you meant flip"):
        Views(build("mlp", 3), ("flop",))
    with pytest.raises(UserError, match="pixels=0"):
        shift(jnp.zeros((1, 4, 4, 1)), pixels=0)
    for part in (0.0, 1.1, 0.01):
        with pytest.raises(UserError, match=f"view ten_crop cannot use part={part} of 4x4 images"):
            ten_crop(jnp.zeros((1, 4, 4, 1)), part=part)
