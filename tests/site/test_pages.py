"""The commands and the Python of the site's pages run as they stand, page by page, on the bundled pair."""

import dataclasses
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import daskreg
from daskreg.cli import app
from daskreg.engine import pose_search
from daskreg.planning import plan

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(sh|python|yaml)(?:  ?(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [
    "tutorial.md",
    "comparison.md",
    *sorted(f"howto/{p.name}" for p in (DOCS / "howto").glob("*.md") if p.name != "README.md"),
]
# pages show what is typed and what comes back, other tests what is found
FEW, CANDIDATES = 5, 20  # iterations of a level, and poses that a search refines, at most
ELSEWHERE = ("pip install", "python -m venv", ". .venv", "cd ")  # which make the environment that this runs in


def daskreg_command(line):
    """In this process: a new one would import everything again."""
    command, _, file = line.partition(" > ")
    done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
    assert done.exit_code == 0, (line, done.output, done.exception)
    if file:
        Path(file).write_text(done.stdout)


def shell(block):
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("daskreg "):
            daskreg_command(line)
        elif line and not line.startswith(("#", *ELSEWHERE)):
            subprocess.run(["bash", "-c", line], check=True)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    """Runs in this process are short."""
    real, levels = plan._Cut._level, pose_search.LEVELS
    monkeypatch.setattr(plan._Cut, "_level", lambda *given: real(*given[:-1], min(given[-1], FEW)))
    fewer = tuple(dataclasses.replace(level, candidates=min(level.candidates, CANDIDATES)) for level in levels)
    monkeypatch.setattr(pose_search, "LEVELS", fewer)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    millimetres = 2 if page == "tutorial.md" else 3
    for path, name in zip(daskreg.demo_pair(millimetres), ("fixed.nii.gz", "moving.nii.gz"), strict=True):
        shutil.copy(path, name)
    names = {"__name__": "page"}
    for language, file, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if file:
            Path(file).write_text(code)
        elif language == "python":
            exec(compile(code, page, "exec"), names)
        elif language == "sh":
            shell(code)
            names = {"__name__": "page"}  # somebody may have left Python for it
