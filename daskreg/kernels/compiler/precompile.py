"""Compilation of the usual CUDA kernels by several processes at once, where a machine has compiled none yet.

Numba compiles in Python, one kernel after another: most of a minute in front of the first registration. ``signatures.txt`` lists
the kernels of usual registrations with the types of their arguments, in the order in which they are launched. Helper processes
share them out and cache what they compile (``cubins.py``); a process that launches a kernel loads it from there, or compiles it.
A list that is out of date, or a helper without memory on the GPU, costs seconds and nothing else.
``benchmarks/warm_up_signatures.py`` writes the list.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from daskreg import machine
from daskreg.kernels.compiler.cache import folder, shared_folder
from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.cooperative import COOPERATIVE_KERNELS
from daskreg.kernels.compiler.cubins import compiler
from daskreg.kernels.compiler.launch import KERNELS
from daskreg.kernels.compiler.private_files import prepare
from daskreg.kernels.compiler.registry import import_kernels, source_files

log = logging.getLogger(__name__)
SIGNATURES = Path(__file__).with_name("signatures.txt")
TORCH_SIGNATURES = Path(__file__).with_name("torch_signatures.txt")  # of kernels of daskreg.torch
MARKER = "precompile-"  # begins the names of files that mark kernels as compiled
MAX_HELPERS = 8  # more would not save time
HELPER_MEMORY = 600 << 20  # bytes of GPU memory per helper
Signature = tuple[str, Any, str]  # name, constants (or a list of absent arguments), types
_STARTED: list[subprocess.Popen[bytes]] = []  # by this process


def start_helpers(room: int) -> None:
    """Start helpers for the current GPU, once per process: as many as fit into ``room`` bytes, without those that have finished
    before.
    """
    if _STARTED:
        return
    try:
        if _precompiled():
            return
        for k, n in _shares(room):
            if not _marker(k, n).exists():
                _STARTED.append(_helper(k, n))
    except Exception as problem:  # noqa: BLE001  # no folder, no permission, no memory for a process: kernels are compiled when needed
        log.info("kernels are not precompiled (%r).", problem)


def listed_files() -> set[Path]:
    """Where the kernels of the list will be, for the current GPU, where helpers of this process compile them; else empty."""
    if not _STARTED:
        return set()
    forms = ((find_kernel(name, constants), parse_types(signature)) for name, constants, signature in warm_up_signatures())
    return {form._cache.path(types, form.targetctx.codegen().magic_tuple()) for form, types in forms}


def _helper(share: int, shares: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", __name__, str(share), str(shares), str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def warm_up_signatures(file: Path | None = None) -> Iterator[Signature]:
    """The lines of a list, by default ``signatures.txt``."""
    for line in (file or SIGNATURES).read_text().splitlines():
        name, constants, signature = line.split("\t")
        yield name, literal_eval(constants), signature


def find_kernel(name: str, constants: Any) -> Any:
    """The kernel of that name for some constants. Raises KeyError if there is none."""
    import_kernels()
    if isinstance(constants, list):
        return KERNELS[name].without(frozenset(constants))
    return COOPERATIVE_KERNELS[name].form(*constants)


def parse_types(signature: str) -> tuple[Any, ...]:
    """Numba's types in a signature written by ``format_types``."""
    from numba.core import sigutils

    found: tuple[Any, ...] = sigutils.normalize_signature(signature)[0]
    return found


def format_types(types: tuple[Any, ...]) -> str:
    """Types as a signature that Numba parses."""
    return f"void({', '.join(map(_format_type, types))})"


def compile_share(share: int, shares: int, wanted: Callable[[], bool]) -> None:
    """Compile and cache every ``shares``-th kernel of the list, while ``wanted()``."""
    whole = True
    for name, constants, signature in list(warm_up_signatures())[share::shares]:
        if not wanted():
            return
        try:
            find_kernel(name, constants).compile(parse_types(signature))
        except Exception:  # noqa: BLE001  # the error appears again in the process that needs the kernel
            whole = False
    if whole:
        _marker(share, shares).touch()


def _format_type(kind: Any) -> str:
    from numba import types

    if isinstance(kind, types.Array):
        axes = [":"] * (kind.ndim - 1) + ["::1" if kind.layout == "C" else ":"]
        return f"{kind.dtype}[{','.join(axes)}]"
    if isinstance(kind, types.UniTuple):
        return f"UniTuple({_format_type(kind.dtype)}, {kind.count})"
    if isinstance(kind, types.Tuple):
        return f"Tuple(({', '.join(map(_format_type, kind.types))}))"
    return str(kind)


def _shares(room: int) -> list[tuple[int, int]]:
    if SIMULATED or getattr(sys, "frozen", False):
        return []  # nothing to compile, or no Python interpreter to start
    n = min(MAX_HELPERS, machine.cores().value - 1, room // HELPER_MEMORY)
    return [(k, n) for k in range(n)] if n > 1 else []


@cache
def source_digest() -> str:
    """Digest of what helpers compile: while it is unchanged, they need not check again."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in [*source_files(), SIGNATURES])).hexdigest()[:8]


def _marker(share: int, shares: int) -> Path:
    """The file that marks a share as compiled, for this compiler and kind of GPU."""
    from numba import cuda

    return folder("cuda") / f"{marker_name(cuda.get_current_device().compute_capability)}-{share}of{shares}"


def marker_name(capability: tuple[int, int]) -> str:
    """The name of the file that marks all kernels as compiled, for this compiler and kind of GPU."""
    key = hashlib.sha256(repr((source_digest(), compiler(), capability)).encode()).hexdigest()
    return f"{MARKER}{key[:16]}"


def _precompiled() -> bool:
    """Whether the user's own folder or the shared one has all kernels for the current GPU."""
    found = {
        path.name for made in (folder("cuda"), shared_folder("cuda")) if made is not None for path in made.glob(f"{MARKER}*")
    }
    if not found:
        return False
    from numba import cuda

    return marker_name(cuda.get_current_device().compute_capability) in found


def main() -> None:
    """A helper: ``python -m daskreg.kernels.compiler.precompile SHARE SHARES PARENT``; it ends when its parent has ended."""
    share, shares, parent = map(int, sys.argv[1:])
    prepare(folder("cuda"))
    with open(folder("cuda") / f"precompile-{source_digest()}-{share}of{shares}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if another helper has this share
        compile_share(share, shares, lambda: os.getppid() == parent)


if __name__ == "__main__":
    main()
