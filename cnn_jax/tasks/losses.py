"""Classification losses: pure functions of (logits_BxK, targets_BxK) that return one float32 loss per example.

Targets are distributions over the K classes, non-negative and summing to 1: one-hot labels, possibly changed by label
smoothing, mixup or cutmix.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    """Cross-entropy between the targets and the softmax of the logits, −Σₖ tₖ log softmax(z)ₖ, in nats.

    >>> cross_entropy(jnp.zeros((1, 4)), jax.nn.one_hot(jnp.array([2]), 4)).round(4)  # log 4
    Array([1.3863], dtype=float32)
    """
    log_p_BxK = jax.nn.log_softmax(logits_BxK.astype(jnp.float32))
    return -jnp.sum(targets_BxK.astype(jnp.float32) * log_p_BxK, axis=-1)


def mse(logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    """Mean over the classes of (zₖ − tₖ)², on the raw outputs, without softmax.

    The criterion of "2-layer NN, 300 hidden units, mean square error" in LeCun's MNIST table.

    >>> mse(jnp.array([[0.5, 1.0]]), jnp.array([[0.0, 1.0]]))
    Array([0.125], dtype=float32)
    """
    return jnp.mean(jnp.square(logits_BxK.astype(jnp.float32) - targets_BxK.astype(jnp.float32)), axis=-1)


def hinge(logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    """Multi-class support vector loss with margin 1, Σ_{j≠y} max(0, 1 + zⱼ − z_y) (Weston & Watkins 1999).

    For targets that are not one-hot, the true score is the weighted mean Σₖ tₖ zₖ, and class j has weight 1 − tⱼ; this
    costs O(K), not O(K²).

    >>> hinge(jnp.array([[3.0, 2.5, -1.0]]), jnp.array([[1.0, 0.0, 0.0]]))
    Array([0.5], dtype=float32)
    """
    scores_BxK, targets_BxK = logits_BxK.astype(jnp.float32), targets_BxK.astype(jnp.float32)
    true_Bx1 = jnp.sum(targets_BxK * scores_BxK, axis=-1, keepdims=True)
    return jnp.sum((1.0 - targets_BxK) * jax.nn.relu(1.0 + scores_BxK - true_Bx1), axis=-1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse, "hinge": hinge}


def smooth(targets_BxK: jax.Array, amount: float) -> jax.Array:
    """Label smoothing (Szegedy et al. 2016, §7): (1 − amount)·t + amount/K, which still sums to 1.

    Args:
        targets_BxK: distributions over the classes.
        amount: share spread evenly over the classes, in [0, 1).

    >>> smooth(jnp.array([[1.0, 0.0]]), 0.1)
    Array([[0.95, 0.05]], dtype=float32)
    """
    return (1.0 - amount) * targets_BxK + amount / targets_BxK.shape[-1]


def inverse_frequency(counts_K: np.ndarray) -> np.ndarray:
    """Weights that give each class the same share of the training loss: wₖ = N / (C·nₖ).

    N = Σ nₖ, and C is the number of classes with examples, so the mean weight over the examples, Σ nₖwₖ / N, is 1. A
    class without examples has weight 0. scikit-learn calls these weights "balanced".

    Args:
        counts_K: number of training examples of each class.

    >>> inverse_frequency(np.array([6, 2, 0, 1]))
    array([0.5, 1.5, 0. , 3. ])
    """
    present = np.count_nonzero(counts_K)
    return np.divide(counts_K.sum(), present * counts_K, out=np.zeros(len(counts_K)), where=counts_K > 0)


def example_weights(targets_BxK: jax.Array, weights: Sequence[float]) -> jax.Array:
    """Weight of each example, Σₖ tₖ·wₖ, from its target before label smoothing: mixed examples have mixed weights.

    The loss of a batch is the mean of weight · loss; it is not divided by the sum of the batch's weights, so it is the
    same however a batch is divided among devices or accumulated parts.

    >>> example_weights(jnp.array([[1.0, 0.0], [0.25, 0.75]]), (0.5, 2.5))
    Array([0.5, 2. ], dtype=float32)
    """
    return targets_BxK.astype(jnp.float32) @ jnp.asarray(weights, jnp.float32)
