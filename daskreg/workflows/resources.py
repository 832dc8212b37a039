"""The resources of a run: workers, device, memory, communication, time. None of them changes the result."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from daskreg import machine
from daskreg.config import DeviceName
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, InputError, closest, require_known, require_number
from daskreg.grid import MINIMUM_PLANES
from daskreg.machine import Limit
from daskreg.planning import PLACES, RESIDENCIES, STATES
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.scratch import require_scratch

if TYPE_CHECKING:
    from daskreg import cluster as clusters
    from daskreg.cluster import Client
    from daskreg.kernels.device import Kind
else:
    clusters = DeferredModule("daskreg.cluster")

HOST_SHARE = 0.75  # of a worker's share of the machine's memory, for fields: reading and writing need some too
GIVEN = "as asked for"  # in place of what limits memory
LEAST_MEMORY = 1_000_000  # bytes that somebody can mean
LOCAL = (None, "local", "cuda")  # clusters on this machine, which daskreg starts itself; cuda: a worker for each GPU
BOUNDS = {  # least, most, and whether it is a whole number; None is possible for all that are not REQUIRED
    "workers": (1, 100_000, True),
    "memory": (1, 1 << 60, True),
    "host_memory": (1, 1 << 60, True),
    "scratch_size": (1, 1 << 60, True),
    "threads": (1, 4096, True),
    "checkpoint": (0, 1e9, False),
    "retries": (0, 1000, True),
    "deadline": (0.1, 1e6, False),
    "wait_for_workers": (0, 1e8, False),
    "minimum_planes": (1, 1 << 31, True),
}
UNITS = {  # of durations, in seconds
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
REQUIRED = ("retries", "deadline", "minimum_planes")
Residency = Literal["auto", "replicate", "window", "ring"]
State = Literal["auto", "device", "host", "disk"]
Images = Literal["auto", "device", "host", "disk", "source"]
Comm = Literal["auto", "tcp", "ucx", "nccl"]


class RunKeywords(TypedDict, total=False):
    """Keywords of ``register`` that ``verify`` passes on; see ``Resources``."""

    client: Client | None
    cluster: str | None
    device: DeviceName
    memory: int | str | None
    comm: Comm
    threads: int | None
    retries: int
    deadline: float
    minimum_planes: int
    trace: bool
    state: State
    images: Images
    host_memory: int | str | None
    scratch: str | Path | None
    scratch_size: int | str | None
    wait_for_workers: float | str | None


class ResourceKeywords(RunKeywords, total=False):
    """Keywords of ``register`` for all resources; see ``Resources``."""

    workers: int | None
    residency: Residency
    checkpoint: float | None


@dataclass(frozen=True)
class Resources:
    """What a run may use; none of it changes the result.

    workers: number of blocks the fixed image is cut into, one block a worker; None: the cluster's workers, else 1
    device: where kernels run; auto: on GPUs where every worker has one
    memory: bytes a worker may use; None: what it has
    residency: how a worker holds the moving image: all of it (replicate), what its block can reach (window), or a share that
        is passed round (ring); auto: the first of these that fits into the memory
    comm: how workers communicate; auto: UCX where it is installed, else TCP; nccl: arrays of GPUs of one machine by NCCL
    threads: CPU threads of a worker; None: its share of the machine's cores
    checkpoint: seconds between two checkpoints; None: no checkpoints
    retries: how often a run that lost a worker continues without it
    deadline: seconds after which a worker without response counts as lost
    minimum_planes: least number of planes in a worker's block
    trace: record when a worker sampled and when it waited
    state: where displacement and optimizer state are: on the device with all buffers, in the machine's memory (host) or on disk,
        from where slabs come to the device; auto: the first of these where they fit
    images: where both images are at full resolution: on the device, in the machine's memory (host), on disk, or in their files
        (source), of which only the levels of the stages are kept; auto: the first of these where they fit, source only where no
        stage runs at full resolution
    host_memory: bytes of the machine's memory for the fields of a GPU's worker; None: most of what is free
    scratch: folder for fields on disk; None: beside the output
    scratch_size: bytes of it that a worker may use; None: what is free
    wait_for_workers: seconds to wait for the workers of a cluster; None: a day for those that are jobs in a queue, two minutes
        for others, one for a first

    Raises ConfigError for a value that is not possible.
    """

    workers: int | None = None
    device: DeviceName = "auto"
    memory: int | None = None
    residency: Residency = "auto"
    comm: Comm = "auto"
    threads: int | None = None
    checkpoint: float | None = 180.0
    retries: int = 1
    deadline: float = 600.0
    minimum_planes: int = MINIMUM_PLANES
    trace: bool = False
    state: State = "auto"
    images: Images = "auto"
    host_memory: int | None = None
    scratch: str | Path | None = None
    scratch_size: int | None = None
    wait_for_workers: float | None = None

    def __post_init__(self) -> None:
        if self.scratch is not None and not (isinstance(self.scratch, str | os.PathLike) and os.fspath(self.scratch)):
            raise ConfigError(f"scratch {self.scratch!r} is no path; name a local folder, or leave it out.")
        if self.scratch is not None and is_remote(parse_address(self.scratch).path):
            raise ConfigError(f"scratch {str(self.scratch)!r} is a URL; name a local folder, or leave it out.")
        require_known("device", self.device, ("auto", "cpu", "cuda"))
        require_known("residency", self.residency, ("auto", *RESIDENCIES))
        require_known("state", self.state, ("auto", *STATES))
        require_known("images", self.images, ("auto", *PLACES))
        require_known("comm", self.comm, ("auto", "tcp", "ucx", "nccl"))
        for name, (least, most, whole) in BOUNDS.items():
            if getattr(self, name) is not None or name in REQUIRED:
                require_number(name, getattr(self, name), least, most, whole=whole)


@dataclass(frozen=True)
class Allocation:
    """The resources that a run has: number of workers, their device and memory.

    memory: bytes of a worker, and what limits them;  process: bytes of a worker's process without arrays;  options: what was
    asked for
    """

    workers: int
    device: Kind
    memory: Limit
    process: int
    options: Resources
    host: int | None = None


def allocate(asked: Resources, client: Client | None, cluster: str | None) -> Allocation:
    """Resources on the workers of a client, or on this machine.

    Waits for the workers of a client. Raises InputError where there are too few or a GPU is missing, ConfigError where cluster
    and device disagree, OutputError where the folder for fields on disk cannot be used.
    """
    if cluster == "cuda" and asked.device == "cpu":
        raise ConfigError("--cluster cuda has a worker for each GPU and --device is cpu; leave one of them out.")
    # counted first, which waits for them: without a worker there is nothing to ask for its device
    if client:
        available = clusters.worker_count(client, asked.workers, asked.wait_for_workers)
    else:
        available = clusters.gpu_workers() if cluster == "cuda" else 1
    workers = asked.workers or available
    kind = clusters.device_of(client, "cuda" if cluster == "cuda" else asked.device, workers)
    limit = Limit(asked.memory, GIVEN) if asked.memory else _limit(client, kind, workers)
    process = clusters.estimated_bytes(client, workers, kind)
    if client is None and asked.scratch is not None:
        require_scratch(Path(asked.scratch))
    if client is None and kind == "cpu":
        _require_address_space(process + machine.UNTOUCHED_BYTES)
    return Allocation(workers, kind, limit, process, asked, host_limit(asked, client, workers) if kind == "cuda" else None)


def _limit(client: Client | None, kind: Kind, workers: int) -> Limit:
    return clusters.gpu_limit(client) if kind == "cuda" else clusters.memory_limit(client, workers)


def host_limit(asked: Resources, client: Client | None, workers: int) -> int:
    """Bytes of the machine's memory for the fields of a GPU's worker."""
    return asked.host_memory or int(HOST_SHARE * clusters.memory_limit(client, workers).value)


def _require_address_space(needed: int) -> None:
    """Raises InputError where the processes that will be started cannot map what they do before they have an image."""
    limit = machine.address_space()
    if limit is not None and limit < needed:
        raise InputError(
            f"the limit of address space (ulimit -v) is {limit / 2**30:.2f} GiB, and a process maps {needed / 2**30:.2f} GiB "
            "before it reads an image, most of which it never uses; raise it, or limit memory by a control group instead."
        )


def require_cluster_name(name: str) -> None:
    """Raises ConfigError for a word that is nearly one of a kind of cluster; any other may be the address of a scheduler."""
    known = [*clusters.BATCH_SYSTEMS, "local", "cuda"]
    near = None if ":" in name or name in known else closest(name, known)
    if near:
        raise ConfigError(f"{name!r} is no cluster and no address of a Dask scheduler; did you mean {near}?")


def parse_memory(text: int | str | None) -> int | None:
    """Bytes from 48GB, 512MiB or a number. Raises ConfigError, also for less than a megabyte, where a unit was forgotten."""
    found = _bytes(text)
    if found is not None and not isinstance(found, bool) and 0 < found < LEAST_MEMORY:
        meant = f"{str(text).strip()}GB" if str(text).strip().isdigit() else "8GB"
        raise ConfigError(f"memory {text!r} is {found} bytes, less than a megabyte; {meant}?")
    return found


def parse_duration(text: float | str | None) -> float | None:
    """Seconds from 30min, 2h, 90s, 1h30min, 01:30:00 or a number of seconds. Raises ConfigError."""
    if text is None or not isinstance(text, str):
        return text
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text.strip())
    if clock:
        days, hours, minutes, seconds = (int(n or 0) for n in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    found = [float(n) * UNITS.get(unit.lower(), math.nan) for n, unit in parts]
    if not parts or "".join(n + unit for n, unit in parts) != "".join(text.split()) or math.isnan(sum(found)):
        raise ConfigError(f"{text!r} is not a duration; write it like 30min, 2h, 90s or 01:30:00.")
    return sum(found)


def _bytes(text: int | str | None) -> int | None:
    if text is None or isinstance(text, int):
        return text
    from dask.utils import parse_bytes

    try:
        if isinstance(text, str) and any(c.isdigit() for c in text):  # Dask takes "GB" for one gigabyte
            return int(parse_bytes(text))
    except (ValueError, TypeError, OverflowError):
        pass
    raise ConfigError(f"memory {text!r} is not an amount of memory; write it like 48GB or 512MiB.")
