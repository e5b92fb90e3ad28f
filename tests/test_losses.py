"""Losses against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.tasks.losses import LOSSES, cross_entropy, hinge, mse, smooth

LOGITS_3x4 = np.array([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [30.0, -200.0, 100.0, 1.0]])
LABELS_3 = np.array([0, 3, 1])
ONE_HOT_3x4 = np.eye(4)[LABELS_3]
SOFT_3x4 = np.array([[0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.0, 0.5], [0.25, 0.25, 0.25, 0.25]])


def call(loss, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.asarray(loss(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32)))


@pytest.mark.parametrize("targets", [ONE_HOT_3x4, SOFT_3x4], ids=["one_hot", "soft"])
def test_cross_entropy_is_minus_the_mean_log_probability(targets: np.ndarray):
    shifted = LOGITS_3x4 - LOGITS_3x4.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    np.testing.assert_allclose(call(cross_entropy, LOGITS_3x4, targets), -(targets * log_p).sum(-1), rtol=1e-6)


@pytest.mark.parametrize("targets", [ONE_HOT_3x4, SOFT_3x4], ids=["one_hot", "soft"])
def test_mse_is_on_the_raw_outputs(targets: np.ndarray):
    np.testing.assert_allclose(call(mse, LOGITS_3x4, targets), ((LOGITS_3x4 - targets) ** 2).mean(-1), rtol=1e-6)


def test_hinge_sums_the_violated_margins():
    expected = [
        sum(max(0.0, 1.0 + z[j] - z[y]) for j in range(4) if j != y) for z, y in zip(LOGITS_3x4, LABELS_3, strict=True)
    ]
    np.testing.assert_allclose(call(hinge, LOGITS_3x4, ONE_HOT_3x4), expected, rtol=1e-6)


def test_hinge_with_soft_targets_weighs_scores_and_classes():
    # t = (1/2, 0, 1/2, 0), z = (2, −1, 1/2, 0): the true score is 1.25.
    expected = 0.5 * (1 + 2 - 1.25) + 1.0 * max(0, 1 - 1 - 1.25) + 0.5 * (1 + 0.5 - 1.25) + 1.0 * max(0, 1 + 0 - 1.25)
    actual = call(hinge, LOGITS_3x4[:1], np.array([[0.5, 0.0, 0.5, 0.0]]))
    np.testing.assert_allclose(actual, [expected], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32_per_example_and_descend(name: str):
    """Even for bfloat16 logits; a gradient step lowers every example's loss."""
    logits, targets = jnp.asarray(LOGITS_3x4[:2], jnp.bfloat16), jnp.asarray(np.eye(4)[[1, 3]], jnp.float32)
    before = LOSSES[name](logits, targets)
    assert (before.shape, before.dtype) == ((2,), jnp.float32)
    gradient = jax.grad(lambda z: LOSSES[name](z, targets).sum())(logits.astype(jnp.float32))
    after = LOSSES[name](logits.astype(jnp.float32) - 0.05 * gradient, targets)
    assert (after < before).all()


def test_smooth_moves_a_share_to_all_classes():
    smoothed = call(lambda _, t: smooth(t, 0.2), LOGITS_3x4, ONE_HOT_3x4)
    np.testing.assert_allclose(smoothed.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(smoothed[0], [0.85, 0.05, 0.05, 0.05], rtol=1e-6)
    np.testing.assert_array_equal(call(lambda _, t: smooth(t, 0.0), LOGITS_3x4, SOFT_3x4), SOFT_3x4.astype(np.float32))
