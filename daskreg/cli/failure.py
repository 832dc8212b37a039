"""What a command says about an exception that ended it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from daskreg import machine
from daskreg.errors import ISSUES, DaskregError

PACKAGES = "daskreg", "numpy", "numba", "dask", "distributed", "zarr", "pydantic"  # whose versions a report needs
# what Python and the system say where they have no memory, thread or process to give
REFUSALS = ("can't start new thread", "Resource temporarily unavailable", "failed to map segment", "Cannot allocate memory",
            "cannot allocate memory", "Unable to allocate", "ThreadPoolBuildError")  # fmt: skip
MOST_CAUSES = 20


def describe(error: BaseException) -> tuple[int, str]:
    """Exit code and text: the sentence of a deliberate failure; for any other, where its traceback is kept."""
    notes = getattr(error, "__notes__", [])
    if refused := shortage(error):
        return 1, "\n".join([f"daskreg: {refused}", *notes])
    if isinstance(error, DaskregError):
        return error.exit_code, "\n".join([f"daskreg: {error}", *notes])
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, MemoryError):
        return 1, "\n".join([f"daskreg: out of memory ({what}); close other programs, or give more with --memory.", *notes])
    return 1, "\n".join([f"daskreg: unexpected {what[:400]}{'' if what.endswith('.') else '.'} {_kept(error)}", *notes])


def shortage(error: BaseException) -> str:
    """A sentence where the operating system refused memory, a thread or a process under a limit; else empty.

    Whatever is made of such a failure on the way up, it is not a damaged file and no mistake of daskreg.
    """
    limit = machine.address_space()
    if not any(isinstance(e, MemoryError) or any(w in str(e) for w in REFUSALS) for e in _chain(error)):
        return ""
    what = f" ({text[:80]})" if (text := " ".join(str(error).split())) else ""
    if limit is not None:
        return (
            f"the limit of address space (ulimit -v) is {limit / 2**30:.2f} GiB, which is too little{what}; raise it, or "
            "limit memory by a control group instead."
        )
    if any("thread" in str(e) or "fork" in str(e) for e in _chain(error)):
        return f"no more threads or processes can be started{what}; look at ulimit -u and the limits of the container."
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it was raised from."""
    for _ in range(MOST_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _kept(error: BaseException) -> str:
    """Write the traceback, with what a report needs, to a file that only its owner reads; a sentence about it."""
    text = "\n".join([f"command: {sys.argv}", f"Python {sys.version} on {platform.platform()}", *_versions(), ""])
    text += "".join(traceback.format_exception(error))
    try:
        file, path = tempfile.mkstemp(prefix="daskreg-traceback-", suffix=".txt")
        with os.fdopen(file, "w") as out:
            out.write(text)
    except OSError:
        return f"This is a mistake in daskreg; please report it at {ISSUES} with this traceback:\n{text}"
    return f"This is a mistake in daskreg; please report it at {ISSUES} with the file {path}, which holds the traceback."


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} is not installed as a package")
    return found
