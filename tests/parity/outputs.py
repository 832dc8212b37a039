"""Run kernels' cases on one device and keep all they wrote: ``python -m tests.parity.outputs {cpu,cuda} FOLDER NAME...``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from tests.cases import CASES, COOPERATIVE_CASES, cooperative_kernels, kernel_of
from tests.parity.background import serve
from tests.parity.simulator import prepare_simulator

Outputs = dict[str, list[NDArray[Any]]]


def outputs(device: str, names: Iterable[str] = (*CASES, *COOPERATIVE_CASES)) -> Outputs:
    """By case: the kernel's row sums, if any, and each array among its arguments after the call."""
    if device == "cuda" and numba.config.DISABLE_JIT:
        prepare_simulator()
    return {name: written(name, device) for name in names}


def written(name: str, device: str) -> list[NDArray[Any]]:
    """What one case holds after the call."""
    if name in COOPERATIVE_CASES:
        return cooperative_outputs(name, device)
    shape, *arguments = CASES[name]()
    kernel = kernel_of(name)
    rows = (kernel if device == "cpu" else kernel.on_cuda)(shape, *arguments)
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    return arrays if rows is None else [rows if device == "cpu" else rows.copy_to_host(), *arrays]


def cooperative_outputs(name: str, device: str) -> list[NDArray[Any]]:
    """What a cooperative kernel wrote, or what the plain kernels compute in its place."""
    case = COOPERATIVE_CASES[name]()
    if device == "cpu":
        return case.plain()
    kernel = cooperative_kernels()[name.partition(" ")[0]]
    threads = case.threads if isinstance(case.threads, tuple) else (case.threads, 1, 1)
    kernel(case.constants, case.blocks, threads, *case.arguments, shared=case.shared)
    return case.found()


def named(name: str, device: str) -> dict[str, NDArray[Any]]:
    """The same, numbered."""
    return {f"{k:02}": array for k, array in enumerate(written(name, device))}


if __name__ == "__main__":
    if sys.argv[1] == "cuda":
        prepare_simulator()
    serve(named)
