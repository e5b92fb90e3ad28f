"""Metrics as a table: `metrics.csv` in the run folder, a line a step, a column a tag."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from cnn_jax.storage.run_folder import METRICS_CSV, write_text


class CsvLogger:
    """Keeps the table in memory and writes it whole at each flush: a tag that comes later gets a column.

    Numbers are written so that they read back exactly. A cell is empty where a step has no such number, or one that is
    not finite.

    Args:
        run: the run folder.
        first_step: lines of later steps, left by an interrupted run, are dropped.
    """

    def __init__(self, run: Path, first_step: int):
        self._path = run / METRICS_CSV
        self._rows: dict[int, dict[str, str]] = {}
        self._tags: dict[str, None] = {}  # a set that keeps its order
        if first_step and self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if row["step"].isdigit() and int(row["step"]) <= first_step:
                        step = int(row.pop("step"))
                        self._rows[step] = row
                        self._tags |= dict.fromkeys(row)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds to the line of a step."""
        self._tags |= dict.fromkeys(values)
        line = self._rows.setdefault(step, {})
        line |= {tag: repr(float(value)) if math.isfinite(value) else "" for tag, value in values.items()}

    def flush(self) -> None:
        """Writes the table whole or not at all."""
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *self._tags], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))
        write_text(self._path, text.getvalue())

    def close(self) -> None:
        """Writes the table."""
        self.flush()
