"""The table of speeds, results/speed.csv: a row a figure, with everything one needs to know to trust it.

    python -m benchmarks.speed    # writes it into docs/speed.md, between the markers of "speed"

A benchmark makes `Figure`s and hands them to `record`. Figures measured anew replace those of the same benchmark, case,
measure and device; all others stay.
"""

import argparse
import csv
import importlib.metadata
import io
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path

from cnn_jax.commands.parser import ArgumentParser, guard
from cnn_jax.errors import UserError
from cnn_jax.runs.results import with_section
from cnn_jax.storage.run_folder import write_text

PATH = Path("results/speed.csv")
PAGE = Path("docs/speed.md")
Row = dict[str, str]


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        case: what was measured, such as "resnet20 batch 128".
        measure: which of its numbers, such as "ours / torch" or "step".
        value: the number, a median where there were several measurements.
        unit: "x" of a ratio, "ms", "images/s", …
        low, high: least and greatest of the measurements.
        n: how many measurements.
    """

    case: str
    measure: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int = 1

    def __str__(self) -> str:
        spread = "" if self.low is None else f" ({_text(self.low)} to {_text(self.high)}, n {self.n})"
        return f"{self.case}: {self.measure} {_text(self.value)} {self.unit}{spread}"


COLUMNS = ("benchmark", *(field.name for field in fields(Figure)), "device", "versions", "commit", "command")


def figure(case: str, measure: str, values: Sequence[float], unit: str) -> Figure:
    """Median, least and greatest of several measurements.

    >>> figure("lenet5", "step", [2.0, 1.0, 4.0], "ms")
    Figure(case='lenet5', measure='step', value=2.0, unit='ms', low=1.0, high=4.0, n=3)
    """
    return Figure(case, measure, statistics.median(values), unit, min(values), max(values), len(values))


def table(text: str) -> Path:
    """Reads the path of a table, for `argparse`: what cannot be written is said before hours of measuring.

    Raises:
        UserError: it is another file than a table of speeds, or cannot be written.
    """
    path = Path(text)
    if path.exists():
        read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a"):
        pass
    if path.stat().st_size == 0:
        path.unlink()
    return path


def record(
    path: Path | None,
    benchmark: str,
    figures: Iterable[Figure],
    extra_packages: Sequence[str] = (),
    extra_versions: Sequence[str] = (),
) -> None:
    """Writes figures into the table; nothing if `path` is None.

    Args:
        path: CSV file, made if absent.
        benchmark: name of the module, such as "versus_torch".
        figures: what was measured.
        extra_packages: distributions whose versions matter besides JAX's own, such as "torch".
        extra_versions: what else belongs beside the versions, such as a driver's.
    """
    if path is None:
        return
    import jax  # which the table does not need

    from cnn_jax.ops import native
    from cnn_jax.training import runtime

    facts = runtime.environment(runtime.command_line())
    packages = ("jax", "jaxlib", "flax", *extra_packages)
    versions = [f"python {platform.python_version()}", *(f"{p} {importlib.metadata.version(p)}" for p in packages)]
    # Settings of the environment that change what is measured; as part of the device, they have rows of their own.
    device = facts["device"]
    if jax.default_backend() == "cpu" and not native.available():
        device += ", no compiled convolutions"
    if flags := os.environ.get("XLA_FLAGS"):
        device += f", XLA_FLAGS={flags}"
    origin = (device, ", ".join([*versions, *extra_versions]), facts["commit"] or "", facts["command"])
    rows = {_key(row): row for row in (read(path) if path.exists() else [])}
    for f in figures:
        row = dict(zip(COLUMNS, (benchmark, *map(_text, asdict(f).values()), *origin), strict=True))
        rows[_key(row)] = row
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows.values(), key=lambda row: row["benchmark"]))  # cases stay in the order of measuring
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def read(path: str | Path = PATH) -> list[Row]:
    """Returns the rows of the table.

    Raises:
        UserError: the file cannot be read, or has other columns than `COLUMNS`.
    """
    try:
        reader = csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"given {path}: {error}; expected a table of speeds; measure with --output {path}") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"given {path} with other columns than {', '.join(COLUMNS)}; expected these; name another")
    return list(reader)


def markdown(rows: Iterable[Row]) -> str:
    """Returns a table for each benchmark, under its name and the command that repeats its first figure."""
    parts = []
    for benchmark, group in groupby(rows, key=lambda row: row["benchmark"]):
        figures = list(group)
        head = ("Case", "Measure", "Value", "Least to greatest", "n", "Device", "Commit")
        lines = [head, tuple("---:" if 2 <= i <= 4 else "---" for i in range(len(head))), *map(_cells, figures)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {benchmark}\n\n`{figures[0]['command']}`\n\n{table}")
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    value = f"{row['value']} {row['unit']}"
    spread = f"{row['low']} to {row['high']}" if row["low"] else ""
    cells = (row["case"], row["measure"], value, spread, row["n"], row["device"], row["commit"])
    return tuple(cell.replace("|", "\\|") for cell in cells)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("benchmark", "case", "measure", "device"))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the table into the page.

    Raises:
        UserError: no table, or a page without the markers.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=PATH, help=f"CSV file (default {PATH})")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"Markdown file (default {PAGE})")
    arguments = parser.parse_args(argv)
    text = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(with_section(text, "speed", markdown(read(arguments.table))), encoding="utf-8")


if __name__ == "__main__":
    guard(main)
