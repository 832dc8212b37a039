"""What daskreg says refers to the site, which every user has, not to files of the repository."""

import re
import tomllib
from pathlib import Path

from daskreg.errors import ISSUES, SITE, counted, site_page

ROOT = Path(__file__).parents[3]
SOURCES = [(path, path.read_text(encoding="utf-8")) for path in (ROOT / "daskreg").rglob("*.py")]


def test_the_addresses_are_those_of_the_project():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert (urls["Documentation"], urls["Issues"]) == (SITE, ISSUES)
    assert SITE in (ROOT / "README.md").read_text(encoding="utf-8")
    assert site_page("archives", "axes") == f"{SITE}/archives.html#axes"


def test_a_page_that_is_referred_to_exists_with_its_heading():
    calls = [
        call for _, text in SOURCES for call in re.findall(r"site_page\(['\"]([\w/]+)['\"](?:, ['\"]([\w-]+)['\"])?\)", text)
    ]
    assert calls
    for name, anchor in calls:
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert not anchor or anchor in [h.strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", page, re.MULTILINE)]


def test_no_text_names_a_file_of_the_documentation():
    """Comments and docstrings of modules are for those who have the repository."""
    said = [
        (path.name, line)
        for path, text in SOURCES
        for line in text.splitlines()
        if re.search(r"f?[\"'][^\"']*docs/\w+\.md", line)
    ]
    assert [s for s in said if not s[1].lstrip().startswith(('"""', "#"))] == []


def test_a_number_of_things_is_singular_for_one():
    assert [counted(n, "voxel") for n in (0, 1, 2)] == ["0 voxels", "1 voxel", "2 voxels"]
