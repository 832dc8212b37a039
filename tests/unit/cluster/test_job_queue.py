"""What batch systems say of jobs whose workers are waited for."""

import logging
import os
from types import SimpleNamespace

import pytest

from daskreg.cluster import job_queue, timeouts
from daskreg.cluster.job_queue import GONE, JobQueue, JobState, describe, job_states
from daskreg.cluster.worker_calls import WaitReport, span
from daskreg.errors import RunError

PBS = """Job Id: 12.server
    Job_Name = dask-worker
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncpus (R: 32
\tA: 4 T: 8)
    Variable_List = PBS_O_HOME=/home/u

Job Id: 13.server
    job_state = F
    Exit_status = 127
Job Id: 14.server
    job_state = R
"""


def cluster(*numbers, processes=1):
    """Of dask-jobqueue, with a job for each number."""
    jobs = {f"c-{k}": SimpleNamespace(job_id=n) for k, n in enumerate(numbers)}
    dummy = SimpleNamespace(worker_processes=processes, log_directory=None, job_name="dask-worker")
    return SimpleNamespace(workers=jobs, worker_spec=dict(jobs), _dummy_job=dummy, scheduler_address="tls://login:1")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for the commands of a batch system: a name, what it prints, its exit status and what it complains of."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)

    def put(name, text="", status=0, complaint=""):
        (tmp_path / "text").write_text(text)
        (tmp_path / name).write_text(f"#!/bin/sh\ncat {tmp_path}/text\necho '{complaint}' >&2\nexit {status}\n")
        os.chmod(tmp_path / name, 0o755)

    return put


def test_slurm(commands):
    commands("squeue", "1|PENDING|Resources\n2|RUNNING|None\n3|FAILED|NonZeroExitCode\n4|CANCELLED by 0|None\n5|PENDING|None\n")
    assert job_states("slurm", ["1", "2", "3", "4", "5", "6"]) == {
        "1": JobState("pending", "Resources"),
        "2": JobState("running"),
        "3": JobState("ended", "FAILED: NonZeroExitCode"),
        "4": JobState("ended", "CANCELLED"),
        "5": JobState("pending"),
        "6": JobState("ended", GONE, certain=False),
    }


def test_pbs(commands):
    commands("qstat", PBS)
    assert job_states("pbs", ["12", "13", "14"]) == {
        "12": JobState("pending", "Not Running: Insufficient amount of resource: ncpus (R: 32A: 4 T: 8)"),
        "13": JobState("ended", "F: exit status 127"),
        "14": JobState("running"),
    }


def test_lsf(commands):
    commands("bjobs", "7|PEND|-|Job slot limit reached;\n8|RUN|-|-\n9|EXIT|TERM_RUNLIMIT: job killed|-\n")
    assert job_states("lsf", ["7", "8", "9"]) == {
        "7": JobState("pending", "Job slot limit reached"),
        "8": JobState("running"),
        "9": JobState("ended", "EXIT: TERM_RUNLIMIT: job killed"),
    }


def test_grid_engine(commands):
    commands(
        "qstat",
        "job-ID prior name user state\n-----\n 3 0.5 dask u qw 11/29/2026\n 4 0.5 dask u r 11/29\n 5 0.5 dask u Eqw 11/29\n",
    )
    expected = {"3": JobState("pending", "qw"), "4": JobState("running"), "5": JobState("ended", "Eqw")}
    assert job_states("sge", ["3", "4", "5"]) == expected


def test_nothing_is_known_without_an_answer(commands, monkeypatch):
    assert job_states("slurm", ["1"]) is None
    assert job_states("condor", ["1"]) is None
    commands("squeue", status=1, complaint="slurm_load_jobs error: Unable to contact slurm controller")
    assert job_states("slurm", ["1"]) is None
    commands("squeue", status=1, complaint="slurm_load_jobs error: Invalid job id specified")
    assert job_states("slurm", ["1"]) == {"1": JobState("ended", GONE, certain=False)}


@pytest.fixture
def states(monkeypatch):
    """What the batch system says next of the jobs it is asked for."""
    says = {}
    monkeypatch.setattr(timeouts, "QUEUE_INTERVAL", 0.0)
    monkeypatch.setattr(job_queue, "job_states", lambda system, numbers: {n: says[n] for n in numbers})
    return says


def test_the_jobs_of_workers_that_are_missing_are_described(states):
    states.update({"1": JobState("pending", "Resources"), "2": JobState("pending", "Resources"), "3": JobState("running")})
    queue = JobQueue(cluster("1", "2", "3", "4"), "slurm")
    assert queue.expected == 4
    assert queue.look({"tls://a": {"name": "c-3"}}, 4) == "2 jobs pending (Resources), 1 job running"
    assert describe([]) == ""


def test_a_job_of_several_workers_is_known_by_one_of_them(states):
    states["1"] = JobState("pending")
    queue = JobQueue(cluster("1", "2", processes=4), "slurm")
    assert queue.expected == 8
    assert queue.look({"tls://a": {"name": "c-1-3"}}, 8) == "1 job pending"


def test_a_job_that_ended_is_an_error_unless_the_others_suffice(states, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm-1.out").write_text("line 3: python: No such file\n\n")
    states.update({"1": JobState("ended", "FAILED: NonZeroExitCode"), "2": JobState("pending")})
    queue = JobQueue(cluster("1", "2"), "slurm")
    assert queue.look({}, 1) == "1 job ended (FAILED: NonZeroExitCode), 1 job pending"
    with pytest.raises(
        RunError, match=r"job 1 of slurm ended .*FAILED: NonZeroExitCode.*slurm-1.out, which ends with: line 3: pyt"
    ):
        queue.look({}, 2)


def test_a_job_that_is_not_listed_once_may_still_come(states):
    states["1"] = JobState("ended", GONE, certain=False)
    queue = JobQueue(cluster("1"), "pbs")
    assert queue.look({}, 1) == "1 job ended (no longer in the queue)"
    with pytest.raises(RunError, match="job 1 of pbs ended"):
        queue.look({}, 1)


def test_a_job_that_was_refused_is_an_error(states):
    states["1"] = JobState("pending")
    with pytest.raises(RunError, match="the job of worker c-1 was refused by slurm"):
        JobQueue(cluster("1", None), "slurm").look({}, 2)


def test_a_wait_is_told_less_and_less_often_and_when_jobs_change(caplog):
    caplog.set_level(logging.INFO, "daskreg")
    wait = WaitReport(4)
    for second in range(101):
        wait.tell(1, second, "" if second < 50 else "3 jobs pending (Priority)")
    assert [m.split(", ", 1)[1] for m in caplog.messages] == [
        "10 s", "20 s", "40 s", "50 s; 3 jobs pending (Priority)", "80 s; 3 jobs pending (Priority)",
    ]  # fmt: skip
    assert caplog.messages[0].startswith("waiting for 3 of 4 workers")


def test_durations_are_told_for_people():
    assert [span(s) for s in (4.4, 119, 1800, 3600, 11100)] == ["4 s", "119 s", "30 min", "1 h", "3 h 5 min"]
