"""Compile kernels ahead, for GPUs that need not be there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from daskreg import machine
from daskreg.arguments import checked_arguments
from daskreg.errors import ConfigError, RunError
from daskreg.reporting.tasks import screen
from daskreg.workflows.presets import PRESETS

log = logging.getLogger("daskreg")
INTERVAL = 10.0  # seconds between two lines
ARCHITECTURES = ("sm_80", "sm_90")  # A100; H100 and H200


@checked_arguments()
def precompile(architectures: Sequence[str] = ARCHITECTURES, folder: str | Path | None = None, *, torch: bool = False) -> Path:
    """Compile the kernels of usual registrations with all cores, such as into an image of a container.

    Where this machine has a GPU of one of the architectures, registrations of the bundled pair run on it as well: then what CuPy
    compiles, and what the processor runs, is there too.

    architectures: of GPUs, such as ``"sm_90"`` for an H100;  folder: for ``DASKREG_KERNEL_CACHE``, readable by all; None: the
    user's own cache;  torch: the kernels of ``daskreg.torch`` with its usual arguments too. Returns the folder of the kernels;
    what is there is not compiled again. Raises ConfigError for an unknown architecture, or none, and without numba-cuda;
    RunError where kernels do not compile.
    """
    from daskreg.kernels.compiler.offline import compile_for, open_to_readers

    if not architectures:
        raise ConfigError("no architecture is named; sm_80 (A100), sm_90 (H100, H200) or another sm_NN was expected.")
    base = None if folder is None else Path(folder).absolute()
    with _counted() as report:
        made = compile_for(architectures, base, torch=torch, report=report)
    if _architecture() in architectures:
        log.info("registering the bundled pair on this GPU by each of %d presets", len(PRESETS))
        _run_on_gpu(base)
        if base is not None:
            open_to_readers(base)
    return made


@contextmanager
def _counted() -> Iterator[Callable[[int, int], None]]:
    """Shows how many kernels are there: on one line of a terminal, elsewhere a line now and then."""
    begun, due = time.monotonic(), [0.0]

    def line(text: str, share: float) -> None:
        if time.monotonic() >= due[0]:
            due[0] = time.monotonic() + INTERVAL
            log.info("%s", text)

    with screen(lambda: line) as show:
        yield lambda done, of: show(f"{done} of {of} kernels, {time.monotonic() - begun:.0f} s", done / of)


def _architecture() -> str:
    """Of the first GPU of this machine, empty without one."""
    from daskreg.kernels.device import gpus

    if not gpus():
        return ""
    import cupy

    return f"sm_{cupy.cuda.Device(0).compute_capability}"


def _run_on_gpu(base: Path | None) -> None:
    """By all presets, a process each, at the same time; several may compile the same. Raises RunError."""
    from daskreg.kernels.compiler import cupy_kernels

    with tempfile.TemporaryDirectory() as fresh:
        environment = dict(os.environ)
        if base is not None:
            environment |= {"NUMBA_CACHE_DIR": str(base), "CUPY_CACHE_DIR": fresh, "DASKREG_KERNEL_CACHE": ""}
        with ThreadPoolExecutor(max(1, min(len(PRESETS), machine.cores().value // 2))) as pool:
            said = [*pool.map(lambda preset: _warm_up(preset, environment), PRESETS)]
        if any(said):
            raise RunError(f"the GPU of this machine could not run the kernels: {next(filter(None, said))}.")
        if base is not None:
            cupy_kernels.save(Path(fresh), base)


def _warm_up(preset: str, environment: dict[str, str]) -> str:
    """Why a registration by a preset failed; empty where it did not."""
    command = [sys.executable, "-P", "-m", "daskreg.workflows.warm_up", "cuda", preset]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False)
    said = done.stderr.strip().splitlines()
    return "" if not done.returncode else said[-1] if said else "the process was killed"
