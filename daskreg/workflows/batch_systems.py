"""What the script of a job says to SLURM, PBS or LSF: what it needs, how workers start on its nodes, how it is queued again."""

from __future__ import annotations

import re
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daskreg.arguments import checked_constructor
from daskreg.errors import ConfigError, all_of, require, require_number
from daskreg.workflows.resources import parse_memory

TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
BEFORE_THE_END = 120  # seconds at which a run is told to write a checkpoint
SHORTEST = 300  # seconds that a job has at least: more than it is given to write its checkpoint
AGAIN = 99  # exit status with which LSF queues a job again
# of the environment, for processes that PBS and LSF start on other nodes
CARRIED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")


BOUNDS = {"nodes": (1, 100_000), "cpus": (1, 4096), "gpus": (0, 64)}  # of a job


@checked_constructor
@dataclass(frozen=True)
class Job:
    """What a job asks of its batch system.

    Parameters
    ----------
    nodes
        With one worker each.
    cpus, gpus
        Of a node.
    memory
        Of a node, such as "250GB".
    time
        As SLURM writes it, at least five minutes.
    partition
        Or queue.
    account
        Or project.
    name
        Of the job, and of its logs.
    setup
        Lines of shell that come first, such as ``module load cuda``: a list of them, or a text.
    container
        An image that daskreg runs in, by Apptainer.
    system
        ``"slurm"``, ``"pbs"`` or ``"lsf"``.
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
    system: str = "slurm"

    def __post_init__(self) -> None:
        if isinstance(self.setup, str):
            object.__setattr__(self, "setup", tuple(self.setup.splitlines()))
        all_of(
            self._require_time,
            *(partial(require_number, name, getattr(self, name), *BOUNDS[name], whole=True) for name in BOUNDS),
            self._require_one_gpu_a_worker,
            partial(parse_memory, self.memory),
        )

    def _require_one_gpu_a_worker(self) -> None:
        one_each = "a job of several nodes has one worker on each; ask for one GPU a node, or for one node."
        several = all(isinstance(n, int) and n > 1 for n in (self.nodes, self.gpus))
        require(not several, one_each)

    def _require_time(self) -> None:
        if not isinstance(self.time, str) or not TIME.fullmatch(self.time):
            raise ConfigError(f"time {self.time!r} is no time of a job; write it like 08:00:00 or 2-00:00:00.")
        if self.seconds < SHORTEST:
            raise ConfigError(f"time {self.time!r} is {self.seconds} s; a job has {SHORTEST // 60} minutes at least.")

    @property
    def seconds(self) -> int:
        """Its time: days-hours:minutes:seconds, hours:minutes:seconds, minutes:seconds or minutes."""
        days, _, rest = self.time.rpartition("-")
        parts = [int(n) for n in rest.split(":")]
        if days:
            parts += [0] * (3 - len(parts))
        elif len(parts) < 3:
            parts = [0, *parts, *([0] if len(parts) == 1 else [])]
        return ((int(days or 0) * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2]

    @property
    def mebibytes(self) -> int | None:
        """Of memory of a node."""
        return None if self.memory is None else (parse_memory(self.memory) or 0) // 2**20

    def clock(self) -> str:
        """Its time as hours:minutes:seconds."""
        minutes, seconds = divmod(self.seconds, 60)
        return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


class BatchSystem(ABC):
    """How to say to one of them what daskreg needs.

    submit_command, cancel_command: names of commands;  number: of the job, in its shell;  cancel_signals: those that cancel a job
    """

    submit_command: str
    cancel_command: str
    number: str
    cancel_signals = "TERM"

    @abstractmethod
    def header(self, job: Job) -> list[str]:
        """The lines that ask for what a job needs."""

    def begin(self, job: Job) -> list[str]:
        """The lines that come first."""
        return []

    @abstractmethod
    def workers(self, job: Job, command: str) -> str:
        """The line that starts a worker on each node, in the background; command: of one, with its log to standard output."""

    def nodes(self, job: Job) -> str:
        """How many there are, in the shell."""
        return str(job.nodes)

    def timer(self, job: Job) -> list[str]:
        """The line that sends USR1 to the script before its time is over; none where the batch system does.

        By the script's own clock, and to the script alone: what PBS and LSF send goes to all processes of a job, workers too.
        """
        wait = f'sleep $(({job.seconds - BEFORE_THE_END} - SECONDS)) & wait "$!"'
        return [f"{{ trap 'kill \"$!\"; exit' TERM; {wait}; kill -USR1 $$; }} > /dev/null 2>&1 &", "timer=$!"]

    @abstractmethod
    def again(self, script: str) -> list[str]:
        """The lines that queue the job again."""

    @abstractmethod
    def continued(self) -> str:
        """How it goes on, for people."""

    def submit(self, command: str, script: str) -> subprocess.CompletedProcess[str]:
        """Call the command with a script."""
        return subprocess.run([command, script], capture_output=True, text=True, check=False)

    def submitted(self, output: str) -> str:
        """The number of the job, of what the command has written."""
        found = re.search(r"\d+", output)
        return found.group() if found else output.strip()


class Slurm(BatchSystem):
    """SLURM sends USR1 itself, to the script alone, and queues a job again under its number."""

    submit_command, cancel_command, number = "sbatch", "scancel", "$SLURM_JOB_ID"

    def header(self, job: Job) -> list[str]:
        """See the base."""
        asked = {
            "job-name": job.name,
            "nodes": job.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": job.cpus,
            "gpus-per-node": job.gpus or None,
            "mem": None if job.mebibytes is None else f"{job.mebibytes}M",
            "time": job.time,
            "partition": job.partition,
            "account": job.account,
            "output": f"{job.name}-%j.log",
        }
        last = f"#SBATCH --signal=B:USR1@{BEFORE_THE_END} --requeue --open-mode=append"
        return [*_lines("#SBATCH --{}={}", asked), last]

    def workers(self, job: Job, command: str) -> str:
        """See the base."""
        return f'srun --cpus-per-task={job.cpus} --output="{job.name}-%j-%t.log" {command} &'

    def nodes(self, job: Job) -> str:
        """See the base."""
        return '"$SLURM_NNODES"'

    def timer(self, job: Job) -> list[str]:
        """See the base."""
        return []

    def again(self, script: str) -> list[str]:
        """See the base."""
        return [f'if [ -n "$again" ] && [ "$status" = 143 ]; then scontrol requeue "{self.number}"; fi']

    def continued(self) -> str:
        """See the base."""
        return "the job is queued again and goes on"

    def submit(self, command: str, script: str) -> subprocess.CompletedProcess[str]:
        """See the base."""
        return subprocess.run([command, "--parsable", script], capture_output=True, text=True, check=False)


class Pbs(BatchSystem):
    """OpenPBS and PBS Professional: only operators may queue a job again, so that the script submits itself as a new one."""

    submit_command, cancel_command, number = "qsub", "qdel", "${PBS_JOBID%%.*}"

    def header(self, job: Job) -> list[str]:
        """See the base."""
        gpus = f":ngpus={job.gpus}" if job.gpus else ""
        memory = "" if job.mebibytes is None else f":mem={job.mebibytes}mb"
        asked = {
            "N": job.name,
            "l": f"select={job.nodes}:ncpus={job.cpus}:mpiprocs=1{gpus}{memory}",
            "l ": f"walltime={job.clock()}",
            "q": job.partition,
            "A": job.account,
        }
        return [*_lines("#PBS -{} {}", asked), "#PBS -j oe", "#PBS -r y"]

    def begin(self, job: Job) -> list[str]:
        """The log is written by the script: what PBS keeps is seen only when the job has ended."""
        return ['cd "$PBS_O_WORKDIR"', f'exec >> "{job.name}-{self.number}.log" 2>&1']

    def workers(self, job: Job, command: str) -> str:
        """See the base."""
        log = f"{job.name}-{self.number}-\\$(hostname).log"  # not every PBS sets PBS_VNODENUM
        return f'pbsdsh -- /bin/bash -c "{_elsewhere(command, log)}" &'

    def again(self, script: str) -> list[str]:
        """See the base."""
        path = shlex.quote(str(Path(script).absolute()))
        failed = f'echo "not queued again; go on with: qsub {path}"'
        return [f'if [ -n "$again" ] && [ "$status" = 143 ]; then qsub {path} || {failed}; fi']

    def continued(self) -> str:
        """See the base."""
        return "the script submits itself again and goes on from it (where jobs may submit jobs)"


class Lsf(BatchSystem):
    """LSF queues a job again that ends with a status that it names. To cancel it sends INT, TERM and KILL, ten seconds apart."""

    submit_command, cancel_command, number = "bsub", "bkill", "$LSB_JOBID"
    cancel_signals = "TERM INT"

    def header(self, job: Job) -> list[str]:
        """See the base."""
        memory = "" if job.mebibytes is None else f" rusage[mem={job.mebibytes}MB/host]"
        asked = {
            "J": job.name,
            "n": job.nodes * job.cpus,
            "R": f'"span[ptile={job.cpus}]{memory}"',
            "gpu": f'"num={job.gpus}"' if job.gpus else None,
            "W": job.clock()[:-3],  # hours and minutes
            "q": job.partition,
            "P": job.account,
            "o": f"{job.name}-%J.log",
        }
        return [*_lines("#BSUB -{} {}", asked), "#BSUB -r", f"#BSUB -Q {AGAIN}"]

    def workers(self, job: Job, command: str) -> str:
        """See the base."""
        hosts = """$(awk '{for (i = 1; i <= NF; i += 2) print $i}' <<< "$LSB_MCPU_HOSTS" | xargs)"""
        log = f"{job.name}-{self.number}-\\$(hostname).log"
        return f'blaunch -z "{hosts}" /bin/bash -c "{_elsewhere(command, log)}" &'

    def again(self, script: str) -> list[str]:
        """See the base."""
        return [f'if [ -n "$again" ] && [ "$status" = 143 ]; then exit {AGAIN}; fi   # LSF queues it again (-Q)']

    def continued(self) -> str:
        """See the base."""
        return f"the job ends with status {AGAIN}, is queued again and goes on"

    def submit(self, command: str, script: str) -> subprocess.CompletedProcess[str]:
        """LSF reads the script from standard input."""
        with open(script) as text:
            return subprocess.run([command], stdin=text, capture_output=True, text=True, check=False)


SYSTEMS: dict[str, BatchSystem] = {"slurm": Slurm(), "pbs": Pbs(), "lsf": Lsf()}


def _lines(form: str, asked: Mapping[str, Any]) -> list[str]:
    return [form.format(key.strip(), value) for key, value in asked.items() if value is not None]


def _elsewhere(command: str, log: str) -> str:
    """A command for the shell of another node, between double quotes: in this folder, with what it needs of this environment."""
    known = " ".join(f"{name}='${{{name}:-}}'" for name in CARRIED)
    quoted = command.replace('"', "'")
    return f"cd '$PWD' && export {known} && exec {quoted} >> {log} 2>&1"
