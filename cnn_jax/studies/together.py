"""Trains the search trials of a candidate at once: one run of as many members, then a folder for each trial.

The folders hold what those of trials run one by one do, so that nothing else need know how a trial was run. The run has
a folder of its own, which is removed when every trial has its own. Killed in between, the study goes on from there.
"""

import io
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cnn_jax.config import Config
from cnn_jax.data.memory import DoesNotFit
from cnn_jax.errors import Diverged
from cnn_jax.optim.optimizers import DECAY, get_optimizer_spec
from cnn_jax.optim.spaces import RATE
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.studies.record import TOGETHER, Record
from cnn_jax.studies.trials import RESULT, Planned, diverged, write_result
from cnn_jax.training.experiment import Given
from cnn_jax.training.run import train

OVER = "together.json"  # what came out of each trial; written when the run is over
_DESCRIBING = (files.ENVIRONMENT, files.CLASSES, files.PREPROCESS, files.DATA)
_APART = {
    "patience": "`patience` may stop each trial at another step",
    "head_learning_rate": "`head_learning_rate` is another share of each trial's rate",
    "init_from": "`init_from` starts one network at a time",
}


def apart_because(planned: Sequence[Planned], config: Config) -> str | None:
    """Returns why the search trials of a candidate cannot be trained at once, in words; None if they can.

    Args:
        planned: the trials.
        config: that of the first.
    """
    if len(planned) == 1:
        return "there is one trial"
    if config.train.members > 1:
        return "each trial has several `members`"
    if len({json.dumps(dict(of.settings)) for of in planned}) < len(planned):
        return "trials have the same settings"
    return next((why for field, why in _APART.items() if config.flat()[field] is not None), None)


def run_together(planned: Sequence[Planned], configs: Sequence[Config], given: Given, record: Record) -> bool:
    """Runs search trials of a candidate as one, or goes on with it; False if there is too little memory for that.

    Args:
        planned: the trials.
        configs: of their runs, which differ only by what `planned` sets.
        given: objects that replace names in the config.
        record: of the study.

    Raises:
        UserError: the config does not fit the data.
        TrainingStopped: Ctrl-C.
    """
    folder = together_folder(planned)
    if not is_over(planned):
        if folder.is_dir() and not files.has_trained(folder):
            shutil.rmtree(folder)  # killed with nothing to go on from
        if not _fits(together_config(planned, configs, folder), given):
            shutil.rmtree(folder, ignore_errors=True)
            return False
        found = [_result(of, configs[0], record) for of in _members(folder, len(planned))]
        durable.write(folder / OVER, (json.dumps(found, indent=2) + "\n").encode())
    results = json.loads((folder / OVER).read_text(encoding="utf-8"))
    for of, config, result, member in zip(planned, configs, results, _members(folder, len(planned)), strict=True):
        if not (of.folder / RESULT).is_file():
            _write_trial(of.folder, config, {**result, "together": len(planned)}, member, folder)
    shutil.rmtree(folder)
    return True


def together_folder(planned: Sequence[Planned]) -> Path:
    """Where these trials are trained at once."""
    first, last = planned[0], planned[-1]
    return first.folder.parents[1] / TOGETHER / f"{first.folder.name}-to-{last.number:02d}"


def is_over(planned: Sequence[Planned]) -> bool:
    """Whether these trials have been trained at once, though some may lack folders of their own."""
    return (together_folder(planned) / OVER).is_file()


def together_config(planned: Sequence[Planned], configs: Sequence[Config], folder: Path) -> Config:
    """Returns the config of the run whose members are these trials."""
    first, searched = configs[0], [name for name in planned[0].settings if name != RATE]
    usual = get_optimizer_spec(first.optim.optimizer).learning_rate
    values = {name: ",".join(repr(of.settings[name]) for of in planned) for name in searched}
    fields: dict[str, Any] = {
        "workdir": str(folder),
        "learning_rate": None,
        "member_learning_rates": tuple(config.optim.learning_rate or usual for config in configs),
        "member_optimizer_args": tuple(f"{name}={texts}" for name, texts in values.items()),
        "optimizer_args": tuple(
            text for text in first.optim.optimizer_args if text.partition("=")[0].strip() not in searched
        ),
    }
    return first.override(**fields, **({DECAY: 0.0} if DECAY in searched else {})).resolve()


def _fits(config: Config, given: Given) -> bool:
    """Trains the run; False if there is too little memory."""
    try:
        train(config, given, quiet=True)
    except Diverged:  # the last of its networks has
        return True
    except DoesNotFit:
        return False
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False
    return True


class _Member(NamedTuple):
    """One of the networks: its rows, as if it had been trained alone, and the step at which it diverged, if it did."""

    rows: list[dict[str, Any]]
    end: int | None


def _members(folder: Path, count: int) -> list[_Member]:
    every = files.read_metrics(folder)
    return [_member([row for row in every if row.get("member") == number]) for number in range(count)]


def _member(rows: Sequence[dict[str, Any]]) -> _Member:
    end = next((row["step"] for row in rows if row["kind"] == "diverged"), None)

    def known(row: dict[str, Any]) -> bool:
        """Whether it would be known alone: it ends before that step, or in it if only validation is not finite."""
        return end is None or row["step"] < end or (row["step"] == end and math.isfinite(row.get("loss", math.nan)))

    own = ("member", "peak_learning_rate", "optimizer_args")
    return _Member([{name: row[name] for name in row if name not in own} for row in rows if known(row)], end)


def _result(member: _Member, config: Config, record: Record) -> dict[str, Any]:
    """What came out of a trial, as in `run_trial`."""
    validations, key = [row for row in member.rows if row["kind"] == "validation"], record.selection.key
    if member.end is not None:
        return diverged(validations, list(record.metrics), member.end, record.selection)
    last = validations[-1]
    best = last if config.train.select == "last" else max(validations, key=lambda row: (key(row), row["step"]))
    values = {name: best[name] for name in record.metrics}
    return {"status": "finished", "steps": last["step"], "best_step": best["step"], "validation": values, "test": {}}


def _write_trial(run: Path, config: Config, result: dict[str, Any], member: _Member, folder: Path) -> None:
    """Writes the folder of a trial, `trial.json` last, from that of the run of all."""
    shutil.rmtree(run, ignore_errors=True)  # killed while it was written
    run.mkdir(parents=True)
    files.write_text(run / files.CONFIG, config.to_json())
    for name in _DESCRIBING:
        files.write_text(run / name, (folder / name).read_text(encoding="utf-8"))
    metrics = io.BytesIO()
    for row in member.rows:
        files.write_metrics(metrics, row)
    durable.write(run / files.METRICS, metrics.getvalue())
    if result["status"] == "finished":
        shared = files.read_json(folder, files.SUMMARY)
        kept = {name: of for name, of in shared.items() if name not in ("rates", "best_member", RATE, "optimizer_args")}
        own = {f"validation_{name}": value for name, value in result["validation"].items()}
        summary = {**kept, **own, "best_step": result.pop("best_step")}
        files.write_text(run / files.SUMMARY, json.dumps(summary, indent=2) + "\n")
    write_result(run, result)
