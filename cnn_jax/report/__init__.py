"""A finished run on one page: `write_report` fills RUN/report.html, which opens anywhere, and RUN/plots/*.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.models.ensembles import member
from cnn_jax.report import curves, figures, html, sections
from cnn_jax.report.curves import Row
from cnn_jax.report.filters import Filters, first_layer
from cnn_jax.report.sections import Predictions
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import load_weights
from cnn_jax.tasks import measures

MISTAKES = 24
MATRIX_CLASSES = 30  # a confusion matrix of more classes cannot be read


def write_report(
    run: str | Path,
    *,
    summary: Mapping[str, Any],
    images: Sequence[np.ndarray] | np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    split_name: str,
    title: str | None = None,
) -> Path:
    """Writes the report of a run from its folder (config, environment, metrics, weights) and its predictions.

    Args:
        run: the folder; `final.safetensors` may be absent, then no filters are shown.
        summary: of the run, see `cnn_jax.storage.run_folder`.
        images: `images[i]` is uint8 (H, W, C); only the first and the worst mistakes are read.
        labels: int (N,), in [0, K).
        probabilities: (N, K), rows sum to 1.
        classes: K names.
        split_name: what the predictions are of: "train", "validation" or "test".
        title: heading; default: the experiment's name.

    Returns:
        The page's path.

    Raises:
        UserError: the arrays do not belong together, or a probability is not finite.
    """
    run = Path(run)
    predictions = Predictions(split_name, classes, np.asarray(labels), np.asarray(probabilities))
    if len(images) != len(predictions.labels):
        raise UserError(
            f"given {len(images)} images and {len(predictions.labels)} labels; expected as many; give both of one split"
        )
    config, environment = files.read_config(run), files.read_json(run, files.ENVIRONMENT)
    rows = files.read_metrics(run)
    worst = measures.worst_mistakes(predictions.probabilities, predictions.labels, MISTAKES)
    mistakes = [(np.asarray(images[int(i)]), sections.caption(predictions, int(i))) for i in worst]
    filters = _filters(run, config.train.members, np.asarray(images[0]).shape)

    pngs = _draw(rows, config.optim.loss, summary["best_step"], predictions, mistakes, filters)
    (run / files.PLOTS).mkdir(exist_ok=True)
    for name, data in pngs.items():
        files.write_bytes(run / files.PLOTS / f"{name}.png", data)

    pictures = {name: html.figure((data, name.replace("_", " ")), figures.DPI / 100) for name, data in pngs.items()}
    body = [
        sections.headlines(summary, rows, predictions, config.train.select),
        html.code(str(summary["command"])),
        sections.curves(pictures),
        sections.confusion(predictions, pictures.get("confusion")),
        sections.classes(predictions),
        sections.calibration(pictures["calibration"]),
        sections.mistakes(mistakes, split_name),
        sections.filters(filters, pictures.get("filters")),
        sections.record(config.flat(), environment),
    ]
    subtitle = f"{summary['model']} on {summary['dataset']}, seed {summary['seed']}; {summary['device']}"
    page = html.page(title or str(summary["experiment"]), subtitle, body)
    files.write_text(run / files.REPORT, page)
    return run / files.REPORT


def _filters(run: Path, members: int, image_shape: tuple[int, ...]) -> Filters | None:
    """Those of the first network of the run, if its weights are there."""
    params = load_weights(run / files.WEIGHTS)[0]["params"] if (run / files.WEIGHTS).is_file() else {}
    height, width, channels = image_shape
    return first_layer(member(params, 0) if members > 1 else params, (height, width, channels))


def _draw(
    rows: Sequence[Row],
    loss: str,
    best_step: int,
    predictions: Predictions,
    mistakes: Sequence[sections.Mistake],
    filters: Filters | None,
) -> dict[str, bytes]:
    """Returns the PNG files by name; those for which there is nothing to show are left out."""
    classes, drawn = predictions.classes, {}
    with figures.style():
        if any(row["kind"] == "train" for row in rows):
            label = "cross-entropy (nats)" if loss == "cross_entropy" else f"{loss} loss"
            drawn["loss"] = curves.curve(rows, "loss", label, best_step)
            drawn["accuracy"] = curves.curve(rows, "accuracy", "accuracy (%)", best_step)
            drawn["learning_rate"] = curves.learning_rate(rows)
        if len(classes) <= MATRIX_CLASSES:
            drawn["confusion"] = figures.confusion(predictions.confusion, classes)
        drawn["calibration"] = figures.reliability(predictions.calibration)
        if mistakes:
            drawn["mistakes"] = figures.gallery(mistakes)
        if filters is not None:
            one_a_class = filters.kind == "dense" and len(filters.weights) == len(classes)
            drawn["filters"] = figures.filters(filters, classes if one_a_class else ())
        return {name: figures.png(figure) for name, figure in drawn.items()}
