"""Kernels compiled for GPUs that are not there: ``python -m daskreg.kernels.compiler.offline sm_90 PROCESSES``.

NVVM and the linker need no GPU and no driver. Numba asks the current device for nothing but its compute capability, and loads
what it has compiled; in a process of this module it is told the one and kept from the other. One process serves one
architecture, because Numba keeps the functions that kernels call, whatever they were compiled for. It imports what compiles, and
forks as many processes as there are cores, which take one kernel after another, the slowest first.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from types import SimpleNamespace
from typing import Any

from daskreg import machine
from daskreg.errors import ConfigError, RunError
from daskreg.kernels.compiler.cache import folder
from daskreg.kernels.compiler.precompile import TORCH_SIGNATURES, find_kernel, marker_name, parse_types, warm_up_signatures
from daskreg.kernels.compiler.registry import import_torch_kernels

log = logging.getLogger(__name__)
PROCESS_BYTES = 512 << 20  # of memory, while it compiles; half of it is shared with the others
SLOW = {  # seconds on one core; the others take less than two
    "correlation_tiled": 5,
    "lncc_factors_tiled": 5,
    "tensor_sums": 4,
    "bending_tiled": 3,
    "correlation_gradient_tiled": 3,
    "lncc_center_tiled": 3,
    "pose_sums": 3,
    "scatter_tiled": 3,
    "affine_sums_batch": 2,
    "compose_smooth": 2,
    "information_gradient_columns": 2,
    "information_gradient_shared": 2,
    "joint_histograms": 2,
    "ngf_counted": 2,
    "sample_tiled": 2,
    "smooth_adam": 2,
}
FAILED = "not compiled: "  # begins a line about a kernel
Report = Callable[[int, int], None]  # kernels that are there, of how many


def capability(architecture: str) -> tuple[int, int]:
    """``sm_90`` is (9, 0). Raises ConfigError."""
    found = re.fullmatch(r"sm_(\d{1,2})(\d)", architecture)
    if found is None:
        raise ConfigError(
            f"the architecture {architecture!r} is unknown; sm_80 (A100), sm_90 (H100, H200) or another sm_NN was expected."
        )
    return int(found.group(1)), int(found.group(2))


def compile_for(
    architectures: Sequence[str], base: Path | None = None, *, torch: bool = False, report: Report = lambda done, of: None
) -> Path:
    """Compile the usual kernels for some architectures with all cores, below a folder (by default the user's cache).

    torch: those of daskreg.torch too;  report: called whenever one is there. Returns the folder of the kernels; one that was
    named can be read by everybody (``DASKREG_KERNEL_CACHE``). What is there is not compiled again.
    Raises ConfigError for an unknown architecture and without numba-cuda, RunError where kernels do not compile.
    """
    capabilities = [capability(a) for a in architectures]
    if find_spec("numba_cuda") is None:
        raise ConfigError(
            "kernels for GPUs need numba-cuda; pip install 'daskreg[cuda13]' (or cuda12), or 'daskreg[ptx]' without a GPU."
        )
    made = folder("cuda") if base is None else base.absolute() / "daskreg-cuda"
    progress = CompilationProgress(len(architectures) * len(_listed(torch)), report)
    shares = max(1, min(machine.cores().value, machine.memory().value // PROCESS_BYTES) // len(architectures))
    compilers = [Compiler(a, shares, base, torch, progress) for a in architectures]
    try:
        progress.follow(len(compilers))
        for compiler in compilers:
            compiler.require_success()
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(f"{progress.done} of {progress.of} kernels are kept in {made}; run the same command to go on.")
        raise
    finally:
        for compiler in compilers:
            compiler.kill()
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


class CompilationProgress:
    """How many kernels are there, by the lines of the processes that compile: one a kernel, and None at the end of each."""

    def __init__(self, of: int, report: Report) -> None:
        self.done, self.of, self.report = 0, of, report
        self.lines: SimpleQueue[str | None] = SimpleQueue()

    def follow(self, processes: int) -> None:
        """Until so many processes have ended."""
        self.report(0, self.of)
        while processes:
            if self.lines.get() is None:
                processes -= 1
            else:
                self.done += 1
                self.report(self.done, self.of)


class Compiler:
    """The process that compiles for an architecture, with those that it forks."""

    def __init__(self, architecture: str, processes: int, base: Path | None, torch: bool, progress: CompilationProgress) -> None:
        command = [sys.executable, "-P", "-m", __name__, architecture, str(processes), *(["torch"] if torch else [])]
        environment = {k: v for k, v in os.environ.items() if k != "DASKREG_KERNEL_CACHE"}
        if base is not None:
            environment["NUMBA_CACHE_DIR"] = str(base.absolute())
        self.architecture, self.progress = architecture, progress
        self.errors = TemporaryFile()  # noqa: SIM115  # closed by ``kill``
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.progress.lines.put(line)
        self.progress.lines.put(None)

    def require_success(self) -> None:
        """Raises RunError where a kernel does not compile."""
        if self.process.wait():
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            failed = [line.removeprefix(FAILED) for line in said if line.startswith(FAILED)]
            reason = "; ".join(failed or said[-1:]) or "the compiler was killed"
            raise RunError(f"kernels for {self.architecture} were not compiled: {reason}. Those that were are kept.")

    def kill(self) -> None:
        """End it, and what it has forked."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.errors.close()


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


def _listed(torch: bool) -> list[tuple[str, Any, str]]:
    """The usual kernels, the slowest first."""
    lines = [*warm_up_signatures(), *(warm_up_signatures(TORCH_SIGNATURES) if torch else ())]
    return sorted(lines, key=lambda line: -SLOW.get(line[0], 1))


def main() -> None:
    """Compile and cache the kernels that are not there, with so many processes; a line for each that is."""
    architecture, processes = sys.argv[1], int(sys.argv[2])
    machine.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who has started this one ends it
    pretend_device(architecture)
    torch = "torch" in sys.argv[3:]
    if torch:
        import_torch_kernels()
    missing = []
    for name, constants, signature in _listed(torch):
        form, types = find_kernel(name, constants), parse_types(signature)
        if form._cache.path(types, form.targetctx.codegen().magic_tuple()).exists():
            _print_line(name)
        else:
            missing.append((name, form, types))
    if missing:
        compiled = _compile(*missing.pop())  # what the compiler does once, before it is forked
        if not all([compiled, _compile_all(missing, min(processes, len(missing)))]):
            sys.exit(1)


def _compile(name: str, form: Any, types: tuple[Any, ...]) -> bool:
    """Compile a kernel and say so, or why it was not."""
    try:
        form.compile(types)
    except Exception as problem:  # noqa: BLE001  # whatever a compiler may raise; the other kernels are compiled nevertheless
        os.write(sys.stderr.fileno(), f"{FAILED}{name} ({_reason(problem)})\n".encode())
        return False
    _print_line(name)
    return True


def _reason(problem: Exception) -> str:
    """The first line that says something: Numba begins with the steps that failed, in colours."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).splitlines()
    return next((line for line in lines if line.strip() and not line.startswith("Failed in ")), type(problem).__name__)


def _print_line(name: str) -> None:
    os.write(sys.stdout.fileno(), f"{name}\n".encode())  # at once, and whole: others write too


def _compile_all(forms: Sequence[tuple[str, Any, tuple[Any, ...]]], processes: int) -> bool:
    """Have forked processes compile; whether all kernels were."""
    numbers, given = os.pipe()
    os.write(given, array("H", range(len(forms))).tobytes())
    os.close(given)
    children = [_fork(forms, numbers) for _ in range(processes)]
    ended = [os.waitpid(child, 0)[1] for child in children]
    return not any(ended)


def _fork(forms: Sequence[tuple[str, Any, tuple[Any, ...]]], numbers: int) -> int:
    """A process that compiles those whose numbers it reads."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        machine.end_with_parent()
        compiled = [_compile(*forms[array("H", number)[0]]) for number in iter(lambda: os.read(numbers, 2), b"")]
        code = int(not all(compiled))
    except Exception as problem:  # noqa: BLE001  # the last word of the process
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{problem}\n".encode())
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
