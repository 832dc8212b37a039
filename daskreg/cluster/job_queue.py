"""The jobs whose workers a client waits for: what the batch system says of them, where the cluster is one of dask-jobqueue."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distributed import Client

from daskreg.cluster import timeouts
from daskreg.errors import RunError

State = Literal["pending", "running", "ended"]
PENDING = {
    "slurm": {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"},
    "pbs": {"Q", "H", "W", "T", "M"},
    "lsf": {"PEND", "PSUSP"},
}
ENDED = {
    "slurm": {"COMPLETED", "COMPLETING", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
              "OUT_OF_MEMORY", "REVOKED"},
    "pbs": {"E", "F", "X"},
    "lsf": {"DONE", "EXIT", "ZOMBI"},
}  # fmt: skip
GONE, REFUSED = "no longer in the queue", "refused by"


@dataclass(frozen=True)
class JobState:
    """Where a job is in its queue.

    detail: why it waits, or how it ended, in the words of the batch system;  certain: whether the system has said so, or only
    does not list the job, as it may for a moment
    """

    state: State
    detail: str = ""
    certain: bool = True


@dataclass
class JobQueue:
    """The jobs of a cluster of dask-jobqueue, whether daskreg has started it or the user.

    system: slurm, pbs, lsf or sge; of others the state of jobs is not known
    """

    cluster: Any
    system: str
    _asked: float = -1e9
    _begun: float = field(default_factory=time.monotonic)
    _states: dict[str, JobState] = field(default_factory=dict)

    @property
    def expected(self) -> int:
        """Workers that the cluster was asked for."""
        return len(self.cluster.worker_spec) * self._workers_each

    @property
    def _workers_each(self) -> int:
        return int(getattr(self.cluster._dummy_job, "worker_processes", 1))

    def look(self, known: Mapping[str, Any], needed: int) -> str:
        """The state of the jobs whose workers are not among the known ones, for messages; empty where it is not known.

        Asks the batch system now and then. needed: workers in all. Raises RunError where so many jobs have ended that these
        cannot come.
        """
        now = time.monotonic()
        pause = min(timeouts.QUEUE_INTERVAL, max(timeouts.QUEUE_INTERVAL / 5, (now - self._begun) / 5))
        if now >= self._asked + pause:
            self._asked = now
            self._ask({str(worker.get("name")) for worker in known.values()}, needed)
        return describe(self._states.values())

    def _ask(self, here: Collection[str], needed: int) -> None:
        jobs = {str(name): str(getattr(job, "job_id", None) or "") for name, job in self.cluster.workers.items()}
        numbers = {name: n for name, n in jobs.items() if not any(f"{w}-".startswith(f"{name}-") for w in here)}
        found = job_states(self.system, [n for n in numbers.values() if n])
        before, self._states = self._states, {}
        for name, number in numbers.items():
            if not number:
                self._states[name] = JobState("ended", REFUSED)
            elif found is not None:
                self._states[name] = _settled(found[number], before.get(name))
        over = {name: s for name, s in self._states.items() if s.state == "ended" and s.certain}
        if over and self.expected - len(over) * self._workers_each < needed:
            raise RunError(self._failure(over, numbers))

    def _failure(self, over: Mapping[str, JobState], numbers: Mapping[str, str]) -> str:
        name, state = next(iter(over.items()))
        more = f" (and {len(over) - 1} more)" if len(over) > 1 else ""
        if not numbers[name]:
            return f"the job of worker {name}{more} was {REFUSED} {self.system}; look at what its submission has said above."
        log = job_log(self.cluster, self.system, numbers[name])
        said = f", which ends with: {line}" if (line := _last_line(log)) else ""
        where = "the log of the job" if log is None else f"{log}{said}"
        return (
            f"job {numbers[name]} of {self.system}{more} ended before its worker connected ({state.detail}); look at {where}. "
            f"The worker connects to {self.cluster.scheduler_address}; its network is jobqueue.{self.system}.interface."
        )


def job_queue(client: Client) -> JobQueue | None:
    """The queue behind a client whose cluster submits jobs by dask-jobqueue; None for any other."""
    cluster = getattr(client, "cluster", None)
    name = getattr(getattr(cluster, "job_cls", None), "config_name", None)
    return JobQueue(cluster, str(name)) if cluster is not None and name else None


def describe(states: Collection[JobState]) -> str:
    """Such as: 2 jobs pending (Resources), 1 job running."""
    groups = Counter((s.state, s.detail if s.state != "running" else "") for s in states)
    return ", ".join(
        f"{n} job{'s' * (n > 1)} {state}{f' ({detail})' if detail else ''}" for (state, detail), n in sorted(groups.items())
    )


def _settled(now: JobState, before: JobState | None) -> JobState:
    """A job that is not listed for the second time has ended."""
    again = before is not None and before.detail == GONE
    return JobState("ended", GONE) if again and now.detail == GONE else now


# ---------------------------------------------------------------- what batch systems say


def job_states(system: str, numbers: Sequence[str]) -> dict[str, JobState] | None:
    """The state of each job; None where the batch system cannot be asked, or does not answer."""
    if system not in COMMANDS or not numbers:
        return None if numbers else {}
    command, parse = COMMANDS[system]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": timeouts.QUEUE_ANSWER_TIMEOUT}
    try:
        done = subprocess.run(command(numbers), env={**os.environ, "LC_ALL": "C"}, **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = parse(done.stdout)
    if not found and done.returncode and not re.search(r"(?i)invalid job id|unknown job|not found|no .*job", done.stderr):
        return None
    return {n: found.get(n) or found.get(n.partition(".")[0]) or JobState("ended", GONE, certain=False) for n in numbers}


def _squeue(numbers: Sequence[str]) -> list[str]:
    return ["squeue", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(numbers)}"]


def parse_squeue(text: str) -> dict[str, JobState]:
    """Lines of NUMBER|STATE|REASON."""
    fields = [line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2]
    return {number.strip(): _state("slurm", word, reason) for number, word, reason in fields}


def parse_qstat_full(text: str) -> dict[str, JobState]:
    """What ``qstat -f`` of PBS prints: a paragraph a job, with continued lines; by the number without the server."""
    found = {}
    for part in re.split(r"(?m)^Job Id: *", text.replace("\n\t", ""))[1:]:
        values = dict(re.findall(r"(?m)^ +(\w+) = (.*)$", part))
        number = part.split("\n", 1)[0].partition(".")[0].strip()
        found[number] = _state("pbs", values.get("job_state", ""), values.get("comment") or _exit_status(values))
    return found


def _exit_status(values: Mapping[str, str]) -> str:
    return f"exit status {values['Exit_status']}" if "Exit_status" in values else ""


def _bjobs(numbers: Sequence[str]) -> list[str]:
    return ["bjobs", "-a", "-noheader", "-o", "jobid stat exit_reason pend_reason delimiter='|'", *numbers]


def parse_bjobs(text: str) -> dict[str, JobState]:
    """Lines of NUMBER|STATE|EXIT REASON|PENDING REASON, with ``-`` for nothing."""
    found = {}
    for line in text.splitlines():
        if line.count("|") >= 3:
            number, word, ended, waits = (part.strip() for part in line.split("|", 3))
            found[number] = _state("lsf", word, next((d.strip("; ") for d in (waits, ended) if d not in ("", "-")), ""))
    return found


def parse_qstat_table(text: str) -> dict[str, JobState]:
    """The table of ``qstat`` of Grid Engine: job-ID prior name user state ...; a job in an error state waits for good."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 4 and words[0].isdigit():
            state: State = "ended" if "E" in words[4] else "pending" if "w" in words[4] else "running"
            found[words[0]] = JobState(state, "" if state == "running" else words[4])
    return found


