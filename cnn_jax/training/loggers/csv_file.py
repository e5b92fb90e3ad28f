"""Logs metrics to a CSV table: one row per step, one column per metric.

An empty cell is a metric that was not measured at that step. `nan`, `inf` and `-inf` are written as such, which
`float` and pandas read. A metric that first appears later gets a new column on the right.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnn_jax.errors import UserError
from cnn_jax.storage import durable


class CsvLogger:
    """Writes a CSV file whose first column is `step`.

    Args:
        path: the file.
        first_step: number of updates so far; 0 replaces the file, otherwise rows of later steps, left by an
            interrupted run, are dropped.

    Raises:
        UserError: the existing file is damaged.
        OSError: the file cannot be written; `log` raises it too.
    """

    def __init__(self, path: Path, first_step: int):
        self._path = path
        self._columns, rows = _read(path, first_step) if first_step and path.exists() else (["step"], [])
        self._replace(rows)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds values to the row of `step`, which is the last row or a new one."""
        new = [tag for tag in values if tag not in self._columns]
        if new:
            self._file.flush()
            _, rows = _read(self._path, None)
            self._file.close()
            self._columns += new
            self._replace(rows)
        if self._row.get("step") == str(step):
            self._file.seek(self._start)
            self._file.truncate()
        else:
            self._row = {"step": str(step)}
        self._row |= {tag: repr(float(value)) for tag, value in values.items()}
        self._start = self._file.tell()
        self._file.write(_line([self._row.get(column, "") for column in self._columns]))

    def flush(self) -> None:
        """Writes the buffer to the file."""
        self._file.flush()

    def close(self) -> None:
        """Writes the buffer and closes the file."""
        self._file.close()

    def _replace(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Rewrites the file atomically with the current columns, and opens it for appending."""
        lines = [_line(self._columns), *(_line([row.get(column, "") for column in self._columns]) for row in rows)]
        durable.write(self._path, b"".join(lines))
        self._file = open(self._path, "r+b")
        self._file.seek(0, 2)
        self._row = dict(rows[-1]) if rows else {}
        self._start = self._file.tell() - (len(lines[-1]) if rows else 0)


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read(path: Path, last_step: int | None) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns, and the rows up to `last_step` without empty cells; ignores a partial last line."""
    text = path.read_bytes().decode(errors="replace")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    columns, rows = lines[0] if lines else ["step"], []
    if columns[:1] != ["step"]:
        raise UserError(f"the first column of {path} is not 'step': delete or move the file")
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) != len(columns) or not cells[0].isdecimal():
            raise UserError(f"row {number} of {path} is damaged: delete that row")
        if last_step is None or int(cells[0]) <= last_step:
            rows.append({column: cell for column, cell in zip(columns, cells) if cell})
    return columns, rows
