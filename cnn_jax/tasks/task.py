"""The interface between the engine and what a network is trained for.

The step, the loop, checkpoints, the record, the progress bar, the report and the commands depend only on `Task`. A task
is a frozen dataclass, because it is compared and hashed to find compiled programs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.data.sources import Source, example_spec
from cnn_jax.errors import UserError
from cnn_jax.report.metric import Metric

Batch = Mapping[str, jax.Array]  # arrays with one leading axis, the batch; "mask" is False on rows that are padding
Sums = dict[str, jax.Array]  # metric → float32 (sum, count): means stay exact however examples are split into batches
Outputs = Any  # what the model returns


class Selection(NamedTuple):
    """The validation metric for choosing the best weights and for early stopping."""

    metric: str
    higher_is_better: bool

    def key(self, metrics: Mapping[str, float]) -> tuple[bool, float, float]:
        """Sorts metrics from worst to best: by the selection metric, and where that ties, by the loss.

        Metrics with a loss that is not finite come first: the network has diverged, whatever its accuracy.

        >>> found = [{"accuracy": 0.9, "loss": loss} for loss in (0.3, 0.2)] + [{"accuracy": 1.0, "loss": math.nan}]
        >>> max(found, key=Selection("accuracy", higher_is_better=True).key)
        {'accuracy': 0.9, 'loss': 0.2}
        """
        value, loss = metrics[self.metric], metrics.get("loss", 0.0)
        if not math.isfinite(loss) or math.isnan(value):
            return False, -math.inf, -math.inf
        return True, value if self.higher_is_better else -value, -loss

    def best(self, found: Sequence[Mapping[str, float]]) -> int:
        """Returns the index of the best metrics; of equal ones, the first."""
        return max(range(len(found)), key=lambda i: self.key(found[i]))


@dataclass(frozen=True)
class Findings:
    """A task's part of the report of a run.

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
        name: its name in `config.json`.
        metrics: the means that `loss` reports, "loss" first: name → how it is shown.
        selection: the metric that chooses the best weights.
        outputs: number of classes to build the model for; None for models without classes.
    """

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    @property
    def selection(self) -> Selection: ...

    @property
    def outputs(self) -> int | None: ...

    def prepare(self, batch: Batch) -> dict[str, jax.Array]:
        """Adds what augmentation and loss need, such as one-hot targets, to a batch of the source."""
        ...

    def inputs(self, batch: Batch) -> jax.Array:
        """Picks the model's input out of a normalized batch."""
        ...

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Rejects a model whose outputs have the wrong structure. Both arguments hold `jax.ShapeDtypeStruct`s.

        Raises:
            UserError: says what the model returns and what this task needs.
        """
        ...

    def loss(
        self, outputs: Outputs, batch: Batch, *, train: bool, auxiliary: Mapping[str, Any] = {}
    ) -> tuple[jax.Array, Sums]:
        """Computes the scalar to minimise, and the sums of `metrics` over the batch.

        Args:
            outputs: the model's outputs; the first axis is the batch.
            batch: the batch, prepared, augmented (in training) and normalized.
            train: whether the loss is for training: label smoothing and auxiliary heads count only then.
            auxiliary: auxiliary heads by name, see `cnn_jax.layers.auxiliary`.
        """
        ...

    def collect(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Returns what evaluation keeps of each example; the first axis is the batch."""
        ...

    def combine(self, outputs: Any) -> Outputs:
        """Combines the outputs of M networks, first axis M, into those of their committee."""
        ...

    def measures(self, collected: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Computes the figures of a split from what `collect` kept of all its N examples, with "count" and "loss"."""
        ...

    def findings(self, collected: Mapping[str, np.ndarray], images: Sequence[np.ndarray], split: str) -> Findings:
        """Draws the task's part of the report; `images[i]` is example i of the split, uint8 HxWxC."""
        ...

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        """Turns raw outputs (N, …) into predictions for the user, such as probabilities."""
        ...

    def rows(self, prediction: np.ndarray, image: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Describes the prediction of one example, best guess first, as rows of a table; `image` is normalized."""
        ...


def check_labelled(task: Task, source: Source) -> None:
    """Checks that a data set has labels if the task's model has classes.

    Raises:
        UserError: it has none.
    """
    if task.outputs is not None and "label" not in example_spec(source):
        raise UserError(
            f"{source.name}: these are images without labels, which {task.name} needs: pass (images, labels), or set "
            "`task` to one without, such as reconstruction"
        )


def sums(values_B: jax.Array, batch: Batch) -> jax.Array:
    """Sums a per-example metric over the unmasked rows, for `Task.loss`: float32 (sum, count).

    >>> sums(jnp.array([1.0, 2.0, 9.0]), {"mask": jnp.array([True, True, False])})
    Array([3., 2.], dtype=float32)
    """
    if "mask" in batch:
        mask_B = batch["mask"].astype(jnp.float32)
        return jnp.stack([jnp.sum(values_B.astype(jnp.float32) * mask_B), mask_B.sum()])
    return jnp.stack([values_B.sum().astype(jnp.float32), jnp.asarray(values_B.shape[0], jnp.float32)])
