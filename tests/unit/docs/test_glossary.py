"""The glossary: terms in order, each defined once, and every class of the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "glossary.md").read_text()
TERMS, CLASSES = PAGE.split("## Classes")


def rows(text):
    """Cells of the rows of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| term", "| class"))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_terms_are_in_alphabetical_order_and_defined_once():
    terms = [row[0].lower() for row in rows(TERMS)]
    assert len(terms) > 50
    assert terms == sorted(set(terms))


def test_a_definition_is_one_sentence():
    for term, meaning, _ in rows(TERMS):
        assert meaning.endswith("."), term
        assert not re.search(r"\.\s", meaning), term


@pytest.mark.parametrize("row", rows(TERMS), ids=lambda row: row[0])
def test_a_term_lives_in_a_module_that_exists(row):
    assert (ROOT / "daskreg" / row[2].strip("`")).exists()


def test_every_class_is_listed_with_its_module_and_meaning():
    """Exceptions are documented together, in ``daskreg/errors.py``."""
    run = subprocess.run([sys.executable, ".ci/glossary.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert all(len(row) == 3 and row[2].rstrip(".") for row in rows(CLASSES))


def test_a_class_name_has_one_meaning():
    names = [row[0] for row in rows(CLASSES)]
    assert sorted(names) == sorted(set(names))
