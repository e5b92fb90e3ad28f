"""What makes a module a classical classifier: its variables are solved for, not trained step by step."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import UserError

BATCH = 500  # images whose features are computed at a time
Say = Callable[[str], None]


class Examples(NamedTuple):
    """Labelled images: `images` uint8 NxHxWxC, `labels` int32 N."""

    images: np.ndarray
    labels: np.ndarray


class Solution(NamedTuple):
    """What `Solved.solve` found.

    Attributes:
        model: the module, with what was chosen and counted set in its fields; `variables` fit it.
        variables: NumPy arrays.
        facts: for summary and report, such as {"support vectors": 1234}.
    """

    model: "Solved"
    variables: dict[str, Any]
    facts: dict[str, Any]


class Solved(nn.Module):
    """Base of the classical classifiers: __call__(x_BxHxWxC, *, train) returns scores (B, K), float32.

    Their input is images in [0, 1]; what features need beyond that, they do themselves.

    Attributes:
        num_classes: K.
        refit: whether to solve once more, on training and validation images together, after the choices that the
            validation images are for. The validation figures are from before.
    """

    num_classes: int = 10
    refit: bool = False

    # Fields that `solve` sets.
    solved_fields: ClassVar[tuple[str, ...]] = ()

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int], rows: int) -> None:
        """Checks that the fields suit the images.

        Raises:
            UserError: names the field.
        """

    @nn.nowrap
    def solve(self, train: Examples, validation: Examples, *, seed: int, say: Say) -> Solution:
        """Solves for the variables.

        Args:
            train: examples to learn from.
            validation: examples to choose settings by, of those that are left open.
            seed: of a solver's random draws.
            say: prints a line of progress.

        Raises:
            UserError: the data do not suit the method, or its library is not installed.
        """
        raise NotImplementedError


def is_solved(model: Any) -> bool:
    """Whether a module, its class or a function that makes it is a classical classifier.

    >>> is_solved(partial(Solved, num_classes=3)), is_solved(nn.Dense)
    (True, False)
    """
    made = model.func if isinstance(model, partial) else model
    return issubclass(made if isinstance(made, type) else type(made), Solved)


def chosen(before: Solved, after: Solved) -> dict[str, Any]:
    """Returns the fields in which two modules of one class differ, as those of `after`."""
    pairs = {of.name: (getattr(before, of.name), getattr(after, of.name)) for of in dataclasses.fields(before)}
    return {name: new for name, (old, new) in pairs.items() if name not in ("parent", "name") and old != new}


def pixels(x_BxHxWxC: jax.Array) -> jax.Array:
    """Images in [0, 1] as whole numbers from 0 to 255, float32: exactly those that the uint8 images had."""
    return jnp.round(255.0 * x_BxHxWxC.astype(jnp.float32))


def in_batches(function: Callable[[jax.Array], jax.Array], images: np.ndarray) -> np.ndarray:
    """Applies a function of images in [0, 1] to uint8 images (N, H, W, C), `BATCH` at a time, with one compilation."""
    run = jax.jit(lambda batch: function(batch.astype(jnp.float32) / 255.0))
    size = min(BATCH, len(images))
    found = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        fill = ((0, size - len(batch)), (0, 0), (0, 0), (0, 0))
        found.append(np.asarray(run(np.pad(batch, fill)))[: len(batch)])
    return np.concatenate(found)


def import_sklearn() -> Any:
    """Returns `sklearn.svm`.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn import svm
    except ImportError as error:
        raise UserError("support vector machines need scikit-learn: pip install 'cnn_jax[classical]'") from error
    return svm


def check_classes(labels: np.ndarray) -> None:
    """Rejects training images of a single class.

    Raises:
        UserError: there is only one.
    """
    if len(np.unique(labels)) < 2:
        raise UserError("all training images are of one class: choose a larger `train_split`")
