"""Many lines in one plot: styles that tell them apart, labels at their ends, and scales that spread good values."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_jax.report.figures import BLUE, INK, ORANGE, QUIET, shorten
from cnn_jax.report.metric import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Any two differ by 20 or more in CIELAB, also to eyes without red or green cones; so do line styles and markers.
COLOURS = (BLUE, ORANGE, "#17805a", "#6b2fd6", "#7cb9e8", "#7a4a1e", INK, "#8fcfb5", "#3c1a78")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX<>*"
_ROUND = (0, 20, 40, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98)  # per cent
_CLOSEST = 1e-2  # to 100 %


def colour(index: int) -> str:
    """The colour of line `index`, which has it in every plot."""
    return COLOURS[index % len(COLOURS)]


def ink(index: int) -> str:
    """A colour for text about line `index`: the line's, mixed with black until it can be read on white."""
    from matplotlib.colors import to_hex, to_rgb

    mixed = np.array(to_rgb(colour(index)))
    while mixed @ (0.21, 0.72, 0.07) > 0.42:
        mixed = 0.9 * mixed + 0.1 * np.array(to_rgb(INK))
    return to_hex((mixed[0], mixed[1], mixed[2]))


def style(index: int, points: int = 0) -> dict[str, Any]:
    """Returns how line `index` is drawn: of 36 no two are alike.

    Args:
        index: 0, 1, …
        points: how many points it has; at most six get a marker, at places that differ from line to line.
    """
    every = max(1, points // 6)
    marker = {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 3.8, "markevery": (index * 3 % every, every)}
    return {"color": colour(index), "linestyle": _DASHES[index % len(_DASHES)], **(marker if points else {})}


def label_ends(axes: "Axes", ends: Sequence[tuple[float, str, int]], size: float = 7.5) -> None:
    """Writes labels to the right of the axes, at the height of their lines or as near to it as they do not overlap.

    The limits of the axes are final.

    Args:
        axes: where the lines are.
        ends: the last value, the text and the index of each line; a value that is not finite goes to the bottom.
        size: of the letters, in points.
    """
    if not ends:
        return
    low, high = axes.get_ylim()
    values = [min(max(value, low), high) if math.isfinite(value) else low for value, _, _ in ends]
    to_place = axes.transData + axes.transAxes.inverted()
    places = np.array([to_place.transform((axes.get_xlim()[0], value))[1] for value in values])
    height = axes.get_window_extent().height / axes.figure.dpi  # nearly that of the final layout
    gap = 1.25 * size / 72 / height
    spread_places = _spread(places, gap)
    spread_places -= max(0.0, spread_places.max() - 1) + min(0.0, spread_places.min())
    for (_, text, index), place, spread in zip(ends, places, spread_places, strict=True):
        inside = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([1.0, 1.03], [place, spread], color=colour(index), linewidth=0.9, **inside)
        axes.text(1.04, spread, shorten(text, 30), color=ink(index), fontsize=size, va="center", **inside)


def _spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Moves places apart, as little as that takes and in their order: groups that overlap are centred on their mean."""
    groups = [[i] for i in np.argsort(places, kind="stable")]
    found = np.array(places, np.float64)
    while True:
        for group in groups:
            middle = np.mean(places[group])
            found[group] = middle + gap * (np.arange(len(group)) - (len(group) - 1) / 2)
        touching = [k for k in range(len(groups) - 1) if found[groups[k + 1][0]] - found[groups[k][-1]] < gap - 1e-9]
        if not touching:
            return found
        groups[touching[0] : touching[0] + 2] = [groups[touching[0]] + groups[touching[0] + 1]]


def set_scale(axes: "Axes", values: Sequence[float], metric: Metric) -> None:
    """Sets scale and limits of the y axis for values as plotted, those that are not finite left out.

    Shares above 90 % are spread by their distance from 100 %, positive numbers of great range by their logarithm.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return
    low, high = float(finite.min()), float(finite.max())
    if metric.percent and high > 90 and low >= 0 and high <= 100:
        axes.set_yscale("function", functions=(_from_hundred, lambda place: 100 - 10**-place))
        bounds = _from_hundred(np.array([low, high]))
        margin = 0.04 * max(bounds[1] - bounds[0], 0.1)
        axes.set_ylim(*(100 - 10 ** -(bounds + np.array([-margin, margin]))))
        ticks = [tick for tick in _ROUND if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        if len(ticks) > 2:
            axes.set_yticks(ticks)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    elif not metric.percent and low > 0 and high > 5 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.04 * (high - low) or 0.5
        axes.set_ylim(low - margin, high + margin)


def _from_hundred(values: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(100 - np.asarray(values), _CLOSEST))


def mark_target(axes: "Axes", value: float, below: bool) -> None:
    """Draws a horizontal line with its name at the right end, `below` it or above it."""
    axes.axhline(value, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "target",
        (0.99, value),
        (0, -2 if below else 2),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        fontsize=7,
        color=QUIET,
    )
