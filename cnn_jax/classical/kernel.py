"""Support vector machines with kernels, and virtual support vectors.

LeCun et al. (1998, §III-C.8) and DeCoste and Schölkopf, "Training invariant support vector machines" (2002). libsvm, by
way of scikit-learn's `SVC`, solves for the support vectors, one class against another; the module here evaluates them.
"""

import itertools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.classical.solved import (
    Examples,
    Say,
    Solution,
    Solved,
    check_classes,
    import_sklearn,
    in_batches,
    pixels,
)
from cnn_jax.data.characters import deskew
from cnn_jax.errors import UserError

MANY = 20_000  # training images from which on solving takes minutes


class KernelSvm(Solved):
    """A support vector machine with a Gaussian or polynomial kernel on pixels in [0, 1].

    Scores are the votes of the K(K − 1)/2 machines of one class against another, 0 to K − 1. As in libsvm, the first of
    classes with equally many votes wins.

    Attributes:
        kernel: "rbf", exp(−γ‖x − s‖²), or "poly", (γ x·s + offset)^degree.
        gamma: γ; 0 for 1/(D · variance of the pixels), as scikit-learn's "scale".
        degree: of the polynomial.
        offset: of the polynomial.
        unit: whether images are divided by their norms first (DeCoste and Schölkopf 2002, §4).
        c: cost of the training errors.
        deskew: whether to remove the slant of written characters first.
        shift: pixels by which support vectors are shifted, in each direction and both, for a second training on all of
            them: virtual support vectors (ibid., §3); 0 for none.
        vectors: number of support vectors; set by solving.
    """

    kernel: Literal["rbf", "poly"] = "rbf"
    gamma: float = 0.0
    degree: int = 9
    offset: float = 0.5
    unit: bool = False
    c: float = 5.0
    deskew: bool = False
    shift: int = 0
    vectors: int = 0

    solved_fields: ClassVar[tuple[str, ...]] = ("vectors",)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns votes (B, K), float32."""
        del train
        pairs = self.num_classes * (self.num_classes - 1) // 2
        shape = (self.vectors, *x_BxHxWxC.shape[1:])
        support = self.variable("support", "images", lambda: jnp.zeros(shape, jnp.uint8)).value
        gamma = self.param("gamma", nn.initializers.ones, ())
        dual = self.param("dual", nn.initializers.zeros, (self.vectors, pairs))
        intercept = self.param("intercept", nn.initializers.zeros, (pairs,))
        x, s = self.inputs(self.upright(x_BxHxWxC)), self.inputs(support.astype(jnp.float32) / 255.0)
        decisions = jnp.dot(self._kernel(x, s, gamma), dual, precision=jax.lax.Precision.HIGHEST) + intercept[None]
        return votes(decisions, self.num_classes)

    @nn.nowrap
    def upright(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Images in [0, 1], on the 256 levels in which support vectors are stored; deskewed, if so set."""
        return pixels(deskew(x_BxHxWxC) if self.deskew else x_BxHxWxC) / 255.0

    @nn.nowrap
    def inputs(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """The kernel's arguments (B, D)."""
        x = x_BxHxWxC.reshape(len(x_BxHxWxC), -1)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-6) if self.unit else x

    @nn.nowrap
    def _kernel(self, x_BxD: jax.Array, s_NxD: jax.Array, gamma: jax.Array) -> jax.Array:
        products = jnp.dot(x_BxD, s_NxD.T, precision=jax.lax.Precision.HIGHEST)
        if self.kernel == "poly":
            return (gamma * products + self.offset) ** self.degree
        x_B, s_N = jnp.square(x_BxD).sum(axis=1), jnp.square(s_NxD).sum(axis=1)
        return jnp.exp(-gamma * jnp.maximum(x_B[:, None] + s_N[None, :] - 2.0 * products, 0.0))

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int], rows: int) -> None:
        """Checks cost, kernel and shift, and that scikit-learn is there."""
        if self.c <= 0 or self.gamma < 0 or self.degree < 1:
            raise UserError(
                f"c={self.c}, gamma={self.gamma} and degree={self.degree} for an SVM: set c above 0, gamma to 0 or "
                "more and degree to at least 1"
            )
        if not 0 <= self.shift < min(image_shape[:2]):
            raise UserError(f"shift={self.shift} for an SVM: set it to 0 to {min(image_shape[:2]) - 1} pixels")
        import_sklearn()

    @nn.nowrap
    def solve(self, train: Examples, validation: Examples, *, seed: int, say: Say) -> Solution:
        """Trains; with `shift`, once more on the support vectors and their shifted copies."""
        del validation
        check_classes(train.labels)
        images = np.round(255 * in_batches(self.upright, train.images)).astype(np.uint8)
        examples, facts = Examples(images, train.labels), {}
        gamma = self.gamma or _scaled_gamma(in_batches(self.inputs, images))
        machine = self._train(examples, gamma, seed, say)
        if self.shift:
            facts["support vectors before shifting"] = len(machine.support_)
            examples = shifted(Examples(*(of[machine.support_] for of in examples)), self.shift)
            facts["virtual examples"] = len(examples.labels)
            machine = self._train(examples, gamma, seed, say)
        dual, intercept = _pairwise(machine, self.num_classes)
        support = examples.images[machine.support_]
        params = {"gamma": np.float32(gamma), "dual": dual, "intercept": intercept}
        facts |= {"support vectors": len(support), "gamma": float(f"{gamma:.4g}"), "cost": self.c}
        return Solution(self.clone(vectors=len(support)), {"params": params, "support": {"images": support}}, facts)

    @nn.nowrap
    def _train(self, examples: Examples, gamma: float, seed: int, say: Say) -> Any:
        """Returns a fitted `SVC`."""
        count = len(examples.labels)
        advice = ""
        if count > MANY:
            minutes = max(1, round(_MINUTES * (count / MANY) ** 2))
            advice = f"; about {minutes} minutes and more, `train_split` train[:10000] is quick"
        say(f"solving    a {self.kernel} SVM on {count:,} images{advice}")
        made = {"C": self.c, "kernel": self.kernel, "gamma": gamma, "degree": self.degree, "coef0": self.offset}
        machine = import_sklearn().SVC(**made, cache_size=2000, random_state=seed)
        return machine.fit(in_batches(self.inputs, examples.images).astype(np.float64), examples.labels)


