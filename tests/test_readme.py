"""The README and docs are true: tables match results/ and the code, commands and links exist."""

import importlib.util
import re
from pathlib import Path

from cnn_jax.runs.results import models_table, read_rows, with_section, with_table

ROOT = Path(__file__).resolve().parents[1]
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


def test_every_module_that_is_run_exists():
    names = set(re.findall(r"python -m ([\w.]+)", README))
    assert len(names) >= 7
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    assert missing == []


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
