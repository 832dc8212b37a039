"""Runs on Dask clusters: the only place that imports ``distributed``."""

from distributed import Client
from distributed.client import futures_of

from daskreg.cluster.clients import current_client, dashboard, embedded_client, existing_client
from daskreg.cluster.compile_count import kernels_to_compile
from daskreg.cluster.job_workers import BATCH_SYSTEMS, job_memory, require_batch_system
from daskreg.cluster.link import local_link
from daskreg.cluster.process_size import estimated_bytes
from daskreg.cluster.rank_actor import Cancelled
from daskreg.cluster.rank_job import RankJob
from daskreg.cluster.result_writer import moved_dtype
from daskreg.cluster.run import run_on_cluster
from daskreg.cluster.supervision import scheduler_required
from daskreg.cluster.worker_calls import ask_workers
from daskreg.cluster.workers import device_of, gpu_limit, gpu_workers, memory_limit, worker_count

__all__ = [
    "BATCH_SYSTEMS",
    "Cancelled",
    "Client",
    "RankJob",
    "ask_workers",
    "current_client",
    "dashboard",
    "device_of",
    "embedded_client",
    "estimated_bytes",
    "existing_client",
    "futures_of",
    "gpu_limit",
    "gpu_workers",
    "job_memory",
    "kernels_to_compile",
    "local_link",
    "memory_limit",
    "moved_dtype",
    "require_batch_system",
    "run_on_cluster",
    "scheduler_required",
    "worker_count",
]
