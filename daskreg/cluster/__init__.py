"""Workers: the only place that knows Dask's distributed side."""

from distributed import Client
from distributed.client import futures_of

from daskreg.cluster.drive import Cancelled, run_job
from daskreg.cluster.job import Job
from daskreg.cluster.session import device_of, embedded, existing, gpu_bytes, gpu_workers, worker_count, worker_memory

__all__ = ["Cancelled", "Client", "Job", "device_of", "embedded", "existing", "futures_of", "gpu_bytes", "gpu_workers", "run_job",
           "worker_count", "worker_memory"]  # fmt: skip
