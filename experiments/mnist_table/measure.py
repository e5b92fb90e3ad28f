"""How a row is measured: functions `(settings, folder) -> Result`, which resume in their folder after a stop."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_jax.config import Config
from cnn_jax.runs.results import total_seconds


@dataclass(frozen=True)
class Result:
    """What a row measured.

    Attributes:
        errors: test error in %, one per seed.
        seconds: training or solving, and testing, for one seed, on average; without compilation.
        parameters: trained numbers of one network or classifier; None if it keeps training images: nearest neighbours,
            SVMs with kernels.
        device: where it ran.
        commit: of the code.
        detail: what the reader should know about this measurement: words.
    """

    errors: tuple[float, ...]
    seconds: float
    parameters: int | None
    device: str
    commit: str | None
    detail: str = ""


def classifier(settings: Mapping[str, Any], folder: Path) -> Result:
    """Trains a network or a classical classifier once per seed, in folder/seed0, folder/seed1, …

    Args:
        settings: "seeds", their number, 1 by default; all others are config fields.
        folder: of the row.
    """
    fields = dict(settings)
    seeds = fields.pop("seeds", 1)
    summaries = [_train(fields | {"seed": seed}, folder / f"seed{seed}") for seed in range(seeds)]
    return _result([100 - 100 * summary["test_accuracy"] for summary in summaries], summaries, len(summaries))


def committee(settings: Mapping[str, Any], folder: Path) -> Result:
    """Trains networks on several versions of a data set; the mean of their probabilities decides.

    Args:
        settings: "seeds", the number of committees; "datasets", one run of "members" networks for each; all others are
            config fields.
        folder: of the row; the runs are in folder/seed0/NAME, where NAME is the part of the data set's name after ":".
    """
    from cnn_jax.runs.committee import committee_table

    fields = dict(settings)
    seeds, datasets, members = fields.pop("seeds"), fields.pop("datasets"), fields["members"]
    errors, columns, summaries = [], [], []
    for seed in range(seeds):
        runs = [folder / f"seed{seed}" / dataset.rpartition(":")[2] for dataset in datasets]
        for dataset, run in zip(datasets, runs, strict=True):
            summaries.append(_train(fields | {"dataset": dataset, "seed": seed * members}, run))
        rows = committee_table(runs, "test")
        errors.append(100 - 100 * rows[-1]["committee_accuracy"])
        columns += [100 - 100 * row["accuracy"] for row in rows]
    alone = f"{len(columns)} columns, alone {spread(columns)} %"
    return _result(errors, summaries, seeds, detail=alone)


def spread(values: Sequence[float]) -> str:
    """Formats mean ± standard deviation of a sample, the mean alone of a single value.

    >>> spread([0.5, 0.7]), spread([0.5])
    ('0.60 ± 0.14', '0.50')
    """
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _train(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Starts, resumes or (if finished) reads a run; returns its summary."""
    from cnn_jax.training.run import train  # imports JAX

    config = Config("mnist_table").override(logger=(), **fields, workdir=str(folder))
    return train(config.resolve())


def _result(errors: Sequence[float], summaries: Sequence[dict[str, Any]], seeds: int, detail: str = "") -> Result:
    first = summaries[0]
    return Result(
        errors=tuple(errors),
        seconds=sum(map(total_seconds, summaries)) / seeds,
        parameters=first["parameters"],
        device=first["device"],
        commit=first["commit"],
        detail=detail,
    )
