"""CSV files as tables of Markdown pages."""

import pytest
from test_results import refuse

from cnn_jax.commands import results as command
from cnn_jax.errors import UserError
from cnn_jax.runs.pages import csv_table, with_tables

PAGE = "# Title\n<!-- table: {} -->\nold\n<!-- /table -->\nend\n"
TABLE = "| candidate | accuracy | note |\n| --- | ---: | --- |\n| adam | 99.1 ± 0.1 | a \\| b |\n| sgd | – | c, d |"


@pytest.fixture
def table(tmp_path):
    """A CSV file with numbers and words."""
    path = tmp_path / "table.csv"
    path.write_text('candidate,accuracy,note\nadam,99.1 ± 0.1,a | b\nsgd,–,"c, d"\n')
    return path


def test_csv_becomes_markdown(table):
    assert csv_table(table) == TABLE


def test_a_page_is_filled_and_then_agrees(table, tmp_path):
    text = with_tables(PAGE.format("table.csv"), tmp_path)
    assert text == f"# Title\n<!-- table: table.csv -->\n\n{TABLE}\n\n<!-- /table -->\nend\n"
    assert with_tables(text, tmp_path) == text
    table.write_text(table.read_text().replace("99.1", "98.7"))
    assert with_tables(text, tmp_path) == text.replace("99.1", "98.7")
    assert with_tables("no table") == "no table"


def test_the_command_fills_every_table(table, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(2 * PAGE.format(table))
    command.main(["readme", str(page)])
    assert page.read_text().count(TABLE) == 2 and "old" not in page.read_text()


def test_marks_without_end_and_files_that_are_not_there(table, tmp_path, capsys):
    with pytest.raises(UserError, match="needs a line of its own"):
        with_tables(PAGE.format(table).replace("/table", "end"))
    page = tmp_path / "page.md"
    page.write_text(PAGE.format("absent.csv"))
    assert "cannot read the table absent.csv" in refuse(capsys, ["readme", page])
    assert "old" in page.read_text()
    table.write_text("")
    with pytest.raises(UserError, match="cannot read the table"):
        csv_table(table)
