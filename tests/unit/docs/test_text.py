"""Text that a merge left behind."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
MARKS = ("<" * 7 + " ", ">" * 7 + " ")
SUFFIXES = {".md", ".py", ".toml", ".yml", ".yaml", ".txt", ".j2", ".ipynb"}


def test_no_mark_of_a_conflict_is_left():
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    files = [ROOT / name for name in found if name] or [p for p in ROOT.rglob("*.md") if ".venv" not in p.parts]
    texts = [p for p in files if p.suffix in SUFFIXES and p.is_file()]
    assert len(texts) > 5
    assert [p.name for p in texts if any(mark in p.read_text(encoding="utf-8") for mark in MARKS)] == []
