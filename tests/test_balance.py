"""`balance`: weights of the classes in the loss, or balanced sampling of the training order."""

import dataclasses
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import classification

from cnn_jax.config import Config
from cnn_jax.data import ArraySource, batch_indices, make_pipeline, open_source
from cnn_jax.data.order import Balanced
from cnn_jax.data.own import Subset
from cnn_jax.data.sources import ImageSource, read_labels
from cnn_jax.errors import UserError
from cnn_jax.runs.evaluate import _Relabelled
from cnn_jax.tasks import Classification
from cnn_jax.tasks.losses import cross_entropy, inverse_frequency
from cnn_jax.training.experiment import Given, make_experiment

pytestmark = pytest.mark.usefixtures("one_device")

COUNTS = {0: 12, 1: 5, 3: 1}  # class 2 has no images
LABELS = np.repeat(list(COUNTS), list(COUNTS.values()))[np.random.default_rng(0).permutation(18)].astype(np.int32)
NAMES = ("a", "b", "c", "d")


def unequal():
    """A source whose image i is filled with i."""
    images = np.broadcast_to(np.arange(18, dtype=np.uint8)[:, None, None, None], (18, 2, 2, 1))
    return ArraySource("unequal", "train", NAMES, images, LABELS)


def pipelines(**arguments):
    return [make_pipeline(unequal(), mode=mode, seed=7, **arguments) for mode in ("resident", "stream")]


def rows(pipeline, items):
    return [np.asarray(pipeline.gather(pipeline.arrays, item)["image"])[:, 0, 0, 0].tolist() for item in items]


# Sampling


def test_every_class_has_its_share_of_every_epoch():
    order = Balanced.of(LABELS)
    for epoch in range(5):
        seen = order(3, epoch, 18)
        assert seen.dtype == np.int32 and np.bincount(LABELS[seen], minlength=4).tolist() == [6, 6, 0, 6]
    twenty = np.array([0] * 15 + [1] * 4 + [2])  # 20 is not a multiple of 3: shares of 7 or 6, which take turns
    shares = [np.bincount(twenty[Balanced.of(twenty)(0, epoch, 20)]).tolist() for epoch in range(3)]
    assert [sorted(share) for share in shares] == [[6, 7, 7]] * 3
    assert np.sum(shares, axis=0).tolist() == [20, 20, 20]


def test_within_a_class_all_images_are_seen_equally_often():
    stream = np.concatenate([Balanced.of(LABELS)(3, epoch, 18) for epoch in range(10)])
    seen = np.bincount(stream, minlength=18)
    # 60 turns of each class: 5 for each of 12 images, 12 for each of 5, 60 for the only one
    assert [set(seen[label == LABELS]) for label in COUNTS] == [{5}, {12}, {60}]
    first = Balanced.of(LABELS)(3, 0, 18)
    assert len(set(first[LABELS[first] == 0])) == 6  # none twice before all have been seen once


