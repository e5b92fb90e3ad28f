"""The README and docs are true: tables match results/ and the code, commands and links exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks import speed
from cnn_jax.optim.optimizers import METHODS
from cnn_jax.runs.pages import with_tables
from cnn_jax.runs.results import models_table, read_rows, with_section, with_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHECKED = {"results", "models", "speed"}  # marks whose tables are compared below; those of "table: FILE" all are
README = (ROOT / "README.md").read_text()
RESULTS, ZOO = ((ROOT / "docs" / name).read_text() for name in ("results.md", "zoo.md"))


def test_table_matches_the_results():
    rows = read_rows(sorted((ROOT / "results").glob("*.csv")))
    assert rows, "results/ holds no rows"
    assert with_table(RESULTS, rows) == RESULTS, (
        "docs/results.md and results/ differ; run: python -m cnn_jax results readme docs/results.md results/*.csv"
    )


def test_list_of_models_matches_the_code():
    assert with_section(ZOO, "models", models_table()) == ZOO, (
        "docs/zoo.md and cnn_jax/models/table.csv differ; "
        "run: python -m cnn_jax results readme docs/zoo.md results/*.csv"
    )


def test_tables_of_speed_match_the_figures():
    page = (ROOT / speed.PAGE).read_text()
    assert with_section(page, "speed", speed.markdown(speed.read(ROOT / speed.PATH))) == page, (
        f"{speed.PAGE} and {speed.PATH} differ; run: python -m benchmarks.speed"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_of_files_match_them(page):
    text = page.read_text()
    name = page.relative_to(ROOT)
    assert with_tables(text, ROOT) == text, f"{name} is stale; run: python -m cnn_jax results readme {name}"


def test_every_table_between_marks_is_checked():
    marks = {mark for page in PAGES for mark in re.findall(r"<!-- /(\w+) -->", page.read_text())}
    assert marks - {"table"} == CHECKED


def test_optimizers_have_the_rates_that_the_page_names():
    text = (ROOT / "docs" / "optimizers.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([0-9.]+) \|", text, re.MULTILINE)
    named = {name: float(rate) for names, rate in rows for name in re.findall(r"`(\w+)`", names)}
    known = {name: method.learning_rate for name, method in METHODS.items() if method.learning_rate is not None}
    assert named == known


def test_every_module_that_is_run_exists():
    names = set(re.findall(r"python -m ([\w.]+)", README))
    assert len(names) >= 7
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    assert missing == []


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
