"""Tables in Markdown."""

from collections.abc import Collection, Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Returns a table in Markdown, without a line break at its end.

    Args:
        head: names of the columns.
        rows: their cells; a "|" in them is escaped.
        numbers: indices of the columns that are aligned to the right.

    >>> print(markdown_table(["net", "error"], [["a|b", "0.4"]], numbers=[1]))
    | net | error |
    | --- | ---: |
    | a\\|b | 0.4 |
    """
    rule = ["---:" if i in numbers else "---" for i in range(len(head))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))
