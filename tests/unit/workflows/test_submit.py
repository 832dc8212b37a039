"""The script of a job, run by the shell with stand-ins for SLURM and daskreg."""

import os
import signal
import subprocess
import time

import pytest
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.errors import ConfigError, OutputError, OutputExists
from daskreg.workflows.submit import Job, job_script, submit

PAIR = ("f.zarr", "m.zarr", "-o", "run.zarr")
STANDS_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "{log}"
{rest}
"""


@pytest.fixture
def shell(tmp_path):
    """A folder of programs, which write what they are called with into a log."""
    log = tmp_path / "log"
    log.write_text("")
    runs = "trap 'sleep 0.3; exit 143' TERM; touch started; for k in $(seq 200); do sleep 0.05; done; exit 0"
    for name, rest in (("daskreg", runs), ("scontrol", ""), ("sbatch", "echo 4711")):
        (tmp_path / name).write_text(STANDS_IN.format(log=log, rest=rest))
        (tmp_path / name).chmod(0o755)
    return tmp_path, log, {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}


def run(shell, number):
    folder, log, environment = shell
    (folder / "job.sh").write_text(job_script(Job(), PAIR))
    job = subprocess.Popen(["/bin/bash", "job.sh"], cwd=folder, env=environment)
    while not (folder / "started").exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(number)
    return job.wait(30), log.read_text().splitlines()


def test_a_job_is_queued_again_when_its_time_is_nearly_over(shell):
    status, called = run(shell, signal.SIGUSR1)
    assert status == 143
    assert called == ["daskreg register f.zarr m.zarr -o run.zarr --resume", "scontrol requeue 7"]


def test_a_job_that_is_cancelled_ends(shell):
    status, called = run(shell, signal.SIGTERM)
    assert status == 143
    assert called == ["daskreg register f.zarr m.zarr -o run.zarr --resume"]


def test_what_is_asked_of_slurm(tmp_path):
    job = Job(4, 32, 1, "250GB", "2-00:00:00", "gpu", "lab", "brain", ("module load cuda",), "daskreg.sif")
    text = job_script(job, ("register", *PAIR, "--preset", "light sheet"))
    for line in ("--nodes=4", "--cpus-per-task=32", "--gpus-per-node=1", "--mem=238418M", "--time=2-00:00:00", "--partition=gpu",
                 "--account=lab", "--output=brain-%j.log", "--signal=B:USR1@120 --requeue --open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "module load cuda\n" in text
    assert (
        "apptainer exec --nv daskreg.sif daskreg register f.zarr m.zarr -o run.zarr --preset 'light sheet' --resume "
        '--cluster "$scheduler" --workers "$SLURM_NNODES" &'
    ) in text
    assert '--output="brain-%j-%t.log" apptainer exec --nv daskreg.sif dask worker "$scheduler"' in text
    assert "--cluster cuda" in job_script(Job(gpus=4), PAIR)
    for given in (job, Job(), Job(gpus=2)):
        (tmp_path / "job.sh").write_text(job_script(given, PAIR))
        assert subprocess.run(["/bin/bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("job", "arguments", "says"),
    [
        ({}, ("f.zarr", "m.zarr"), "needs the output"),
        ({}, (*PAIR, "--overwrite"), "would begin again"),
        ({"nodes": 2}, (*PAIR, "--workers", "3"), "--workers follows from the nodes"),
        ({"nodes": 2, "gpus": 2}, PAIR, "one GPU a node"),
        ({"time": "soon"}, PAIR, "no time of SLURM"),
        ({"memory": "8"}, PAIR, "8GB"),
    ],
)
def test_what_a_job_cannot_be_is_refused(job, arguments, says):
    with pytest.raises(ConfigError, match=says):
        job_script(Job(**job), arguments)


def test_the_command_writes_explains_and_submits(shell, monkeypatch):
    folder, log, environment = shell
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", environment["PATH"])
    done = CliRunner().invoke(app, ["submit", "--cpus", "8", "--start", "--", *PAIR])
    assert done.exit_code == 0, done.exception
    assert "scancel ends it for good" in done.output
    assert "submitted as job 4711" in done.output
    assert log.read_text() == "sbatch --parsable daskreg-job.sh\n"
    assert os.access("daskreg-job.sh", os.X_OK)
    with pytest.raises(OutputExists):
        submit(PAIR, "daskreg-job.sh", Job())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OutputError, match="is written, and there is no sbatch here"):
        submit(PAIR, "daskreg-job.sh", Job(), overwrite=True, start=True)
