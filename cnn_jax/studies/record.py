"""The study folder: what is asked, what was found, and the tables.

    .cnn_jax.lock    one process at a time works on a study, see `cnn_jax.storage.lock`
    study.json       what is compared and how, the length of trials, device and versions
    trials/          a run folder for each trial of the search, without weights
    together/        runs of several trials at once, until each trial has a folder of its own
    finals/          a run folder for each final run
    trials.csv       a row for each trial that is over; the same bytes however often the study was interrupted
    times.csv        the seconds of the same trials
    study.html       the page, with its pictures in plots/ and its table in table.csv and table.md

Only `study.json` and the folders of the trials are read again; the tables and the page are made from them.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError
from cnn_jax.report.metric import Metric
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.studies.study import Candidate, Parameter, Study, Trial
from cnn_jax.tasks import Selection

STUDY = "study.json"
TRIALS, TIMES = "trials.csv", "times.csv"
SEARCHES, TOGETHER, FINALS = "trials", "together", "finals"
PAGE = "study.html"
_OURS = (STUDY, TRIALS, TIMES, SEARCHES, TOGETHER, FINALS, PAGE, "plots", "table.csv", "table.md")


@dataclass(frozen=True)
class Record:
    """What `study.json` holds.

    Attributes:
        settings: what was asked, by name: a study with others is another study.
        candidates: what is compared.
        steps: the length of a trial, by label.
        steps_per_epoch: by label.
        seconds_per_step: as measured for a budget in seconds, by label; {} for other budgets.
        data: number and checksum of the examples of each split.
        selection: the task's.
        metrics: the task's.
        facts: see `Study`.
        warnings: likewise.
    """

    settings: Mapping[str, Any]
    candidates: Sequence[Candidate]
    steps: Mapping[str, int]
    steps_per_epoch: Mapping[str, float]
    seconds_per_step: Mapping[str, float]
    data: Mapping[str, Any]
    selection: Selection
    metrics: Mapping[str, Metric]
    facts: Mapping[str, str]
    warnings: Sequence[str]

    def to_json(self) -> str:
        """Returns the record as JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["candidates"] = [dataclasses.asdict(candidate) for candidate in self.candidates]
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def check_folder(folder: Path) -> None:
    """Checks that a study may be kept in a folder: that it is new, or a study's.

    Raises:
        UserError: it is a file, a run folder, or has files that a study would overwrite.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`workdir` {folder} is a file: name a folder")
    if (folder / STUDY).exists():
        return
    if (folder / files.CONFIG).exists():
        raise UserError(f"{folder} is a run folder: set another `workdir` for the study")
    if there := [name for name in _OURS if (folder / name).exists()]:
        raise UserError(
            f"{folder} is not a study, but has {', '.join(there)}, which a study would overwrite: set another `workdir`"
        )


def write_record(folder: Path, record: Record) -> None:
    """Writes `study.json`."""
    durable.write_checked(folder / STUDY, record.to_json().encode())


def read_record(folder: Path) -> Record | None:
    """Returns what `study.json` holds; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / STUDY
    if not path.is_file():
        return None
    try:
        durable.check(path)
        plain = json.loads(path.read_text(encoding="utf-8"))
        plain["candidates"] = [_candidate(of) for of in plain["candidates"]]
        plain["selection"] = Selection(*plain["selection"])
        plain["metrics"] = {name: Metric(*of) for name, of in plain["metrics"].items()}
        return Record(**plain)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): put it back, or set another `workdir`") from error


def _candidate(plain: dict[str, Any]) -> Candidate:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in plain["fields"].items()}
    return Candidate(plain["label"], fields, {name: Parameter(**of) for name, of in plain["space"].items()})


def check_same(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Checks that a folder holds the study that is asked for. What only one of them has was not known to the other.

    Raises:
        UserError: it holds another; lists what differs.
    """
    ours = json.loads(json.dumps(ours))  # tuples become lists, as in the file
    differ = [
        f"{name}: {ours[name]!r} here, {theirs[name]!r} there"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]
    if differ:
        raise UserError(
            f"{folder} holds another study ({'; '.join(differ)}): set another `workdir`, or the same values"
        )


def write_tables(study: Study) -> None:
    """Writes `trials.csv` and `times.csv`."""
    names = list(study.metrics)
    rows = []
    for trial in study.trials:
        rows.append(
            {
                "candidate": trial.candidate,
                "phase": trial.phase,
                "trial": trial.number,
                "seed": trial.seed,
                "settings": json.dumps(dict(trial.settings), sort_keys=True),
                "status": trial.status,
                "steps": trial.steps,
                **{f"validation_{name}": trial.validation.get(name) for name in names},
                **{f"test_{name}": trial.test.get(name) for name in names},
                "steps_to_target": trial.steps_to_target,
            }
        )
    _write_csv(study.folder / TRIALS, rows)
    _write_csv(study.folder / TIMES, [_times(trial) for trial in study.trials])


def _times(trial: Trial) -> dict[str, Any]:
    return {
        "candidate": trial.candidate,
        "phase": trial.phase,
        "trial": trial.number,
        "seed": trial.seed,
        "together": trial.together,
        "seconds": round(trial.seconds, 6),
        "seconds_to_target": None if trial.seconds_to_target is None else round(trial.seconds_to_target, 6),
        "seconds_per_step": round(trial.seconds / trial.steps, 9) if trial.steps else None,
    }


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    durable.write(path, text.getvalue().encode())
