"""Classification: one label per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError, unknown
from cnn_jax.models.ensembles import average
from cnn_jax.report.metric import Metric
from cnn_jax.tasks.classification_report import classification_findings
from cnn_jax.tasks.losses import LOSSES, example_weights, inverse_frequency, smooth
from cnn_jax.tasks.measures import top_k_accuracy, wilson_interval
from cnn_jax.tasks.task import Batch, Findings, Selection, Sums, sums

TOP = 5  # top-5 accuracy, as in ILSVRC; reported where there are at least 2 * TOP classes


@dataclass(frozen=True)
class Classification:
    """Trains a classifier, whose outputs are logits (B, K).

    Attributes:
        classes: K names, in the order of the logits.
        loss_name: a key of `LOSSES`.
        label_smoothing: share of the training target spread evenly over the classes, in [0, 1).
        class_weights: K weights of the training loss, see `losses.example_weights`; none: 1 for every class.
    """

    classes: tuple[str, ...]
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    name = "classification"
    selection = Selection("accuracy", higher_is_better=True)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The loss and the accuracy."""
        label = "cross-entropy (nats)" if self.loss_name == "cross_entropy" else f"{self.loss_name} loss"
        return {"loss": Metric(label), "accuracy": Metric("accuracy", percent=True)}

    @property
    def outputs(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    def balanced(self, counts_K: np.ndarray) -> "Classification":
        """Returns the task with weights that make up for the numbers of training images, see `inverse_frequency`."""
        return replace(self, class_weights=tuple(inverse_frequency(counts_K).tolist()))

    def prepare(self, batch: Batch) -> dict[str, jax.Array]:
        """Adds "target", the one-hot labels, which mixup and cutmix mix."""
        return {**batch, "target": jax.nn.one_hot(batch["label"], len(self.classes), dtype=jnp.float32)}

    def inputs(self, batch: Batch) -> jax.Array:
        """Picks the images, (B, H, W, C)."""
        return batch["image"]

    def check(self, outputs: Any, batch: Batch) -> None:
        """Rejects outputs that are not logits (B, K)."""
        wanted = (batch["image"].shape[0], len(self.classes))
        given = getattr(outputs, "shape", None)
        if given != wanted:
            found = type(outputs).__name__ if given is None else f"an array of shape {given}"
            raise UserError(
                f"the model returns {found} for {wanted[0]} images: classification needs logits of shape "
                f"{wanted}, (batch, classes)"
            )
        if not jnp.issubdtype(outputs.dtype, jnp.floating):
            raise UserError(f"the model returns {outputs.dtype}: classification needs floating-point logits")

    def loss(
        self, outputs: Any, batch: Batch, *, train: bool, auxiliary: Mapping[str, Any] = {}
    ) -> tuple[jax.Array, Sums]:
        """Returns the training loss, with smoothing, weights and auxiliary heads, and the sums of the loss without
        those heads and of hits."""
        target_BxK = batch["target"]
        goal_BxK = smooth(target_BxK, self.label_smoothing) if train else target_BxK

        def loss(logits_BxK: jax.Array) -> jax.Array:
            loss_B = LOSSES[self.loss_name](logits_BxK, goal_BxK)
            return loss_B * example_weights(target_BxK, self.class_weights) if train and self.class_weights else loss_B

        loss_B = loss(outputs)
        hits_B = jnp.argmax(outputs, -1) == jnp.argmax(target_BxK, -1)
        beside = sum(head["weight"] * loss(head["logits"]).mean() for head in auxiliary.values())
        return loss_B.mean() + beside, {"loss": sums(loss_B, batch), "accuracy": sums(hits_B, batch)}

    def collect(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns logits and labels."""
        return {"logits": outputs, "label": batch["label"]}

    def combine(self, outputs: Any) -> jax.Array:
        """Log of the mean of the members' probabilities."""
        return average(outputs)

    def measures(self, collected: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Computes "count", "accuracy" with "accuracy_low" and "accuracy_high" (Wilson's interval, 95 %), "loss"
        (without label smoothing) and, with ten classes or more, "top5_accuracy"."""
        logits_NxK, labels_N = collected["logits"], collected["label"]
        count, classes = logits_NxK.shape
        correct = int((logits_NxK.argmax(axis=1) == labels_N).sum())
        low, high = wilson_interval(correct, count)
        loss_N = LOSSES[self.loss_name](jnp.asarray(logits_NxK), jax.nn.one_hot(labels_N, classes))
        figures: dict[str, Any] = {
            "count": count,
            "accuracy": correct / count,
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": float(np.mean(np.asarray(loss_N), dtype=np.float64)),
        }
        if classes >= 2 * TOP:
            figures[f"top{TOP}_accuracy"] = top_k_accuracy(logits_NxK, labels_N, TOP)
        return figures

    def findings(self, collected: Mapping[str, np.ndarray], images: Sequence[np.ndarray], split: str) -> Findings:
        """Draws confusions, scores per class, calibration and the worst mistakes."""
        return classification_findings(
            split=split,
            classes=self.classes,
            labels=collected["label"],
            probabilities=self.predict(collected["logits"]),
            images=images,
        )

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        """Probabilities (N, K): the softmax of the logits."""
        shifted = np.exp(outputs - outputs.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)

    def rows(self, prediction: np.ndarray, image: np.ndarray, top: int) -> list[dict[str, Any]]:
        """The `top` most probable classes, best first; ties in the order of the classes."""
        order = (-prediction).argsort(kind="stable")[:top]
        return [{"class": self.classes[int(k)], "probability": float(prediction[k])} for k in order]


def make(config: OptimConfig, class_names: Sequence[str]) -> Classification:
    """Makes the task of a config.

    Raises:
        UserError: an unknown loss, or a single class.
    """
    if len(class_names) == 1:
        raise UserError(
            f"the only class of the data is {class_names[0]!r}, but classification needs two: add a class, or choose "
            "another `dataset` or `task`"
        )
    loss = config.loss or "cross_entropy"
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    return Classification(tuple(class_names), loss, config.label_smoothing)
