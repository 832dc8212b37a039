"""Runs that nobody named: each is in a folder that is removed with the Python process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

_folders = set[Path]()


def temporary_run() -> Path:
    """A path for a run without an output; its folder is removed when the interpreter exits."""
    folder = Path(tempfile.mkdtemp(prefix="daskreg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _folders.add(folder)
    return folder / "run.zarr"


def is_temporary(path: str | Path) -> bool:
    """Whether a run of this process is removed with it."""
    return Path(path).parent in _folders
