"""The classification part of a run's report: confusions, scores per class, calibration and mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cnn_jax.errors import UserError, counted
from cnn_jax.report import figures, fonts, html
from cnn_jax.tasks import classification_figures, measures
from cnn_jax.tasks.task import Findings

MISTAKES = 24
MATRIX_CLASSES = 30  # a confusion matrix of more classes is illegible

Mistake = tuple[np.ndarray, tuple[str, str]]  # an image, uint8 (H, W, C), and the lines under it


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for the N images of a split.

    Raises:
        UserError: the shapes of `labels` (N,), `probabilities` (N, K) and the K `classes` do not match, N is 0, or a
            probability is not finite.
    """

    split: str
    classes: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self):
        given, expected = self.probabilities.shape, (len(self.labels), len(self.classes))
        if given != expected or not len(self.labels):
            raise UserError(
                f"probabilities of the {self.split} split have shape {given}: it must be (labels, classes), here "
                f"{expected}, with at least one label"
            )
        if not np.isfinite(self.probabilities).all():
            raise UserError(f"probabilities of the {self.split} split are not finite: train with a lower rate")

    @cached_property
    def confusion(self) -> np.ndarray:
        """See `measures.confusion_matrix`."""
        return measures.confusion_matrix(self.labels, self.probabilities.argmax(axis=1), len(self.classes))

    @cached_property
    def calibration(self) -> measures.Calibration:
        """See `measures.calibration`."""
        return measures.calibration(self.probabilities, self.labels)


def classification_findings(
    *,
    split: str,
    classes: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    images: Sequence[np.ndarray] | np.ndarray,
) -> Findings:
    """Draws the classification part of a report.

    Args:
        split: the split of the predictions: "train", "validation" or "test".
        classes: K names.
        labels: int (N,), in [0, K).
        probabilities: (N, K); rows sum to 1.
        images: `images[i]` is uint8 (H, W, C); only those of the worst mistakes are read.

    Raises:
        UserError: the shapes of the arrays do not match, or a probability is not finite.
    """
    predictions = Predictions(split, classes, np.asarray(labels), np.asarray(probabilities))
    if len(images) != len(predictions.labels):
        raise UserError(f"{len(images)} images but {len(predictions.labels)} labels: pass both of one split")
    worst = measures.worst_mistakes(predictions.probabilities, predictions.labels, MISTAKES)
    found = [(np.asarray(images[int(i)]), caption(predictions, int(i))) for i in worst]
    drawable = fonts.drawable(classes)
    with figures.style(drawable):
        drawn = {"calibration": classification_figures.reliability(predictions.calibration)}
        if len(classes) <= MATRIX_CLASSES:
            drawn["confusion"] = classification_figures.confusion(predictions.confusion, drawable)
        if found:
            captions = [caption(replace(predictions, classes=drawable), int(i)) for i in worst]
            drawn["mistakes"] = figures.gallery([(image, lines) for (image, _), lines in zip(found, captions)])
        pngs = {name: figures.png(figure) for name, figure in drawn.items()}
    numbered = drawable != tuple(classes)
    pictures = {name: html.figure((data, name), figures.DPI / 100) for name, data in pngs.items()}
    return Findings(
        tiles(predictions),
        [
            confusion(predictions, pictures.get("confusion"), numbered),
            per_class(predictions, numbered),
            calibration(pictures["calibration"]),
            mistakes(found, split),
        ],
        pngs,
    )


def tiles(predictions: Predictions) -> list[tuple[str, str, str]]:
    """The headline figures: accuracy and calibration error."""
    count, correct = len(predictions.labels), int(np.trace(predictions.confusion))
    low, high = measures.wilson_interval(correct, count)
    interval = f"{low:.2%} to {high:.2%} with 95% confidence, {counted(count, 'image')}"
    error = f"{predictions.calibration.error:.2%}"
    return [
        (f"{correct / count:.2%}", f"{predictions.split} accuracy", interval),
        (error, "calibration error", "mean gap between confidence and accuracy"),
    ]


def confusion(predictions: Predictions, matrix: str | None, numbered: bool = False) -> str:
    """The most frequent confusions, and the matrix unless it has too many classes."""
    names, totals = predictions.classes, predictions.confusion.sum(axis=1)
    found = measures.frequent_confusions(predictions.confusion, 10 if matrix else 30)
    lines = [(f"{names[i]} → {names[j]}", f"{n:,}", f"{n / totals[i]:.1%}") for i, j, n in found]
    table = html.table(("true → predicted", "images", "of the class"), lines)
    said = "Which classes are mistaken for which others."
    if numbered:
        said += " No installed font has all letters of their names: figures show their numbers, listed below."
    return html.section("Confusion", said, html.columns(matrix or "", table))


def per_class(predictions: Predictions, numbered: bool = False) -> str:
    """Precision, recall and F1 of each class, with the classes' numbers if figures show these."""
    found = measures.per_class(predictions.confusion)
    columns = (found.precision, found.recall, found.f1)
    means = [_percent(float(np.mean(c[np.isfinite(c)]))) if np.isfinite(c).any() else "–" for c in columns]
    lines = [("mean of the classes", f"{found.count.sum():,}", *means)]
    for k, name in enumerate(predictions.classes):
        lines.append(
            (f"{k}: {name}" if numbered else name, f"{found.count[k]:,}", *(_percent(float(c[k])) for c in columns))
        )
    said = "Precision: share of the images assigned to a class that belong there. Recall: share of its images found."
    return html.section("Classes", said, html.table(("class", "images", "precision", "recall", "F1"), lines))


def calibration(picture: str) -> str:
    """The reliability diagram."""
    said = (
        "Whether the model is right as often as its confidence claims: bars that end below the dashed line mean "
        "over-confidence, above it under-confidence. Below: how many images have each confidence."
    )
    return html.section("Calibration", said, picture)


def mistakes(found: Sequence[Mistake], split: str) -> str:
    """The most confidently misclassified images."""
    said = f"The most confidently misclassified images of the {split} split, with the probability of each class."
    cells = [((figures.image_png(image), "misclassified image"), lines) for image, lines in found]
    return html.section("Worst mistakes", said, html.gallery(cells))


def caption(predictions: Predictions, index: int) -> tuple[str, str]:
    """Two lines: the predicted class and the true one, each with its probability."""
    said = predictions.probabilities[index]
    predicted, true = int(said.argmax()), int(predictions.labels[index])
    names = predictions.classes
    return f"says {names[predicted]} ({said[predicted]:.1%})", f"is {names[true]} ({said[true]:.1%})"


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.1%}"
