"""The figures of a classification report."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cnn_jax.report.figures import BLUE, INK, ORANGE, QUIET, new_axes, shorten
from cnn_jax.tasks.measures import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 20  # bins with fewer images are drawn faintly


def confusion(confusion_KxK: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Draws the confusion matrix, coloured by the share of the row, with the counts if there are at most 20 classes."""
    count = len(classes)
    size = min(2.6 + 0.36 * count, 9.0)
    figure, axes = new_axes(size + 0.6, size)
    share = confusion_KxK / np.maximum(confusion_KxK.sum(axis=1, keepdims=True), 1)
    # The square root keeps a confusion of 1 % visible beside a diagonal of 99 %.
    image = axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    names = [shorten(name) for name in classes]
    upright = max(map(len, names)) <= 3
    axes.set_xticks(range(count), names, rotation=0 if upright else 60, ha="center" if upright else "right")
    if not upright:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=8 if count <= 20 else 7)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.03, 1.0)))
    bar.set_ticks([math.sqrt(s) for s in (0, 0.01, 0.1, 0.25, 0.5, 1)], labels=["0", "1", "10", "25", "50", "100"])
    bar.set_label("share of the true class (%)")
    bar.outline.set_visible(False)
    if count <= 20:
        for (i, j), n in np.ndenumerate(confusion_KxK):
            colour = "white" if share[i, j] > 0.35 else INK if n else "#cbd5e0"
            axes.text(j, i, str(n), ha="center", va="center", fontsize=7.5, color=colour)
    return figure


def reliability(calibration: Calibration) -> "Figure":
    """Draws a reliability diagram: accuracy against confidence, above the histogram of the confidences."""
    figure, (upper, lower) = new_axes(5.0, 5.0, nrows=2, sharex=True, height_ratios=[3, 1])
    bins = len(calibration.count)
    left, width = np.arange(bins) / bins * 100, 100 / bins
    many, few = calibration.count >= FEW, (calibration.count > 0) & (calibration.count < FEW)
    accuracy, bar = calibration.accuracy * 100, {"width": width * 0.94, "align": "edge", "color": BLUE}
    upper.bar(left[many], accuracy[many], **bar, label="accuracy")
    if few.any():
        upper.bar(left[few], accuracy[few], **bar, alpha=0.3, label=f"of fewer than {FEW} images")
    upper.plot(calibration.confidence * 100, accuracy, "o", color=ORANGE, markersize=4, label="mean confidence")
    upper.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1, label="perfect calibration")
    upper.set_ylim(0, 104)
    upper.set_ylabel("accuracy (%)")
    upper.set_title(f"expected calibration error {calibration.error:.2%}", loc="left")
    lower.bar(left, calibration.count / calibration.count.sum() * 100, width * 0.94, align="edge", color=QUIET)
    lower.set_ylabel("images (%)")
    lower.set_xlabel("confidence: probability of the predicted class (%)")
    lower.set_xlim(0, 100)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
