"""Compares the accuracy of a committee of trained networks with that of its members."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.models.ensembles import average
from cnn_jax.report.figures import BLUE, ORANGE, new_axes, png, style
from cnn_jax.runs.evaluate import member_predictions
from cnn_jax.storage.run_folder import read_config


def committee_table(
    runs: Sequence[str | Path], split: str = "test", views: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Evaluates the members of all runs, and the committees of the first 1, 2, … of them.

    Args:
        runs: folders of finished runs.
        split: "train", "validation" or "test", or split syntax such as test[:1000].
        views: names of `cnn_jax.models.ensembles.VIEWS` with arguments; each member averages over these
            views of an image.

    A run that compares learning rates has a member per rate, with the weights of the step at which the best was best.

    Returns:
        One row per member: "run", "member" (its number in the run), "learning_rate" and "optimizer_args" (None if the
        run has the same for all), "accuracy" of this member, "committee_of" k, "committee_accuracy" of the first k
        members, "agreement" (share of images on which all k predict the same class), "count" of images.

    Raises:
        UserError: the runs differ in classes or examples, or one is named twice.
    """
    names = [Path(run).resolve() for run in runs]
    if twice := [str(run) for run, name in zip(runs, names, strict=True) if names.count(name) > 1]:
        raise UserError(f"{twice[0]} would vote twice: name each run once")
    rows: list[dict[str, Any]] = []
    seen: list[Any] = []
    first: Any = None
    for run in runs:
        logits_MxNxK, labels_N, classes = member_predictions(run, split, views=views)
        compared = read_config(run).compared or [None] * len(logits_MxNxK)
        if first is None:
            first = (classes, labels_N)
        if classes != first[0] or not np.array_equal(labels_N, first[1]):
            raise UserError(f"{runs[0]} and {run} have different classes or test images: drop one of them")
        for number, (own, logits_NxK) in enumerate(zip(compared, logits_MxNxK, strict=True)):
            seen.append(logits_NxK)
            votes_MxN = np.stack(seen).argmax(axis=-1)
            together = np.asarray(average(np.stack(seen))).argmax(axis=-1)
            rows.append(
                {
                    "run": str(run),
                    "member": number,
                    "learning_rate": None if own is None else own.learning_rate,
                    "optimizer_args": None if own is None else " ".join(own.args) or None,
                    "accuracy": float(np.mean(votes_MxN[-1] == labels_N)),
                    "committee_of": len(seen),
                    "committee_accuracy": float(np.mean(together == labels_N)),
                    "agreement": float(np.mean((votes_MxN == votes_MxN[0]).all(axis=0))),
                    "count": len(labels_N),
                }
            )
    return rows


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Plots the error against the size of the committee; returns a PNG file."""
    sizes = [row["committee_of"] for row in rows]
    with style():
        figure, axes = new_axes(4.5, 3.1)
        axes.plot(sizes, [100 - 100 * row["accuracy"] for row in rows], "o", color=ORANGE, label="network k alone")
        together = [100 - 100 * row["committee_accuracy"] for row in rows]
        axes.plot(sizes, together, "-o", color=BLUE, label="the first k together")
        axes.set(xlabel="k networks", ylabel="error (%)", xticks=sizes[:: -(-len(sizes) // 10)])
        axes.legend()
        return png(figure)
