"""Metrics to MLflow, through its own library; MLFLOW_TRACKING_URI says where, by default the run folder."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jax.storage.run_folder import MLFLOW, MLFLOW_ID, write_text

MOST = 500  # characters of a parameter; MLflow refuses longer ones


class MlflowLogger:
    """One MLflow run for a run folder; resuming continues it.

    Args:
        run: the run folder, which gets the id of the MLflow run and, where no other place is set, `mlruns/`.
        first_step: number of updates done.
        config: logged as parameters.
    """

    def __init__(self, run: Path, first_step: int, config: Mapping[str, Any]):
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{(run / MLFLOW).resolve()}"
        self._client: Any = MlflowClient(tracking_uri=place)
        known = run / MLFLOW_ID
        if first_step and known.is_file():
            self._id = known.read_text().strip()
            return
        experiment = self._client.get_experiment_by_name("cnn_jax")
        number = self._client.create_experiment("cnn_jax") if experiment is None else experiment.experiment_id
        self._id = self._client.create_run(number, run_name=run.name).info.run_id
        write_text(known, f"{self._id}\n")
        for name, value in config.items():
            self._client.log_param(self._id, name, str(value)[:MOST])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds finite scalars at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        metrics = [Metric(tag, float(value), now, step) for tag, value in finite.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> None:
        """Does nothing: every batch is written at once."""

    def close(self) -> None:
        """Marks the MLflow run as finished."""
        self._client.set_terminated(self._id)
