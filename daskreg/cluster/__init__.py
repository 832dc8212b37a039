"""Workers: the only place that knows Dask's distributed side."""

from distributed import Client
from distributed.client import futures_of

from daskreg.cluster.drive import Cancelled, run_job
from daskreg.cluster.job import Job
from daskreg.cluster.session import embedded, existing, worker_count, worker_memory

__all__ = ["Cancelled", "Client", "Job", "embedded", "existing", "futures_of", "run_job", "worker_count", "worker_memory"]
