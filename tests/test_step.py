"""The train step as a pure function: golden values, moving average, accumulation, exact metrics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parts import classification

from cnn_jax.data.augment import make_augment
from cnn_jax.models import build
from cnn_jax.models.small import Filters, SmallCnn
from cnn_jax.optim.optimizers import from_transformation
from cnn_jax.training.state import init_state, stream, variables_for_evaluation
from cnn_jax.training.step import make_eval_step, make_train_step

CLASSES = 3


TASK = classification(CLASSES)


def normalize(batch):
    images = batch["image"]
    return batch | {"image": images.astype(jnp.float32) / (255.0 if images.dtype == jnp.uint8 else 1.0) - 0.5}


def batch_of(size: int, shape=(8, 8, 1), seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.Generator(np.random.Philox(key=seed))
    images = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.asarray(rng.integers(0, CLASSES, size, dtype=np.int32))}


def pieces(model: nn.Module, tx: optax.GradientTransformation, specs=(), **options):
    optimizer = from_transformation(tx)
    step = make_train_step(model, TASK, optimizer, make_augment(specs), normalize, **options)
    state = init_state(model, optimizer, (8, 8, 1), 0, ema=options.get("ema_decay") is not None)
    return jax.jit(step), state


def test_first_loss_of_a_zero_initialised_softmax_is_log_of_the_number_of_classes():
    step, state = pieces(build("softmax_regression", CLASSES), optax.sgd(0.1))
    _, metrics = step(state, batch_of(16))
    loss, count = metrics["loss"]
    assert count == 16 and float(loss) / 16 == pytest.approx(np.log(CLASSES), rel=1e-6)


def test_softmax_step_equals_the_gradient_written_by_hand():
    step, state = pieces(build("softmax_regression", CLASSES), optax.sgd(0.1))
    batch = batch_of(16)
    new, _ = step(state, batch)
    x_BxD = np.asarray(batch["image"], np.float64).reshape(16, -1) / 255 - 0.5
    error_BxK = np.full((16, CLASSES), 1 / CLASSES) - np.eye(CLASSES)[np.asarray(batch["label"])]
    kernel, bias = sorted(jax.tree.leaves(new.params), key=lambda leaf: -leaf.ndim)
    np.testing.assert_allclose(kernel, -0.1 * x_BxD.T @ error_BxK / 16, atol=1e-6)
    np.testing.assert_allclose(bias, -0.1 * error_BxK.mean(0), atol=1e-6)


def test_step_is_counted_and_average_follows_the_weights():
    step, state = pieces(build("softmax_regression", CLASSES), optax.sgd(0.1), ema_decay=0.75)
    new, _ = step(state, batch_of(16))
    assert int(new.step) == 1
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, state.params, new.params)  # (1 + 0)/(10 + 0) < 0.75
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), new.ema["params"], expected)
    assert variables_for_evaluation(new)["params"] is new.ema["params"]


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    whole, state = pieces(build("mlp", CLASSES), optax.sgd(0.1))
    parts, _ = pieces(build("mlp", CLASSES), optax.sgd(0.1), accumulate=4)
    one, one_metrics = whole(state, batch_of(16))
    four, four_metrics = parts(state, batch_of(16))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, four.params)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(one_metrics[name][0], four_metrics[name][0], rtol=1e-6)


def test_draws_depend_on_seed_name_and_step_only():
    bits = {jax.random.bits(stream(*at)).item() for at in [(0, "augment", 1), (0, "augment", 2), (0, "dropout", 1)]}
    assert len(bits) == 3
    assert jax.random.bits(stream(0, "augment", 1)).item() in bits


def test_each_mapped_part_of_a_batch_draws_its_own_dropout():
    model = SmallCnn(CLASSES, blocks=((Filters(4, 3, "SAME"),),), dense=(16,), dense_dropout=0.5)
    step, state = pieces(model, optax.sgd(0.1), axis_name="data")
    mapped = jax.vmap(step, in_axes=(None, 0), axis_name="data")

    def mean_loss(parts: int) -> float:
        same = jax.tree.map(lambda x: jnp.stack([x] * parts), batch_of(1))
        total, count = mapped(state, same)[1]["loss"][0]
        assert count == parts
        return float(total / count)

    assert mean_loss(8) != pytest.approx(mean_loss(1), rel=1e-3)


def test_masked_rows_are_not_counted():
    model = build("softmax_regression", CLASSES)
    variables = init_state(model, from_transformation(optax.sgd(0.1)), (8, 8, 1), 0).params
    evaluate = jax.jit(make_eval_step(model, TASK, normalize))
    batch = batch_of(6)
    mask = jnp.arange(6) < 4
    metrics, collected = evaluate({"params": variables}, batch | {"mask": mask})
    assert collected["logits"].shape == (6, CLASSES)
    assert float(metrics["accuracy"][1]) == 4
    assert float(metrics["accuracy"][0]) == np.sum(np.asarray(batch["label"])[:4] == 0)  # ties go to class 0


GOLDEN = {"resnet20": (1.04420, 1.56124), "lenet5": (1.10320, 1.08021)}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_of_two_steps(name):
    shape = (32, 32, 3)
    model, optimizer = build(name, CLASSES), from_transformation(optax.sgd(0.05, momentum=0.9))
    augment = make_augment(["pad_crop:padding=2", "flip"])
    step = jax.jit(make_train_step(model, TASK, optimizer, augment, normalize))
    state = init_state(model, optimizer, shape, 0)
    losses = []
    for index in range(2):
        state, metrics = step(state, batch_of(8, shape, index))
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    assert losses == pytest.approx(GOLDEN[name], abs=2e-3), (
        f"the first two losses of {name} are {losses}. If the model, its initialisation, an augmentation or the step "
        "was meant to change, put these numbers into GOLDEN and say why in the commit; if not, this is a bug."
    )
