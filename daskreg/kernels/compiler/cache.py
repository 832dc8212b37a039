"""Compiled CPU kernels cached on disk, in one folder for all processes, environments and checkouts of a user.

A kernel is identified by its digest, the types of its arguments, the processor, and the versions and settings of the compiler.
Each compiled form has a file of its own, which appears whole or not at all. A process that needs a kernel that another one is
compiling waits for it. A file that cannot be read is ignored; a kernel that cannot be written is compiled again next time.
Numba's form of a compiled function is a pickle: files that anybody else could have written are never read (``private_files``).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from numba.core import compiler as numba_compiler
from numba.core import config as settings
from numba.core.serialize import dumps

from daskreg.kernels.compiler.private_files import prepare, read, write
from daskreg.kernels.compiler.tally import TALLY

log = logging.getLogger(__name__)
SUFFIX = ".kernel"
MAX_FILES = 1000  # files of about 100 KB; daskreg has about 100 compiled forms
WAIT_TIMEOUT = 180.0  # seconds that a process waits for another one to compile
POLL_INTERVAL, TELL_INTERVAL = 0.05, 2.0  # seconds
SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "USING_SVML", "BOUNDSCHECK", "DEBUGINFO_DEFAULT",
            "LLVM_REFPRUNE_PASS", "EXTEND_VARIABLE_LIFETIMES")  # fmt: skip


def folder(device: str) -> Path:
    """The folder of compiled kernels: in ``NUMBA_CACHE_DIR``, else in the user's cache folder. device: "cpu" or "cuda"."""
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / f"daskreg-{device}"


def shared_folder(device: str) -> Path | None:
    """The folder of kernels that are only read, before the user's own: below ``DASKREG_KERNEL_CACHE``, where that is set."""
    base = os.environ.get("DASKREG_KERNEL_CACHE")
    return Path(base) / f"daskreg-{device}" if base else None


def read_cached(path: Path, device: str) -> bytes:
    """A file of the shared folder, else of the user's own. Raises as ``private_files.read`` does."""
    shared = shared_folder(device)
    if shared is not None:
        try:
            return read(shared / path.name)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as problem:
            log.info("%s cannot be used (%r).", shared / path.name, problem)
    return read(path)


def missing(files: Iterable[Path], device: str) -> set[Path]:
    """Those of the user's own folder that are neither there nor in the shared folder."""
    shared = shared_folder(device)
    return {p for p in files if not p.exists() and (shared is None or not (shared / p.name).exists())}


class KernelCache:
    """The compiled forms of one CPU kernel; replaces the cache of Numba's dispatcher.

    digest: of everything in daskreg that determines the machine code
    """

    def __init__(self, name: str, digest: str) -> None:
        self.name, self.identity = name, (digest, *compiler())
        self._lock: int | None = None

    @property
    def cache_path(self) -> str:
        """As reported by the dispatcher's statistics."""
        return str(folder("cpu"))

    def path(self, types: Any, machine: Any) -> Path:
        """The file for some argument types and a kind of processor."""
        key = hashlib.sha256(repr((self.identity, str(types), machine)).encode()).hexdigest()
        return folder("cpu") / f"{self.name}-{key[:32]}{SUFFIX}"

    def load_overload(self, types: Any, context: Any) -> Any:
        """The compiled kernel, or None; then other processes wait until this one has saved it."""
        context.refresh()
        try:
            path = self.path(types, context.codegen().magic_tuple())
        except Exception as problem:  # noqa: BLE001  # no home folder
            log.info("there is no cache for the kernel %s (%r).", self.name, problem)
            return None
        found = self._load(path, context)
        if found is None and self._wait(path):
            found = self._load(path, context)
            if found is not None:
                self._release(path)
        if found is None:
            TALLY.begin(path)
        return found

    def _load(self, path: Path, context: Any) -> Any:
        try:
            return numba_compiler.CompileResult._rebuild(context, *pickle.loads(read_cached(path, "cpu")))
        except FileNotFoundError:
            return None
        except Exception as problem:  # noqa: BLE001  # a truncated file or one of another version can raise anything
            log.info("the cached kernel %s cannot be used (%r); it is compiled again.", self.name, problem)
            return None

    def save_overload(self, types: Any, compiled: Any) -> None:
        """Write a kernel, if possible, and let waiting processes continue."""
        path = None
        TALLY.end()
        try:
            path = self.path(types, compiled.codegen.magic_tuple())
            if not compiled.library.has_dynamic_globals and all(part.can_cache for part in compiled.lifted):
                write(path, dumps(compiled._reduce()), MAX_FILES)
        except Exception as problem:  # noqa: BLE001  # no space, no permission, not picklable: the kernel works all the same
            log.info("the kernel %s cannot be cached (%r).", self.name, problem)
        finally:
            self._release(path)

    def _wait(self, path: Path) -> bool:
        """Lock a form for compilation; True if the cache should be read again, because another process may have saved it."""
        self._release(None)  # the compiler failed last time, and nothing was saved
        try:
            prepare(path.parent)
            lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        begun = time.perf_counter()
        waited = _locked(lock, lambda: TALLY.wait(path))
        if waited is not False:
            TALLY.waited(time.perf_counter() - begun)
        if waited is None:
            os.close(lock)
            return True
        self._lock = lock
        return waited or path.exists()

    def _release(self, path: Path | None) -> None:
        if self._lock is None:
            return
        if path is not None:
            with suppress(OSError):
                path.with_suffix(".lock").unlink()
        os.close(self._lock)
        self._lock = None

    def flush(self) -> None:
        """Part of the interface of a dispatcher's cache: files are written at once."""

    enable = disable = flush


def _locked(file: int, tell: Callable[[], None]) -> bool | None:
    """Lock a file, with whether that took waiting; None without a lock, after a time or on a file system that has none.

    tell: called from time to time while it waits
    """
    end, waited, told = time.monotonic() + WAIT_TIMEOUT, False, 0.0
    while time.monotonic() < end:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            if time.monotonic() - told > TELL_INTERVAL:
                told = time.monotonic()
                tell()
            time.sleep(POLL_INTERVAL)
        except OSError:
            return None
        else:
            return waited
    return None


@cache
def compiler() -> tuple[Any, ...]:
    """What determines machine code besides the source: Python, the compiler's packages, and their settings."""
    switches = tuple((name, repr(vars(settings).get(name))) for name in SETTINGS)
    return sys.version_info[:2], getattr(sys, "abiflags", ""), *map(_version, ("numba", "llvmlite", "numpy")), switches


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return ""


def attach_cache(dispatcher: Any, name: str, digest: str) -> Any:
    """Let a function made by ``njit`` look on disk before it compiles."""
    dispatcher._cache = KernelCache(name, digest)
    return dispatcher
