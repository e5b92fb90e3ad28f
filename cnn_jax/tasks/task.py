"""The seam between the engine and what a network is trained for.

The step, the loop, checkpoints, the record, the progress bar, the report and the commands know `Task` and nothing of
its kind. A task is a frozen dataclass: it is compared and hashed, and compiled programs are found again by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Batch = Mapping[str, jax.Array]  # arrays with one leading axis, the batch; "mask" is False on rows that are padding
Sums = dict[str, jax.Array]  # metric → float32 (sum, count): means stay exact however the examples are spread
Outputs = Any  # what the model returns


class Selection(NamedTuple):
    """The validation metric that chooses the best weights, and stops a run early."""

    metric: str
    higher_is_better: bool


@dataclass(frozen=True)
class Findings:
    """What a task has to say in the report of a run.

    Attributes:
        tiles: the headline figures, each (value, name, remark).
        sections: HTML.
        pictures: PNG files by name, for the run's `plots/`.
    """

    tiles: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[str] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)


class Task(Protocol):
    """What a network is trained for.

    Attributes:
        name: under which `config.json` records it.
        metrics: the means that `loss` reports, "loss" first: name → label of its axis in plots.
        selection: the metric that chooses the best weights.
        outputs: number of classes that the model is built for; None where a model has no such number.
    """

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> Mapping[str, str]: ...

    @property
    def selection(self) -> Selection: ...

    @property
    def outputs(self) -> int | None: ...

    def prepare(self, batch: Batch) -> dict[str, jax.Array]:
        """Adds to a batch of the source what augmentation and loss need, such as one-hot targets."""
        ...

    def inputs(self, batch: Batch) -> jax.Array:
        """Picks what the model sees out of a normalized batch."""
        ...

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Refuses a model whose outputs have the wrong structure. Both are `jax.ShapeDtypeStruct`s.

        Raises:
            UserError: what the model returns, and what this task needs.
        """
        ...

    def loss(
        self, outputs: Outputs, batch: Batch, *, train: bool, auxiliary: Mapping[str, Any] = {}
    ) -> tuple[jax.Array, Sums]:
        """Computes the scalar that is minimised, and the sums of `metrics` over the batch.

        Args:
            outputs: of the model, first axis the batch.
            batch: prepared, augmented (in training) and normalized.
            train: whether the loss is differentiated: label smoothing and side heads count only then.
            auxiliary: side heads by name, see `cnn_jax.layers.auxiliary`.
        """
        ...

    def collect(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """What evaluation keeps of each example, first axis the batch."""
        ...

    def combine(self, outputs: Any) -> Outputs:
        """Joins the outputs of M networks, first axis M, to those of their committee."""
        ...

    def measures(self, collected: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Computes the figures of a split from what `collect` kept of all its N examples, with "count" and "loss"."""
        ...

    def findings(self, collected: Mapping[str, np.ndarray], images: Sequence[np.ndarray], split: str) -> Findings:
        """Draws the task's part of the report; `images[i]` is example i of the split, uint8 HxWxC."""
        ...

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        """Turns raw outputs (N, …) into what a user wants to see, such as probabilities."""
        ...

    def rows(self, prediction: np.ndarray, image: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Describes the prediction of one example, best guess first, as rows of a table; `image` is normalized."""
        ...


def sums(values_B: jax.Array, batch: Batch) -> jax.Array:
    """Sums a per-example metric over the rows that count, for `Task.loss`: float32 (sum, count).

    >>> sums(jnp.array([1.0, 2.0, 9.0]), {"mask": jnp.array([True, True, False])})
    Array([3., 2.], dtype=float32)
    """
    if "mask" in batch:
        mask_B = batch["mask"].astype(jnp.float32)
        return jnp.stack([jnp.sum(values_B.astype(jnp.float32) * mask_B), mask_B.sum()])
    return jnp.stack([values_B.sum().astype(jnp.float32), jnp.asarray(values_B.shape[0], jnp.float32)])
