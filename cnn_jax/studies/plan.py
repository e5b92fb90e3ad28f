"""Which trials a study has, and what is known of it: all from `study.json` and the folders of the trials."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cnn_jax.errors import UserError
from cnn_jax.studies import record as files
from cnn_jax.studies.candidates import draw_points, folder_names
from cnn_jax.studies.record import Record
from cnn_jax.studies.study import Study, Trial
from cnn_jax.studies.trials import Planned, read_trial, with_target


def open_study(folder: str | Path) -> Study:
    """Reads a study, finished or not.

    Raises:
        UserError: the folder holds none, or a file of it is damaged.
    """
    path = Path(folder).expanduser()
    record = files.read_record(path)
    if record is None:
        raise UserError(f"{path} is not a study, as it has no {files.STUDY}: name one, such as runs/compare")
    return read_study(path, record)


def planned_searches(folder: Path, record: Record) -> list[Planned]:
    """Returns the trials of the search, by candidate. All share one seed."""
    seed, names = record.settings["seed"], folder_names(record.candidates)
    points = draw_points(record.candidates, record.settings["trials"], seed)
    return [
        Planned(label, "search", number, seed, settings, folder / files.SEARCHES / f"{names[label]}-{number:02d}")
        for label, every in points.items()
        for number, settings in enumerate(every)
    ]


def planned_finals(folder: Path, record: Record, searched: Sequence[Trial]) -> list[Planned]:
    """Returns the final runs, by candidate: the best trial of its search on fresh seeds, the same ones for all.

    A candidate of which every trial diverged has none.
    """
    first, names, planned = record.settings["seed"] + 1, folder_names(record.candidates), []
    for candidate in record.candidates:
        if (best := best_of(record, searched, candidate.label)) is not None:
            for seed in range(first, first + record.settings["seeds"]):
                run = folder / files.FINALS / f"{names[candidate.label]}-seed-{seed}"
                planned.append(Planned(candidate.label, "final", best.number, seed, best.settings, run))
    return planned


def best_of(record: Record, searched: Sequence[Trial], label: str) -> Trial | None:
    """Returns the trial of a candidate that is best by validation, of equal ones the first; None if all diverged."""
    own = [trial for trial in searched if trial.candidate == label and trial.status == "finished"]
    return own[record.selection.best([trial.validation for trial in own])] if own else None


def total_trials(record: Record, study: Study) -> int:
    """Returns the number of trials of the whole study, as far as is known."""
    searches, seeds = len(planned_searches(study.folder, record)), record.settings["seeds"]
    searched = [trial for trial in study.trials if trial.phase == "search"]
    if len(searched) < searches:
        return searches + seeds * len(record.candidates)
    return searches + len(planned_finals(study.folder, record, searched))


def read_study(folder: Path, record: Record, read: Callable[[Planned], Trial | None] = read_trial) -> Study:
    """Returns what is known of a study so far.

    Args:
        folder: of the study.
        record: its `study.json`.
        read: returns what came out of a trial, None if it is not over.
    """
    planned = planned_searches(folder, record)
    searched = [trial for trial in map(read, planned) if trial is not None]
    complete = len(searched) == len(planned)
    finals = planned_finals(folder, record, searched) if complete else []
    trials = searched + [trial for trial in map(read, finals) if trial is not None]
    target = _target(record, searched, planned)
    order = [candidate.label for candidate in record.candidates]
    warnings = [
        f"Every trial of {label} diverged: it has no final runs."
        for label in order
        if complete and best_of(record, searched, label) is None
    ]
    return Study(
        folder=folder,
        candidates=record.candidates,
        points=record.settings["trials"],
        seeds=record.settings["seeds"],
        budget=record.settings["budget"],
        target=target,
        selection=record.selection,
        metrics=record.metrics,
        trials=sorted(
            (with_target(trial, target, record.selection) for trial in trials),
            key=lambda trial: (order.index(trial.candidate), trial.phase == "final", trial.number, trial.seed),
        ),
        facts=record.facts,
        warnings=[*record.warnings, *warnings],
    )


def _target(record: Record, searched: Sequence[Trial], planned: Sequence[Planned]) -> float | None:
    """The target that was set, or else what the best trial of the baseline reached at its end, once it is searched.

    The baseline is the first candidate that has a finished trial.
    """
    if record.settings["target"] is not None:
        return record.settings["target"]
    for label in (candidate.label for candidate in record.candidates):
        if sum(trial.candidate == label for trial in searched) < sum(of.candidate == label for of in planned):
            return None
        if (best := best_of(record, searched, label)) is not None:
            rows = [row for row in best.rows if row["kind"] == "validation"]
            return rows[-1][record.selection.metric] if rows else None
    return None
