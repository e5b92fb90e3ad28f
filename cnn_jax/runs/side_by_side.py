"""Several runs side by side: the config fields in which they differ, their results, and their curves in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_jax.config import TRANSIENT
from cnn_jax.errors import UserError, unknown
from cnn_jax.report import curves, lines
from cnn_jax.report.figures import QUIET, new_axes
from cnn_jax.report.metric import Metric
from cnn_jax.runs.listing import ACCURACY
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.file_names import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = (
    *("steps", "best_step", "epochs", "seconds", "evaluation_seconds", "parameters", "flops_per_image", "device"),
    "commit",
)
CALLED = {"steps": "steps done", "epochs": "epochs done"}  # config fields have these names, too
_PLACES = {"kind", "step", "epoch", "seconds", "member", "peak_learning_rate"}  # of a row, not its metrics


def names(runs: Sequence[str | Path]) -> list[str]:
    """Returns what tells run folders apart: the last part of their paths if that does, otherwise the paths."""
    last = [readable(Path(run).resolve().name) for run in runs]
    return last if len(set(last)) == len(last) else [readable(run) for run in runs]


def differing_fields(runs: Sequence[str | Path]) -> dict[str, list[str]]:
    """Returns the config fields that differ between runs, and their values; those that change no result are left out.

    Raises:
        UserError: a folder is not a run.
    """
    configs = [files.read_config(run) for run in runs]
    rows = {"experiment": [config.experiment for config in configs]}
    flat = [config.flat() for config in configs]
    rows |= {name: [_value(own[name]) for own in flat] for name in flat[0] if name not in TRANSIENT}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def results(runs: Sequence[str | Path]) -> dict[str, list[str]]:
    """Returns the results of runs by name: metrics of the selected weights, then what it took; "–" of unfinished runs.

    No name is that of a config field.

    Raises:
        UserError: a folder is not a run, or its summary is damaged.
    """
    found = []
    for run in runs:
        files.read_config(run)
        found.append(files.read_json(run, files.SUMMARY) if (Path(run) / files.SUMMARY).is_file() else {})
    measured = [
        name
        for name in dict.fromkeys(name for summary in found for name in summary)
        if name.startswith(("test_", "validation_")) and any(isinstance(own.get(name), float) for own in found)
    ]
    rows = {name: [_result(name, own.get(name)) for own in found] for name in (*sorted(measured), *RESULTS)}
    return {CALLED.get(name, name): values for name, values in rows.items() if set(values) != {"–"}}


def _result(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("accuracy"):
        return ACCURACY.text(value)
    if isinstance(value, float):
        return f"{value:.1f}" if name.endswith("seconds") and value >= 10 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def how_shown(run: str | Path, metric: str) -> Metric:
    """Returns how the run's task shows a metric; others, or those of a task that is not at hand, by their name."""
    from cnn_jax.tasks import make_task

    name, _, layer = metric.partition("/")
    label = name.replace("_", " ") + (f" of {layer}" if layer else "")
    by_name = Metric(label, percent=name == "dead_units")  # of gauges, the share
    try:
        config = files.read_config(run)
        return make_task(config.optim, ()).metrics.get(metric, by_name)
    except (UserError, ImportError):
        return by_name


def plot(runs: Sequence[str | Path], metric: str, shown: Metric) -> "Figure":
    """Draws a metric of several runs against the epochs: validation, above the training rows as a thin line; gauges.

    Args:
        runs: the run folders; of a run that compares learning rates, the best one is drawn.
        metric: its name in metrics.jsonl, such as "accuracy" or, of a gauge, "update_ratio/fc1".
        shown: how it is shown.

    Raises:
        UserError: a folder is not a run, has no metrics yet, or none with this name.
    """
    figure, axes = new_axes(6.4, 4.0)
    ends, values, both = [], [], False
    for index, (run, name) in enumerate(zip(runs, names(runs), strict=True)):
        rows = read_rows(run)
        choices = {key for row in rows for key in row} - _PLACES
        if metric not in choices:
            raise unknown(f"metric of {run},", metric, choices)
        # Gauges are measured when the run is validated, and none has the name of a metric.
        train, points = (_series(rows, kinds, metric, shown.scale) for kinds in (("train",), ("validation", "gauges")))
        only_train = not points.size
        both |= bool(train.size and points.size)
        smooth = curves.smooth(train[1]) if train.size else train
        if train.size:
            thin = {} if only_train else {"linewidth": 0.8, "alpha": 0.5, "marker": None, "linestyle": "-"}
            axes.plot(train[0], smooth, **lines.style(index, len(smooth)) | thin)
        if not only_train:
            axes.plot(*points, **lines.style(index, points.shape[1]))
        last = smooth if only_train else points[1]
        ends.append((float(last[-1]), name, index))
        values += [*(smooth if train.size else ()), *(() if only_train else points[1])]
    lines.set_scale(axes, values, shown)
    axes.margins(x=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(shown.axis)
    if both:
        axes.set_title("thick: validation; thin: training, smoothed", fontsize=8, color=QUIET, loc="right")
    lines.label_ends(axes, ends)
    return figure


def read_rows(run: str | Path) -> Sequence[Mapping[str, Any]]:
    """Returns the rows of a run but those of the test; of one that compares learning rates, those of the best.

    Raises:
        UserError: the folder is not a run, or has no rows yet.
    """
    files.read_config(run)
    rows = files.read_metrics(run) if (Path(run) / files.METRICS).is_file() else []
    finished = (Path(run) / files.SUMMARY).is_file()
    best = (files.read_json(run, files.SUMMARY).get("best_member") if finished else None) or 0
    chosen = [row for row in rows if row["kind"] != "test" and row.get("member", best) == best]
    if not chosen:
        raise UserError(f"{run} has no metrics yet: leave it out, or train it first")
    return chosen


def _series(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str], metric: str, scale: float) -> np.ndarray:
    """Epochs and values of the rows of some kinds, (2, N); (0,) if there are none."""
    found = [(row["epoch"], row[metric] * scale) for row in rows if row["kind"] in kinds and metric in row]
    return np.array(found, np.float64).T
