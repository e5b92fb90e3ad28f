"""Runs one trial of a study, in a folder of its own, and reads what came out."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cnn_jax.config import Config
from cnn_jax.errors import Diverged, UserError
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.studies.study import Trial
from cnn_jax.tasks import Selection
from cnn_jax.training.experiment import Given
from cnn_jax.training.run import train

RESULT = "trial.json"  # written last: a folder with it holds a trial that is over


@dataclass(frozen=True)
class Planned:
    """A trial that is to be run.

    Attributes:
        candidate: the label of what is compared.
        phase: see `Trial`.
        number: likewise.
        seed: likewise.
        settings: likewise.
        folder: of the run.
    """

    candidate: str
    phase: Literal["search", "final"]
    number: int
    seed: int
    settings: Mapping[str, Any]
    folder: Path


def run_trial(planned: Planned, config: Config, given: Given, selection: Selection) -> Trial:
    """Runs a trial, or goes on with it, unless it is over; returns what came out.

    Args:
        planned: the trial.
        config: of the run in its folder.
        given: objects that replace names in the config.
        selection: the task's, which chooses among validations.

    Raises:
        UserError: the config does not fit the data.
        TrainingStopped: Ctrl-C.
    """
    folder = planned.folder
    if not (folder / RESULT).is_file():
        if folder.is_dir() and not (files.has_trained(folder)):
            shutil.rmtree(folder)  # killed with nothing to go on from
        try:
            summary = train(config, given, quiet=True)
            result: dict[str, Any] = {"status": "finished", "steps": summary["steps"]}
            for split in ("validation", "test"):
                names = [name for name in summary if name.startswith(f"{split}_") and name != f"{split}_count"]
                result[split] = {name.removeprefix(f"{split}_"): summary[name] for name in names}
        except Diverged as error:
            rows = [row for row in files.read_metrics(folder) if row["kind"] == "validation"]
            names = error.experiment.task.metrics if error.experiment else ()
            result = diverged(rows, names, error.step, selection)
        write_result(folder, result)
    _tidy(folder, keep_weights=planned.phase == "final")
    trial = read_trial(planned)
    assert trial is not None
    return trial


def diverged(
    validations: Sequence[Mapping[str, Any]], names: Iterable[str], step: int, selection: Selection
) -> dict[str, Any]:
    """Returns what came out of a trial that diverged.

    Args:
        validations: the rows of its validations before.
        names: of the task's metrics.
        step: at which its loss was not finite.
        selection: the task's.
    """
    best = {name: validations[selection.best(validations)][name] for name in names if validations}
    return {"status": "diverged", "steps": step, "validation": best, "test": {}}


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes what came out of a trial: with that, it is over."""
    counted = {**result, "rows": len(files.read_metrics(folder))}
    durable.write_checked(folder / RESULT, (json.dumps(counted, indent=2) + "\n").encode())


def _tidy(folder: Path, keep_weights: bool) -> None:
    """Removes what a trial that is over needs no more."""
    shutil.rmtree(folder / files.CHECKPOINTS, ignore_errors=True)
    if not keep_weights:
        (folder / files.WEIGHTS).unlink(missing_ok=True)


def read_trial(planned: Planned) -> Trial | None:
    """Returns what came out of a trial, without `steps_to_target`; None if it is not over.

    Raises:
        UserError: a file of it is damaged.
    """
    path = planned.folder / RESULT
    if not path.is_file():
        return None
    try:
        durable.check(path)
        result = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: result[name] for name in ("status", "steps", "validation", "test")}
        together = result.get("together", 1)
        _check_result(**fields)
        batch_size = files.read_config(planned.folder).data.batch_size
        metrics = files.read_metrics(planned.folder)
        if len(metrics) != result.get("rows", len(metrics) or 1):  # the count is missing in trials of earlier versions
            raise ValueError(f"rows of {files.METRICS} are missing")
        rows = on_training_clock(metrics, batch_size)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).partition(";")[0]  # without the advice for a run
        raise UserError(f"{planned.folder} is damaged ({reason}): delete it, and the trial is run again") from error
    seconds = max((row["seconds"] for row in rows), default=0.0)
    about = {
        field.name: getattr(planned, field.name) for field in dataclasses.fields(planned) if field.name != "folder"
    }
    return Trial(**about, **fields, together=together, seconds=seconds, rows=rows)


def _check_result(status: str, steps: int, validation: Mapping[str, float], test: Mapping[str, float]) -> None:
    """Checks what `trial.json` says: trials of earlier versions have no checksum.

    Raises:
        ValueError: something is not of its kind.
    """
    if status not in ("finished", "diverged") or type(steps) is not int:
        raise ValueError(f"{RESULT} has no status or no steps")
    values = [*validation.items(), *test.items()]
    if wrong := [name for name, value in values if not isinstance(value, int | float)]:
        raise ValueError(f"the {wrong[0]} in {RESULT} is not a number")
    if status == "finished" and not validation:
        raise ValueError(f"{RESULT} has no validation")


def on_training_clock(rows: Sequence[Mapping[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Returns the rows of training and validation with "seconds" of training steps alone.

    The speed in a row of training is that of the steps since the row before it, compilation and validation left out.

    >>> train = [{"kind": "train", "step": step, "images_per_second": 20.0, "seconds": 9.0} for step in (4, 6)]
    >>> rows = on_training_clock([*train, {"kind": "validation", "step": 5, "seconds": 9.0}], batch_size=10)
    >>> [(row["step"], row["seconds"]) for row in rows]
    [(4, 2.0), (6, 3.0), (5, 2.5)]
    """
    training = [row for row in rows if row["kind"] == "train"]
    steps = np.array([0, *(row["step"] for row in training)], float)
    each = np.diff(steps) * batch_size / np.array([row["images_per_second"] for row in training], float)
    clock = np.array([0.0, *np.cumsum(each)])
    return [
        {**row, "seconds": float(np.interp(row["step"], steps, clock))}
        for row in rows
        if row["kind"] in ("train", "validation")
    ]


def with_target(trial: Trial, target: float | None, selection: Selection) -> Trial:
    """Returns the trial with the first validation that reached the target, if one did."""
    if target is None:
        return trial
    for row in trial.rows:
        if row["kind"] != "validation":
            continue
        value = row[selection.metric]
        if value >= target if selection.higher_is_better else value <= target:
            return dataclasses.replace(trial, steps_to_target=row["step"], seconds_to_target=row["seconds"])
    return trial
