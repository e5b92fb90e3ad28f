"""Plots loss, accuracy and learning rate over the epochs of a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_jax.report.figures import BLUE, INK, ORANGE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]  # of metrics.jsonl
SMOOTHING_WINDOWS = 25  # a smoothed point is the mean of 1/25 of the rows


def side_by_side(rows: Sequence[Row], metrics: Mapping[str, str], best_step: int | None) -> "Figure":
    """Draws all metrics (name → label) in one figure."""
    figure, grid = new_axes(4.5 * len(metrics), 3.1, ncols=len(metrics), squeeze=False)
    for axes, (quantity, label) in zip(grid[0], metrics.items(), strict=True):
        _draw(axes, rows, quantity, label, best_step)
    return figure


def curve(rows: Sequence[Row], quantity: str, label: str, best_step: int | None) -> "Figure":
    """Draws a metric (accuracies in %) over the epochs: every train row, their smoothed line, validation points."""
    figure, axes = new_axes(4.5, 3.1)
    _draw(axes, rows, quantity, label, best_step)
    return figure


def _draw(axes: "Axes", rows: Sequence[Row], quantity: str, label: str, best_step: int | None) -> None:
    scale = 100.0 if quantity.endswith("accuracy") else 1.0
    if scale > 1:
        label += " (%)"
    epochs, train = _series(rows, "train", quantity)
    at, validation = _series(rows, "validation", quantity)
    train, validation = train * scale, validation * scale
    axes.plot(epochs, train, color=BLUE, alpha=0.25, linewidth=0.9)
    axes.plot(epochs, _smooth(train), color=BLUE, label="train (smoothed)")
    marker = {"marker": "o", "markersize": 3.5 if len(at) <= 60 else 0}
    axes.plot(at, validation, color=ORANGE, label="validation", **marker)
    for row in rows:
        if row["kind"] == "validation" and row["step"] == best_step:
            star = {"marker": "*", "markersize": 13, "markeredgecolor": INK, "linestyle": "none"}
            axes.plot(row["epoch"], row[quantity] * scale, color=ORANGE, label="best", **star)
    finite = np.concatenate([_smooth(train), validation])
    finite = finite[np.isfinite(finite)]
    if quantity == "loss" and finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
        _log(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.legend(loc="best")


def learning_rate(rows: Sequence[Row]) -> "Figure":
    """Draws the learning rate over the epochs."""
    epochs, rates = _series(rows, "train", "learning_rate")
    figure, axes = new_axes(4.5, 3.1)
    axes.plot(epochs, rates, color=BLUE)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def _series(rows: Sequence[Row], kind: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = [row for row in rows if row["kind"] == kind and quantity in row]
    return np.array([row["epoch"] for row in chosen]), np.array([row[quantity] for row in chosen], np.float64)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window centred at each row, so that the line does not lag behind; NaN is left out."""
    reach = min(len(values) // SMOOTHING_WINDOWS, len(values) - 1) // 2
    window, finite = np.ones(2 * reach + 1), np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, "full")[reach : reach + len(values)]
    counts = np.convolve(finite.astype(np.float64), window, "full")[reach : reach + len(values)]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)


def _log(axes: "Axes") -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.grid(True, which="minor", alpha=0.4)
