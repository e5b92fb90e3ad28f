"""The pictures of a comparison. Each function draws one figure, or None where there is nothing to draw yet.

They are drawn in `cnn_jax.report.figures.style`. A candidate has the same colour, line style and marker in all of them.
"""

import math
from typing import TYPE_CHECKING, Any

from cnn_jax.report import lines
from cnn_jax.report.figures import new_axes, shorten, style
from cnn_jax.report.metric import Metric
from cnn_jax.studies import panels
from cnn_jax.studies.outcome import best_after, compared_pairs, labels_of, rated_trials, ratios, shown
from cnn_jax.studies.study import Study, losses_differ

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.27  # inches for a line of a chart with one line a candidate


def curves(study: Study, against: str) -> "Figure | None":
    """Draws training loss and the selecting metric on validation: the mean over seeds, from the worst to the best one.

    Before the final runs, it draws the best search trial of each candidate.

    Args:
        study: the study.
        against: "steps" or "seconds".
    """
    if not any(trial.rows for trial in study.trials):
        return None
    figure, grid = new_axes(9.4, 3.4, ncols=2)
    loss = study.metrics.get("loss")
    if losses_differ(study.candidates):
        panels.empty(grid[0], "training losses of different kinds\nare not compared")
    else:
        panels.training(grid[0], study, "train", "loss", loss or Metric("loss"), against)
    panels.training(grid[1], study, "validation", study.selection.metric, shown(study), against)
    return figure


def sensitivity(study: Study) -> "Figure | None":
    """Draws validation against the learning rate, a part for each candidate, above the median lines of the others."""
    found = {label: rated for label in labels_of(study) if (rated := rated_trials(study, label))}
    if not found:
        return None
    across = min(3, len(found))
    down = math.ceil(len(found) / across)
    figure, grid = new_axes(3.1 * across + 0.2, 2.1 * down + 0.3, nrows=down, ncols=across, sharey=True, squeeze=False)
    for axes in list(grid.flat)[len(found) :]:
        axes.axis("off")
    values = [value for rated in found.values() for _, value in rated]
    for axes, label in zip(grid.flat, found, strict=False):
        lines.set_scale(axes, values, shown(study))
        for other in found:
            panels.rate_line(axes, study, other, found[other], alone=other == label)
        panels.rate_axis(axes, [rate for rated in found.values() for rate, _ in rated])
        axes.set_title(shorten(label), color=lines.ink(labels_of(study).index(label)), fontweight="bold", pad=4)
    figure.supxlabel("learning rate", fontsize=9)
    figure.supylabel(f"validation {shown(study).axis}", fontsize=9)
    return figure


def time_to_target(study: Study) -> "Figure | None":
    """Draws steps and seconds to the target of each final run, with their median; a miss is at ∞."""
    if study.target is None or not any(trial.phase == "final" for trial in study.trials):
        return None
    figure, grid = new_axes(9.4, _height(study), ncols=2, sharey=True)
    for axes, of in zip(grid, ("steps", "seconds"), strict=True):
        panels.times_to_target(axes, study, of)
    return figure


def best_after_trials(study: Study) -> "Figure | None":
    """Draws the expected best validation of k search trials against k."""
    if not best_after(study):
        return None
    figure, axes = new_axes(5.2, 3.4)
    panels.tuning(axes, study)
    return figure


def performance_profile(study: Study) -> "Figure | None":
    """Draws the share of seeds on which a candidate took at most τ times the shortest time, by steps and seconds."""
    if not ratios(study, "steps"):
        return None
    figure, grid = new_axes(9.4, 3.4, ncols=2)
    for axes, of in zip(grid, ("steps", "seconds"), strict=True):
        panels.profile(axes, study, of)
    return figure


def differences(study: Study) -> "Figure | None":
    """Draws each candidate's test metric minus the baseline's, seed by seed, and the second's minus the best's."""
    if not compared_pairs(study):
        return None
    figure, axes = new_axes(6.0, _height(study) + ROW)
    panels.differences(axes, study)
    return figure


def overview(study: Study) -> "Figure":
    """Draws the pictures side by side in rows of three, those of the final runs once there are some; in their style."""
    with style(labels_of(study)):
        return _overview(study)


def _overview(study: Study) -> "Figure":
    from matplotlib.figure import Figure

    after = any(trial.phase == "final" for trial in study.trials)
    # Each has a layout of its own: long names beside one leave the others their width.
    figure = Figure(figsize=(12.4, 6.8 if after else 3.5), layout="constrained")
    grid: Any = figure.subfigures(2 if after else 1, 3)
    parts = list(grid.flat)
    axes = [part.subplots() for part in parts]
    titles = ("Training", "Sensitivity to the learning rate", "Cost of tuning")
    panels.training(axes[0], study, "validation", study.selection.metric, shown(study), "steps")
    panels.sensitivity(axes[1], study)
    panels.tuning(axes[2], study)
    if after:
        titles += ("Time to the target", "Test, paired by seed", "Performance profile over seeds")
        panels.times_to_target(axes[3], study, "steps")
        panels.differences(axes[4], study)
        panels.profile(axes[5], study, "steps")
    for part, title in zip(parts, titles, strict=True):
        part.suptitle(title, fontsize=10, fontweight="bold", x=0.02, ha="left")
    return figure


def _height(study: Study) -> float:
    return max(1.8, ROW * len(study.candidates) + 0.9)
