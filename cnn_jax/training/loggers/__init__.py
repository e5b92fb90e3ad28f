"""Where metrics go besides metrics.jsonl. A logger is an object with `log`, `flush` and `close`."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cnn_jax.errors import UserError, unknown


class Logger(Protocol):
    """Takes scalars by their tags, such as "train/loss"."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds the scalars of one step."""
        ...

    def flush(self) -> None:
        """Makes what was logged visible to readers."""
        ...

    def close(self) -> None:
        """Flushes and releases what the logger holds."""
        ...


Maker = Callable[[Path, int, Mapping[str, Any]], Logger]


def _tensorboard(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger(run, first_step)


def _csv(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.csv_file import CsvLogger

    return CsvLogger(run, first_step)


def _wandb(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.weights_and_biases import WandbLogger

    return WandbLogger(run, first_step, config)


def _mlflow(run: Path, first_step: int, config: Mapping[str, Any]) -> Logger:
    from cnn_jax.training.loggers.ml_flow import MlflowLogger

    return MlflowLogger(run, first_step, config)


LOGGERS: dict[str, Maker] = {"tensorboard": _tensorboard, "csv": _csv, "wandb": _wandb, "mlflow": _mlflow}
EXTRAS = ("wandb", "mlflow")  # loggers whose library of the same name is an extra of this package


def check_loggers(names: Sequence[str]) -> None:
    """Refuses loggers that cannot work, before any data are read.

    Raises:
        UserError: an unknown name, or a library that is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise UserError(f"the logger {name} needs a library that is not installed: pip install 'cnn_jax[{name}]'")


def make_loggers(names: Sequence[str], run: Path, first_step: int, config: Mapping[str, Any]) -> list[Logger]:
    """Opens loggers for a run.

    Args:
        names: keys of `LOGGERS`.
        run: the run folder.
        first_step: rows of later steps, left by an interrupted run, do not count.
        config: all fields of the run's config by name.

    Raises:
        UserError: see `check_loggers`.
    """
    check_loggers(names)
    made: list[Logger] = []
    try:
        for name in dict.fromkeys(names):
            made.append(LOGGERS[name](run, first_step, config))
    except BaseException:
        for logger in made:
            logger.close()
        raise
    return made
