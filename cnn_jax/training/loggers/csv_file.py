"""Metrics as a table: a row a step, a column a metric.

An empty cell is a metric that was not measured at that step. `nan`, `inf` and `-inf` are written as such, which
`float` and pandas read. A metric that appears later becomes a further column on the right.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnn_jax.errors import UserError
from cnn_jax.storage.run_folder import write_bytes


class CsvLogger:
    """Writes a CSV file whose first column is `step`.

    Args:
        path: of the file; 0 as `first_step` replaces it.
        first_step: rows of later steps, which an interrupted run left, are dropped.

    Raises:
        UserError: the file to continue is damaged.
        OSError: it cannot be written; so does `log`.
    """

    def __init__(self, path: Path, first_step: int):
        self._path = path
        self._columns, rows = _read(path, first_step) if first_step and path.exists() else (["step"], [])
        self._replace(rows)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds to the row of `step`, which is the last one or a new one."""
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
        """Writes the file anew with today's columns, whole or not at all, and opens it behind its last row."""
        lines = [_line(self._columns), *(_line([row.get(column, "") for column in self._columns]) for row in rows)]
        write_bytes(self._path, b"".join(lines))
        self._file = open(self._path, "r+b")
        self._file.seek(0, 2)
        self._row = dict(rows[-1]) if rows else {}
        self._start = self._file.tell() - (len(lines[-1]) if rows else 0)


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read(path: Path, last_step: int | None) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and the rows up to `last_step`, empty cells left out; half a last line is ignored."""
    text = path.read_bytes().decode(errors="replace")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    columns, rows = lines[0] if lines else ["step"], []
    if columns[:1] != ["step"]:
        raise UserError(f"{path}: the first column is not `step`: delete or move the file")
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) != len(columns) or not cells[0].isdecimal():
            raise UserError(f"{path}: row {number} is damaged: delete that row")
        if last_step is None or int(cells[0]) <= last_step:
            rows.append({column: cell for column, cell in zip(columns, cells) if cell})
    return columns, rows
