"""Compile every CUDA kernel of daskreg to PTX and to machine code, without a GPU, driver or toolkit.

``python .ci/kernels.py [sm_90 sm_80 ...]`` prints one line a kernel and architecture and exits 1 if a kernel does not compile,
has no case in tests/cases.py, uses float64 (up to 64 times slower), or spills registers to memory.
PTX is compiled once, for the oldest of the architectures, and assembled for each: what takes long, types and LLVM's passes, does
not depend on them. Needs the extra ``ptx`` of pyproject.toml.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

ARCHITECTURES = ("sm_90", "sm_80")  # Hopper, Ampere


class Compiled(NamedTuple):
    """What one kernel became: bytes, registers a thread, bytes of spills, stack and shared memory, float64 instructions."""

    ptx: int
    cubin: int
    registers: int
    spilled: int
    stack: int
    shared: int
    f64: int

    @property
    def faults(self) -> list[str]:
        """Why this kernel may not be merged; empty when all is well."""
        faults = []
        if self.f64:
            faults.append(f"{self.f64} float64 instructions; write float32(...) around literals, integers and scalar arguments")
        if self.spilled:
            faults.append(f"{self.spilled} bytes of registers spilled; keep fewer values alive or split the kernel")
        return faults


def main() -> int:
    """One process a core, each with a share of the kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--share", nargs=2, type=int, metavar=("NUMBER", "OF"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.share:
        return compile_share(sorted(given.architectures, key=capability), *given.share)
    shares = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    children = [subprocess.Popen([sys.executable, __file__, *given.architectures, "--share", str(k), str(shares)], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for k in range(shares)]  # fmt: skip
    for child in children:
        print(child.communicate()[0], flush=True)
    return max(abs(child.returncode) for child in children)


def compile_share(architectures: Sequence[str], share: int, shares: int) -> int:
    """Print a table of every so many-th kernel, the oldest architecture first; 1 if anything is wrong."""
    named, wrong = registry(), 0
    pretend_device(architectures[0])
    mine = sorted(named.items())[share::shares]
    print(f"{len(mine)} of {len(named)} kernels and special cases of them, for {', '.join(architectures)}")
    columns = {"for": 7, "registers": 10, "spilled": 9, "stack": 7, "shared": 8, "f64": 5, "ptx": 9, "cubin": 9, "s": 6}
    print(f"{'kernel':32}" + "".join(f"{name:>{width}}" for name, width in columns.items()))
    for name, kernel in mine:
        wrong += sum(report(name, kernel, architectures))
    print(f"{wrong} faults" if wrong else "all well")
    return int(wrong > 0)


def report(name: str, kernel: Any, architectures: Sequence[str]) -> Iterator[int]:
    """Print the lines of one kernel, one an architecture; yields the number of faults of each."""
    start = time.perf_counter()
    try:
        found = compile_one(name, kernel, architectures)
    except Exception as error:  # noqa: BLE001  # whatever a compiler may throw; the others are still of interest
        print(f"{name:32}FAILED {type(error).__name__}: {error}")
        yield 1
        return
    seconds = time.perf_counter() - start
    for architecture, made in found.items():
        print(f"{name:32}{architecture:>7}{made.registers:10}{made.spilled:9}{made.stack:7}{made.shared:8}{made.f64:5}{made.ptx:9}"
              f"{made.cubin:9}{seconds:6.1f}")  # fmt: skip
        for fault in made.faults:
            print(f"    FAILED {name} for {architecture}: {fault}.")
        yield len(made.faults)


def registry() -> dict[str, Any]:
    """Every kernel there is, by the names of its cases."""
    table = cases()
    found: dict[str, Any] = table.kernels()
    if not found:
        raise SystemExit("daskreg.kernels registered no kernel: there is nothing to check, which cannot be right.")
    special = {name: table.cooperative_kernels()[name.partition(" ")[0]] for name in table.COOPERATIVE_CASES}
    return {**found, **table.cooperative_kernels(), **{name: table.kernel_of(name) for name in table.CASES}, **special}


def cases() -> ModuleType:
    """The table of kernels and their arguments, which the tests share."""
    root = str(Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module("tests.cases")


def pretend_device(architecture: str) -> None:
    """Numba asks the current device only for its compute capability, when it compiles the functions that a kernel calls."""
    from numba import cuda
    from numba.cuda import dispatcher

    if getattr(cuda, "implementation", "") != "NVIDIA" or cuda.config.ENABLE_CUDASIM:
        raise SystemExit("this needs numba-cuda and no simulator: pip install '.[ptx]', unset NUMBA_ENABLE_CUDASIM.")
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability(architecture))


def capability(architecture: str) -> tuple[int, int]:
    """``sm_90`` is (9, 0)."""
    number = architecture.removeprefix("sm_")
    return int(number[:-1]), int(number[-1])


def signature(name: str, kernel: Any) -> tuple[Any, ...]:
    """Numba types of the CUDA launcher's arguments: extent, row sums where there are any, and those of the case."""
    from numba import typeof, types

    if hasattr(kernel, "factory"):
        return tuple(typeof(a) for a in cooperative_case(name).arguments)
    case = cases().CASES.get(name)
    if case is None:
        raise LookupError("no case, so no types to compile for; add one to tests/cases.py.")
    _, *arguments = case()
    rows = (types.float32[:, :, ::1],) if kernel.sums else ()
    return (types.UniTuple(types.uint32, 4), *rows, *(typeof(a) for a in arguments if a is not None))


def cooperative_case(name: str) -> Any:
    """The case of a cooperative kernel."""
    if name not in cases().COOPERATIVE_CASES:
        raise LookupError("no case, so neither constants nor types to compile for; add one to tests/cases.py.")
    return cases().COOPERATIVE_CASES[name]()


def compile_one(name: str, kernel: Any, architectures: Sequence[str]) -> dict[str, Compiled]:
    """PTX through NVVM, then machine code through nvJitLink, whose log counts registers and spills."""
    from numba import cuda, types

    if hasattr(kernel, "factory"):
        launcher, double = kernel.form(*cooperative_case(name).constants), cooperative_case(name).double
    else:
        launcher, double = kernel.launcher(1, cases().CASES[name]()[1:]), False
    ptx, _ = cuda.compile(
        launcher.py_func,
        types.void(*signature(name, kernel)),
        cc=capability(architectures[0]),
        device=False,
        abi="numba",
        output="ptx",
        fastmath=launcher.targetoptions.get("fastmath", False),
        launch_bounds=launcher.targetoptions.get("launch_bounds"),
    )
    text = ptx if isinstance(ptx, str) else ptx.decode()
    made = {architecture: assemble(text, architecture) for architecture in architectures}
    return {a: m._replace(f64=0) for a, m in made.items()} if double else made


def assemble(ptx: str, architecture: str) -> Compiled:
    """Machine code of one PTX text, and what the assembler says about it."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=architecture, ptxas_options=["-v"]))
    cubin, log = linker.link("cubin").code, linker.get_info_log()

    def read(pattern: str) -> int:
        return max(map(int, re.findall(pattern, log)), default=0)

    if not read(r"Used (\d+) registers"):
        raise RuntimeError(f"the assembler said nothing about registers, its log was {log!r}; has its format changed?")
    spilled = read(r"(\d+) bytes spill stores") + read(r"(\d+) bytes spill loads")
    return Compiled(len(ptx), len(cubin), read(r"Used (\d+) registers"), spilled, read(r"(\d+) bytes stack frame"),
                    read(r"(\d+) bytes smem"), len(re.findall(r"^\s+\S+\.f64", ptx, re.M)))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
