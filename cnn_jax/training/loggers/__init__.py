"""Loggers: where metrics go besides metrics.jsonl. Importing this module imports none of their libraries.

    tensorboard   tensorboard/, one event file per process
    csv           metrics.csv, one row per step and one column per metric
    mlflow        an MLflow run, in mlflow/ unless MLFLOW_TRACKING_URI is set
    wandb         a Weights & Biases run, with local files in wandb/

To add one, write a class with `log`, `flush` and `close`, add it to `LOGGERS`, and list its files in
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
        """Logs values of `step` by tag, such as "train/loss" or "validation/accuracy"; steps never decrease."""
        ...

    def flush(self) -> None:
        """Makes the logged values visible to readers."""
        ...

    def close(self) -> None:
        """Flushes and closes."""
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


# (run folder, number of updates so far, config as a flat dict) → logger. Opened in this order: those that write outside
# the run folder come last.
LOGGERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Logger]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
EXTRAS = {"mlflow": "mlflow", "wandb": "wandb"}  # logger → library; the extra to install has the logger's name


def check_loggers(names: Sequence[str]) -> None:
    """Checks that the loggers are known and their libraries installed, without importing them.

    Raises:
        UserError: one is unknown, or its library is missing.

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

    If one cannot be opened, closes the others and removes their new files.

    Args:
        names: keys of `LOGGERS`.
        run: the run folder, which must exist.
        first_step: number of updates so far; 0 starts a new log, otherwise the run's log is continued.
        config: settings of the run, for services to show.

    Raises:
        UserError: a name is unknown, a library is not installed, or a service refuses.
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
