"""The run folder: file names, metrics and config.

    .cnn_jax.lock        marks the folder as a run's, and names the process that last wrote to it, see `lock`
    config.json          the whole config (`cnn_jax.config.Config`)
    environment.json     versions, devices, command, commit
    classes.txt          class names, one a line, in the order of the logits
    preprocess.json      image shape, mean and standard deviation
    data.json            number and checksum of the examples of each split
    metrics.jsonl        one JSON object per line, see `append_metrics`
    tensorboard/, …      the same metrics from the config's loggers: also metrics.csv, wandb/ and mlflow/
    checksums.json       of the files above and below that are read again, see `durable`
    checkpoints/STEP/    train state to resume from
    final.safetensors    the selected weights; written when training ends
    members.safetensors  the weights of all networks, if learning rates are compared
    summary.json         the run in one object: accuracies, seconds, parameters, device, …
    report.html, plots/  the report, and its figures as separate files

`load` needs only this folder. This module imports no JAX.
"""

import contextlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.storage import durable
from cnn_jax.storage.lock import LOCK

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
CLASSES = "classes.txt"
PREPROCESS = "preprocess.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
CSV = "metrics.csv"
MLFLOW, MLFLOW_ID = "mlflow", "mlflow_run.txt"
WANDB, WANDB_ID = "wandb", "wandb_run.txt"
LOGGED = (TENSORBOARD, CSV, MLFLOW, MLFLOW_ID, WANDB, WANDB_ID)  # what loggers write
CHECKPOINTS = "checkpoints"
WEIGHTS = "final.safetensors"
MEMBERS = "members.safetensors"
SUMMARY = "summary.json"
REPORT = "report.html"
PLOTS = "plots"
UNFINISHED = ".before-unfinished"  # `BEFORE` while the run's files are moved into it or out of it
BEFORE = ".before"  # the replaced run, kept until the new one has compiled
REMOVED = ".removed"  # what is being deleted: the replaced run or, if that is brought back, the new one
ALL = (
    durable.CHECKSUMS,
    CONFIG,
    ENVIRONMENT,
    CLASSES,
    PREPROCESS,
    DATA,
    METRICS,
    *LOGGED,
    CHECKPOINTS,
    WEIGHTS,
    MEMBERS,
    SUMMARY,
    REPORT,
    PLOTS,
)


def write_text(path: Path, text: str) -> None:
    """Writes a text file of a run in UTF-8, with its checksum."""
    durable.write_checked(path, text.encode())


def check_ours(run: Path) -> None:
    """Checks that nothing in a folder would be overwritten or removed but files of a run.

    Raises:
        UserError: the folder was never a run's, and has files with the names of a run's files.
    """
    there = [name for name in ALL if (run / name).exists()]
    if not there or any((run / name).exists() for name in (LOCK, BEFORE, UNFINISHED)):
        return
    with contextlib.suppress(UserError):
        Config.load(run / CONFIG)  # a run of an earlier version
        return
    raise UserError(
        f"{run} is not a run folder, but has {', '.join(there)}, which a run would overwrite: set another `workdir`"
    )


def has_trained(run: Path) -> bool:
    """Whether the folder holds training results, which a new run would lose."""
    return has_checkpoint(run) or any((run / name).exists() for name in (WEIGHTS, SUMMARY))


def has_checkpoint(run: Path) -> bool:
    """Whether the run has a checkpoint."""
    return any(path.name.isdigit() for path in (run / CHECKPOINTS).glob("*"))


def set_aside(run: Path) -> None:
    """Moves only the run's files into a subfolder, to make way for a new run; see `forget`.

    Creates the run folder if there is none. The subfolder gets its final name last: whichever step is interrupted,
    `bring_back` can tell the old run's files from the new one's.
    """
    (run / UNFINISHED).mkdir(parents=True)
    durable.sync_folder(run.parent)
    _move(run, run / UNFINISHED)
    _rename(run / UNFINISHED, run / BEFORE)


def bring_back(run: Path) -> None:
    """Undoes `set_aside`, if it was called, and removes what has been written since.

    If it is interrupted, calling it again completes it.
    """
    _remove(run / REMOVED)
    if (run / BEFORE).is_dir():
        (run / REMOVED).mkdir()
        _move(run, run / REMOVED)
        _rename(run / BEFORE, run / UNFINISHED)
    if (run / UNFINISHED).is_dir():  # from here on, no file of a new run is left, and nothing may be removed
        _move(run / UNFINISHED, run)
        (run / UNFINISHED).rmdir()
    _remove(run / REMOVED)


def forget(run: Path) -> None:
    """Deletes what `set_aside` moved."""
    _remove(run / REMOVED)
    if (run / BEFORE).is_dir():
        _rename(run / BEFORE, run / REMOVED)  # rename first: a half-deleted run must not be restored
        _remove(run / REMOVED)


