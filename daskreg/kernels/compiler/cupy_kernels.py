"""CuPy's own kernels (sums, comparisons, conversions), carried with daskreg's.

CuPy compiles each on a GPU when it is first used, which takes seconds in all, and keeps it in one folder, the user's own. What
the shared folder has is copied there before it is needed.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from daskreg.kernels.compiler.cache import shared_folder
from daskreg.kernels.compiler.private_files import read, write

log = logging.getLogger(__name__)
SUFFIX = ".cubin"
MAX_FILES = 1000  # of 5 to 50 KB; a run needs about 50


def own_folder() -> Path:
    """Where CuPy looks."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


@cache
def restore() -> None:
    """Copy what the shared folder has and CuPy's own has not, if possible; once per process."""
    shared = shared_folder("cupy")
    try:
        for path in sorted(shared.glob(f"*{SUFFIX}")) if shared is not None else ():
            if not (own_folder() / path.name).exists():
                _place(own_folder() / path.name, read(path))
    except Exception as problem:  # noqa: BLE001  # no permission, no space, a damaged file: CuPy compiles what it needs
        log.info("kernels of CuPy are not taken from %s (%r).", shared, problem)


def save(made: Path, base: Path) -> None:
    """Copy CuPy's kernels from a folder of its own to that of ``DASKREG_KERNEL_CACHE``. Raises OSError."""
    for path in sorted(made.glob(f"*{SUFFIX}")):
        write(base / "daskreg-cupy" / path.name, path.read_bytes(), MAX_FILES)


def _place(path: Path, content: bytes) -> None:
    """Write a file that appears whole: other processes look for it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
