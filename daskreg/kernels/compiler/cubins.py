"""Compiled CUDA kernels cached on disk, so that only the first process on a machine waits for the compiler.

Numba's own cache hashes what a kernel closes over, and compiled functions hash differently in every process. Here a kernel is
identified by its digest, its constants and the compiler's options. Each kernel has a file of its own, which appears whole or not
at all. A file that cannot be read is ignored; a kernel that cannot be written is compiled again next time. A file is a line of
JSON and the machine code as it is (``cubin_format``), and is read only where nobody else could have written it.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numba.core import config as settings

from daskreg.kernels.compiler import cubin_format
from daskreg.kernels.compiler.cache import folder, read_cached
from daskreg.kernels.compiler.private_files import write
from daskreg.kernels.compiler.tally import TALLY

log = logging.getLogger(__name__)
LAUNCHED: list[tuple[CudaKernelCache, Any]] = []  # kernels launched or compiled by this process, with their types
MAX_CUBINS = 400  # files of 50 KB to 2 MB; a run needs about 30


class CudaKernelCache:
    """The compiled forms of one kernel, by argument types; replaces the cache of Numba's dispatcher.

    identity: whatever else determines the machine code
    """

    def __init__(self, name: str, *identity: Any) -> None:
        self.name = name
        self.identity = (name, *identity, *compiler())

    @property
    def cache_path(self) -> str:
        """As reported by the dispatcher's statistics."""
        return str(folder("cuda"))

    def path(self, types: Any, machine: Any) -> Path:
        """The file for some argument types and a kind of device."""
        key = hashlib.sha256(repr((self.identity, str(types), machine)).encode()).hexdigest()
        return folder("cuda") / f"{self.name}-{key[:32]}.cubin"

    def load_overload(self, types: Any, context: Any) -> Any:
        """The compiled kernel, or None."""
        context.refresh()
        LAUNCHED.append((self, types))
        try:
            path = self.path(types, context.codegen().magic_tuple())
        except Exception as problem:  # noqa: BLE001  # no home folder
            log.info("there is no cache for the kernel %s (%r).", self.name, problem)
            return None
        kernel = self._load(path, types)
        if kernel is None:
            TALLY.begin(path)
        return kernel

    def _load(self, path: Path, types: Any) -> Any:
        try:
            kernel = cubin_format.decode(read_cached(path, "cuda"), types)
            kernel.bind()  # while the compiler's lock is held: threads that launch at once would load it twice
            return kernel
        except FileNotFoundError:
            return None
        except Exception as problem:  # noqa: BLE001  # a truncated file or one of another version can raise anything
            log.info("the cached kernel %s cannot be used (%r); it is compiled again.", self.name, problem)
            return None

    def save_overload(self, types: Any, kernel: Any) -> None:
        """Write a kernel, if possible."""
        TALLY.end()
        try:
            write(self.path(types, kernel._codelibrary.codegen.magic_tuple()), cubin_format.encode(kernel), MAX_CUBINS)
        except Exception as problem:  # noqa: BLE001  # no space, no permission, no plain values: the kernel works all the same
            log.info("the kernel %s cannot be cached (%r).", self.name, problem)

    def flush(self) -> None:
        """Part of the interface of a dispatcher's cache: files are written at once."""

    enable = disable = flush


@cache
def compiler() -> tuple[Any, ...]:
    """What determines the machine code of a kernel besides its source."""
    return sys.version_info[:2], version("numba"), version("numba-cuda")


def attach_cache(dispatcher: Any, name: str, *identity: Any) -> Any:
    """Let a kernel made by ``cuda.jit`` look on disk before it compiles; its options, some from the environment, are part of
    its key.
    """
    options = sorted(dispatcher.targetoptions.items())
    dispatcher._cache = CudaKernelCache(name, *identity, options, vars(settings)["FORCE_CUDA_CC"])
    return dispatcher
