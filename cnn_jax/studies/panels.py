"""The parts of a comparison's pictures: each function draws into one pair of axes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_jax.report import lines
from cnn_jax.report.figures import GRID, INK, QUIET, shorten
from cnn_jax.report.metric import Metric
from cnn_jax.studies import statistics
from cnn_jax.studies.outcome import (
    best_after,
    best_trial,
    compared_pairs,
    labels_of,
    paired,
    rated_trials,
    ratios,
    shown,
    sign,
    times,
    trials,
)
from cnn_jax.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND: dict[str, Any] = {"alpha": 0.16, "linewidth": 0}


def empty(axes: "Axes", text: str) -> None:
    """Writes why there is nothing to draw."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)
    axes.set_xticks([])
    axes.set_yticks([])


def training(axes: "Axes", study: Study, kind: str, name: str, metric: Metric, against: str) -> None:
    """Draws the mean of a metric over the final runs, and a band from the worst to the best of them."""
    ends, values = [], []
    for index, label in enumerate(labels_of(study)):
        found = _averaged(study, label, kind, name, against)
        if found is None:
            continue
        x, low, mean, high = found[0], *(metric.scale * found[1:])
        axes.fill_between(x, low, high, color=lines.colour(index), **BAND)
        axes.plot(x, mean, **lines.style(index, len(x)))
        ends.append((float(mean[-1]), label, index))
        values += [*low, *high]
    if not ends:
        return empty(axes, "no finished trial yet")
    lines.set_scale(axes, values, metric)
    axes.margins(x=0)
    axes.set_xlim(left=0)
    axes.set_xlabel({"steps": "steps", "seconds": "seconds of training"}[against])
    axes.set_ylabel(f"{'training' if kind == 'train' else kind} {metric.axis}")
    if kind == "validation" and name == study.selection.metric and study.target is not None:
        lines.mark_target(axes, study.target * metric.scale, below=study.selection.higher_is_better)
    lines.label_ends(axes, ends)


def _averaged(study: Study, label: str, kind: str, name: str, against: str) -> np.ndarray | None:
    """Returns time, lowest, mean and highest value over the final runs at each step that all of them have: (4, N)."""
    runs = [trial for trial in trials(study, label, "final") if trial.status == "finished"]
    best = best_trial(study, label)
    if not runs and best is not None and (against == "steps" or best.together == 1):
        runs = [best]
    series = [
        {
            row["step"]: (row["step"] if against == "steps" else row["seconds"], row[name])
            for row in trial.rows
            if row["kind"] == kind and name in row
        }
        for trial in runs
    ]
    steps = sorted(set.intersection(*map(set, series))) if series else []
    if not steps:
        return None
    at_RxNx2 = np.array([[own[step] for step in steps] for own in series], np.float64)
    values = at_RxNx2[..., 1]
    return np.stack([at_RxNx2[..., 0].mean(axis=0), values.min(axis=0), values.mean(axis=0), values.max(axis=0)])


def sensitivity(axes: "Axes", study: Study) -> None:
    """Draws the median lines of all candidates against the learning rate."""
    found = {label: rated for label in labels_of(study) if (rated := rated_trials(study, label))}
    if not found:
        return empty(axes, "no learning rate was searched")
    lines.set_scale(axes, [value for rated in found.values() for _, value in rated], shown(study))
    for label, rated in found.items():
        rate_line(axes, study, label, rated, alone=None)
    rate_axis(axes, [rate for rated in found.values() for rate, _ in rated])
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"validation {shown(study).axis}")


def rate_line(axes: "Axes", study: Study, label: str, rated: Sequence[tuple[float, float]], alone: bool | None) -> None:
    """Draws points, line and band of a candidate; only the line if `alone` is None, a grey one if it is False."""
    rates, values = np.array(rated).T
    index, bottom = labels_of(study).index(label), axes.get_ylim()[0 if study.selection.higher_is_better else 1]
    quartiles = sign(study) * statistics.running_quartiles(sign(study) * values)
    low, middle, high = np.where(np.isfinite(quartiles), quartiles, bottom)
    if alone is False:
        axes.plot(rates, middle, color=GRID, linewidth=1.0, zorder=1)
        return
    look: dict[str, Any] = lines.style(index) | ({"linestyle": "-"} if alone else {})
    axes.plot(rates, middle, **look, clip_on=False)  # a line at the edge would lose half its width
    if alone:
        ink, marker = lines.colour(index), lines.style(index, 1)["marker"]
        axes.fill_between(rates, low, high, color=ink, **BAND)
        axes.plot(rates, values, linestyle="none", marker=marker, markersize=4, color=ink)
        if len(lost := rates[np.isnan(values)]):
            cross = {"linestyle": "none", "marker": "x", "markersize": 5, "color": INK, "clip_on": False}
            axes.plot(lost, np.full(len(lost), bottom), **cross)


