"""Workers as jobs, submitted through dask-jobqueue: what is missing is told, and what was submitted is cancelled."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import dask
import numpy as np
import pytest

from daskreg import Affine, register
from daskreg.cluster import clients, existing_client, job_workers, timeouts, worker_count
from daskreg.errors import ConfigError, InputError, OutputExists, PlanTooLarge, RunError
from daskreg.workflows.resources import parse_duration

# runs a job at once, as a process group whose number is that of the job
SBATCH = """#!/bin/bash
cp "$1" "{folder}/job.$$.sh"
echo "$@" >> "{folder}/called"
setsid bash -c 'exec bash "$0" > "{folder}/slurm-$$.out" 2>&1' "{folder}/job.$$.sh" &
echo "Submitted batch job $!"
"""
SCANCEL = '#!/bin/bash\necho "scancel $@" >> "{folder}/called"\nfor job in "$@"; do kill -TERM -- "-$job"; done\n'
SQUEUE = """#!/bin/bash
IFS=, read -ra jobs <<< "${{@: -1}}"
for job in "${{jobs[@]#--jobs=}}"; do
  kill -0 "$job" 2> /dev/null && echo "$job|RUNNING|None" || echo "$job|FAILED|NonZeroExitCode"
done
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with stand-ins for SLURM, which is the working directory, and a configuration of jobs with one core each."""
    pytest.importorskip("dask_jobqueue")
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL), ("squeue", SQUEUE)):
        (tmp_path / name).write_text(text.format(folder=tmp_path))
        os.chmod(tmp_path / name, 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with dask.config.set({"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "2GB"}):
        yield tmp_path
    for script in tmp_path.glob("job.*.sh"):
        assert subprocess.run(["pgrep", "-f", str(script)], check=False, capture_output=True).returncode == 1


def test_what_is_missing_is_told(slurm, monkeypatch):
    with dask.config.set({"jobqueue.slurm.cores": None}), pytest.raises(ConfigError, match=r"cores of a job: write 'jobqueue: "):
        job_workers.require_batch_system("slurm")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="there is no sbatch here; run it on a login node"):
        job_workers.require_batch_system("slurm")
    with dask.config.set({"jobqueue.slurm.cores": None}), pytest.raises(ConfigError) as found:
        job_workers.require_batch_system("slurm")
    assert [line.split(":")[0] for line in str(found.value).splitlines()] == [
        "dask-jobqueue's configuration does not say the cores of a job", "--cluster slurm"
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(InputError, match=r"--cluster slurm needs dask-jobqueue; pip install 'daskreg\[hpc\]'"):
        job_workers.require_batch_system("slurm")


def test_a_batch_system_that_is_misspelt():
    with pytest.raises(InputError, match="did you mean slurm"):
        clients._connect("slrum")


def test_what_is_known_to_fail_is_refused_before_jobs_are_submitted(slurm):
    images = np.ones((2, 24, 24, 24), np.float32)
    with (
        dask.config.set({"jobqueue.slurm.memory": "2MB"}),
        pytest.raises(PlanTooLarge, match=r"memory of a job in jobqueue.slurm"),
    ):
        register(*images, cluster="slurm", spacing=1, progress=False)
    with dask.config.set({"jobqueue.slurm.memory": "lots"}), pytest.raises(ConfigError, match="'lots'; an amount such as 250GB"):
        register(*images, cluster="slurm", spacing=1, progress=False)
    (slurm / "run.zarr").mkdir()
    with dask.config.set({"jobqueue.slurm.memory": "2MB", "jobqueue.slurm.cores": None}), pytest.raises(PlanTooLarge) as told:
        register(*images, cluster="slurm", spacing=1, progress=False, output=slurm / "run.zarr")
    for reason in ("memory of a job in jobqueue.slurm", "run.zarr exists already", "does not say the cores of a job"):
        assert reason in str(told.value)
    with pytest.raises(OutputExists):
        register(*images, cluster="slurm", spacing=1, output="run.zarr", progress=False)
    assert not (slurm / "called").exists()


def test_a_job_that_is_refused_is_told_and_nothing_is_left(slurm):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    refused = pytest.raises(InputError, match="slurm refuses the job of a worker: sbatch: error: invalid partition")
    with refused, existing_client(None, "slurm", 2):
        pass
    assert not list(slurm.glob(".daskreg-*"))


def test_a_job_that_ends_is_told_at_once(slurm):
    with (
        dask.config.set({"jobqueue.slurm.worker-command": "no_module"}),
        pytest.raises(RunError, match="No module named no_module"),
        existing_client(None, "slurm", 1) as client,
    ):
        worker_count(client, 1, 60.0)
    assert not list(slurm.glob(".daskreg-*"))


@pytest.mark.slow
def test_a_registration_runs_on_a_job_and_on_the_users_own_cluster(slurm, tmp_path):
    """The second with a cluster of dask-jobqueue that somebody else has made, which is left as it is."""
    fixed = np.zeros((24, 24, 24), np.float32)
    fixed[8:16, 8:16, 8:16] = 1
    given = {"config": [Affine(scales=(2,), iterations=(5,))], "spacing": 1, "progress": False, "wait_for_workers": "60s"}
    here = register(fixed, np.roll(fixed, 1, 0), **given)
    there = register(fixed, np.roll(fixed, 1, 0), cluster="slurm", **given)
    assert there.affine.tobytes() == here.affine.tobytes()
    called = (slurm / "called").read_text().splitlines()
    assert [line.split()[0].startswith("scancel") for line in called] == [False, True]
    script = next(slurm.glob("job.*.sh")).read_text()
    assert "--tls-key" in script
    assert "--nthreads 1 --memory-limit 1.86GiB --nanny" in script
    assert not list(slurm.glob(".daskreg-*"))

    from dask_jobqueue import SLURMCluster
    from distributed import Client

    with SLURMCluster(processes=1, scheduler_options={"dashboard_address": "127.0.0.1:0"}) as cluster, Client(cluster) as client:
        cluster.scale(jobs=1)
        mine = register(fixed, np.roll(fixed, 1, 0), client=client, **given)
        assert mine.affine.tobytes() == here.affine.tobytes()
        assert len(cluster.workers) == 1


def test_jobs_that_cannot_be_cancelled_are_named(caplog, monkeypatch):
    monkeypatch.setattr(timeouts, "JOBS_CLOSE_TIMEOUT", 0.05)

    jobs = {"c-0": SimpleNamespace(job_id="7"), "c-1": SimpleNamespace(job_id=None)}
    kind = SimpleNamespace(cancel_command="/nowhere/scancel")
    job_workers.close_jobs(SimpleNamespace(job_cls=kind, workers=jobs, close=lambda: time.sleep(0.5)))
    assert caplog.messages == ["the jobs of this run may still be in the queue; cancel them: /nowhere/scancel 7"]


def test_durations():
    given = {
        "30min": 1800,
        "2h": 7200,
        "90s": 90,
        "1h30min": 5400,
        "01:30:00": 5400,
        "1-00:00:00": 86400,
        "45": 45,
        7.5: 7.5,
        None: None,
    }
    assert {text: parse_duration(text) for text in given} == given
    for text in ("soon", "", "3 parsecs", "-3min", "1:99:00", "min"):
        with pytest.raises(ConfigError, match="is not a duration"):
            parse_duration(text)
