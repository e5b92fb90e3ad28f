"""Plots of the table of speeds: what training several networks at once costs, and how the cost of an image grows.

    python -m benchmarks.plots    # docs/images/speed_members.png and speed_growth.png

A plot is drawn if the table has its figures: a line for each model and device, with a band from the minimum to the
maximum.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import PATH, Row, read
from cnn_jax.commands.parser import ArgumentParser, guard
from cnn_jax.errors import UserError
from cnn_jax.report.figures import new_axes, png, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = list[tuple[float, float, float, float]]  # number, value, minimum, maximum
MEMBERS = r", (?P<number>\d+) members"
AXES = {  # where the growing number is in a case of `benchmarks.growth`, and its label
    "batch": (r" batch (?P<number>\d+)", "images per step"),
    "image": (r" (?P<number>\d+)x\d+", "height and width in pixels"),
    "depth": (r"(?P<number>\d+)(?= \d+x)", "layers"),
    "classes": (r" classes (?P<number>\d+)", "classes"),
}


def lines(rows: Sequence[Row], benchmark: str, measure: str, pattern: str) -> dict[str, Points]:
    """Returns the points of one measure for each line of the plot.

    Args:
        rows: rows of the table.
        benchmark: whose figures to take.
        measure: which of them.
        pattern: regular expression whose group "number" is the x value in the name of a case; the rest of the name,
            with the device, names the line.

    Returns:
        Name of the line → its points, in ascending order of the number.
    """
    found: dict[str, Points] = {}
    for row in rows:
        match = re.search(pattern, row["case"])
        if match and (row["benchmark"], row["measure"]) == (benchmark, measure):
            name = row["case"].replace(match[0], "", 1)
            value, low, high = (float(row[column] or row["value"]) for column in ("value", "low", "high"))
            found.setdefault(f"{name}\n{row['device']}", []).append((float(match["number"]), value, low, high))
    return {name: sorted(points) for name, points in found.items()}


def members(rows: Sequence[Row]) -> "Figure | None":
    """Plots the speed-up of K networks at once, and the time of their step divided by K; None without figures."""
    ratios = lines(rows, "members", "one by one / at once", MEMBERS)
    steps = lines(rows, "members", "step of all at once", MEMBERS)
    shares = {name: [(k, ms / k, low / k, high / k) for k, ms, low, high in points] for name, points in steps.items()}
    if not ratios:
        return None
    figure, (left, right) = new_axes(9.0, 3.8, ncols=2)
    _draw(left, ratios, "networks at once", "speed-up over one after another")
    _draw(right, shares, "networks at once", "ms per step and network", log=True)
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    left.set_ylim(bottom=0)
    _legend(left)
    return figure


def growth(rows: Sequence[Row]) -> "Figure | None":
    """Plots, for each axis, the time per image and the FLOP/s; None without figures."""
    costs = {axis: lines(rows, "growth", f"{axis}: an image", pattern) for axis, (pattern, _) in AXES.items()}
    speeds = {axis: lines(rows, "growth", f"{axis}: speed", pattern) for axis, (pattern, _) in AXES.items()}
    if not any(costs.values()):
        return None
    figure, (upper, lower) = new_axes(14.0, 6.0, nrows=2, ncols=len(AXES))
    for above, below, (axis, (_, label)) in zip(upper, lower, AXES.items()):
        _draw(above, costs[axis], label, "ms per image", log=True)
        _draw(below, speeds[axis], label, "GFLOP/s")
        below.set_ylim(bottom=0)
        _legend(below)
    return figure


def _draw(axes: Any, named: Mapping[str, Points], x_label: str, y_label: str, log: bool = False) -> None:
    for name, points in named.items():
        number, value, low, high = zip(*points)
        (line,) = axes.plot(number, value, marker="o", markersize=3.5, label=name)
        axes.fill_between(number, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    numbers = sorted({number for points in named.values() for number, *_ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers], rotation=90, fontsize=6)
    axes.set_xticks([], minor=True)
    if log and named:
        _log(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _log(axes: Any) -> None:
    """Makes the vertical axis logarithmic and at least a factor of 5 high: on less, noise would look like a bend."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    spread = max(1.0, math.sqrt(5 * low / high))
    axes.set_ylim(low / spread, high * spread)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks([], minor=True)


def _legend(axes: Any) -> None:
    if axes.lines:
        axes.legend(loc="best", fontsize=6)


PICTURES_FOLDER = Path("docs/images")
PICTURES = {"speed_members.png": members, "speed_growth.png": growth}


def main(argv: Sequence[str] | None = None) -> None:
    """Draws and writes every plot that the table has figures for.

    Raises:
        UserError: it has figures for none.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=PATH, help=f"CSV file (default {PATH})")
    parser.add_argument("--output", type=Path, default=PICTURES_FOLDER, help=f"folder (default {PICTURES_FOLDER})")
    arguments = parser.parse_args(argv)
    with style():
        drawn = {name: picture for name, draw in PICTURES.items() if (picture := draw(read(arguments.table)))}
        for name, picture in drawn.items():
            (arguments.output / name).write_bytes(png(picture))
            print(arguments.output / name)
    if not drawn:
        raise UserError(f"{arguments.table} has no figures of members or growth to draw: measure them first")


if __name__ == "__main__":
    guard(main)
