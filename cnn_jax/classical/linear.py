"""Hand-made features and a linear support vector machine: what convolutional networks replaced.

HOG with a linear SVM: Dalal and Triggs 2005; on MNIST, 4x4 cells in blocks of 2x2 give 1,296 features.
"""

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from cnn_jax.classical.hog import check_hog, hog
from cnn_jax.classical.lbp import lbp_histograms
from cnn_jax.classical.solved import Examples, Say, Solution, Solved, check_classes, in_batches, pixels
from cnn_jax.data.characters import deskew
from cnn_jax.errors import UserError

COSTS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # of which validation chooses
_PATIENCE = 2  # costs in a row that are no better
CHOSEN_ON = 10_000  # training images for that choice
_ITERATIONS = 500


class LinearSvm(Solved):
    """Features, then a dense layer whose weights solve K one-against-rest problems with squared hinge loss.

    The problems are solved for features less their means, divided by one number that makes their mean variance 1; this
    scaling is then folded into the layer. (Dividing each feature by its own deviation is worse for HOG and pixels.)

    Attributes:
        features: "pixels", "hog" (`hog`) or "lbp" (`lbp_histograms`, oriented).
        cell: side of a cell of HOG or LBP, in pixels.
        block: side of a block of HOG, in cells.
        bins: directions of HOG.
        c: cost of the training errors, above 0; 0 for the best of `COSTS` by validation accuracy, after training on at
            most `CHOSEN_ON` images: then that cost solves for all.
        deskew: whether to remove the slant of written characters first.
    """

    features: Literal["pixels", "hog", "lbp"] = "pixels"
    cell: int = 4
    block: int = 2
    bins: int = 9
    c: float = 0.0
    deskew: bool = False

    solved_fields: ClassVar[tuple[str, ...]] = ("c",)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns scores (B, K), float32: signed distances from the K planes, up to their scales."""
        del train
        dense = nn.Dense(self.num_classes, name="output", precision=jax.lax.Precision.HIGHEST)
        return dense(self.described(x_BxHxWxC))

    @nn.nowrap
    def described(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Features (B, D) of images in [0, 1], float32."""
        images = pixels(x_BxHxWxC)
        if self.deskew:
            images = pixels(deskew(images / 255.0))
        if self.features == "hog":
            found = hog(images, cell=self.cell, block=self.block, bins=self.bins)
        elif self.features == "lbp":
            found = lbp_histograms(images, cell=self.cell)
        else:
            found = images / 255.0
        return found.reshape(len(found), -1)

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int], rows: int) -> None:
        """Checks that the images hold a block of features, and the cost."""
        if self.c < 0:
            raise UserError(f"c={self.c} for a linear SVM: set it above 0, or to 0 to choose it by validation")
        if self.features == "hog":
            check_hog(image_shape, self.cell, self.block, self.bins)
        jax.eval_shape(self.described, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))

    @nn.nowrap
    def solve(self, train: Examples, validation: Examples, *, seed: int, say: Say) -> Solution:
        """Computes features, chooses the cost, and solves for kernel and bias."""
        del seed  # the problem is convex
        check_classes(train.labels)
        features = in_batches(self.described, train.images)
        mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        features -= mean
        scale = np.float32(max(np.sqrt(np.square(features).mean(dtype=np.float64)), 1e-9))
        features /= scale
        facts: dict[str, Any] = {"features": f"{self.features}, {features.shape[1]:,} values an image"}
        cost, start = self.c, None
        if not cost:
            rows = np.linspace(0, len(features) - 1, min(CHOSEN_ON, len(features))).astype(int)
            held_out = Examples((in_batches(self.described, validation.images) - mean) / scale, validation.labels)
            few = Examples(features[rows], train.labels[rows])
            cost, start, facts["costs tried"] = _choose(few, held_out, self.num_classes, say)
        weights = planes(features, train.labels, self.num_classes, cost, start)
        kernel = weights[:-1] / scale
        output = {"kernel": kernel.astype(np.float32), "bias": (weights[-1] - mean @ kernel).astype(np.float32)}
        return Solution(self.clone(c=cost), {"params": {"output": output}}, facts | {"cost": cost})


def _choose(train: Examples, validation: Examples, classes: int, say: Say) -> tuple[float, np.ndarray, str]:
    """Returns the cost with the best validation accuracy, its weights, and the costs tried, in words.

    Costs grow, each starting from the weights of the last, until `_PATIENCE` of them in a row are no better.
    """
    found: dict[float, float] = {}
    best, weights, start = COSTS[0], None, None
    for cost in COSTS:
        start = planes(train.images, train.labels, classes, cost, start)
        said = (validation.images @ start[:-1] + start[-1]).argmax(axis=1)
        found[cost] = float((said == validation.labels).mean())
        say(f"cost       {cost:g}: validation accuracy {found[cost]:.2%} from {len(train.labels):,} images")
        if weights is None or found[cost] > found[best]:
            best, weights = cost, start
        elif COSTS.index(cost) - COSTS.index(best) >= _PATIENCE:
            break
    assert weights is not None
    told = ", ".join(f"{cost:g}: {accuracy:.2%}" for cost, accuracy in found.items())
    return best, weights, f"{told} (validation accuracy from {len(train.labels):,} training images)"


def planes(
    features_NxD: np.ndarray, labels_N: np.ndarray, classes: int, cost: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Minimises ½‖w‖² + C Σ max(0, 1 − y(w·x + b))² for each class against the rest, the bias penalised as a weight.

    That is the problem of liblinear's and scikit-learn's `LinearSVC(dual=False)` (Fan et al. 2008, §2.1); L-BFGS on all
    classes at once solves it an order of magnitude faster for dense features.

    Args:
        features_NxD: float32, of about unit variance on average.
        labels_N: in [0, K).
        classes: K.
        cost: C.
        start: weights to start from; default: zeros.

    Returns:
        Weights (D + 1, K), the biases last, float64.
    """
    target_NxK = np.where(np.arange(classes) == labels_N[:, None], 1, -1).astype(np.float32)
    shape = (features_NxD.shape[1] + 1, classes)
    features, target = jnp.asarray(features_NxD), jnp.asarray(target_NxK)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = jnp.asarray(flat.reshape(shape), jnp.float32)
        value, gradient = _objective(weights, features, target, jnp.float32(cost))
        return float(value), np.asarray(gradient, np.float64).ravel()

    first = np.zeros(shape) if start is None else start
    settings = {"maxiter": _ITERATIONS, "ftol": 1e-6, "gtol": 1e-6 * cost * len(labels_N)}
    return minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=settings).x.reshape(shape)


@jax.jit
def _objective(
    weights: jax.Array, features: jax.Array, target: jax.Array, cost: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def value(weights: jax.Array) -> jax.Array:
        scores = jnp.dot(features, weights[:-1], precision=jax.lax.Precision.HIGHEST) + weights[-1:]
        slack = jax.nn.relu(1.0 - target * scores)
        return 0.5 * jnp.square(weights).sum() + cost * jnp.square(slack).sum()

    return jax.value_and_grad(value)(weights)
