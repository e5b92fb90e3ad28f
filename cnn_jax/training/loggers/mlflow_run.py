"""Logs metrics to MLflow. `mlflow ui --backend-store-uri RUN/mlflow` shows the default store."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError
from cnn_jax.storage.run_folder import write_text

BATCH = 100  # parameters per request: MLflow's limit


class MlflowLogger:
    """One MLflow run. The experiment is MLFLOW_EXPERIMENT_NAME or `config["experiment"]`.

    Args:
        run: the run folder; the MLflow run gets its name.
        store: folder for the metrics, unless MLFLOW_TRACKING_URI names a server or database.
        id_file: stores the id of the MLflow run, so that a resumed run can continue it.
        first_step: 0 starts a new MLflow run.
        config: parameters of the MLflow run.

    Raises:
        UserError: MLflow refuses, or cannot be reached.
    """

    def __init__(self, run: Path, store: Path, id_file: Path, first_step: int, config: Mapping[str, Any]):
        from mlflow import entities  # pyright: ignore[reportMissingImports]
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._entities = entities
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow's lightweight client has no database, and refuses a folder unless this is set.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = store.resolve().as_uri()
        try:
            self._client = MlflowClient(uri)
            self._logged: dict[str, int] = {}
            known = id_file.read_text().strip() if first_step and id_file.exists() else ""
            if known:
                self._id = known
                self._continue()
            else:
                experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(config.get("experiment", "cnn_jax"))
                self._id = self._start(experiment, run.resolve().name, config)
        except MlflowException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"MLflow at {uri} failed ({reason}): set MLFLOW_TRACKING_URI, or use another `logger`"
            ) from error
        write_text(id_file, self._id + "\n")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends values, except those that were sent before an interruption."""
        now = int(time.time() * 1000)
        new = {tag: float(value) for tag, value in values.items() if step > self._logged.get(tag, -1)}
        if new:
            self._client.log_batch(
                self._id, metrics=[self._entities.Metric(tag, value, now, step) for tag, value in new.items()]
            )

    def flush(self) -> None:
        """Does nothing: `log` already waits until the values are stored."""

    def close(self) -> None:
        """Marks the run as finished; a resumed one is marked as running again."""
        self._client.set_terminated(self._id)

    def _start(self, experiment: str, name: str, config: Mapping[str, Any]) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        started = self._client.create_run(number, run_name=name).info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in config.items()]
        for first in range(0, len(params), BATCH):
            self._client.log_batch(started, params=params[first : first + BATCH])
        return started

    def _continue(self) -> None:
        for tag in self._client.get_run(self._id).data.metrics:
            self._logged[tag] = max(point.step for point in self._client.get_metric_history(self._id, tag))
        self._client.update_run(self._id, status="RUNNING")
