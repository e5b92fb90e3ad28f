"""Runs a study: the search of every candidate, then the best of each on fresh seeds."""

import shutil
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax

from cnn_jax.config import NO_TEST, Config
from cnn_jax.errors import TrainingStopped
from cnn_jax.interrupts import interruptible
from cnn_jax.storage.lock import locked
from cnn_jax.studies import record as record_file
from cnn_jax.studies.budget import usual_eval_every
from cnn_jax.studies.candidates import with_settings
from cnn_jax.studies.page import write_page
from cnn_jax.studies.plan import planned_finals, planned_searches, read_study, total_trials
from cnn_jax.studies.prepare import check_data, prepare, with_device
from cnn_jax.studies.progress import Progress
from cnn_jax.studies.question import Question, check
from cnn_jax.studies.record import Record
from cnn_jax.studies.study import Study, Trial
from cnn_jax.studies.together import apart_because, is_over, run_together
from cnn_jax.studies.trials import Planned, read_trial, run_trial
from cnn_jax.training import runtime
from cnn_jax.training.loop import STOP_CODE


def run_study(question: Question, tell: Callable[[str], None] = print) -> Study:
    """Runs a study, or goes on with it; writes the tables after each trial.

    Args:
        question: what is asked.
        tell: prints a message that names config fields in backticks.

    Returns:
        The finished study.

    Raises:
        UserError: a mistake in what is asked, or the folder holds something else.
        TrainingStopped: Ctrl-C; the trials that are over are saved.
    """
    check(question)
    record_file.check_folder(question.folder)
    try:
        with interruptible():
            runtime.prepare(question.base.train)
            with locked(question.folder):
                return _run_in_folder(question, tell)
    except (TrainingStopped, KeyboardInterrupt) as stop:
        if isinstance(stop, TrainingStopped) and stop.code != STOP_CODE:
            raise
        raise TrainingStopped(
            f"stopped after {_progress(question)} trials, all saved: the same command goes on", STOP_CODE
        ) from stop


def _run_in_folder(question: Question, tell: Callable[[str], None]) -> Study:
    """Runs a study in a folder that no other process writes to."""
    folder = question.folder
    found = record_file.read_record(folder)
    if found is not None:
        record_file.check_same(folder, question.settings, found.settings)
        study = read_study(folder, found)
        if len(study.trials) == total_trials(found, study):
            tell(f"finished already: {_publish(study)}; set another `workdir` for another study")
            return study
    print("preparing  data and candidates …", flush=True)
    if found is not None:
        check_data(question, found)
    prepared = prepare(question) if found is None else with_device(found)
    if prepared is not found:
        record_file.write_record(folder, prepared)
    for text in prepared.warnings:
        print(f"warning    {text}", flush=True)
    (folder / record_file.PAGE).unlink(missing_ok=True)  # the page of a study of which a trial was removed
    study = _run_all(question, prepared, tell)
    print(f"finished   {_publish(study)}", flush=True)
    return study


def _progress(question: Question) -> str:
    """Such as "3 of 10" trials, of a study that may not have begun."""
    record = record_file.read_record(question.folder)
    if record is None:
        searches = sum(candidate.searches(question.trials) for candidate in question.candidates)
        return f"0 of {searches + question.seeds * len(question.candidates)}"
    study = read_study(question.folder, record)
    return f"{len(study.trials)} of {total_trials(record, study)}"


def _publish(study: Study) -> Path:
    """Writes the tables and the page, unless they are there; returns the page."""
    shutil.rmtree(study.folder / record_file.TOGETHER, ignore_errors=True)  # left by a process that was killed
    page = study.folder / record_file.PAGE
    if not page.exists():
        record_file.write_tables(study)
        write_page(study)
    return page


def _trial_config(question: Question, record: Record, planned: Planned) -> Config:
    """The config of a trial. The search never sees the test set, and needs no report."""
    candidate = next(of for of in question.candidates if of.label == planned.candidate)
    config, steps = question.config(candidate), record.steps[planned.candidate]
    fields: dict[str, Any] = {"workdir": str(planned.folder), "seed": planned.seed, "epochs": None, "steps": steps}
    if "eval_every" not in {*question.explicit, *candidate.fields}:
        fields["eval_every"] = usual_eval_every(steps, record.steps_per_epoch[planned.candidate])
    if "checkpoints" not in question.explicit:
        fields["checkpoints"] = False  # writing them takes longer than many a trial, which then starts over
    if planned.phase == "search":
        fields |= {"test_split": NO_TEST, "report": False, "logger": ()}
    return with_settings(config, planned.settings).override(**fields).resolve()


def _run_all(question: Question, record: Record, tell: Callable[[str], None]) -> Study:
    """Runs the trials that are not over: the search first, then the finals, which depend on it."""
    folder, known = question.folder, {}

    def read(planned: Planned) -> Trial | None:
        if planned.folder not in known and (trial := read_trial(planned)) is not None:
            known[planned.folder] = trial
        return known.get(planned.folder)

    progress = Progress(record)
    study = read_study(folder, record, read)
    groups = _together(question, record, tell)
    for phase in ("search", "final"):
        searched = [trial for trial in study.trials if trial.phase == "search"]
        every = groups if phase == "search" else [[of] for of in planned_finals(folder, record, searched)]
        waiting = every[::-1]
        while waiting:
            group = waiting.pop()
            todo = [planned for planned in group if read(planned) is None]
            if not todo:
                continue
            progress.start()
            if not _run(question, record, group, whole=len(todo) == len(group)):
                middle = len(group) // 2
                waiting += [group[middle:], group[:middle]]
                continue
            study = read_study(folder, record, read)
            record_file.write_tables(study)
            progress.tell(todo, study)
    return study


def _together(question: Question, record: Record, tell: Callable[[str], None]) -> list[list[Planned]]:
    """The trials of the search, in groups of those that are trained at once."""
    planned = planned_searches(question.folder, record)
    if question.together == "no" or (question.together == "auto" and jax.default_backend() == "cpu"):
        return [[of] for of in planned]
    groups, apart = [], {}
    for label, own in groupby(planned, key=lambda of: of.candidate):
        group = list(own)
        if why := apart_because(group, _trial_config(question, record, group[0])):
            groups += [[of] for of in group]
            apart.setdefault(why, []).append(label)
        else:
            groups.append(group)
    if question.together == "yes":
        for why, labels in apart.items():
            tell(f"one by one {', '.join(labels)}: {why}")
    return groups


def _run(question: Question, record: Record, group: Sequence[Planned], whole: bool) -> bool:
    """Runs trials; False if they must be run in smaller groups.

    Smaller groups are always halves, so that a study that is interrupted trains the same trials at once.

    Args:
        question: what is asked.
        record: of the study.
        group: trials, of which some are not over.
        whole: none of them is.
    """
    configs = [_trial_config(question, record, planned) for planned in group]
    if len(group) == 1:
        run_trial(group[0], configs[0], question.given, record.selection)
        return True
    return (whole or is_over(group)) and run_together(group, configs, question.given, record)
