"""Runs rows one after another in folders of their own; a finished row is not run again."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError, unknown
from cnn_jax.runs.results import with_section
from cnn_jax.storage import durable
from experiments.mnist_table.measure import Result
from experiments.mnist_table.rows import ROWS, Row
from experiments.mnist_table.table import Record, draw, markdown, record, write_records

RESULT = "result.json"  # in the folder of a finished row: its settings and what they gave


def choose(names: Sequence[str] | None) -> list[Row]:
    """Returns the rows of these names, in the order of the table; all for None.

    Raises:
        UserError: an unknown name.
    """
    for name in names or ():
        if name not in ROWS:
            raise unknown("row", name, ROWS)
    return [row for row in ROWS.values() if names is None or row.name in names]


def make_table(
    rows: Sequence[Row],
    budget: str,
    folder: Path,
    *,
    seeds: int | None = None,
    page: str | None = None,
    csv: str | None = None,
) -> list[Record]:
    """Measures rows that are not finished, and writes table.csv, table.md and table.png after each of them.

    Args:
        rows: to measure; the table has all rows, those that are not measured without figures.
        budget: "quick" or "full".
        folder: of the table; each row has a folder in it.
        seeds: number of seeds of each network row; default: the row's own.
        page: Markdown page whose table, between the markers "mnist-table", is replaced at the end.
        csv: file for another copy of the rows.

    Returns:
        The rows of the table.

    Raises:
        UserError: `page` lacks the markers, or a row cannot be measured, see `cnn_jax.training.run.train`.
    """
    text = None if page is None else Path(page).read_text(encoding="utf-8")
    if text is not None:
        with_section(text, "mnist-table", "")  # fails now, not after 40 minutes
    for row in rows:
        settings, own = row.settings(budget, seeds), folder / row.name
        if _known(own, settings) is not None:
            print(f"row        {row.name}: finished already", flush=True)
        elif lacks := _lacks(row):
            print(f"row        {row.name}: {lacks}", flush=True)
        else:
            print(f"row        {row.name}: {row.title}", flush=True)
            _save(own, settings, row.measure(settings, own))
        _write(folder, budget)
    records = _write(folder, budget)
    if text is not None:
        Path(str(page)).write_text(with_section(text, "mnist-table", markdown(records)), encoding="utf-8")
    if csv is not None:
        write_records(Path(csv), records)
    print(f"\n{markdown(records)}\n\nwrote {folder / 'table.md'}, table.csv and table.png")
    return records


def _write(folder: Path, budget: str) -> list[Record]:
    """Writes the table of the rows finished so far; returns it."""
    records = []
    for row in ROWS.values():
        settings, result = _read(folder / row.name) or (row.settings(budget), None)
        records.append(record(row, budget, settings, result, _lacks(row) if result is None else ""))
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "table.csv", records)
    durable.write(folder / "table.md", f"{markdown(records)}\n".encode())
    durable.write(folder / "table.png", draw(records))
    return records


def _lacks(row: Row) -> str:
    """What to install before the row can be measured; "" for nothing."""
    return row.lacks if row.needs and importlib.util.find_spec(row.needs) is None else ""


def _save(folder: Path, settings: Mapping[str, Any], result: Result) -> None:
    text = json.dumps({"settings": settings, "result": asdict(result)}, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    durable.write(folder / RESULT, f"{text}\n".encode())


def _read(folder: Path) -> tuple[dict[str, Any], Result] | None:
    """Returns the settings and the result of a finished row; None if it is not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = found["result"]
        return found["settings"], Result(**values | {"errors": tuple(values["errors"])})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and run the row again") from error


def _known(folder: Path, settings: Mapping[str, Any]) -> Result | None:
    """Returns the result of a row finished with these settings."""
    found = _read(folder)
    return found[1] if found is not None and found[0] == json.loads(json.dumps(settings)) else None
