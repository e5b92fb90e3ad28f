"""Plots loss, accuracy and learning rate over the epochs of a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cnn_jax.report.figures import BLUE, INK, ORANGE, new_axes
from cnn_jax.report.metric import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]  # of metrics.jsonl
LONG = 32  # letters of a name in a legend
SMOOTHING_WINDOWS = 25  # a smoothed point is the mean of 1/25 of the rows


class Series(NamedTuple):
    """A metric over the rows of one kind, arrays (N,).

    Attributes:
        epochs: where each row ends.
        values: the metric; NaN if it is not finite.
        steps: number of steps since the row before, over which a train row averages.
    """

    epochs: np.ndarray
    values: np.ndarray
    steps: np.ndarray


def side_by_side(
    rows: Sequence[Row], metrics: Mapping[str, Metric], best_step: int | None, member: int | None = None
) -> "Figure":
    """Draws all metrics in one figure; see `curve`."""
    figure, grid = new_axes(4.5 * len(metrics), 3.1, ncols=len(metrics), squeeze=False)
    for axes, (name, metric) in zip(grid[0], metrics.items(), strict=True):
        _draw(axes, rows, name, metric, best_step, member)
    return figure


def curve(rows: Sequence[Row], name: str, metric: Metric, best_step: int | None, member: int | None = None) -> "Figure":
    """Draws a metric over the epochs: every train row, their smoothed line, validation points.

    Of several networks with learning rates of their own, it draws one line each, that of validation.

    Args:
        rows: of metrics.jsonl.
        name: the metric.
        metric: how it is shown.
        best_step: the step of the selected weights, which gets a star.
        member: which of several networks was selected.
    """
    figure, axes = new_axes(4.5, 3.1)
    _draw(axes, rows, name, metric, best_step, member)
    return figure


def _draw(
    axes: "Axes", rows: Sequence[Row], name: str, metric: Metric, best_step: int | None, member: int | None
) -> None:
    names = {row["member"]: _name(row) for row in rows if "member" in row}
    if names:
        shown = _draw_members(axes, rows, name, metric, names)
    else:
        shown = _draw_one(axes, rows, name, metric)
    colour = ORANGE if member is None else scale_colour(member, len(names))
    for row in rows:
        if row["kind"] == "validation" and row["step"] == best_step and row.get("member") == member:
            star = {"marker": "*", "markersize": 13, "markeredgecolor": INK, "linestyle": "none"}
            axes.plot(row["epoch"], row[name] * metric.scale, color=colour, label="best", **star)
    finite = np.concatenate(shown)
    finite = finite[np.isfinite(finite)]
    if name == "loss" and finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
        log_axis(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric.axis)
    if max(map(len, names.values()), default=0) <= LONG:
        axes.legend(loc="best")
    else:  # it would cover the curves
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=7)


def _draw_one(axes: "Axes", rows: Sequence[Row], name: str, metric: Metric) -> list[np.ndarray]:
    """Draws the curves of one network; returns their values."""
    train, validation = _evened(_series(rows, "train", name)), _series(rows, "validation", name)
    values, smoothed = train.values * metric.scale, smooth(train.values, train.steps) * metric.scale
    axes.plot(train.epochs, values, color=BLUE, alpha=0.25, linewidth=0.9)
    axes.plot(train.epochs, smoothed, color=BLUE, label="train (smoothed)")
    axes.plot(
        validation.epochs, validation.values * metric.scale, color=ORANGE, label="validation", **_marker(validation)
    )
    return [smoothed, validation.values * metric.scale]


def _draw_members(
    axes: "Axes", rows: Sequence[Row], name: str, metric: Metric, names: Mapping[int, str]
) -> list[np.ndarray]:
    """Draws the validation curve of each network; returns their values."""
    shown = []
    for member, label in sorted(names.items()):
        own = _series(
            [row for row in rows if row["kind"] == "validation" and row["member"] == member], "validation", name
        )
        style = {"color": scale_colour(member, len(names)), "label": label, **_marker(own)}
        axes.plot(own.epochs, own.values * metric.scale, **style)
        shown.append(own.values * metric.scale)
    return shown


def _name(row: Row) -> str:
    """What the network of a row has of its own."""
    return " ".join(filter(None, [f"rate {row['peak_learning_rate']:g}", row.get("optimizer_args")]))


def scale_colour(member: int, members: int) -> Any:
    """Returns the colour of one of several lines that have an order, such as that of their rates."""
    import matplotlib

    return matplotlib.colormaps["viridis"](0.9 * member / max(members - 1, 1))


def _marker(series: Series) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3.5 if len(series.epochs) <= 60 else 0}


def learning_rate(rates: np.ndarray, steps_per_epoch: float) -> "Figure":
    """Draws the learning rate of every step, (N,), or of each of M networks, (M, N)."""
    figure, axes = new_axes(4.5, 3.1)
    each = np.atleast_2d(rates)
    epochs = np.arange(each.shape[1] + 1) / steps_per_epoch
    for member, own in enumerate(each):
        colour = BLUE if len(each) == 1 else scale_colour(member, len(each))
        axes.plot(epochs, np.append(own, own[-1]), color=colour, drawstyle="steps-post")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def _series(rows: Sequence[Row], kind: str, name: str) -> Series:
    chosen = [row for row in rows if row["kind"] == kind and name in row]
    columns = ([row["epoch"] for row in chosen], [row[name] for row in chosen], [row["step"] for row in chosen])
    epochs, values, at = (np.array(column, np.float64) for column in columns)
    return Series(epochs, np.where(np.isfinite(values), values, np.nan), np.diff(at, prepend=0.0))


def _evened(train: Series) -> Series:
    """Joins each row of less than half the usual number of steps with the row before it, weighted by their steps.

    Before a validation, a row may average over two steps beside rows of ten: as a point like them, its noise looks like
    a rise or fall.
    """
    usual = np.median(train.steps) if len(train.steps) else 0.0
    joined: list[list[float]] = []  # epoch, value, steps
    for row in zip(*train, strict=True):
        if joined and row[2] < usual / 2:
            before = joined[-1]
            values, weights = np.array([before[1], row[1]]), np.array([before[2], row[2]])
            joined[-1] = [row[0], float(_mean(values, weights)), before[2] + row[2]]
        else:
            joined.append(list(row))
    return Series(*np.array(joined).reshape(-1, 3).T)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean of those that are not NaN."""
    there = np.isfinite(values)
    return float(np.average(values[there], weights=weights[there])) if weights[there].sum() > 0 else np.nan


def smooth(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean over a window centred at each row, so that the line does not lag behind; NaN is left out."""
    reach = min(len(values) // SMOOTHING_WINDOWS, len(values) - 1) // 2
    window, finite = np.ones(2 * reach + 1), np.isfinite(values)
    weight = np.where(finite, 1.0 if weights is None else weights, 0.0)
    sums = np.convolve(np.where(finite, values, 0.0) * weight, window, "full")[reach : reach + len(values)]
    totals = np.convolve(weight, window, "full")[reach : reach + len(values)]
    return np.divide(sums, totals, out=np.full(len(values), np.nan), where=totals > 0.5)


def log_axis(axes: "Axes") -> None:
    """Makes the vertical axis logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.grid(True, which="minor", alpha=0.4)
