"""Plots the gauges of a run, the rows of kind "gauges" of metrics.jsonl: by layer as lines, or as a map if many."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cnn_jax.report import html
from cnn_jax.report.curves import Row, log_axis, scale_colour
from cnn_jax.report.figures import BLUE, GRID, ORANGE, new_axes, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 12  # more layers are drawn as a map
MOST_LABELS = 45  # layers named on a map
LONGEST_NAME = 28


class Gauge(NamedTuple):
    """How a gauge by layer is shown: its axis label, picture, factor to the axis, and whether that is logarithmic."""

    label: str
    picture: str
    scale: float = 1.0
    log: bool = True


BY_LAYER = {
    "gradient_norm": Gauge("gradient norm", "gradient_norms"),
    "update_ratio": Gauge("update ÷ weights (norms)", "update_ratios"),
    "dead_units": Gauge("dead ReLU units (%)", "dead_units", 100.0, log=False),
}


def draw(rows: Sequence[Row], member: int | None = None) -> dict[str, "Figure"]:
    """Draws a figure for each gauge that the rows have; {} without such rows.

    Args:
        rows: of metrics.jsonl.
        member: which of several networks that are kept apart.
    """
    rows = [row for row in rows if row["kind"] == "gauges" and row.get("member") == member]
    drawn = {}
    for name, gauge in BY_LAYER.items():
        layers = list(dict.fromkeys(key.partition("/")[2] for row in rows for key in row if key.startswith(f"{name}/")))
        if layers:
            values = np.array([[row.get(f"{name}/{layer}", np.nan) for row in rows] for layer in layers], np.float64)
            epochs = np.array([row["epoch"] for row in rows])
            there = np.isfinite(values).any(axis=0)  # no update follows the last step
            drawn[gauge.picture] = by_layer(layers, epochs[there], values[:, there], gauge)
    if rows:
        drawn["sharpness"] = sharpness(rows)
    return drawn


def by_layer(layers: Sequence[str], epochs: np.ndarray, values_LxN: np.ndarray, gauge: Gauge) -> "Figure":
    """Draws a gauge of L layers at N points: a line each, or a map with a row each if there are many."""
    values_LxN = values_LxN * gauge.scale
    if gauge.log:
        values_LxN = np.where(values_LxN > 0, values_LxN, np.nan)
    many = len(layers) > MOST_LINES
    return _map(layers, epochs, values_LxN, gauge) if many else _lines(layers, epochs, values_LxN, gauge)


def _lines(layers: Sequence[str], epochs: np.ndarray, values_LxN: np.ndarray, gauge: Gauge) -> "Figure":
    figure, axes = new_axes(5.4, 3.1)
    for i, (layer, values) in enumerate(zip(layers, values_LxN, strict=True)):
        style = {"color": scale_colour(i, len(layers)), "label": shorten(layer, LONGEST_NAME), "linewidth": 1.3}
        style["clip_on"] = gauge.log  # show the markers at 0
        axes.plot(epochs, values, **style, **_marker(len(epochs)))
    if gauge.log:
        _log(axes, values_LxN)
    elif not gauge.log:
        axes.set_ylim(0, max(10.0, 1.08 * np.nanmax(values_LxN, initial=0)))
    _label(axes, gauge.label)
    figure.legend(loc="outside right upper", fontsize=7, labelspacing=0.35, handlelength=1.4)
    return figure


def _map(layers: Sequence[str], epochs: np.ndarray, values_LxN: np.ndarray, gauge: Gauge) -> "Figure":
    from matplotlib.colors import LogNorm, Normalize

    every = -(-len(layers) // MOST_LABELS)
    figure, axes = new_axes(5.4, min(max(3.1, 0.13 * len(layers) / every + 0.7), 7.0))
    finite = values_LxN[np.isfinite(values_LxN)]
    if gauge.log:
        low, high = (finite.min(), finite.max()) if finite.size else (0.1, 1.0)
        norm: Any = LogNorm(low, max(high, 1.001 * low))
    else:
        norm = Normalize(0.0, max(10.0, finite.max(initial=0)))
    image = axes.pcolormesh(values_LxN, norm=norm, cmap="viridis", rasterized=True)
    axes.set_facecolor(GRID)  # where nothing was measured
    axes.invert_yaxis()  # the first layer on top
    axes.grid(False)
    named = range(0, len(layers), every)
    axes.set_yticks([i + 0.5 for i in named], [shorten(layers[i], LONGEST_NAME) for i in named], fontsize=6)
    columns = range(0, len(epochs), -(-len(epochs) // 7))
    axes.set_xticks([i + 0.5 for i in columns], [f"{epochs[i]:.3g}" for i in columns])
    axes.set_xlabel("epoch")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    if gauge.log:
        _plain(bar.ax.yaxis, wide=norm.vmax > 100 * norm.vmin)
    bar.set_label(gauge.label)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return figure


def sharpness(rows: Sequence[Row]) -> "Figure":
    """Draws the largest eigenvalue of the Hessian and, where it is known, the limit of stable gradient descent."""
    epochs, values, limits = (
        np.array([row.get(name, np.nan) for row in rows], np.float64)
        for name in ("epoch", "sharpness", "stability_limit")
    )
    figure, axes = new_axes(4.5, 3.1)
    axes.plot(epochs, values, color=BLUE, label="largest eigenvalue of the Hessian", **_marker(len(epochs)))
    shown = values[np.isfinite(values)]
    if np.isfinite(limits).any():
        axes.plot(epochs, limits, color=ORANGE, linestyle="--", label="2 ÷ learning rate")
        near = limits[np.isfinite(limits)]
        shown = np.concatenate([shown, near[near <= 10 * shown.max(initial=near.min())]])
    axes.legend(loc="best")
    if shown.size and shown.min() > 0 and shown.max() > 20 * shown.min():
        _log(axes, shown)
    elif shown.size:
        axes.set_ylim(min(0.0, 1.1 * shown.min()), 1.15 * shown.max())
    _label(axes, "sharpness")
    return figure


def section(pictures: Mapping[str, str], rows: Sequence[Row]) -> str:
    """The gauges of a run; "" without pictures."""
    said = (
        "Measured at the start and at each validation, on the first training batch, without augmentation and dropout. "
        "An update is the one that the optimizer would make next, and its norm is divided by that of the layer's "
        "parameters. A unit is a channel, or a unit of a dense layer; it is dead if its ReLU is 0 for the whole batch, "
        "and ReLUs are named by the layer before them. The sharpness is the largest eigenvalue of the Hessian of the "
        "batch's loss."
    )
    if any("stability_limit" in row for row in rows):
        said += " Above 2 ÷ learning rate, gradient descent on this loss is not stable (Cohen et al. 2021)."
    shown = list(pictures.values())
    pairs = [html.columns(*shown[i : i + 2]) for i in range(0, len(shown), 2)]  # three abreast would be too small
    return html.section("Gauges", said, *pairs)


def _log(axes: "Axes", values: np.ndarray) -> None:
    """Makes the vertical axis logarithmic, over a decade at least."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    log_axis(axes)
    low, high = finite.min() / 1.3, finite.max() * 1.3
    wider = max(1.0, (10 * low / high) ** 0.5)
    axes.set_ylim(low / wider, high * wider)
    _plain(axes.yaxis, wide=high > 100 * low)


def _plain(axis: Any, wide: bool) -> None:
    """Labels a logarithmic axis with plain numbers: powers of ten if it is wide, else 1, 2 and 5 times these."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def _marker(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3.0 if points <= 60 else 0}


def _label(axes: "Axes", label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