def _state(system: str, word: str, detail: str) -> JobState:
    word, detail = word.strip().partition(" ")[0], detail.strip().replace("None", "")
    if word in ENDED[system]:
        return JobState("ended", f"{word}: {detail}" if detail else word)
    state: State = "pending" if word in PENDING[system] else "running"
    return JobState(state, detail if state == "pending" else "")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], list[str]], Callable[[str], dict[str, JobState]]]] = {
    "slurm": (_squeue, parse_squeue),
    "pbs": (lambda numbers: ["qstat", "-x", "-f", *numbers], parse_qstat_full),
    "lsf": (_bjobs, parse_bjobs),
    "sge": (lambda numbers: ["qstat"], parse_qstat_table),
}


# ---------------------------------------------------------------- logs of jobs


def job_log(cluster: Any, system: str, number: str) -> Path | None:
    """The file that a job of SLURM or LSF has written its errors to; None where there is none that this machine sees."""
    job = cluster._dummy_job
    folder, name = getattr(job, "log_directory", None), getattr(job, "job_name", None) or "worker"
    known = [Path(folder) / f"{name}-{number}.err"] if folder else [Path(f"slurm-{number}.out")] if system == "slurm" else []
    return next((path.absolute() for path in known if path.exists()), None)


def _last_line(log: Path | None) -> str:
    """The last line that says something."""
    try:
        lines = [] if log is None else [line.strip() for line in log.read_text(errors="replace")[-4000:].splitlines()]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "")
