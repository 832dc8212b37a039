"""What a command says about an exception that ended it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from importlib.metadata import PackageNotFoundError, version

from daskreg.errors import DaskregError

PACKAGES = "daskreg", "numpy", "numba", "dask", "distributed", "zarr", "pydantic"  # whose versions a report needs
REPORTS = "the project's issue tracker"


def describe(error: BaseException) -> tuple[int, str]:
    """Exit code and text: the sentence of a deliberate failure; for any other, where its traceback is kept."""
    notes = getattr(error, "__notes__", [])
    if isinstance(error, DaskregError):
        return error.exit_code, "\n".join([f"daskreg: {error}", *notes])
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, MemoryError):
        return 1, "\n".join([f"daskreg: out of memory ({what}); close other programs, or give more with --memory.", *notes])
    return 1, "\n".join([f"daskreg: unexpected {what[:400]}{'' if what.endswith('.') else '.'} {_kept(error)}", *notes])


def _kept(error: BaseException) -> str:
    """Write the traceback, with what a report needs, to a file that only its owner reads; a sentence about it."""
    text = "\n".join([f"command: {sys.argv}", f"Python {sys.version} on {platform.platform()}", *_versions(), ""])
    text += "".join(traceback.format_exception(error))
    try:
        file, path = tempfile.mkstemp(prefix="daskreg-traceback-", suffix=".txt")
        with os.fdopen(file, "w") as out:
            out.write(text)
    except OSError:
        return f"This is a mistake in daskreg; please report it to {REPORTS} with this traceback:\n{text}"
    return f"This is a mistake in daskreg; please report it to {REPORTS} with the file {path}, which holds the traceback."


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} is not installed as a package")
    return found
