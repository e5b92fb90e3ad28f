"""The table of speeds, results/speed.csv: one row per figure, with what is needed to judge and repeat it.

    python -m benchmarks.speed                      # writes it into docs/speed.md, between the markers of "speed"
    python -m benchmarks.speed --add DIR/speed.csv  # first takes over the rows of another table

A benchmark makes `Figure`s and passes them to `record`. New figures replace those of the same benchmark, case, measure
and device; all others stay.
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
from cnn_jax.report.markdown import markdown_table
from cnn_jax.runs.results import with_section
from cnn_jax.storage import durable

PATH = Path("results/speed.csv")
PAGE = Path("docs/speed.md")
Row = dict[str, str]


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        case: what was measured, such as "resnet20 batch 128".
        measure: which of its numbers, such as "ours / torch" or "step".
        value: the number; the median of several measurements.
        unit: "x" for a ratio, "ms", "images/s", …
        low, high: minimum and maximum of the measurements.
        n: number of measurements.
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
    """Makes the figure of several measurements: median, minimum and maximum.

    >>> figure("lenet5", "step", [2.0, 1.0, 4.0], "ms")
    Figure(case='lenet5', measure='step', value=2.0, unit='ms', low=1.0, high=4.0, n=3)
    """
    return Figure(case, measure, statistics.median(values), unit, min(values), max(values), len(values))


def table(text: str) -> Path:
    """Checks the path of a table, for `argparse`, so that an unusable one is refused before hours of measuring.

    Raises:
        UserError: the file is not a table of speeds.
        OSError: it cannot be written.
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
    """Writes figures into the table; does nothing if `path` is None.

    Args:
        path: CSV file; created if it does not exist.
        benchmark: name of the module, such as "versus_torch".
        figures: what was measured.
        extra_packages: distributions whose versions to record besides JAX's, such as "torch".
        extra_versions: other versions to record, such as a driver's.
    """
    if path is None:
        return
    import jax  # not needed to read or print the table

    from cnn_jax.ops import native
    from cnn_jax.training import runtime

    facts = runtime.environment(runtime.command_line())
    packages = ("jax", "jaxlib", "flax", *extra_packages)
    versions = [f"python {platform.python_version()}", *(f"{p} {importlib.metadata.version(p)}" for p in packages)]
    # Settings that change what is measured are part of the device's name, and so get rows of their own.
    device = facts["device"]
    if jax.default_backend() == "cpu" and not native.available():
        device += ", no compiled convolutions"
    if flags := os.environ.get("XLA_FLAGS"):
        device += f", XLA_FLAGS={flags}"
    origin = (device, ", ".join([*versions, *extra_versions]), facts["commit"] or "", facts["command"])
    add(path, [dict(zip(COLUMNS, (benchmark, *map(_text, asdict(f).values()), *origin), strict=True)) for f in figures])


def add(path: Path, new: Iterable[Row]) -> None:
    """Adds rows to the table, replacing those of the same benchmark, case, measure and device."""
    rows = {_key(row): row for row in (read(path) if path.exists() else [])}
    rows |= {_key(row): row for row in new}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows.values(), key=lambda row: row["benchmark"]))  # stable: cases stay in order
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, text.getvalue().encode())


def read(path: str | Path = PATH) -> list[Row]:
    """Returns the rows of the table.

    Raises:
        UserError: the file cannot be read, or its columns are not `COLUMNS`.
    """
    try:
        reader = csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the table {path} ({error}): make one with --output {path}") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path} does not have the columns {', '.join(COLUMNS)}: name a speed table, or a new file")
    return list(reader)


def markdown(rows: Iterable[Row]) -> str:
    """Returns a Markdown table for each benchmark, under its name and the command that repeats its first figure."""
    parts = []
    for benchmark, group in groupby(rows, key=lambda row: row["benchmark"]):
        figures = list(group)
        head = ("Case", "Measure", "Value", "Range", "n", "Device", "Commit")
        table = markdown_table(head, map(_cells, figures), range(2, 5))
        parts.append(f"### {benchmark}\n\n`{figures[0]['command']}`\n\n{table}")
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    value = f"{row['value']} {row['unit']}"
    spread = f"{row['low']} to {row['high']}" if row["low"] else ""
    return (row["case"], row["measure"], value, spread, row["n"], row["device"], row["commit"])


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("benchmark", "case", "measure", "device"))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the table into the page.

    Raises:
        UserError: there is no table, or the page has no markers.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=PATH, help=f"CSV file (default {PATH})")
    parser.add_argument("--add", type=Path, metavar="CSV", help="another table whose rows to take over first")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"Markdown file (default {PAGE})")
    arguments = parser.parse_args(argv)
    if arguments.add is not None:
        add(arguments.table, read(arguments.add))
    text = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(with_section(text, "speed", markdown(read(arguments.table))), encoding="utf-8")


if __name__ == "__main__":
    guard(main)