_MINUTES = 2  # on MANY images of MNIST, one core


def votes(decisions_BxP: jax.Array, classes: int) -> jax.Array:
    """Counts the votes (B, K) of P = K(K − 1)/2 decisions, pairs (0, 1), (0, 2), …: above 0 for the first class.

    >>> votes(jnp.array([[1.0, -1.0, 2.0]]), 3)  # 0 beats 1, 2 beats 0, 1 beats 2
    Array([[1., 1., 1.]], dtype=float32)
    """
    pairs = np.array(list(itertools.combinations(range(classes), 2))).reshape(-1, 2)
    first, second = (np.eye(classes, dtype=np.float32)[pairs[:, side]] for side in (0, 1))
    won = (decisions_BxP > 0).astype(jnp.float32)
    return won @ jnp.asarray(first) + (1.0 - won) @ jnp.asarray(second)


def shifted(examples: Examples, pixels: int) -> Examples:
    """Returns every image shifted by each (down, right) in [−pixels, pixels]², 0 filling the edge; unshifted included.

    >>> image = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> [moved.ravel().tolist() for moved in shifted(Examples(image, np.array([3])), 1).images[:2]]  # up and left; up
    [[4, 0, 0, 0], [3, 4, 0, 0]]
    """
    height, width = examples.images.shape[1:3]
    padded = np.pad(examples.images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    moves = range(2 * pixels, -1, -1)  # where the window begins: from the far end, which moves the image up and left
    images = [padded[:, top : top + height, left : left + width] for top in moves for left in moves]
    return Examples(np.concatenate(images), np.tile(examples.labels, len(images)))


def _scaled_gamma(inputs: np.ndarray) -> float:
    variance = float(inputs.var(dtype=np.float64))
    return 1.0 / (inputs.shape[1] * variance) if variance > 0 else 1.0


def _pairwise(machine: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (support vectors, pairs) and intercepts (pairs,) of an `SVC`, for pairs of all K classes.

    A class without training images loses against those that have some.
    """
    present, ends = list(machine.classes_), np.cumsum([0, *machine.n_support_])
    sign = -1.0 if len(present) == 2 else 1.0  # scikit-learn turns the decision of two classes around
    pairs = list(itertools.combinations(range(classes), 2))
    dual = np.zeros((len(machine.support_), len(pairs)))
    intercept = np.array([1.0 if first in present else -1.0 for first, _ in pairs])
    for number, (i, j) in enumerate(itertools.combinations(range(len(present)), 2)):
        pair = pairs.index((present[i], present[j]))
        own, other = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
        dual[own, pair] = sign * machine.dual_coef_[j - 1, own]
        dual[other, pair] = sign * machine.dual_coef_[i, other]
        intercept[pair] = sign * machine.intercept_[number]
    return dual.astype(np.float32), intercept.astype(np.float32)
