"""One device gives the same results as eight under jit or pmap: weights, BatchNorm statistics, metrics, evaluation.

Several devices sum in a different order, so float32 results differ in the last bits. Occasionally that flips the sign
of an activation near 0, hence whether ReLU passes its gradient, and three steps of momentum amplify it to 1e-2. No
such case occurred in float64, so three steps are compared there, from several seeds, and single steps in float32.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import classification, optimizer_of

from cnn_jax.config import Config
from cnn_jax.data import Preprocess, make_pipeline, open_source
from cnn_jax.data.augment import make_augment
from cnn_jax.data.pipeline import StreamPipeline
from cnn_jax.errors import UserError
from cnn_jax.models.resnet import ResNet
from cnn_jax.models.small import Filters, SmallCnn
from cnn_jax.training.compiled import TrainStep, mean_metrics
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.parallel import Parallel, make_parallel
from cnn_jax.training.state import TrainState, init_state, variables_for_evaluation
from cnn_jax.training.step import make_train_step

CONFIG = Config("devices").override(
    dataset="synthetic:8x8x3:4:100",
    model="resnet20",
    model_args=("blocks=1/1/1", "width=8"),
    optimizer="nesterov",
    learning_rate=0.05,
    batch_size=16,
    eval_batch_size=24,
    augment=("pad_crop:padding=1", "flip"),
    steps=3,
    epochs=None,
    seed=1,  # a seed with no activation so close to 0 that rounding decides its sign
)
CLASSES, BATCH, SEEDS = 4, 16, range(5)
TINY_RESNET = partial(ResNet, blocks=(1, 1), width=4)
TINY_CNN = partial(SmallCnn, blocks=((Filters(4, 3, "SAME"),),), dense=(16,))  # without BatchNorm
TASK = classification(CLASSES)
OPTIMIZER = optimizer_of("nesterov", learning_rate=0.05, total_steps=3)
Outcome = tuple[TrainState, dict[str, float]]


def trained(scan: bool = False, **changes):
    """Returns state and metrics after three steps, and metrics and logits of the test split."""
    experiment = make_experiment(CONFIG.override(**changes))
    parallel, data = experiment.parallel, experiment.data["train"]
    state = parallel.place(experiment.state)
    items = list(itertools.islice(data.train_items(0), 3))
    step = TrainStep(experiment.train_step, data, parallel, scan=scan)
    seen = []
    for part in [items] if scan else [[item] for item in items]:
        state, metrics = step(state, part)
        seen.append(metrics)
    test, collected = experiment.evaluator("test").predictions(variables_for_evaluation(state))
    return jax.device_get(state), mean_metrics(seen), test, collected["logits"]


@pytest.fixture(scope="module")
def one_device():
    return trained(devices=1)


@pytest.mark.parametrize(
    "changes",
    [{"parallel": "jit"}, {"parallel": "pmap"}, {"parallel": "jit", "scan": True}, {"parallel": "pmap", "scan": True}],
    ids=lambda c: c["parallel"] + ("-scan" if "scan" in c else ""),
)
def test_eight_devices_equal_one(one_device, changes):
    assert jax.device_count() == 8
    state, metrics, test, logits = trained(**changes)
    expected_state, expected_metrics, expected_test, expected_logits = one_device
    for name in ("params", "batch_stats", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            getattr(state, name),
            getattr(expected_state, name),
        )
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, expected_state), "the state is one copy, not eight"
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)
    assert test == pytest.approx(expected_test, rel=1e-5)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)


def initial_states(model_of: Callable[..., nn.Module], ema: bool = False) -> list[TrainState]:
    """Initial float32 states, one per seed in `SEEDS`."""
    return [init_state(model_of(num_classes=CLASSES), OPTIMIZER, (8, 8, 3), seed, ema=ema) for seed in SEEDS]


def from_seeds(
    parallel: Parallel,
    model_of: Callable[..., nn.Module],
    initial: list[TrainState],
    steps: int,
    dtype: Any,
    *,
    mode: str = "resident",
    **options: Any,
) -> list[Outcome]:
    """Trains from each seed in `SEEDS`; returns the final states and mean metrics.

    The step is compiled once: the seed for its random draws is in the state.

    Args:
        parallel: devices to train on.
        model_of: model constructor; gets the number of classes and the dtypes.
        initial: states from `initial_states`.
        steps: number of updates.
        dtype: of computation, parameters, statistics and optimizer state; logits and loss are always float32.
        mode: mode of the data pipeline.
        **options: passed to `make_train_step`.
    """
    source = open_source("synthetic:8x8x3:4:100", "train")
    preprocess, augment = Preprocess.fit(source), make_augment(CONFIG.data.augment)
    axis = {"axis_name": parallel.axis_name} if parallel.axis_name else {}
    model = model_of(num_classes=CLASSES, dtype=dtype, param_dtype=dtype, **axis)

    settings = {"axis_name": parallel.axis_name, **options}
    step = make_train_step(model, TASK, OPTIMIZER, augment, preprocess.normalize_batch, **settings)

    def run(state: TrainState, seed: int) -> Outcome:
        nonlocal compiled
        data = make_pipeline(source, batch_size=BATCH, seed=seed, mode=mode)
        # A copy, because each step donates its state's buffers.
        state = jax.tree.map(lambda x: jnp.array(x, dtype if x.dtype == jnp.float32 else x.dtype), state)
        state = parallel.place(state)
        if compiled is None:
            compiled = TrainStep(step, data, parallel, scan=False)
        seen = []
        for item in itertools.islice(data.train_items(), steps):
            state, metrics = compiled(state, [item])
            seen.append(metrics)
        return jax.device_get(state), mean_metrics(seen)

    compiled: Any = None
    # The step is written for float32 parameters; with other types its constants are promoted.
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion("standard"):
        return [run(state, seed) for state, seed in zip(initial, SEEDS, strict=True)]


def assert_equal(outcomes: list[Outcome], expected: list[Outcome], atol: float) -> None:
    """Asserts, per seed, that states agree within `atol` and metrics within 1e-6 relative."""
    for (state, metrics), (expected_state, expected_metrics) in zip(outcomes, expected, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), state, expected_state)
        assert metrics == pytest.approx(expected_metrics, rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "dtype", "options", "atol"),
    [
        pytest.param(3, jnp.float64, {"ema_decay": 0.9}, 1e-7, id="float64"),
        pytest.param(1, jnp.float32, {}, 1e-5, id="float32"),
        pytest.param(1, jnp.float32, {"accumulate": 2, "mode": "stream"}, 1e-5, id="accumulated-streamed"),
    ],
)
def test_eight_devices_equal_one_from_any_seed(steps, dtype, options, atol):
    initial = initial_states(TINY_RESNET, ema="ema_decay" in options)
    train = partial(from_seeds, model_of=TINY_RESNET, initial=initial, steps=steps, dtype=dtype, **options)
    one = train(make_parallel("jit", 1, BATCH))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(one[0][0].params))
    assert len({metrics["loss"] for _, metrics in one}) == len(SEEDS), "seeds must give different runs"
    for kind in ("jit", "pmap"):
        assert_equal(train(make_parallel(kind, None, BATCH)), one, atol)


def test_under_jit_dropout_draws_for_the_whole_batch():
    # Under pmap each device draws independently.
    train = partial(from_seeds, initial=initial_states(TINY_CNN), steps=3, dtype=jnp.float64)
    dropping = partial(TINY_CNN, dense_dropout=0.5)
    one, without = train(make_parallel("jit", 1, BATCH), dropping), train(make_parallel("jit", 1, BATCH), TINY_CNN)
    assert one[0][1]["loss"] != pytest.approx(without[0][1]["loss"], rel=1e-3), "nothing was dropped"
    assert_equal(train(make_parallel("jit", None, BATCH), dropping), one, 1e-7)


def test_evaluation_is_exact_on_ragged_sets_and_any_number_of_devices():
    for devices in (1, 3, 8):
        experiment = make_experiment(CONFIG.override(model="mlp", devices=devices, batch_size=24, eval_batch_size=7))
        metrics, collected = experiment.evaluator("test").predictions(variables_for_evaluation(experiment.state))
        labels, logits = collected["label"], collected["logits"]
        expected = np.array([experiment.sources["test"][i]["label"] for i in range(len(experiment.sources["test"]))])
        np.testing.assert_array_equal(labels, expected)
        assert metrics["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels), abs=1e-7)


def test_a_split_that_is_evaluated_again_has_one_reader(monkeypatch):
    experiment = make_experiment(CONFIG.override(model="mlp", devices=1, pipeline="stream", eval_batch_size=10))
    original, readers = StreamPipeline.eval_items, []

    def eval_items(self, **options):
        readers.append(original(self, **options))
        return readers[-1]

    monkeypatch.setattr(StreamPipeline, "eval_items", eval_items)
    evaluator, variables = experiment.evaluator("validation"), variables_for_evaluation(experiment.state)
    first, second = evaluator.metrics(variables), evaluator.metrics(variables)
    assert first == second == evaluator.predictions(variables)[0]
    assert len(readers) == 2, "one for all metrics, one for the predictions"
    evaluator.close()
    assert next(readers[0], None) is None, "the reader is still open"


@pytest.mark.parametrize(
    ("devices", "batch", "said"), [(None, 20, "16 or 24"), (9, 16, "JAX found 8"), (3, 2, "such as 3;")]
)
def test_a_batch_the_devices_do_not_divide_is_refused(devices, batch, said):
    with pytest.raises(UserError, match=said):
        make_parallel("jit", devices, batch)