def test_orders_differ_between_epochs_seeds_and_classes():
    order = Balanced.of(np.repeat([0, 1], 40))
    epochs = [order(seed, epoch, 80).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    first = np.array(epochs[0])
    assert first[first < 40].tolist() != (first[first >= 40] - 40).tolist()


def test_equal_classes_are_all_seen_once_an_epoch():
    labels = np.arange(30) % 3
    assert sorted(Balanced.of(labels)(0, 4, 30).tolist()) == list(range(30))


def test_balanced_batches_depend_on_seed_and_step_alone():
    order = Balanced.of(LABELS)
    expected = [batch_indices(7, step, 18, 5, order).tolist() for step in range(9)]
    assert expected[1] == np.concatenate([order(7, 0, 18), order(7, 1, 18)])[5:10].tolist()
    for pipeline in pipelines(batch_size=5, balanced=True):
        assert rows(pipeline, islice(pipeline.train_items(), 9)) == expected
        assert rows(pipeline, islice(pipeline.train_items(4), 5)) == expected[4:]  # resumed


def test_evaluation_sees_every_image_once_whatever_the_training_order():
    for pipeline in pipelines(batch_size=6, balanced=True):
        assert sum(rows(pipeline, pipeline.eval_items()), []) == list(range(18))


def test_worker_processes_sample_the_same_batches():
    source = open_source("synthetic:4x4x1:3:20", "train")
    resident, stream = (
        make_pipeline(source, batch_size=6, seed=9, mode=mode, workers=2, balanced=True)
        for mode in ("resident", "stream")
    )
    for a, b in zip(islice(resident.train_items(2), 4), islice(stream.train_items(2), 4), strict=False):
        jax.tree.map(np.testing.assert_array_equal, resident.gather(resident.arrays, a), b)


def test_off_is_the_order_of_before():
    for pipeline in pipelines(batch_size=5):
        expected = [batch_indices(7, step, 18, 5).tolist() for step in range(5)]
        assert rows(pipeline, islice(pipeline.train_items(), 5)) == expected


def test_labels_are_read_without_images_where_the_source_has_them():
    sources = [open_source("digits", "train[:20]"), open_source("synthetic:4x4x1:3:20", "train[3:9]"), unequal()]
    sources += [Subset(source, [4, 1, 1], "train") for source in sources]
    sources += [_Relabelled(sources[2], (2, 0, 1, 3), NAMES)]
    for source in sources:
        expected = [source[i]["label"] for i in range(len(source))]
        assert read_labels(source).tolist() == expected == source.labels.tolist()


# Weights


def test_weights_are_inverse_to_the_counts_with_mean_1_over_the_images():
    counts = np.array([12, 5, 0, 1])
    weights = inverse_frequency(counts)
    np.testing.assert_allclose(weights, [18 / (3 * 12), 18 / (3 * 5), 0, 18 / 3])
    assert (counts * weights).sum() / 18 == pytest.approx(1)
    assert (counts * weights)[[0, 1, 3]] == pytest.approx(6)  # each class has the same share of the loss


def test_the_training_loss_is_weighted_and_evaluation_is_not():
    task, plain = classification(3).balanced(np.array([4, 1, 1])), classification(3)
    logits = jax.random.normal(jax.random.key(0), (4, 3))
    label = jnp.array([0, 0, 1, 2])
    batch = task.prepare({"label": label})
    scores = np.asarray(logits)
    each = np.log(np.exp(scores).sum(-1)) - scores[np.arange(4), label]
    loss, sums = task.loss(logits, batch, train=True)
    expected = (each * np.array([0.5, 0.5, 2, 2])).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert sums["loss"].tolist() == pytest.approx([4 * expected, 4], rel=1e-6)
    for measured in ("loss", "accuracy"):
        found = [of.loss(logits, batch, train=False)[1][measured].tolist() for of in (task, plain)]
        assert found[0] == found[1]
    collected = {"logits": np.asarray(logits), "label": np.asarray(label)}
    assert task.measures(collected) == plain.measures(collected)


def test_mixed_and_smoothed_targets_and_auxiliary_heads():
    """The weight is that of the mixed target before smoothing; auxiliary heads have it, too."""
    task = dataclasses.replace(classification(2, label_smoothing=0.2).balanced(np.array([3, 1])))
    target = jnp.array([[0.7, 0.3], [0.0, 1.0]])
    logits, aux = jnp.array([[1.0, -1.0], [0.5, 0.0]]), jnp.array([[0.0, 2.0], [1.0, 1.0]])
    heads = {"aux": {"weight": 0.3, "logits": aux}}
    loss, _ = task.loss(logits, {"target": target}, train=True, auxiliary=heads)
    weights = np.array([0.7 * 2 / 3 + 0.3 * 2, 2.0])
    smoothed = 0.8 * np.asarray(target) + 0.1

    def mean(logits):
        log_p = np.asarray(logits) - np.log(np.exp(np.asarray(logits)).sum(-1, keepdims=True))
        return (-(smoothed * log_p).sum(-1) * weights).mean()

    assert float(loss) == pytest.approx(mean(logits) + 0.3 * mean(aux), rel=1e-5)


CONFIG = Config("balance").override(
    model="softmax_regression", optimizer="gradient_descent", batch_size=6, steps=2, epochs=None, devices=1
)


def experiment(**fields):
    sources = {"train": unequal(), "validation": unequal()}
    return make_experiment(CONFIG.override(**fields), Given(sources=sources))


def one_step(made, rows=range(6)):
    arrays = {"image": unequal().images[list(rows)], "label": LABELS[list(rows)]}
    return jax.jit(made.train_step)(made.state, arrays)


@pytest.mark.parametrize("pipeline", ["resident", "stream"])
def test_the_counts_are_those_of_the_training_images(pipeline):
    for balance, expected in (("loss", (0.5, 1.2, 0, 6)), ("none", ())):
        task = experiment(balance=balance, pipeline=pipeline).task
        assert isinstance(task, Classification) and task.class_weights == pytest.approx(expected)


def test_parts_of_a_batch_and_members_have_the_same_weights():
    whole, _ = one_step(experiment(balance="loss"))
    parts, _ = one_step(experiment(balance="loss", accumulate=3))
    plain, _ = one_step(experiment())
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # noqa: E731
    jax.tree.map(near, whole.params, parts.params)
    assert not np.allclose(whole.params["output"]["kernel"], plain.params["output"]["kernel"])
    both, _ = one_step(experiment(balance="loss", members=2))
    jax.tree.map(lambda many, one: near(many[0], one), both.params, whole.params)


def test_off_changes_no_program():
    made = experiment()
    arrays = {"image": unequal().images[:6], "label": LABELS[:6]}
    explicit = experiment(balance="none")
    programs = [jax.jit(of.train_step).lower(of.state, arrays).as_text() for of in (made, explicit)]
    assert programs[0] == programs[1]
    loss, _ = made.task.loss(jnp.zeros((6, 4)), made.task.prepare(arrays), train=True)
    assert float(loss) == float(cross_entropy(jnp.zeros((6, 4)), jax.nn.one_hot(LABELS[:6], 4)).mean())


def test_a_rare_class_is_learned_with_either_and_not_without():
    """Two Gaussian-like classes of grey, 95 to 5, that overlap: unweighted, nearly all are called the common one."""
    rng = np.random.default_rng(1)
    labels = (np.arange(400) % 20 == 0).astype(np.int32)
    grey = np.clip(rng.normal(np.where(labels == 1, 150, 105), 30), 0, 255).astype(np.uint8)
    images = np.broadcast_to(grey[:, None, None, None], (400, 2, 2, 1))
    source, recall = ArraySource("grey", "train", ("common", "rare"), images, labels), {}
    for balance in ("none", "loss", "sampling"):
        config = CONFIG.override(optimizer="adam", learning_rate=0.05, batch_size=100, steps=60, balance=balance)
        made = make_experiment(config, Given(sources={"train": source, "validation": source}))
        state, data = made.state, made.data["train"]
        arrays, step = jax.device_put(data.arrays), jax.jit(made.train_step)
        for item in islice(data.train_items(), 60):
            state, _ = step(state, data.gather(arrays, item))
        logits: Any = made.model.apply({"params": state.params}, made.preprocess.normalize(images), train=False)
        recall[balance] = (np.argmax(logits, axis=-1)[labels == 1] == 1).mean()
    assert recall["none"] < 0.3 and min(recall["loss"], recall["sampling"]) > 0.6, recall


def test_what_cannot_be_balanced_is_refused():
    unlabelled = ImageSource("mine", "train", np.zeros((8, 4, 4, 1), np.uint8))
    with pytest.raises(UserError, match="mine has no labels, which balanced sampling needs: set `balance` to none"):
        make_pipeline(unlabelled, batch_size=2, seed=0, balanced=True)
    reconstruct = CONFIG.override(task="reconstruction", model="conv_autoencoder", dataset="digits", balance="loss")
    with pytest.raises(UserError, match="the task reconstruction has no classes to weight: set it to none"):
        make_experiment(reconstruct)
    with pytest.raises(UserError, match="`balance` is 'weights': it must be one of none, loss, sampling"):
        CONFIG.override(balance="weights").check_types()


def test_labels_of_real_data(tfds_dir):
    source = open_source("mnist", "test[:50]")
    assert read_labels(source).tolist() == [source[i]["label"] for i in range(50)]
