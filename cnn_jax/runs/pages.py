"""CSV files as tables of Markdown pages, between the marks `<!-- table: FILE.csv -->` and `<!-- /table -->`."""

import csv
import re
from pathlib import Path

from cnn_jax.errors import UserError
from cnn_jax.report.markdown import markdown_table

_OPEN = re.compile(r"^<!-- table: ", re.MULTILINE)
_MARKED = re.compile(r"(^<!-- table: (\S+\.csv) -->\n).*?(^<!-- /table -->$)", re.DOTALL | re.MULTILINE)


def has_tables(text: str) -> bool:
    """Whether a page has marks for tables."""
    return _OPEN.search(text) is not None


def with_tables(text: str, folder: str | Path = ".") -> str:
    """Returns the text of a page with each CSV file between the marks that name it, as a table.

    Args:
        text: the page.
        folder: where the names of the files start.

    Raises:
        UserError: a mark has no end, or its file cannot be read.
    """
    if len(_MARKED.findall(text)) != len(_OPEN.findall(text)):
        raise UserError(
            "each <!-- table: FILE.csv --> needs a line of its own, and <!-- /table --> below it: add what lacks"
        )
    return _MARKED.sub(lambda found: f"{found[1]}\n{csv_table(Path(folder) / found[2])}\n\n{found[3]}", text)


def csv_table(path: Path) -> str:
    """Returns a CSV file with a header as a Markdown table; columns of numbers are aligned to the right.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file, strict=True)
    except (OSError, ValueError, csv.Error) as error:  # ValueError: nothing in it, or not UTF-8
        raise UserError(f"cannot read the table {path} ({error}): correct the name, or make the file again") from error
    return markdown_table(head, rows, [i for i in range(len(head)) if all(_is_number(row[i]) for row in rows)])


def _is_number(cell: str) -> bool:
    return cell in ("", "–", "∞") or re.match(r"[-+−<]? ?[\d.]", cell) is not None
