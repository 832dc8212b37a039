"""Launches of CPU kernels that are noted in place of being compiled and executed: which compiled forms code would need.

Arrays that a kernel may have been meant to fill get noise, so that code which depends on its results goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numba import typeof
from numpy.typing import NDArray

from daskreg.kernels.compiler.source import LOWEST

NOISE = 0.5, 2.5  # the range of values
COUNTS = 1 << 24  # the largest noise in integer arrays
NOTED: ContextVar[NotedLaunches | None] = ContextVar("NOTED", default=None)


class NotedLaunches:
    """The compiled forms of launches.

    files: of these forms in the user's own cache
    """

    def __init__(self) -> None:
        self.files: set[Path] = set()
        self._random = np.random.default_rng(0)

    def note(self, compiled: Any, arguments: Sequence[Any]) -> None:
        """A launch with these arguments."""
        self.files.add(file_of(compiled, arguments))
        for k, array in enumerate(arguments):
            if isinstance(array, np.ndarray) and array.size and (k == len(arguments) - 1 or _unfilled(array)):
                self._fill(array)

    def _fill(self, array: NDArray[Any]) -> None:
        if array.dtype.kind == "f":
            array[...] = self._random.uniform(*NOISE, array.shape)
        elif array.dtype.kind == "i":
            array[...] = self._random.integers(0, COUNTS, array.shape)


def file_of(compiled: Any, arguments: Sequence[Any]) -> Path:
    """Where the form of a CPU kernel for these arguments is, or will be."""
    found: Path = compiled._cache.path(tuple(typeof(a) for a in arguments), compiled.targetctx.codegen().magic_tuple())
    return found


def _unfilled(array: NDArray[Any]) -> bool:
    return array.flags.writeable and array.flat[0] in (0, LOWEST) and bool((array == array.flat[0]).all())


@contextmanager
def dry_run() -> Iterator[NotedLaunches]:
    """Launches by this thread are noted until the block ends."""
    noted = NotedLaunches()
    token = NOTED.set(noted)
    try:
        yield noted
    finally:
        NOTED.reset(token)
