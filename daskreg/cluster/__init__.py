"""Workers: the only place that knows Dask's distributed side."""

from distributed import Client
from distributed.client import futures_of

from daskreg.cluster.drive import Cancelled, run_job
from daskreg.cluster.job import Job
from daskreg.cluster.process_size import estimated_bytes
from daskreg.cluster.session import device_of, embedded, existing, gpu_limit, gpu_workers, memory_limit, worker_count

__all__ = ["Cancelled", "Client", "Job", "device_of", "embedded", "estimated_bytes", "existing", "futures_of", "gpu_limit",
           "gpu_workers", "memory_limit", "run_job", "worker_count"]  # fmt: skip
