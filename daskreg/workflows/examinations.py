"""What ``daskreg doctor`` looks at on one machine: each function yields what it found, and how to mend what does not work."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from daskreg import machine
from daskreg.errors import counted
from daskreg.planning.table import size

Status = Literal["ok", "note", "wrong"]
NEWEST_PYTHON = (3, 13)  # that daskreg is tested with
SHARED_MEMORY, FREE_SPACE = 256 << 20, 1 << 30  # bytes below which there is something to say
OPEN_FILES = 4096
PATIENCE = 20.0  # seconds for a program to answer
EXTRAS = {  # a module of each, and what it is for
    "tiff": ("tifffile", "TIFF"),
    "itk": ("SimpleITK", "MetaImage and NRRD"),
    "mesh": ("meshio", "meshes"),
    "remote": ("s3fs", "images at http and s3 addresses"),
    "ucx": ("ucxx", "faster links between workers"),
    "hpc": ("dask_jobqueue", "clusters of batch systems"),
}


@dataclass(frozen=True)
class Finding:
    """status: ok, note (works, and something is missing or slow) or wrong;  mend: what to do, empty where there is nothing."""

    name: str
    status: Status
    found: str
    mend: str = ""

    def line(self) -> str:
        """For a terminal."""
        mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[self.status]
        return f"{mark} {self.name:<15} {self.found}" + (f"\n{'':22}-> {self.mend}" if self.mend else "")


def python() -> Iterator[Finding]:
    """Its version and the system."""
    found = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest = ".".join(map(str, NEWEST_PYTHON))
        yield Finding(
            "python", "note", found, f"daskreg is tested with Python 3.11 to {newest}: if something fails, use one of them"
        )
    else:
        yield Finding("python", "ok", found)


def packages() -> Iterator[Finding]:
    """Versions of what daskreg needs, within the bounds that it states."""
    try:
        needed = [Requirement(line) for line in requires("daskreg") or []]
    except PackageNotFoundError:
        yield Finding(
            "packages", "note", "daskreg is not installed as a package, so that its bounds are not known", "pip install ."
        )
        return
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    found, wrong = list[str](), list[str]()
    for requirement in needed:
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {have}")
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} is {have}, {requirement.specifier} is needed")
    if wrong:
        yield Finding("packages", "wrong", "; ".join(wrong), "pip install --upgrade daskreg, in an environment of its own")
    else:
        yield Finding("packages", "ok", f"all {len(found)} that are needed: {', '.join(found[:6])} ...")


def extras() -> Iterator[Finding]:
    """What is not installed, and what it would be for."""
    lacking = {extra: use for extra, (module, use) in EXTRAS.items() if find_spec(module) is None}
    if lacking:
        uses = "; ".join(f"{use}: pip install 'daskreg[{extra}]'" for extra, use in lacking.items())
        yield Finding("extras", "note", f"not installed: {', '.join(lacking)}", f"only where it is needed: {uses}")
    else:
        yield Finding("extras", "ok", ", ".join(EXTRAS))


def compiler() -> Iterator[Finding]:
    """Numba imports, with this NumPy, and its kernels can be kept."""
    try:
        numba = importlib.import_module("numba")
        cache = importlib.import_module("daskreg.kernels.compiler.cache")
    except ImportError as error:
        mend = "install versions that go together: pip install --upgrade numba 'numpy<2.5'"
        yield Finding("numba", "wrong", " ".join(str(error).split()), mend)
        return
    import numpy as np

    yield Finding(
        "numba", "ok", f"{numba.__version__} with NumPy {np.__version__}, {counted(numba.config.NUMBA_NUM_THREADS, 'thread')}"
    )
    folder = cache.folder("cpu")
    kept = len(list(folder.glob(f"*{cache.SUFFIX}"))) if folder.is_dir() else 0
    mend = "name a folder on a local disk in NUMBA_CACHE_DIR; without one every process compiles its kernels again"
    yield _writable("kernel cache", folder, f", {kept} kernels", mend, made=True)


def gpus() -> Iterator[Finding]:
    """GPUs, their driver, and whether daskreg can use them."""
    seen = _answer("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if not seen:
        yield Finding("gpu", "ok", "none (nvidia-smi finds none): kernels run on the processor")
        return
    yield Finding("gpu", "ok", "; ".join(seen.splitlines()))
    if find_spec("cupy") is None or find_spec("numba_cuda") is None:
        yield Finding(
            "cuda", "note", "there is a GPU, and CuPy or numba-cuda is not installed", "pip install 'daskreg[cuda13]' (or cuda12)"
        )
        return
    usable = importlib.import_module("daskreg.kernels.device").gpus()
    if usable:
        yield Finding("cuda", "ok", f"{usable} usable")
    else:
        mend = "install CuPy for the CUDA that the driver knows (cuda12, cuda13), or a newer driver; look at CUDA_VISIBLE_DEVICES"
        yield Finding("cuda", "wrong", "CuPy finds no GPU that it can use", mend)


def links() -> Iterator[Finding]:
    """How ranks of several workers would communicate."""
    from daskreg.cluster.link import EXTRA, remedy, shortcoming
    from daskreg.comm import abilities

    found = abilities()
    if found.missing:
        gpus = importlib.import_module("daskreg.kernels.device").gpus()
        mend = remedy(shortcoming(found, "cpu")) if gpus else EXTRA
        yield Finding("link", "note", f"TCP between workers: {found.missing}", mend)
    else:
        yield Finding("link", "ok", f"UCX between workers: {', '.join(found.links)}")


def limits() -> Iterator[Finding]:
    """Cores, memory, open files, and what else the system limits."""
    cores, memory = machine.cores(), machine.memory()
    yield Finding("cores", "ok", f"{cores.value} ({cores.source})")
    yield Finding("memory", "ok", f"{size(memory.value)} ({memory.source})")
    space = machine.address_space()
    if space is not None:
        mend = "take the limit away (ulimit -v unlimited): memory that is mapped and never used counts"
        yield Finding("address space", "note", f"{size(space)} (ulimit -v)", mend)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = files == resource.RLIM_INFINITY or files >= OPEN_FILES
    mend = "" if enough else f"raise it for many workers: ulimit -n {OPEN_FILES}"
    yield Finding("open files", "ok" if enough else "note", f"{files} (ulimit -n)", mend)


def shared_memory() -> Iterator[Finding]:
    """Size of /dev/shm, through which ranks of one machine communicate."""
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Finding("shared memory", "ok", "no /dev/shm: ranks of one machine use the network")
        return
    free = shutil.disk_usage(place).free
    small = free < SHARED_MEMORY
    mend = "in a container: docker run --shm-size=2g, or --ipc=host" if small else ""
    yield Finding("shared memory", "note" if small else "ok", f"{size(free)} free in {place}", mend)


def folders(scratch: Path | None) -> Callable[[], Iterator[Finding]]:
    """The temporary folder, the working directory, and the one for fields on disk."""

    def found() -> Iterator[Finding]:
        named = "name another one in TMPDIR"
        yield _writable("temporary", Path(tempfile.gettempdir()), "", named)
        yield _writable(
            "scratch",
            scratch or Path.cwd(),
            "" if scratch else " (beside the output)",
            "create it, or name another one with --scratch",
        )

    return found


def _writable(name: str, folder: Path, more: str, mend: str, *, made: bool = False) -> Finding:
    """Whether a file can be written to a folder, and how much is free there.

    made: whether a run makes the folder where it does not exist yet
    """
    place = next((p for p in (folder, *folder.parents) if p.is_dir()), folder) if made else folder
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"daskreg")
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(name, "wrong", f"{folder} cannot be written: {error.strerror or error}", mend)
    small = free < FREE_SPACE
    return Finding(
        name, "note" if small else "ok", f"{folder}, {size(free)} free{more}", f"free some of it, or {mend}" if small else ""
    )


def _answer(*command: str) -> str:
    """Standard output of a program; empty where it is not there, fails or does not answer."""
    path = shutil.which(command[0])
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def facts() -> dict[str, str]:
    """What should be the same on all workers of a cluster, and where this one is."""
    names = ("daskreg", "numpy", "numba", "dask", "distributed", "zarr")
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "host": platform.node(), "folder": os.getcwd()}
