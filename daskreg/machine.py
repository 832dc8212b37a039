"""How many cores and how much memory this process may use, and what limits them; how much memory it has used.

Containers and batch systems limit a process by control groups (cgroups v1 and v2), by its CPU affinity, or by resource limits.
``dask.system`` and ``distributed.system`` know the cgroup at the root of a container only; a SLURM job is further down, so all
groups from the process's own up to the root are read here. What cannot be read is no limit: macOS has no groups, no affinity.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import math
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

CGROUP = Path("/proc/self/cgroup")  # the groups that this process is in
MOUNTS = Path("/proc/self/mountinfo")  # where they are mounted
STATUS = Path("/proc/self/status")
MEMORY_FILES = "memory.max", "memory.high", "memory.limit_in_bytes"  # v2: hard limit, throttling limit; v1: hard limit
ADDRESS_LIMITS = "RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_RSS"
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
WORKER_PROCESS = "Dask Worker"  # in the name that Dask gives the process of a worker with a nanny
UNTOUCHED_BYTES = 1 << 30  # that a process maps for thread stacks, arenas and libraries; 1.2 GiB measured with two cores


@dataclass(frozen=True)
class Limit:
    """A number of cores or bytes, and where it comes from; equal on processes of one machine that share it."""

    value: int
    source: str


def cores() -> Limit:
    """Cores that this process may use: the least of its CPU affinity and the CPU quotas of its cgroups, rounded up."""
    return min([_affinity(), *_cpu_quotas()], key=lambda limit: limit.value)


def memory() -> Limit:
    """Bytes that this process may use: the least of physical memory, the limits of its cgroups, and its resource limits."""
    physical = Limit(int(psutil.virtual_memory().total), "the physical memory")
    return min([physical, *_cgroup_memory(), *_address_limits()], key=lambda limit: limit.value)


def address_space() -> int | None:
    """Bytes that this process may map (``ulimit -v``), None for any number."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, also where no Python code can run (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


@cache
def leave_garbage() -> None:
    """Have this process end without a last collection of garbage; what is registered for the exit is called as ever."""
    atexit.register(gc.freeze)


def end_soon_as_worker() -> None:
    """``leave_garbage`` where a nanny of Dask has started this process, and waits for its end: where kernels have run, Python's
    last collection takes a second of a core.
    """
    if WORKER_PROCESS in multiprocessing.current_process().name:
        leave_garbage()


def resident_bytes() -> int:
    """Memory that this process has in RAM now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Most memory that this process has had in RAM. From /proc on Linux, where ``ru_maxrss`` starts with the parent's peak."""
    try:
        status = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _affinity() -> Limit:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        allowed = sorted(os.sched_getaffinity(0))
        all_of_them = len(allowed) >= (os.cpu_count() or 1)
        return Limit(len(allowed), "the cores of the machine" if all_of_them else f"the CPU affinity ({_ranges(allowed)})")
    return Limit(os.cpu_count() or 1, "the cores of the machine")


def _ranges(numbers: list[int]) -> str:
    """0-3,8 for 0, 1, 2, 3, 8."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True))


def _cpu_quotas() -> Iterator[Limit]:
    for folder in _cgroup_folders("cpu"):
        quota, period = _numbers(folder / "cpu.max", 2) or (
            *(_numbers(folder / "cpu.cfs_quota_us", 1) or (0,)),
            *(_numbers(folder / "cpu.cfs_period_us", 1) or (0,)),
        )
        if quota > 0 and period > 0:
            yield Limit(math.ceil(quota / period), f"the CPU quota of the cgroup {folder}")


def _cgroup_memory() -> Iterator[Limit]:
    for folder in _cgroup_folders("memory"):
        for name in MEMORY_FILES:
            if (found := _numbers(folder / name, 1)) and found[0] > 0:
                yield Limit(found[0], f"the cgroup limit {folder / name}")


def _address_limits() -> Iterator[Limit]:
    """Resident memory is a part of what these limit."""
    for name in ADDRESS_LIMITS:
        if hasattr(resource, name):
            soft = resource.getrlimit(getattr(resource, name))[0]
            if 0 < soft != resource.RLIM_INFINITY:
                yield Limit(soft, f"the resource limit {name}")


def _numbers(path: Path, count: int) -> tuple[int, ...] | None:
    """The integers in a file of a cgroup, None where there are none: ``max`` stands for no limit."""
    try:
        words = path.read_text().split()
        return tuple(int(word) for word in words) if len(words) == count else None
    except (OSError, ValueError):
        return None


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """Folders that may hold a controller (cpu, memory) of this process's cgroups, from its own up to the root."""
    groups = [line.split(":", 2) for line in _lines(CGROUP)]
    for root, mount, hierarchy in _cgroup_mounts(controller):
        for _, controllers, group in (g for g in groups if len(g) == 3):
            if (controller in controllers.split(",")) if hierarchy == "cgroup" else not controllers:
                inside = Path(group).relative_to(root) if Path(group).is_relative_to(root) else Path()
                yield from (mount / part for part in (inside, *inside.parents))


def _cgroup_mounts(controller: str) -> Iterator[tuple[Path, Path, str]]:
    """Root in the hierarchy, mount point, and type of each mounted hierarchy that a controller may be in."""
    for line in _lines(MOUNTS):
        location, _, kind = line.partition(" - ")
        fields, (hierarchy, _, options) = location.split(), [*kind.split(), "", "", ""][:3]
        if hierarchy == "cgroup2" or (hierarchy == "cgroup" and controller in options.split(",")):
            yield Path(fields[3]), Path(fields[4]), hierarchy


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
