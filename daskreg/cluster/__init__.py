"""Workers: the only place that knows Dask's distributed side."""

from distributed import Client

from daskreg.cluster.drive import Cancelled, run_job
from daskreg.cluster.job import Job
from daskreg.cluster.session import session

__all__ = ["Cancelled", "Client", "Job", "run_job", "session"]
