"""The report of a finished run: `write_report` writes RUN/report.html, a self-contained page, and RUN/plots/*.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.report import curves, figures, fonts, gauges, html, sections
from cnn_jax.report.curves import Row
from cnn_jax.report.filters import Filters
from cnn_jax.report.metric import Metric
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files


def write_report(
    run: str | Path,
    *,
    summary: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    rates: np.ndarray | None = None,
    split: str,
    tiles: Sequence[tuple[str, str, str]],
    found: Sequence[str],
    pictures: Mapping[str, bytes],
    filters: Filters | None = None,
    classes: Sequence[str] = (),
    title: str | None = None,
) -> Path:
    """Writes the report of a run from its folder (config, environment, metrics) and its task's findings.

    Args:
        run: the run folder.
        summary: the run's summary, see `cnn_jax.storage.run_folder`.
        metrics: the metrics to plot, name → how it is shown.
        rates: the learning rate of every step, (steps,), or of each of M networks, (M, steps); None if unknown.
        split: the split of the task's findings: "train", "validation" or "test".
        tiles, found, pictures: the task's headline figures, sections (HTML) and PNG files by name.
        filters: the first layer's filters.
        classes: names for the filters of a dense layer with one per class.
        title: heading; default: the experiment's name.

    Returns:
        Path of the page.
    """
    run = Path(run)
    config, environment = files.read_config(run), files.read_json(run, files.ENVIRONMENT)
    rows = files.read_metrics(run)
    drawn = _draw_curves(rows, metrics, summary, rates)
    gauged = _draw_gauges(rows, summary)
    first_layer = ""
    if filters is not None:
        pictures = {**pictures, "filters": _draw_filters(filters, classes)}
        first_layer = sections.filters(filters, html.figure((pictures["filters"], "filters"), figures.DPI / 100))
    (run / files.PLOTS).mkdir(exist_ok=True)
    for name, data in {**drawn, **gauged, **pictures}.items():
        durable.write(run / files.PLOTS / f"{name}.png", data)
    body = [
        sections.headlines(summary, rows, metrics, tiles, split, config.train.select),
        html.code(str(summary["command"])),
        sections.learning_rates(summary, metrics, config.train.select),
        sections.solution(summary),
        sections.curves(_framed(drawn)),
        gauges.section(_framed(gauged), rows),
        *found,
        first_layer,
        sections.record(config.flat(), environment),
    ]
    members = f"{config.train.members} networks " if config.train.members > 1 else ""
    subtitle = f"{members}{summary['model']} on {summary['dataset']}, seed {summary['seed']}; {summary['device']}"
    page = html.page(title or str(summary["experiment"]), subtitle, body)
    durable.write(run / files.REPORT, page.encode())
    return run / files.REPORT


def _draw_curves(
    rows: Sequence[Row], metrics: Mapping[str, Metric], summary: Mapping[str, Any], rates: np.ndarray | None
) -> dict[str, bytes]:
    if not any(row["kind"] == "train" for row in rows):
        return {}
    with figures.style():
        best = (summary["best_step"], summary.get("best_member"))
        drawn = {name: curves.curve(rows, name, metric, *best) for name, metric in metrics.items()}
        if rates is not None:
            drawn["learning_rate"] = curves.learning_rate(rates, summary["steps"] / summary["epochs"])
        return {name: figures.png(figure) for name, figure in drawn.items()}


def _draw_gauges(rows: Sequence[Row], summary: Mapping[str, Any]) -> dict[str, bytes]:
    with figures.style():
        return {name: figures.png(figure) for name, figure in gauges.draw(rows, summary.get("best_member")).items()}


def _framed(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """The pictures as HTML."""
    return {name: html.figure((data, name.replace("_", " ")), figures.DPI / 100) for name, data in pictures.items()}


def _draw_filters(filters: Filters, classes: Sequence[str]) -> bytes:
    one_a_class = filters.kind == "dense" and len(filters.weights) == len(classes)
    titles = fonts.drawable(classes) if one_a_class else ()
    with figures.style(titles):
        return figures.png(figures.filters(filters, titles))
