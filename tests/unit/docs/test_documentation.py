"""What the documentation and the code say of each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = [p for folder in ("daskreg", "tests", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]
# pages that are made with the site, which checks links to them
BUILT = {ROOT / line[1:] for line in (ROOT / ".gitignore").read_text().split() if line.startswith("/docs/")}
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(set((ROOT / "docs").rglob("*.md")) - BUILT)]
METHOD = (ROOT / "docs" / "method.md").read_text()
CITATION = re.compile(r"method(?:\.md)?[,)]? section (\d+(?:\.\d+)?)(?:, steps? (\d+)(?: to (\d+))?)?", re.IGNORECASE)


def test_the_page_of_measurements_is_that_of_the_results(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "_site" / "performance.py", tmp_path / "page.md"], check=True)
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "performance.md").read_text()


def numbered_headings(text):
    return re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? \S", text, re.MULTILINE)


def steps_of(section):
    """Numbers of the list items of a section of the method."""
    body = re.split(rf"^#+ {re.escape(section)}\.? .*$", METHOD, flags=re.MULTILINE)[1]
    return {int(n) for n in re.findall(r"^(\d+)\. ", re.split(r"^#+ ", body, flags=re.MULTILINE)[0], re.MULTILINE)}


def citations():
    """(file, section, first step, last step) of every citation of the method in the code."""
    for path in SOURCES:
        for section, first, last in CITATION.findall(path.read_text()):
            yield pytest.param(section, first, last, id=f"{path.relative_to(ROOT)}-{section}")


def test_sections_of_the_method_are_numbered_without_gaps():
    found = numbered_headings(METHOD)
    main = [int(n) for n in found if "." not in n]
    assert main == list(range(1, len(main) + 1))
    for chapter in main:
        parts = [int(n.split(".")[1]) for n in found if n.startswith(f"{chapter}.")]
        assert parts == list(range(1, len(parts) + 1))


@pytest.mark.parametrize(("section", "first", "last"), list(citations()))
def test_a_section_of_the_method_that_code_cites_exists(section, first, last):
    assert section in numbered_headings(METHOD)
    if first:
        assert set(range(int(first), int(last or first) + 1)) <= steps_of(section)


def test_sections_that_the_method_itself_cites_exist():
    cited = re.findall(r"section (\d+(?:\.\d+)?)", METHOD)
    assert cited
    assert set(cited) <= set(numbered_headings(METHOD))


def anchor(heading):
    """As GitHub makes it: lower case, punctuation dropped, blanks to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if path in BUILT:
            continue
        assert path.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert fragment in [anchor(h) for h in headings], target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_modules_that_pages_name_exist(page):
    """``engine/rank.py`` and the like are files of the package, of the tests or of the repository."""
    named = set(re.findall(r"`((?:[\w.]+/)+\w+\.py)`", page.read_text()))
    assert [n for n in sorted(named) if not any((base / n).exists() for base in (ROOT, ROOT / "daskreg"))] == []


def test_the_architecture_lists_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    parts = {p.stem for p in (ROOT / "daskreg").glob("*.py")} - {"__init__", "__main__"}
    packages = {p.parent.name for p in (ROOT / "daskreg").glob("*/__init__.py")}
    tree, imports = text.split("```")[1], re.search(r"^`(cli > .*)`$", text, re.MULTILINE)
    assert {name for name in packages if f"  {name}/" not in tree} == set()
    assert {name for name in parts if f"{name}.py" not in tree} == set()
    assert set(re.findall(r"\w+", imports[1])) == packages | parts


def test_the_classes_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("## Responsibilities") : text.index("## Kernels")]
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE))
    named = set(re.findall(r"`([A-Z][a-z]\w*)`", table))
    assert named
    assert named <= listed
