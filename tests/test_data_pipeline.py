"""Batches: the same for a given seed, however they are read."""

import multiprocessing
from itertools import islice

import jax
import numpy as np
import pytest

from cnn_jax.data import ArraySource, batch_indices, make_pipeline, open_source
from cnn_jax.errors import UserError


def numbered(count):
    """A source whose image i is filled with i and has label i mod 3."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 1))
    return ArraySource("numbered", "train", ("a", "b", "c"), images, np.arange(count) % 3)


def batches(pipeline, items):
    return [{name: np.asarray(value) for name, value in pipeline.gather(pipeline.arrays, i).items()} for i in items]


def test_order_never_changes():
    # Golden values: the argsort of raw Philox words. Changing them changes the run that every recorded seed stands for.
    assert batch_indices(0, 0, 10, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert batch_indices(0, 0, 10, 10).dtype == np.int32


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 10), (7, 20), (1, 4), (100, 33)])
def test_every_example_once_an_epoch(count, size):
    stream = np.concatenate([batch_indices(5, step, count, size) for step in range(3 * count)])
    epochs = stream[: len(stream) // count * count].reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    if count >= 10:
        assert len(np.unique(epochs[:4], axis=0)) == 4  # every epoch has a different order
        assert not np.array_equal(batch_indices(5, 0, count, size), batch_indices(6, 0, count, size))


@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_batch_is_what_the_order_says(mode):
    pipeline = make_pipeline(numbered(11), batch_size=4, seed=3, mode=mode)
    assert (pipeline.num_examples, pipeline.batch_size) == (11, 4)
    for step, batch in enumerate(batches(pipeline, islice(pipeline.train_items(), 9))):
        rows = batch_indices(3, step, 11, 4)
        assert set(batch) == {"image", "label"}
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"], np.broadcast_to(rows[:, None, None, None], (4, 2, 2, 1)))
        np.testing.assert_array_equal(batch["label"], rows % 3)


@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_starting_later_changes_nothing(mode):
    pipeline = make_pipeline(numbered(11), batch_size=4, seed=3, mode=mode)
    whole = batches(pipeline, islice(pipeline.train_items(), 8))
    late = batches(pipeline, islice(pipeline.train_items(5), 3))
    jax.tree.map(np.testing.assert_array_equal, whole[5:], late)


@pytest.mark.parametrize("mode", ["resident", "stream"])
@pytest.mark.parametrize(("count", "size"), [(11, 4), (8, 4), (3, 8)])
def test_evaluation_sees_every_example_once(mode, count, size):
    pipeline = make_pipeline(numbered(count), batch_size=size, seed=0, mode=mode)
    seen = batches(pipeline, pipeline.eval_items())
    assert len(seen) == -(-count // size)
    assert all(batch["image"].shape == (size, 2, 2, 1) and batch["mask"].dtype == bool for batch in seen)
    rows = np.concatenate([batch["image"][batch["mask"], 0, 0, 0] for batch in seen])
    np.testing.assert_array_equal(rows, np.arange(count))
    assert sum(batch["mask"].sum() for batch in seen) == count
    jax.tree.map(np.testing.assert_array_equal, seen, batches(pipeline, pipeline.eval_items()))
    twice = batches(pipeline, islice(pipeline.eval_items(repeat=True), 2 * pipeline.eval_steps))
    jax.tree.map(np.testing.assert_array_equal, seen + seen, twice)


def test_gather_inside_jit_equals_numpy():
    pipeline = make_pipeline(open_source("digits", "train"), batch_size=16, seed=0, mode="resident")
    item = next(pipeline.train_items())
    on_device = jax.jit(pipeline.gather)(jax.device_put(pipeline.arrays), item)
    jax.tree.map(np.testing.assert_array_equal, on_device, pipeline.gather(pipeline.arrays, item))


def test_worker_processes_give_the_same_batches():
    source = open_source("synthetic:4x4x1:3:20", "train")
    resident = make_pipeline(source, batch_size=6, seed=9, mode="resident")
    stream = make_pipeline(source, batch_size=6, seed=9, mode="stream", workers=2)
    expected = batches(resident, islice(resident.train_items(2), 5))
    jax.tree.map(np.testing.assert_array_equal, expected, batches(stream, islice(stream.train_items(2), 5)))


def test_worker_processes_are_reused_across_passes_and_end_with_the_reader():
    source = open_source("synthetic:4x4x1:3:80", "test")
    stream, resident = (
        make_pipeline(source, batch_size=6, seed=0, mode=mode, workers=2) for mode in ("stream", "resident")
    )
    expected = batches(resident, resident.eval_items())
    assert len(expected) == stream.eval_steps == 4
    others = {child.pid for child in multiprocessing.active_children()}

    def workers() -> set[int | None]:
        return {child.pid for child in multiprocessing.active_children()} - others

    reader = stream.eval_items(repeat=True)
    jax.tree.map(np.testing.assert_array_equal, expected, batches(stream, islice(reader, stream.eval_steps)))
    first = workers()
    jax.tree.map(np.testing.assert_array_equal, expected, batches(stream, islice(reader, stream.eval_steps)))
    assert len(first) == 2 and workers() == first
    reader.close()
    assert workers() == set()


def test_auto_is_resident_where_it_fits():
    source = numbered(10)  # images and labels: 80 bytes
    assert make_pipeline(source, batch_size=2, seed=0, max_resident_bytes=80).arrays != ()
    assert make_pipeline(source, batch_size=2, seed=0, max_resident_bytes=79).arrays == ()


def test_bad_arguments():
    for arguments in ({"mode": "steam"}, {"batch_size": 0}, {"workers": -1}):
        with pytest.raises(UserError):
            make_pipeline(numbered(4), **{"batch_size": 2, "seed": 0, **arguments})
    assert batch_indices(-1, 0, 5, 5).shape == (5,)  # any integer is a valid seed
    with pytest.raises(UserError, match="`batch_size` is 65537 for 10 examples: set it to at most 65536"):
        make_pipeline(open_source("digits", "train[:10]"), batch_size=2**16 + 1, seed=0)


def test_streaming_refuses_bad_labels():
    source = ArraySource("mine", "test", ("a",), np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 0, 0, -1]))
    pipeline = make_pipeline(source, batch_size=4, seed=0, mode="stream")
    with pytest.raises(UserError, match="example 3 has label -1"):
        next(pipeline.train_items())
