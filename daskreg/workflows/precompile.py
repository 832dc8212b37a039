"""Compile kernels ahead, for GPUs that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from daskreg.arguments import checked_arguments
from daskreg.errors import ConfigError, RunError

ARCHITECTURES = ("sm_80", "sm_90")  # A100; H100 and H200


@checked_arguments()
def precompile(architectures: Sequence[str] = ARCHITECTURES, folder: str | Path | None = None) -> Path:
    """Compile the kernels of usual registrations with all cores, such as into an image of a container.

    Where this machine has a GPU of one of the architectures, registrations of the bundled pair run on it as well: then what CuPy
    compiles, and what the processor runs, is there too.

    architectures: of GPUs, such as ``"sm_90"`` for an H100;  folder: for ``DASKREG_KERNEL_CACHE``, readable by all; None: the
    user's own cache. Returns the folder of the kernels. Raises ConfigError for an unknown architecture, or none, and without
    numba-cuda; RunError where kernels do not compile.
    """
    from daskreg.kernels.compiler.offline import compile_for, open_to_readers

    if not architectures:
        raise ConfigError("no architecture is named; sm_80 (A100), sm_90 (H100, H200) or another sm_NN was expected.")
    base = None if folder is None else Path(folder).absolute()
    made = compile_for(architectures, base)
    if _architecture() in architectures:
        _run_on_gpu(base)
        if base is not None:
            open_to_readers(base)
    return made


def _architecture() -> str:
    """Of the first GPU of this machine, empty without one."""
    from daskreg.kernels.device import gpus

    if not gpus():
        return ""
    import cupy

    return f"sm_{cupy.cuda.Device(0).compute_capability}"


def _run_on_gpu(base: Path | None) -> None:
    """Raises RunError."""
    from daskreg.kernels.compiler import cupy_kernels

    with tempfile.TemporaryDirectory() as fresh:
        environment = dict(os.environ)
        if base is not None:
            environment |= {"NUMBA_CACHE_DIR": str(base), "CUPY_CACHE_DIR": fresh, "DASKREG_KERNEL_CACHE": ""}
        command = [sys.executable, "-P", "-m", "daskreg.workflows.warm_up", "cuda"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise RunError(
                f"the GPU of this machine could not run the kernels: {said[-1] if said else 'the process was killed'}."
            )
        if base is not None:
            cupy_kernels.save(Path(fresh), base)
