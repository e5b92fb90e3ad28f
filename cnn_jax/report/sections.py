"""Sections of every report, as HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from cnn_jax.errors import counted
from cnn_jax.report import figures, html
from cnn_jax.report.curves import Row
from cnn_jax.report.filters import Filters
from cnn_jax.report.metric import Metric


def headlines(
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    metrics: Mapping[str, Metric],
    found: Sequence[tuple[str, str, str]],
    split: str,
    select: str,
) -> str:
    """The headline figures: the first of the task's own, those of every run, then the rest of the task's."""
    best = summary["best_step"]
    epoch = next((f"{row['epoch']:.4g}" for row in rows if row["step"] == best), "–")
    # Where there is another metric, the loss of one split is enough.
    others = {name: metric for name, metric in metrics.items() if name != "loss" or len(metrics) == 1}
    losses = [(metrics["loss"].text(summary[f"{split}_loss"]), f"{split} loss", "")]
    losses += [
        (metric.text(summary[f"validation_{name}"]), f"validation {name.replace('_', ' ')}", "of the same weights")
        for name, metric in others.items()
        if split != "validation" and f"validation_{name}" in summary
    ]
    length = [
        (epoch, f"{select} epoch, of these weights", f"step {best:,} of {summary['steps']:,}"),
        (_duration(summary["seconds"]), "training time", f"{summary['epochs']:.4g} epochs"),
    ]
    if "solution" in summary:
        length = [(_duration(summary["seconds"]), "time to solve", "without steps of training")]
    count = summary["parameters"]  # None of a classifier that keeps training images
    parameters = [] if count is None else [(f"{count:,}", "parameters", "")]
    return html.tiles(
        [
            *found[:1],
            *losses,
            *length,
            *parameters,
            (_flops(summary["flops_per_image"]), "per image, forward", "2 FLOP per multiply-add"),
            *found[1:],
        ]
    )


def learning_rates(summary: Mapping[str, Any], metrics: Mapping[str, Metric], select: str) -> str:
    """The networks of a comparison of learning rates, one row each; "" for other runs."""
    if "rates" not in summary:
        return ""
    said = (
        f"Each network at its {select} step by validation. The best network is the run's result; the others were not "
        "tested."
    )
    lines, args = [], ["optimizer_args"] if "optimizer_args" in summary else []
    for row in summary["rates"]:
        found = (row[f"validation_{name}"] for name in metrics)
        cells = (
            "–" if value is None else metric.text(value) for value, metric in zip(found, metrics.values(), strict=True)
        )
        own = [f"{row['learning_rate']:g}", *(row[name] for name in args)]
        lines.append((*own, *cells, f"{row['step']:,}", "kept" if row["kept"] else ""))
    own = ["learning rate", *(name.replace("_", " ") for name in args)]
    header = (*own, *(f"validation {name.replace('_', ' ')}" for name in metrics), "step", "")
    return html.section("Learning rates", said, html.table(header, lines))


def solution(summary: Mapping[str, Any]) -> str:
    """What solving for the variables of a classical classifier has found; "" for networks."""
    if "solution" not in summary:
        return ""
    said = "The variables were solved for, not trained step by step; choices were made on the validation images."
    return html.section("Solution", said, html.facts(summary["solution"]))


def curves(pictures: Mapping[str, str]) -> str:
    """The curves of the loss, the task's other metrics and the learning rate; "" without any."""
    if not pictures:
        return ""
    said = (
        "Training values are measured during the steps, with the run's augmentation, dropout and label smoothing; "
        "validation uses none of these."
    )
    return html.section("Training", said, html.columns(*pictures.values()))


def filters(found: Filters | None, picture: str | None) -> str:
    """The filters of the first layer."""
    if found is None or picture is None:
        return ""
    count, height, width, channels = found.weights.shape
    look = "in colour, each stretched to its own range" if channels == 3 else "blue is negative, red positive"
    some = f", the first {figures.MOST_FILTERS} shown" if count > figures.MOST_FILTERS else ""
    size = f"{counted(count, 'filter')} of {height}x{width}x{channels}"
    said = f"Weights of {found.layer} ({found.kind}): {size}{some}; {look}."
    return html.section("First layer", said, picture)


def record(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """The whole config, and the software and hardware of the run."""
    said = "Everything needed to reproduce the run; --config config.json repeats it."
    return html.section("Config and environment", said, html.columns(html.facts(config), html.facts(environment)))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _flops(flops: float) -> str:
    for unit, size in (("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.0f} FLOP"
