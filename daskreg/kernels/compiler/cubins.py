"""Compiled CUDA kernels kept on disk, so that only the first process on a machine waits for the compiler.

Numba's own cache hashes what a kernel closes over, and formulas that are compiled already hash differently in every process.
Here a kernel is known by its name, its constants, the compiler's options and its digest. Each has a file
of its own, which is there whole or not at all: processes that start together cannot take each other's. What cannot be read is
compiled anew, what cannot be written is compiled again next time.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numba.core import config as settings

from daskreg.kernels.compiler.cache import folder, read, write

log = logging.getLogger(__name__)
LAUNCHED: list[tuple[CudaKernelCache, Any]] = []  # kernels that this process has launched or compiled, with their types, in order
MAX_FILES = 400  # kernels that are kept, of 50 KB to 2 MB: a run needs some 30


class CudaKernelCache:
    """The forms of one kernel, by the types of their arguments; stands in for a dispatcher's cache.

    identity: whatever else decides what the compiler makes of the kernel.
    """

    def __init__(self, name: str, *identity: Any) -> None:
        self.name = name
        self.identity = (name, *identity, *compiler())

    @property
    def cache_path(self) -> str:
        """As the dispatcher's statistics report it."""
        return str(folder("cuda"))

    def path(self, types: Any, machine: Any) -> Path:
        """The file of the form for some argument types on a kind of device."""
        key = hashlib.sha256(repr((self.identity, str(types), machine)).encode()).hexdigest()
        return folder("cuda") / f"{self.name}-{key[:32]}.pickle"

    def load_overload(self, types: Any, context: Any) -> Any:
        """The compiled kernel, None where there is none."""
        context.refresh()
        LAUNCHED.append((self, types))
        try:
            path = self.path(types, context.codegen().magic_tuple())
            kernel = _kernel_class()._rebuild(**read(path))
            kernel.bind()  # here, where the compiler's lock is held: threads that launch at once would load it twice
            return kernel
        except FileNotFoundError:
            return None
        except Exception as problem:  # noqa: BLE001  # a file that is cut off or of another version raises almost anything
            log.info("the kept kernel %s cannot be used (%r); it is compiled anew.", self.name, problem)
            return None

    def save_overload(self, types: Any, kernel: Any) -> None:
        """Keep a kernel, if that can be done."""
        try:
            write(self.path(types, kernel._codelibrary.codegen.magic_tuple()), pickle.dumps(kernel._reduce_states()), MAX_FILES)
        except Exception as problem:  # noqa: BLE001  # no room, no right to write, nothing to pickle: the kernel works all the same
            log.info("the kernel %s cannot be kept (%r).", self.name, problem)

    def flush(self) -> None:
        """Part of a dispatcher's cache: files are written at once."""

    enable = disable = flush


@cache
def compiler() -> tuple[Any, ...]:
    """What makes other kernels of the same source."""
    return sys.version_info[:2], version("numba"), version("numba-cuda")


def _kernel_class() -> Any:
    from numba.cuda import dispatcher

    return dispatcher._Kernel


def attach_cache(dispatcher: Any, name: str, *identity: Any) -> Any:
    """Let what ``cuda.jit`` made look on disk before it compiles; options, some from the environment, make another kernel."""
    options = sorted(dispatcher.targetoptions.items())
    dispatcher._cache = CudaKernelCache(name, *identity, options, vars(settings)["FORCE_CUDA_CC"])
    return dispatcher
