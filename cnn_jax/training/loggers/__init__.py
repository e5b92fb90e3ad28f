"""Loggers: where a run's metrics go besides metrics.jsonl. Importing this imports none of their libraries.

    tensorboard   tensorboard/, one event file a process
    csv           metrics.csv, a row a step and a column a metric
    mlflow        an MLflow run; by default in mlflow/, else at MLFLOW_TRACKING_URI
    wandb         a Weights & Biases run, with its local files in wandb/

A new one: a class with `log`, `flush` and `close`, a line in `LOGGERS`, and the names of its files in
`cnn_jax.storage.run_folder.LOGGED`.
"""

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cnn_jax.errors import UserError, unknown
from cnn_jax.storage.run_folder import CSV, LOGGED, MLFLOW, MLFLOW_ID, TENSORBOARD, WANDB_ID


class Logger(Protocol):
    """Receives metrics as they are measured."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds values of `step` by tag, such as "train/loss" or "validation/accuracy"; steps never go back."""
        ...

    def flush(self) -> None:
        """Makes what was logged visible to those who watch."""
        ...

    def close(self) -> None:
        """Flushes and ends."""
        ...


def _tensorboard(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger(run / TENSORBOARD, first_step)


def _csv(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.csv_file import CsvLogger

    return CsvLogger(run / CSV, first_step)


def _mlflow(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.mlflow_run import MlflowLogger

    return MlflowLogger(run, run / MLFLOW, run / MLFLOW_ID, first_step, config)


def _wandb(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.wandb_run import WandbLogger

    return WandbLogger(run, run / WANDB_ID, first_step, config)


# (run folder, number of updates done, config as a flat dict) → logger. Opened in this order: those that leave
# something outside the run folder last.
LOGGERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Logger]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
EXTRAS = {"mlflow": "mlflow", "wandb": "wandb"}  # logger → its library, installed by the extra of the logger's name


def check_loggers(names: Sequence[str]) -> None:
    """Checks that the loggers are known and their libraries installed, without importing them.

    Raises:
        UserError: one is not.

    >>> check_loggers(["cvs"])
    Traceback (most recent call last):
    cnn_jax.errors.UserError: unknown logger 'cvs'; perhaps you meant csv (known: csv, mlflow, tensorboard, wandb)
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
        library = EXTRAS.get(name)
        if library is not None and importlib.util.find_spec(library) is None:
            raise UserError(f"the logger {name} needs the library {library}: pip install 'cnn_jax[{name}]'")


def make_loggers(names: Sequence[str], run: Path, first_step: int, config: Mapping[str, Any]) -> list[Logger]:
    """Opens loggers, each once, in the order of `LOGGERS`.

    If one cannot be opened, the others are closed and their new files removed.

    Args:
        names: of `LOGGERS`.
        run: run folder; it exists.
        first_step: number of updates done; 0 starts a new log, else the log of this run is continued.
        config: what a service shows as the run's settings.

    Raises:
        UserError: an unknown name, a library that is not installed, or a service that refuses.
        OSError: a file cannot be written.
    """
    check_loggers(names)
    new = [name for name in LOGGED if not (run / name).exists()]
    opened: list[Logger] = []
    try:
        for name, make in LOGGERS.items():
            if name in names:
                opened.append(make(run, first_step, config))
    except BaseException:
        for logger in opened:
            with contextlib.suppress(Exception):  # the first error is the one to show
                logger.close()
        for name in new:
            shutil.rmtree(run / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (run / name).unlink(missing_ok=True)
        raise
    return opened
