"""What a cluster has: its workers, their memory and their GPUs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from distributed import Client

from daskreg import machine
from daskreg.cluster import timeouts
from daskreg.cluster.job_queue import JobQueue, job_queue
from daskreg.cluster.worker_calls import ask_some, ask_workers, awaited_workers, span, workers_of
from daskreg.errors import InputError
from daskreg.kernels.device import Kind, gpu_identity, gpu_memory, gpus
from daskreg.machine import Limit


def worker_count(client: Client, wanted: int | None = None, seconds: float | None = None) -> int:
    """Number of workers that a cluster has, once it has as many as wanted, or as its jobs will bring, or one.

    seconds: to wait at most; None: for those of jobs that wait in a queue ``QUEUED_WORKERS_TIMEOUT``, for others
    ``WORKER_START_TIMEOUT``, for a first one ``FIRST_WORKER_TIMEOUT``. Raises InputError where there are fewer then, RunError
    where jobs have ended.
    """
    queue = job_queue(client)
    number = wanted or (1 if queue is None else max(1, queue.expected))
    limit = _limit_of_wait(number, queue) if seconds is None else seconds
    known = awaited_workers(client, number, limit, queue)
    if len(known) >= number:
        return len(known)
    jobs = "" if queue is None else queue.look(known, number)
    have = f"{len(known)} of {number} workers" if known else "no worker"
    raise InputError(
        f"the Dask cluster has {have} after {span(limit)}{f' ({jobs})' if jobs else ''}; start more, ask for fewer, or wait "
        "longer (--wait-for-workers 30min)."
    )


def _limit_of_wait(number: int, queue: JobQueue | None) -> float:
    if queue is not None:
        return timeouts.QUEUED_WORKERS_TIMEOUT
    return timeouts.WORKER_START_TIMEOUT if number > 1 else timeouts.FIRST_WORKER_TIMEOUT


def memory_limit(client: Client | None, workers: int) -> Limit:
    """Bytes the smallest worker may use: its own limit in Dask, or its share of what its machine, container or job has."""
    if client is None:
        return _share(machine.memory(), workers)
    known, found = workers_of(client), ask_workers(client, machine.memory, "how much memory it has")
    groups = Counter((known[a]["host"], found[a].source) for a in found if a in known)
    limits = [_own_memory(known[a], found[a], groups[known[a]["host"], found[a].source]) for a in found if a in known]
    return min(limits, key=lambda limit: limit.value, default=_share(machine.memory(), workers))


def _own_memory(worker: dict[str, Any], limit: Limit, sharing: int) -> Limit:
    """What one worker may use of a limit that so many share."""
    own = int(worker.get("memory_limit") or 0)
    if not own:
        return _share(limit, sharing)
    return Limit(own, f"the memory limit of the Dask worker {worker.get('name')}") if own <= limit.value else limit


def _share(limit: Limit, sharing: int) -> Limit:
    if sharing == 1:
        return limit
    return Limit(limit.value // sharing, f"1/{sharing} of {limit.source}, {limit.value / 2**30:.1f} GiB")


def device_of(client: Client | None, wanted: str, workers: int = 1) -> Kind:
    """The device that kernels run on: the one asked for; with ``auto`` GPUs if every worker has one.

    Without a client: if this machine has one for each of ``workers``. Raises InputError where a worker lacks the GPU asked for.
    """
    if wanted == "cpu":
        return "cpu"
    found = (
        {"this machine": gpus() // (workers if wanted == "auto" else 1)}
        if client is None
        else ask_workers(client, gpus, "how many GPUs it has")
    )
    lacking = [name for name, n in found.items() if not n]
    if wanted == "cuda" and lacking:
        raise InputError(
            f"a GPU was asked for and {lacking[0]} has none that CuPy can use; pip install 'daskreg[cuda13]' (or cuda12) "
            "there and look at nvidia-smi, or use --device cpu."
        )
    return "cpu" if wanted == "auto" and (lacking or not found) else "cuda"


def gpu_workers() -> int:
    """Workers of a cluster with one for each GPU of this machine."""
    return max(1, gpus())


def gpu_limit(client: Client | None) -> Limit:
    """Free bytes of the fullest GPU among the workers', a worker's share where several have the same. Raises RunError."""
    if client is None:
        return Limit(gpu_memory(), "free on the GPU")
    found = ask_some(client, _own_gpu, "what its GPU has").values()
    sharing = Counter(gpu for gpu, _ in found)
    return Limit(min(free // sharing[gpu] for gpu, free in found), "free on the fullest GPU")


def _own_gpu() -> tuple[str, int]:
    """Which one a worker has, and its free bytes."""
    return gpu_identity(), gpu_memory()
