"""Workers that are jobs of a batch system: submitted through dask-jobqueue from the user's configuration of it, and cancelled.

The scheduler is part of this process. Connections use TLS with certificates of this cluster, which its jobs read from a folder of
mode 700; the dashboard listens on this machine's loopback interface.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed import Client
from distributed.core import Status
from distributed.security import Security

from daskreg.cluster import timeouts
from daskreg.cluster.closing import close_client
from daskreg.cluster.isolation import LOOPBACK, ClosedScheduler, secret_prefix, temporary_security
from daskreg.cluster.refusals import refusal
from daskreg.errors import ConfigError, InputError, OutputError, all_of
from daskreg.machine import Limit

log = logging.getLogger("daskreg")
BATCH_SYSTEMS = {  # class of dask-jobqueue, and the command that submits
    "slurm": ("SLURMCluster", "sbatch"),
    "pbs": ("PBSCluster", "qsub"),
    "lsf": ("LSFCluster", "bsub"),
    "sge": ("SGECluster", "qsub"),
}
EXAMPLE = "cores: 32, memory: 250GB, walltime: '08:00:00'"
# what the shell of a job does first: no modules from the working directory, no HTTP pages, scratch files in a folder of its own
PROLOGUE = (
    "export PYTHONSAFEPATH=1 DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
    'export DASK_TEMPORARY_DIRECTORY="$(mktemp -d)"',
    """trap 'rm -rf "$DASK_TEMPORARY_DIRECTORY"' EXIT""",
)


@contextmanager
def job_client(system: str, workers: int) -> Iterator[tuple[Client, str]]:
    """The client of a cluster whose workers are jobs, one worker each, and its dashboard; the jobs are cancelled in the end.

    Yields as soon as the jobs are submitted: ``worker_count`` waits for them. Raises InputError where dask-jobqueue or the batch
    system is not there or refuses a job, and ConfigError for a configuration without cores and memory.
    """
    require_batch_system(system)
    make = getattr(import_module("dask_jobqueue"), BATCH_SYSTEMS[system][0])
    prefix = secret_prefix()
    with _shared_folder(system) as folder:
        cluster = _made(make, system, folder, prefix)
        try:
            _submit(cluster, system, workers)
            client = Client(cluster, timeout=timeouts.SCHEDULER_TIMEOUT, set_as_default=False)
            try:
                yield client, f"http://127.0.0.1:{cluster.scheduler.http_server.port}{prefix}/status"
            finally:
                close_client(client)
        finally:
            close_jobs(cluster)


def job_memory(system: str) -> Limit | None:
    """Bytes of a worker's job by the configuration; None where it says nothing, or asks for GPUs, whose memory counts.

    Raises ConfigError for what is no amount of memory.
    """
    with suppress(ImportError):
        import_module("dask_jobqueue")  # brings the defaults
    asked = dask.config.get(f"jobqueue.{system}", {})
    if asked.get("memory") is None or "gpu" in str(asked).lower():
        return None
    try:
        return Limit(parse_bytes(asked["memory"]), f"the memory of a job in jobqueue.{system}")
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(f"jobqueue.{system}.memory is {asked['memory']!r}; an amount such as 250GB was expected.") from None


def require_batch_system(system: str) -> None:
    """Raises InputError and ConfigError for all that is missing, in the order in which it is mended."""
    all_of(*(partial(require, system) for require in (_require_jobqueue, _require_configuration, _require_command)))


def _require_jobqueue(system: str) -> None:
    try:
        import_module("dask_jobqueue")
    except ImportError:
        raise InputError(f"--cluster {system} needs dask-jobqueue; pip install 'daskreg[hpc]'.") from None


def _require_configuration(system: str) -> None:
    missing = [key for key in ("cores", "memory") if dask.config.get(f"jobqueue.{system}.{key}", None) is None]
    if missing:
        raise ConfigError(
            f"dask-jobqueue's configuration does not say the {' and '.join(missing)} of a job: write 'jobqueue: {{{system}: "
            f"{{{EXAMPLE}}}}}' into {dask.config.PATH}/jobqueue.yaml, one job for each worker."
        )


def _require_command(system: str) -> None:
    command = BATCH_SYSTEMS[system][1]
    if shutil.which(command) is None:
        raise InputError(
            f"--cluster {system}: there is no {command} here; run it on a login node, or name the address of a Dask scheduler."
        )


@contextmanager
def _shared_folder(system: str) -> Iterator[str]:
    """A folder for the certificates, which jobs see and other users cannot open."""
    parent = os.path.expanduser(
        os.path.expandvars(dask.config.get(f"jobqueue.{system}.shared-temp-directory", None) or os.getcwd())
    )
    try:
        folder = tempfile.mkdtemp(prefix=".daskreg-", dir=parent)
    except OSError as error:
        raise OutputError(
            f"certificates of the cluster cannot be written to {parent}: {error.strerror}; start it in a folder that jobs see, "
            f"or name one by jobqueue.{system}.shared-temp-directory."
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _security(folder: str) -> Security:
    """Of this process in memory, of the workers in files of a folder, which only this user reads."""
    security = temporary_security()
    for name in ("tls_worker_key", "tls_worker_cert", "tls_ca_file"):
        path = os.path.join(folder, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(getattr(security, name))
        setattr(security, name, path)
    return security


def _made(make: Any, system: str, folder: str, prefix: str) -> Any:
    """The cluster, without jobs. Raises ConfigError for what dask-jobqueue does not accept of its configuration."""
    asked = dask.config.get(f"jobqueue.{system}")
    if (asked.get("processes") or 1) != 1:
        log.info(
            "jobqueue.%s.processes is %s; a job has one worker here, which uses all of its cores", system, asked["processes"]
        )
    try:
        return make(
            job_cls=_told_when_closed(make.job_cls),
            processes=1,
            security=_security(folder),
            scheduler_cls=ClosedScheduler,
            scheduler_options={"dashboard_address": LOOPBACK, **(asked.get("scheduler-options") or {}), "http_prefix": prefix},
            worker_extra_args=[*(asked.get("worker-extra-args") or []), "--no-dashboard"],
            job_script_prologue=[*(asked.get("job-script-prologue") or []), *PROLOGUE],
            silence_logs=logging.CRITICAL,
        )
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        raise ConfigError(f"dask-jobqueue cannot use jobqueue.{system}: {' '.join(str(error).split())}") from error


def _told_when_closed(job: Any) -> Any:
    """A class of jobs of dask-jobqueue that say when they are closed, without which Dask does not close their cluster."""

    async def close(self: Any) -> None:
        await job.close(self)
        self.status = Status.closed

    return type(job.__name__, (job,), {"close": close})


def _submit(cluster: Any, system: str, workers: int) -> None:
    """A job for each worker. Raises InputError where one is refused."""
    for _ in range(workers):
        cluster.worker_spec.update(cluster.new_worker_spec())

    async def submitted() -> None:
        await cluster

    try:
        cluster.sync(submitted)
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{system} refuses the job of a worker: {refusal(system, _said(error))}") from None
    numbers = ", ".join(str(job.job_id) for job in cluster.workers.values())
    log.info("submitted to %s, one worker each: job%s %s", system, "s" * (workers > 1), numbers)


def _said(error: Exception) -> str:
    """What a command that failed has written, of dask-jobqueue's account of it."""
    text = str(error)
    for mark in ("stderr:\n", "stdout:\n"):
        written = text.partition(mark)[2].partition("\nstderr:")[0]
        if written.strip():
            return written
    return " ".join(text.split())


def close_jobs(cluster: Any) -> None:
    """Cancel the jobs and close the cluster. What has not ended after ``JOBS_CLOSE_TIMEOUT`` is logged."""
    numbers = [str(job.job_id) for job in cluster.workers.values() if job.job_id]
    command = [*shlex.split(cluster.job_cls.cancel_command), *numbers]
    closing = threading.Thread(target=_close, args=(cluster,), name="daskreg-close-jobs", daemon=True)
    closing.start()
    closing.join(timeouts.JOBS_CLOSE_TIMEOUT)
    if not closing.is_alive():
        return
    cluster.status = Status.closed  # else Dask waits for it again when Python exits
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=timeouts.JOBS_CLOSE_TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        log.warning("the jobs of this run may still be in the queue; cancel them: %s", shlex.join(command))


def _close(cluster: Any) -> None:
    with suppress(Exception):  # nothing that is discarded is of interest
        cluster.close()