def remove_partial(run: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote to the folder, see `durable.write`."""
    for folder, names in ((run, ALL), (run / PLOTS, None)):
        for path in folder.glob(".*"):
            match = _PARTIAL.fullmatch(path.name)
            if match and (names is None or match[1] in names) and path.is_file():
                with contextlib.suppress(OSError):  # a read-only folder
                    path.unlink()


_PARTIAL = re.compile(r"\.(.+)\.[0-9]+")


def _move(source: Path, target: Path) -> None:
    """Moves the run's files to another folder, and returns once that would survive power loss."""
    for name in ALL:
        if os.path.lexists(source / name):
            os.replace(source / name, target / name)
    durable.sync_folder(target)
    durable.sync_folder(source)


def _rename(source: Path, target: Path) -> None:
    os.replace(source, target)
    durable.sync_folder(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # on a read-only file system, even removing nothing fails
        path.unlink()


def append_metrics(run: str | Path, row: Mapping[str, Any]) -> None:
    """Appends a line to `metrics.jsonl`, after removing a partial last line left by a crash.

    Args:
        run: the run folder.
        row: see `write_metrics`.
    """
    with open_metrics(run) as file:
        write_metrics(file, row)


def open_metrics(run: str | Path) -> BinaryIO:
    """Opens `metrics.jsonl` for `write_metrics` and removes a partial last line left by a crash."""
    file = open(Path(run) / METRICS, "ab+")
    file.truncate(_end_of_last_line(file))
    return file


def write_metrics(file: BinaryIO, row: Mapping[str, Any]) -> None:
    """Appends a line and flushes it, so that the file can be followed live.

    Args:
        file: from `open_metrics`.
        row: `kind` ("train", "validation", "test" or "gauges"), `step`, `epoch`, `loss`, `accuracy`, `seconds` since
            the start of training, and for "train" `learning_rate` and `images_per_second`; if learning rates are
            compared, also `member` (0, 1, …), `peak_learning_rate` and `optimizer_args`, if these are, too. Then a row
            of kind "diverged" has no metrics. Non-finite numbers are written as null, since JSON has no NaN.
            "crc" is added, the CRC-32 of the line without it.
    """
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
    plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in plain.items()}
    body = json.dumps(plain, allow_nan=False)
    file.write(f"{body[:-1]}{_checksum(body)}\n".encode())
    file.flush()


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Returns the rows that `append_metrics` wrote, in order; null is read as NaN.

    A resumed run repeats the steps after its checkpoint; only its latest rows count. A train row whose step is not
    later than that of the row before it discards all rows after its own step, and of rows with equal kind, step and
    member the last is kept. A partial last line (the run is still writing, or crashed) is ignored.

    Raises:
        UserError: the file is missing, or a line in it is damaged.
    """
    path = Path(run) / METRICS
    lines = read_text(path, "the metrics of a run").split("\n")[:-1]
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    last_train = (-1, 0)
    for number, line in enumerate(lines, 1):
        try:
            row: dict[str, Any] = {n: math.nan if v is None else v for n, v in json.loads(line).items()}
            kind, step = row["kind"], int(row["step"])
            if row.pop("crc", None) is not None:
                body = f"{line[: -len(_checksum(''))]}}}"
                if not line.endswith(_checksum(body)):
                    raise ValueError
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            what = "not a row of metrics, or is damaged"
            raise UserError(f"line {number} of {path} is {what}: delete that line") from error
        member = row.get("member", 0)
        if kind == "train":
            if (step, member) <= last_train:
                rows = {key: kept for key, kept in rows.items() if key[1] <= step}
            last_train = (step, member)
        rows.pop((kind, step, member), None)
        rows[kind, step, member] = row
    return list(rows.values())


def _checksum(body: str) -> str:
    """The end of a row of metrics: its checksum."""
    return f', "crc": "{zlib.crc32(body.encode()):08x}"}}'


def read_classes(run: str | Path) -> tuple[str, ...]:
    """Returns the class names in the order of the logits."""
    text = read_text(Path(run) / CLASSES, "the class names of a run")
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def read_json(run: str | Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in the file `name` of the run.

    Raises:
        UserError: the file is absent or not a JSON object.
    """
    path = Path(run) / name
    try:
        record = json.loads(read_text(path, f"the {name} of a run"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {_mend(name)}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} holds a {type(record).__name__} instead of a JSON object: {_mend(name)}")
    return record


def read_config(run: str | Path) -> Config:
    """Returns the config of the run.

    Raises:
        UserError: `run` is not a run folder, or its config is damaged.
    """
    path = Path(run) / CONFIG
    if not Path(run).exists():
        raise UserError(f"there is no folder {run}: name that of a run, such as runs/mnist_lenet5")
    if not path.is_file():
        raise UserError(f"{run} is not a run folder, as it has no {CONFIG}: name one, such as runs/mnist_lenet5")
    check(path)
    return Config.load(path)


def read_text(path: Path, what: str) -> str:
    """Reads a text file of a run; `what` is its name in messages.

    Raises:
        UserError: the file is missing, damaged or not UTF-8.
    """
    check(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise UserError(f"cannot read {path}, {what} ({reason}): {_mend(path.name)}") from error


def check(path: Path) -> None:
    """Compares a file of a run with its checksum.

    Raises:
        UserError: it is damaged.
    """
    try:
        durable.check(path)
    except durable.ChecksumsDamaged as error:
        raise durable.ChecksumsDamaged(
            f"{error}; delete it, and the run's files are used without being checked"
        ) from error
    except durable.Damaged as error:
        raise UserError(f"{error}; {_mend(path.name)}") from error


def _mend(name: str) -> str:
    """Advice for a missing or damaged run file. The summary can be regenerated, because it is written last."""
    if name == SUMMARY:
        return "delete it and repeat the command of the run, which resumes from its last checkpoint"
    return "put it back, or train again with `fresh`"


def _end_of_last_line(file: Any) -> int:
    """Position after the last newline of an open binary file."""
    block = 4096
    end = file.seek(0, 2)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
