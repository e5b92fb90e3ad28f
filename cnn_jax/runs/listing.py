"""Lists the runs in folders: what was trained, what came out, and whether it is finished."""

import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError
from cnn_jax.report.metric import Metric
from cnn_jax.storage import run_folder as files

_SIGNS = (files.ENVIRONMENT, files.METRICS, files.SUMMARY)  # other programs write a config.json, too
ACCURACY, LOSS = Metric("accuracy", percent=True), Metric("loss")


@dataclass(frozen=True)
class Listed:
    """A run in a list.

    Attributes:
        run: its folder.
        experiment, model, data: what was trained; "?" if the config is damaged.
        result: on the test set, such as "99.12%" or "loss 0.0123"; "–" if it is not known.
        steps: number of updates so far.
        state: "finished", "unfinished" or "damaged".
        date: of the last change, local time.
        reason: what is damaged.
    """

    run: Path
    experiment: str
    model: str
    data: str
    result: str
    steps: int
    state: str
    date: datetime.datetime
    reason: str = ""


def list_runs(folders: Sequence[str | Path]) -> list[Listed]:
    """Returns the runs in folders and in the folders below them, sorted by path.

    Only the files that are read here are compared with their checksums: config, metrics and summary.

    Raises:
        UserError: a folder does not exist, or none holds a run.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"there is no folder {folder}: name one that holds runs")
    found = sorted({run for folder in folders for run in _find(Path(folder))})
    if not found:
        raise UserError(f"no runs in {', '.join(map(str, folders))}: name a folder that holds some")
    return [_describe(run) for run in found]


def _find(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if set(_SIGNS) & set(names) and (files.CONFIG in names or files.LOCK in names):
            folders.clear()  # a run holds no runs
            yield Path(path)


def _describe(run: Path) -> Listed:
    experiment, model, data, result, steps, state, reason = "?", "?", "?", "–", 0, "unfinished", ""
    try:
        config = files.read_config(run)
        experiment, model, data = config.experiment, config.model.model, config.data.dataset
        if (run / files.SUMMARY).is_file():
            summary = files.read_json(run, files.SUMMARY)
            result, steps, state = _result(summary), int(summary["steps"]), "finished"
            model, data = str(summary.get("model", model)), str(summary.get("dataset", data))
        elif (run / files.METRICS).is_file():
            steps = max((int(row["step"]) for row in files.read_metrics(run)), default=0)
    except (UserError, KeyError, TypeError, ValueError) as error:
        state = "damaged"
        reason = str(error) if isinstance(error, UserError) else f"{files.SUMMARY} lacks {error}"
    return Listed(run, experiment, model, data, result, steps, state, _changed(run), reason)


def _result(summary: dict[str, Any]) -> str:
    accuracy, loss = summary.get("test_accuracy"), summary.get("test_loss")
    if accuracy is not None:
        return ACCURACY.text(accuracy)
    return "–" if loss is None else f"loss {LOSS.text(loss)}"


def _changed(run: Path) -> datetime.datetime:
    times: Iterable[float] = (
        (run / name).stat().st_mtime for name in (files.CONFIG, *_SIGNS) if (run / name).is_file()
    )
    return datetime.datetime.fromtimestamp(max(times))
