"""The words and tables of a report, section by section, as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.report import figures, html
from cnn_jax.report.curves import Row
from cnn_jax.report.filters import Filters
from cnn_jax.tasks import measures

Mistake = tuple[np.ndarray, tuple[str, str]]  # an image, uint8 (H, W, C), and the lines under it


@dataclass(frozen=True)
class Predictions:
    """What a model said about the N images of a split.

    Raises:
        UserError: `labels` (N,), `probabilities` (N, K) and the K `classes` do not belong together, N is 0, or a
            probability is not finite.
    """

    split: str
    classes: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self):
        given = f"given probabilities {self.probabilities.shape} of the {self.split} split"
        expected = (len(self.labels), len(self.classes))
        if self.probabilities.shape != expected or not len(self.labels):
            raise UserError(f"{given}; expected (labels, classes), here {expected}, at least one; give these")
        if not np.isfinite(self.probabilities).all():
            raise UserError(f"{given} that are not finite; expected those of a trained model; train with a lower rate")

    @cached_property
    def confusion(self) -> np.ndarray:
        """See `measures.confusion_matrix`."""
        return measures.confusion_matrix(self.labels, self.probabilities.argmax(axis=1), len(self.classes))

    @cached_property
    def calibration(self) -> measures.Calibration:
        """See `measures.calibration`."""
        return measures.calibration(self.probabilities, self.labels)


def headlines(summary: Mapping[str, Any], rows: Sequence[Row], predictions: Predictions, select: str) -> str:
    """The figures that are read first."""
    count, correct = len(predictions.labels), int(np.trace(predictions.confusion))
    low, high = measures.wilson_interval(correct, count)
    interval = f"{low:.2%} to {high:.2%} with 95% confidence, {count:,} images"
    split, best = predictions.split, summary["best_step"]
    epoch = next((f"{row['epoch']:.4g}" for row in rows if row["step"] == best), "–")
    return html.tiles(
        [
            (f"{correct / count:.2%}", f"{split} accuracy", interval),
            (f"{summary[f'{split}_loss']:.4f}", f"{split} loss", ""),
            (f"{summary['validation_accuracy']:.2%}", "validation accuracy", "of the same weights"),
            (epoch, f"{select} epoch, of these weights", f"step {best:,} of {summary['steps']:,}"),
            (_duration(summary["seconds"]), "training time", f"{summary['epochs']:.4g} epochs"),
            (f"{summary['parameters']:,}", "parameters", ""),
            (_flops(summary["flops_per_image"]), "an image, forward", "2 FLOP a multiply-add"),
            (f"{predictions.calibration.error:.2%}", "calibration error", "mean distance of confidence from accuracy"),
        ]
    )


def curves(pictures: Mapping[str, str]) -> str:
    """Loss, accuracy and learning rate."""
    said = (
        "Train values are those of the steps, with whatever augmentation, dropout and label smoothing the run has; "
        "validation has none of these."
    )
    shown = [pictures[name] for name in ("loss", "accuracy", "learning_rate") if name in pictures]
    return html.section("Training", said, html.columns(*shown))


def confusion(predictions: Predictions, matrix: str | None) -> str:
    """The matrix, if it can be read, and the most frequent mistakes."""
    names, totals = predictions.classes, predictions.confusion.sum(axis=1)
    found = measures.frequent_confusions(predictions.confusion, 10 if matrix else 30)
    lines = [(f"{names[i]} → {names[j]}", f"{n:,}", f"{n / totals[i]:.1%}") for i, j, n in found]
    table = html.table(("true → predicted", "images", "of the class"), lines)
    return html.section("Confusion", "Which classes are taken for which others.", html.columns(matrix or "", table))


def classes(predictions: Predictions) -> str:
    """Precision, recall and F1 of each class."""
    found = measures.per_class(predictions.confusion)
    columns = (found.precision, found.recall, found.f1)
    means = [_percent(float(np.mean(c[np.isfinite(c)]))) if np.isfinite(c).any() else "–" for c in columns]
    lines = [("mean of the classes", f"{found.count.sum():,}", *means)]
    for k, name in enumerate(predictions.classes):
        lines.append((name, f"{found.count[k]:,}", *(_percent(float(c[k])) for c in columns)))
    said = "Precision: how many of the images put into a class belong there. Recall: how many that belong are found."
    return html.section("Classes", said, html.table(("class", "images", "precision", "recall", "F1"), lines))


def calibration(picture: str) -> str:
    """The reliability diagram."""
    said = (
        "Whether the model is right as often as it says: bars that end below the dashed line are over-confident, above "
        "it too modest. Below, how many images have each confidence."
    )
    return html.section("Calibration", said, picture)


def mistakes(found: Sequence[Mistake], split: str) -> str:
    """The images that were most confidently put into a wrong class."""
    said = f"Images of the {split} split with the most confidence in a wrong class; with each class its probability."
    cells = [((figures.image_png(image), "misclassified image"), lines) for image, lines in found]
    return html.section("Worst mistakes", said, html.gallery(cells))


def caption(predictions: Predictions, index: int) -> tuple[str, str]:
    """Two lines: the predicted class and the true one, each with its probability."""
    said = predictions.probabilities[index]
    predicted, true = int(said.argmax()), int(predictions.labels[index])
    names = predictions.classes
    return f"says {names[predicted]} ({said[predicted]:.1%})", f"is {names[true]} ({said[true]:.1%})"


def filters(found: Filters | None, picture: str | None) -> str:
    """The first layer's weights."""
    if found is None or picture is None:
        return ""
    count, height, width, channels = found.weights.shape
    look = "in colour, each stretched to its own range" if channels == 3 else "blue is negative, red positive"
    some = f", the first {figures.MOST_FILTERS} shown" if count > figures.MOST_FILTERS else ""
    said = f"Weights of {found.layer} ({found.kind}): {count} filters of {height}x{width}x{channels}{some}; {look}."
    return html.section("First layer", said, picture)


def record(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """The whole config, and what the run was made on."""
    said = "All there is to know to make the run again; --config config.json repeats it."
    return html.section("Config and environment", said, html.columns(html.facts(config), html.facts(environment)))


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.1%}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _flops(flops: float) -> str:
    for unit, size in (("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.0f} FLOP"