def rate_axis(axes: "Axes", rates: Sequence[float]) -> None:
    """Makes the horizontal axis one of learning rates."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())


def tuning(axes: "Axes", study: Study) -> None:
    """Draws the expected best validation of k search trials."""
    from matplotlib.ticker import MaxNLocator

    found = {label: values * shown(study).scale for label, values in best_after(study).items()}
    if not found:
        return empty(axes, "no finished trial yet")
    ends = []
    for label, values in found.items():
        index = labels_of(study).index(label)
        axes.plot(np.arange(1, len(values) + 1), values, **lines.style(index, len(values)))
        ends.append((float(values[-1]), label, index))
    lines.set_scale(axes, np.concatenate(list(found.values())).tolist(), shown(study))
    axes.set_xlim(1, max(2, *map(len, found.values())))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("search trials k")
    axes.set_ylabel(f"best validation {shown(study).axis}")
    lines.label_ends(axes, ends)


def _rows(axes: "Axes", study: Study, more: Sequence[str] = ()) -> None:
    """Makes a line for each candidate, the first at the top."""
    labels = [*map(shorten, labels_of(study)), *more]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(False, axis="y")
    for tick, index in zip(axes.get_yticklabels(), range(len(study.candidates)), strict=False):
        tick.set_color(lines.ink(index))


def times_to_target(axes: "Axes", study: Study, of: str) -> None:
    """Draws the times of the final runs in a line for each candidate, and their median."""
    final = {label: times(study, trials(study, label, "final"), of) for label in labels_of(study)}
    known = [time for found in final.values() for time in found if math.isfinite(time)]
    if study.target is None or not any(final.values()):
        return empty(axes, "no target" if study.target is None else "after the final runs")
    longest = max(known, default=1.0)
    missed = longest * 1.12
    for index, found in enumerate(final.values()):
        mark: dict[str, Any] = {"color": lines.colour(index), "linestyle": "none", "clip_on": False}
        at = np.minimum(found, missed)
        spread = index + 0.32 * (np.arange(len(at)) - (len(at) - 1) / 2) / max(1, len(at) - 1)
        if found:  # matplotlib places a line without points in the corner of the figure
            axes.plot(at, spread, marker=lines.style(index, 1)["marker"], markersize=4, alpha=0.75, **mark)
            axes.plot(
                min(statistics.median_time(found), missed),
                index,
                marker="|",
                markersize=15,
                markeredgewidth=2.2,
                **mark,
            )
    axes.set_xlim(0, missed * 1.04)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= longest * 1.02]
    axes.set_xticks([*ticks, missed], [*(f"{tick:,.4g}" if tick < 1e4 else f"{tick:,.0f}" for tick in ticks), "∞"])
    axes.axvspan(missed * 0.965, missed * 1.04, color=GRID, alpha=0.6, linewidth=0)
    metric = shown(study)
    name = study.selection.metric.replace("_", " ")
    axes.set_xlabel(f"{of} to a validation {name} of {metric.text(study.target)}", loc="right")
    _rows(axes, study)


def profile(axes: "Axes", study: Study, of: str) -> None:
    """Draws performance profiles, with the scores in the legend."""
    found = ratios(study, of)
    if not found:
        return empty(axes, "no target" if study.target is None else "after the final runs")
    for index, own in enumerate(found.values()):
        tau = np.unique([1.0, *own[own <= statistics.MOST], statistics.MOST])
        score = statistics.profile_score(own)
        label = f"{score:.2f}  {shorten(list(found)[index])}"
        axes.plot(
            tau, statistics.profile(own, tau), drawstyle="steps-post", label=label, **lines.style(index, len(tau))
        )
    axes.set_xlim(1, statistics.MOST)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlabel(f"τ, times the {'fewest steps' if of == 'steps' else 'shortest time'}")
    axes.set_ylabel("ρ(τ), share of seeds")
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: -float(labels[i].split()[0]))
    legend = axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        title=f"score B ({of})",
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        fontsize=7.5,
        title_fontsize=7.5,
        handlelength=2.6,
        borderpad=0,
    )
    legend.get_title().set_color(INK)


def differences(axes: "Axes", study: Study) -> None:
    """Draws paired differences of the test metric, and their means with intervals."""
    pairs, scale = compared_pairs(study), shown(study).scale
    if not pairs:
        return empty(axes, "after the final runs")
    for place, (label, other, index) in enumerate(pairs):
        found = paired(study, label, other)
        if label == other:
            said: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": QUIET}
            axes.annotate("baseline", (0, place), (5, 0), **said)
        if not found or label == other:
            continue
        ink = lines.colour(index)
        mean, low, high = (scale * value for value in statistics.bootstrap_interval(found))
        axes.plot(
            np.array(found) * scale,
            [place] * len(found),
            linestyle="none",
            marker="o",
            markersize=3.5,
            alpha=0.35,
            color=ink,
        )
        axes.plot([low, high], [place, place], color=ink, linewidth=2.2, solid_capstyle="butt")
        axes.plot(mean, place, marker="D", markersize=5.5, color=ink)
    axes.axvline(0, color=INK, linewidth=0.9)
    more = [f"{shorten(pair[0], 12)} − {shorten(pair[1], 12)}" for pair in pairs[len(study.candidates) :]]
    _rows(axes, study, more)
    if more:
        axes.axhline(len(study.candidates) - 0.5, color=QUIET, linewidth=0.7)
    name, points = study.selection.metric.replace("_", " "), " (points)" if shown(study).percent else ""
    axis = f"difference in test {name}{points}"
    # At the right, as there is more room below the names of the rows than beyond the other end.
    axes.set_xlabel(f"{axis}, better →" if study.selection.higher_is_better else f"← better, {axis}", loc="right")
