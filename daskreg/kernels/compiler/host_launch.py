"""Calls of compiled CPU kernels, one at a time where Numba's threads allow no more.

Numba takes TBB, OpenMP or threads of its own (``workqueue``), the first that it finds. Its own end the process where two Python
threads launch at the same time. They are what there is where the library of OpenMP is missing: on macOS without libomp, in slim
containers without libgomp.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numba

from daskreg.kernels.compiler.dry_run import NOTED

SAFE = frozenset({"tbb", "omp"})
_ONE_AT_A_TIME = threading.RLock()


def launch(compiled: Any, arguments: Sequence[Any]) -> Any:
    """Call a compiled function, or note that it would be."""
    noted = NOTED.get()
    if noted is not None:
        return noted.note(compiled, arguments)
    if several_at_once():
        return compiled(*arguments)
    with _ONE_AT_A_TIME:
        return compiled(*arguments)


def several_at_once() -> bool:
    """Whether Python threads may launch kernels at the same time; not before the first launch, at which Numba chooses."""
    try:
        return vars(numba)["threading_layer"]() in SAFE
    except ValueError:
        return False
