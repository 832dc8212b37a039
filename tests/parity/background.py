"""Cases that other processes compute one after another, while each test waits for its own case alone.

The CUDA simulator and compiled CPU code exclude each other: the first needs Numba's compiler off, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
SIMULATED = {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
SIMULATORS = 2  # processes that simulate a GPU at once: each has one thread
Arrays = dict[str, NDArray[Any]]


def environment(device: str) -> dict[str, str]:
    """Variables of a process that simulates a GPU, or of one that compiles for the CPU."""
    return {k: v for k, v in os.environ.items() if k not in SIMULATED} | (SIMULATED if device == "cuda" else {})


class Background:
    """The results of some cases on a device, by name; none of its processes outlives the ``with`` block.

    module: has ``serve`` as its main program
    """

    def __init__(self, module: str, device: str, names: Iterable[str], folder: Path) -> None:
        self.names, self.folder, self.processes = list(names), folder, list[subprocess.Popen[bytes]]()
        self.command = [sys.executable, "-W", "ignore", "-m", module, device, str(folder)]
        self.environment = environment(device)
        self.parts = SIMULATORS if device == "cuda" else 1

    def __enter__(self) -> Self:
        try:
            for k in range(min(self.parts, len(self.names))):
                with (self.folder / f"errors of process {k}").open("wb") as errors:
                    command = [*self.command, *self.names[k :: self.parts]]
                    self.processes.append(subprocess.Popen(command, env=self.environment, cwd=ROOT, stderr=errors))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def __getitem__(self, name: str) -> Arrays:
        """Wait for a case. Raises RuntimeError where it failed."""
        number = self.names.index(name) % self.parts
        path, problem = self.folder / f"{name}.npz", self.folder / f"{name}.txt"
        while not path.exists():
            if problem.exists():
                raise RuntimeError(problem.read_text())
            if self._ended(number) and not path.exists() and not problem.exists():
                raise RuntimeError((self.folder / f"errors of process {number}").read_text())
        with np.load(path) as stored:
            return dict(stored)

    def _ended(self, number: int) -> bool:
        """Whether a process has ended, a moment from now."""
        try:
            self.processes[number].wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            return False
        return True


def serve(compute: Callable[[str, str], Mapping[str, NDArray[Any]]]) -> None:
    """Compute the cases that the command line names: ``python -m MODULE DEVICE FOLDER NAME...``."""
    device, folder, *names = sys.argv[1:]
    for name in names:
        part = Path(folder, f"{name}.part")
        try:
            with part.open("wb") as file:
                np.savez(file, **compute(name, device))  # type: ignore[arg-type]  # its other argument is a flag
            part.rename(part.with_suffix(".npz"))
        except Exception:  # noqa: BLE001  # shown by the test that waits for the case
            part.write_text(traceback.format_exc())
            part.rename(part.with_suffix(".txt"))


def wanted(request: pytest.FixtureRequest, names: Iterable[str]) -> list[str]:
    """Those of the names that the selected tests of a module have as a parameter, in the order of the tests."""
    tests = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    asked = [value for test in tests if hasattr(test, "callspec") for value in test.callspec.params.values()]
    known = set(names)
    return list(dict.fromkeys(value for value in asked if value in known))
