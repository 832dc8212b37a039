"""Run some kernels' cases on one device and keep all they wrote: ``python -m tests.parity.outputs {cpu,cuda} FILE K/N``.

A process of its own, because the CUDA simulator and compiled CPU code exclude each other: the first needs Numba's compiler off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from tests.cases import CASES, COOPERATIVE_CASES, cooperative_kernels, kernel_of

SIMULATED = {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
SIDES = 2  # processes that simulate a GPU at once
Outputs = dict[str, list[NDArray[Any]]]


def outputs(device: str, names: Iterable[str] = (*CASES, *COOPERATIVE_CASES)) -> Outputs:
    """By case: the kernel's row sums, if any, and each array among its arguments after the call."""
    if device == "cuda" and numba.config.DISABLE_JIT:
        teach_simulator()
    return {name: written(name, device) for name in names}


def teach_simulator() -> None:
    """It puts its atomics into the module that a kernel sees, but not into those of the functions it calls; and it knows no
    alignment of shared arrays.
    """
    from numba import cuda
    from numba.core import types
    from numba.cuda.simulator.kernelapi import FakeCUDAAtomic, FakeCUDAShared
    from numba.np import numpy_support

    cuda.atomic = FakeCUDAAtomic()
    lock, plain = threading.Lock(), FakeCUDAShared.array

    def array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        if alignment is None and shape == 0:
            return plain(self, shape, dtype)
        line = sys._getframe(1).f_lineno  # one array a line of the kernel
        with lock:
            if line not in self._allocations:
                self._allocations[line] = np.empty(
                    shape, numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype
                )
            return self._allocations[line]

    FakeCUDAShared.array = array


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


def elsewhere(device: str, path: Path) -> Outputs:
    """``outputs`` of fresh processes, with the simulator for "cuda" and without for "cpu"."""
    found: Outputs = {}
    for part in side_by_side("tests.parity.outputs", device, path):
        with np.load(part) as stored:
            for key in stored:
                found.setdefault(key.partition(":")[0], []).append(stored[key])
    return found


def side_by_side(module: str, device: str, path: Path) -> list[Path]:
    """Run ``python -m module DEVICE FILE k/n`` for all parts k of n at once: the simulator has one thread. Where each wrote."""
    environment = {k: v for k, v in os.environ.items() if k not in SIMULATED} | (SIMULATED if device == "cuda" else {})
    parts = SIDES if device == "cuda" else 1
    files = [path.with_stem(f"{path.stem}-{device}-{k}") for k in range(parts)]
    commands = [[sys.executable, "-W", "ignore", "-m", module, device, str(f), f"{k}/{parts}"] for k, f in enumerate(files)]
    started = [subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2]) for command in commands]
    try:
        for process, command in zip(started, commands, strict=True):
            if process.wait(timeout=280):
                raise subprocess.CalledProcessError(process.returncode, command)
    finally:
        for process in started:
            process.kill()
    return files


def share(names: Iterable[str], part: str) -> list[str]:
    """Part k of n of the names, ``part`` being "k/n"."""
    k, n = map(int, part.split("/"))
    return list(names)[k::n]


if __name__ == "__main__":
    made = outputs(sys.argv[1], share((*CASES, *COOPERATIVE_CASES), sys.argv[3]))
    np.savez(sys.argv[2], **{f"{name}:{k:02}": array for name, arrays in made.items() for k, array in enumerate(arrays)})
