"""Kernels compiled for GPUs that are not there: ``python -m daskreg.kernels.compiler.offline sm_90 SHARE SHARES``.

NVVM and the linker need no GPU and no driver. Numba asks the current device for nothing but its compute capability, and loads
what it has compiled; in a process of this module it is told the one and kept from the other. One process serves one
architecture, because Numba keeps the functions that kernels call, whatever they were compiled for.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from daskreg import machine
from daskreg.errors import ConfigError, RunError
from daskreg.kernels.compiler.cache import folder
from daskreg.kernels.compiler.precompile import find_kernel, marker_name, parse_types, warm_up_signatures

MAX_PROCESSES = 8  # for an architecture; more would not save time


def capability(architecture: str) -> tuple[int, int]:
    """``sm_90`` is (9, 0). Raises ConfigError."""
    found = re.fullmatch(r"sm_(\d{1,2})(\d)", architecture)
    if found is None:
        raise ConfigError(
            f"the architecture {architecture!r} is unknown; sm_80 (A100), sm_90 (H100, H200) or another sm_NN was expected."
        )
    return int(found.group(1)), int(found.group(2))


def compile_for(architectures: Sequence[str], base: Path | None = None) -> Path:
    """Compile the usual kernels for some architectures with all cores, below a folder (by default the user's cache).

    Returns the folder of the kernels; one that was named can be read by everybody (``DASKREG_KERNEL_CACHE``).
    Raises ConfigError for an unknown architecture and without numba-cuda, RunError where kernels do not compile.
    """
    capabilities = [capability(a) for a in architectures]
    if find_spec("numba_cuda") is None:
        raise ConfigError(
            "kernels for GPUs need numba-cuda; pip install 'daskreg[cuda13]' (or cuda12), or 'daskreg[ptx]' without a GPU."
        )
    shares = max(1, min(MAX_PROCESSES, machine.cores().value // len(architectures)))
    running = [(a, _started(a, k, shares, base)) for a in architectures for k in range(shares)]
    ended = [(a, process.communicate()[1].strip().splitlines(), process.returncode) for a, process in running]
    for architecture, said, code in ended:
        if code:
            raise RunError(f"kernels for {architecture} were not compiled: {said[-1] if said else 'the compiler was killed'}.")
    made = folder("cuda") if base is None else base.absolute() / "daskreg-cuda"
    for number in capabilities:
        (made / marker_name(number)).touch()
    if base is not None:
        open_to_readers(base)
    return made


def open_to_readers(base: Path) -> None:
    """Let everybody read the folders of kernels below a folder."""
    for made in base.glob("daskreg-*"):
        for path in (made, *made.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)


def _started(architecture: str, share: int, shares: int, base: Path | None) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", __name__, architecture, str(share), str(shares)]
    environment = {k: v for k, v in os.environ.items() if k != "DASKREG_KERNEL_CACHE"}
    if base is not None:
        environment["NUMBA_CACHE_DIR"] = str(base.absolute())
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE, text=True, env=environment)


def pretend_device(architecture: str) -> None:
    """Let Numba compile for a device that is not there, and load nothing, in this process and for good."""
    from numba.cuda import codegen, compiler, dispatcher

    device = SimpleNamespace(compute_capability=capability(architecture), id=0)
    for module in (compiler, dispatcher):
        vars(module)["get_current_device"] = lambda: device
    vars(codegen)["devices"] = SimpleNamespace(get_context=lambda: SimpleNamespace(device=device))
    dispatcher._Kernel.bind = _linked


def _linked(kernel: Any) -> None:
    kernel._codelibrary.get_cubin()


def main() -> None:
    """Compile and cache a share of the kernels."""
    architecture, share, shares = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pretend_device(architecture)
    for name, constants, signature in list(warm_up_signatures())[share::shares]:
        find_kernel(name, constants).compile(parse_types(signature))


if __name__ == "__main__":
    main()
