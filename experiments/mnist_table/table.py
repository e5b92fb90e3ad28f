"""The table as CSV, Markdown and a figure, all made from the same records."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.report.figures import BLUE, ORANGE, QUIET, new_axes, png, style
from cnn_jax.report.markdown import markdown_table
from cnn_jax.storage import durable
from experiments.mnist_table.measure import Result
from experiments.mnist_table.rows import Row
from experiments.mnist_table.setting import setting, smaller

Record = dict[str, str]  # a row of the CSV file; error_mean is empty if the row was not measured
COLUMNS = (
    *("row", "title", "published", "source", "error_mean", "error_std", "seeds", "seconds", "parameters", "device"),
    *("budget", "setting", "note", "commit"),
)


def record(row: Row, budget: str, settings: Mapping[str, Any], result: Result | None, lacks: str = "") -> Record:
    """Makes a row of the table; without a result, one that says so, and what it lacks."""
    known = {
        "row": row.name,
        "title": row.title,
        "published": f"{row.published:g}",
        "source": row.source,
        "budget": budget,
        "setting": setting(settings, row.recipe),
        "note": lacks or row.note,
    }
    if result is not None:
        several = len(result.errors) > 1
        known |= {
            "error_mean": f"{statistics.mean(result.errors):.3f}",
            "error_std": f"{statistics.stdev(result.errors):.3f}" if several else "",
            "seeds": str(len(result.errors)),
            "seconds": f"{result.seconds:.1f}",
            "parameters": "" if result.parameters is None else str(result.parameters),
            "device": result.device,
            "commit": result.commit or "",
            "note": "; ".join(filter(None, (result.detail, smaller(settings, row.full), row.note))),
        }
    return {column: known.get(column, "") for column in COLUMNS}


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes the records as CSV with a header; creates the folder if absent."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, text.getvalue().encode())


def read_records(path: Path) -> list[Record]:
    """Reads what `write_records` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def markdown(records: Sequence[Record]) -> str:
    """Returns the records as a Markdown table: test errors in %, ours as mean ± standard deviation over the seeds."""
    head = ("Classifier", "Published (%)", "Ours (%)", "Seeds", "Time", "Parameters", "Setting", "Device", "Notes")
    return markdown_table(head, map(_cells, records), range(1, 6))


def _cells(row: Record) -> tuple[str, ...]:
    measured = bool(row["error_mean"])
    error = f"{float(row['error_mean']):.2f}" if measured else "not run"
    error += f" ± {float(row['error_std']):.2f}" if row["error_std"] else ""
    return (
        f"{row['title']} (`{row['row']}`)",
        f"{row['published']} ({row['source']})",
        error,
        row["seeds"] or "–",
        _time(float(row["seconds"])) if measured else "–",
        f"{int(row['parameters']):,}" if row["parameters"] else "–",
        row["setting"] or "–",
        row["device"] or "–",
        row["note"],
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def draw(records: Sequence[Record]) -> bytes:
    """Plots published and measured errors, one line of the figure per row; returns a PNG file."""
    with style():
        figure, axes = new_axes(7.0, 0.34 * len(records) + 0.9)
        for place, row in enumerate(records):
            published, measured = float(row["published"]), bool(row["error_mean"])
            axes.plot(published, place, "o", color=ORANGE, markersize=6)
            right, text, color = published, "not run", QUIET
            if measured:
                ours, std = float(row["error_mean"]), float(row["error_std"] or 0)
                axes.plot((published, ours), (place, place), color=QUIET, linewidth=1.0, zorder=1)
                axes.errorbar(ours, place, xerr=std or None, fmt="D", color=BLUE, markersize=5, capsize=3)
                right, text, color = max(ours + std, published), f"{ours:.2f}", BLUE
            offset: Any = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            axes.annotate(text, (right, place), color=color, **offset)
        axes.plot([], [], "o", color=ORANGE, markersize=6, label="published")
        axes.plot([], [], "D", color=BLUE, markersize=5, label="ours, ± standard deviation over seeds")
        ticks = (0.2, 0.5, 1, 2, 5, 10, 20)
        axes.set(xscale="log", xlim=(0.15, 35), xlabel="test error (%)", ylim=(len(records) - 0.4, -0.6))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_yticks(range(len(records)), [row["title"] for row in records])
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper left", fontsize=8, frameon=True, edgecolor="none", framealpha=1.0)
        return png(figure)
