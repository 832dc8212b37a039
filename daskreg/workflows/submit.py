"""``daskreg submit``: a SLURM job that registers, is continued after its time limit, and ends when it is cancelled."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daskreg.errors import ConfigError, OutputError
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.files import replace_text
from daskreg.workflows.resources import parse_memory

TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
CLUSTER_OPTIONS = ("--cluster", "--workers", "--memory")  # which a job of several nodes sets itself
BEFORE_THE_END = 120  # seconds at which a run is told to write a checkpoint


@dataclass(frozen=True)
class Job:
    """What a job asks of SLURM.

    nodes: with one worker each;  cpus, gpus: a node;  memory: of a node, such as 250GB;  time: as SLURM writes it;
    setup: lines of shell that come first, such as ``module load cuda``;  container: an image that daskreg runs in, by Apptainer
    """

    nodes: int = 1
    cpus: int = 1
    gpus: int = 0
    memory: str | None = None
    time: str = "08:00:00"
    partition: str | None = None
    account: str | None = None
    name: str = "daskreg"
    setup: Sequence[str] = ()
    container: str | None = None

    def __post_init__(self) -> None:
        if not TIME.fullmatch(self.time):
            raise ConfigError(f"time {self.time!r} is no time of SLURM; write it like 08:00:00 or 2-00:00:00.")
        if min(self.nodes, self.cpus) < 1 or self.gpus < 0:
            raise ConfigError("a job has one node and one CPU at least.")
        if self.nodes > 1 and self.gpus > 1:
            raise ConfigError("a job of several nodes has one worker on each; ask for one GPU a node, or for one node.")
        parse_memory(self.memory)


def job_script(job: Job, arguments: Sequence[str]) -> str:
    """The script. arguments: of ``daskreg register``. Raises ConfigError for those that a job cannot have."""
    command = _command(job, arguments)
    return "\n".join([*_header(job), *job.setup, "", *_cluster(job), *_run(command)]) + "\n"


def submit(arguments: Sequence[str], script: str | Path, job: Job, *, overwrite: bool = False, start: bool = False) -> str | None:
    """Write the script, and submit it where ``start``; the number of the job, or None.

    Raises ConfigError, OutputExists and OutputError; OutputError too where SLURM is not there or refuses the job.
    """
    text = job_script(job, arguments)
    with atomic_output(str(script), overwrite) as place:
        replace_text(place, text)
    os.chmod(script, 0o755)
    if not start:
        return None
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise OutputError(f"{script} is written, and there is no sbatch here to submit it with; run it on a login node of SLURM.")
    done = subprocess.run([sbatch, "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OutputError(f"{script} is written, and SLURM refuses it: {done.stderr.strip() or done.stdout.strip()}.")
    return done.stdout.strip()


def explanation(job: Job, script: str | Path) -> list[str]:
    """What the script does, for people."""
    return [
        f"{script}: {job.nodes} node{'s' * (job.nodes > 1)}, {job.time}; submit it with: sbatch {shlex.quote(str(script))}",
        f"{BEFORE_THE_END} s before its time is over the run writes a checkpoint, and the job is queued again and goes on.",
        "scancel ends it for good, with a checkpoint; submitted again, it goes on from there.",
        "Exit codes: 0 done, 2 wrong input, 3 a failed verdict with --strict, 143 stopped, anything else an error.",
        f"Logs: {job.name}-JOB.log" + (f", and {job.name}-JOB-RANK.log of each worker." if job.nodes > 1 else "."),
    ]


def _command(job: Job, arguments: Sequence[str]) -> str:
    given = list(arguments)[1:] if list(arguments[:1]) == ["register"] else list(arguments)
    names = [word.partition("=")[0] for word in given]
    if not {"-o", "--output"} & set(names):
        raise ConfigError("a job needs the output of its run: daskreg submit ... -- FIXED MOVING -o RUN.zarr.")
    if "--overwrite" in names:
        raise ConfigError("--overwrite would begin again each time that the job is continued; remove the older run first.")
    taken = [name for name in CLUSTER_OPTIONS if name in names]
    if job.nodes > 1 and taken:
        raise ConfigError(f"{taken[0]} follows from the nodes of the job; leave it out.")
    given += [] if "--resume" in names else ["--resume"]
    if job.nodes == 1 and job.gpus > 1 and "--cluster" not in names:
        given += ["--cluster", "cuda"]
    command = shlex.join([*_inside(job), "daskreg", "register", *given])
    return command if job.nodes == 1 else f'{command} --cluster "$scheduler" --workers "$SLURM_NNODES"'


def _inside(job: Job) -> list[str]:
    """What a command of the container begins with."""
    return [] if job.container is None else ["apptainer", "exec", *(["--nv"] if job.gpus else []), job.container]


def _header(job: Job) -> list[str]:
    asked = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus or None,
        "mem": None if job.memory is None else f"{(parse_memory(job.memory) or 0) // 2**20}M",
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "output": f"{job.name}-%j.log",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in asked.items() if value is not None]
    return ["#!/bin/bash", *lines, f"#SBATCH --signal=B:USR1@{BEFORE_THE_END} --requeue --open-mode=append"]


def _cluster(job: Job) -> list[str]:
    """A scheduler and a worker on each node, for several."""
    if job.nodes == 1:
        return []
    inside = _inside(job)
    memory = [] if job.memory is None else ["--memory-limit", str(int(0.92 * (parse_memory(job.memory) or 0)))]
    worker = shlex.join([*inside, "dask", "worker"])
    return [
        'scheduler="tcp://$(hostname):8786"',
        f"{shlex.join([*inside, 'dask', 'scheduler'])} --port 8786 &",
        'until (: < "/dev/tcp/$(hostname)/8786") 2>/dev/null; do sleep 1; done',
        f'srun --cpus-per-task={job.cpus} --output="{job.name}-%j-%t.log" {worker} "$scheduler" --nworkers 1 '
        f'--nthreads {job.cpus} --local-directory "${{TMPDIR:-/tmp}}"{" " * bool(memory)}{shlex.join(memory)} &',
        "",
    ]


def _run(command: str) -> list[str]:
    """Registers, and tells the end of its time (USR1, continued) from scancel (TERM, over)."""
    return [
        f"{command} &",
        "run=$! again=",
        """trap 'again=yes; kill -TERM "$run"' USR1   # the time is nearly over""",
        """trap 'again=; kill -TERM "$run"' TERM      # scancel""",
        'wait "$run"; status=$?',
        'while kill -0 "$run" 2>/dev/null; do wait "$run"; status=$?; done   # a trap interrupts the first wait',
        "",
        'if [ -n "$again" ] && [ "$status" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$status"',
    ]
