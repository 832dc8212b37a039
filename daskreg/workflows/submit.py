"""``daskreg submit``: a job of SLURM, PBS or LSF that registers, goes on after its time limit, and ends when it is cancelled."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from daskreg.errors import OutputError, all_of, require, require_known
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.files import replace_text
from daskreg.workflows.batch_systems import AGAIN, BEFORE_THE_END, SYSTEMS, BatchSystem, Job
from daskreg.workflows.resources import parse_memory

__all__ = ["Job", "explanation", "job_script", "present_system", "submit"]

CLUSTER_OPTIONS = ("--cluster", "--workers", "--memory")  # which a job of several nodes sets itself
SCRIPT = "daskreg-job.sh"
PORT = 8786  # of the scheduler
LISTENS = 120  # seconds after which a scheduler that starts has to listen


def job_script(job: Job, arguments: Sequence[str], script: str | Path = SCRIPT) -> str:
    """The script. arguments: of ``daskreg register``;  script: its path. Raises ConfigError for what a job cannot have."""
    system, command = _system(job), _command(job, arguments)
    lines = ["#!/bin/bash", *system.header(job), *system.begin(job), *_python(job), "", *_cluster(job, system)]
    return "\n".join([*lines, *_run(job, system, command, str(script))]) + "\n"


def present_system() -> str | None:
    """The batch system whose command is here, None where there is none."""
    return next((name for name, system in SYSTEMS.items() if shutil.which(system.submit_command)), None)


def submit(arguments: Sequence[str], script: str | Path, job: Job, *, overwrite: bool = False, start: bool = False) -> str | None:
    """Write the script, and submit it where ``start``; the number of the job, or None.

    arguments: of ``daskreg register``, which are not parsed here: the command, and ``daskreg.submit``, do.

    Raises ConfigError, OutputExists and OutputError; OutputError too where the batch system is not there or refuses the job.
    """
    text, system = job_script(job, arguments, script), _system(job)
    with atomic_output(str(script), overwrite) as place:
        replace_text(place, text)
    os.chmod(script, 0o755)
    if not start:
        return None
    name = system.submit_command
    command = shutil.which(name)
    if command is None:
        raise OutputError(f"{script} is written, and there is no {name} here to submit it with; run it on a login node.")
    done = system.submit(command, str(script))
    if done.returncode:
        from daskreg.cluster.refusals import refusal  # after which nothing is fast

        said = done.stderr.strip() or done.stdout.strip()
        raise OutputError(f"{script} is written, and {name} refuses it: {refusal(job.system, said)}")
    return system.submitted(done.stdout)


def explanation(job: Job, script: str | Path) -> list[str]:
    """What the script does, for people."""
    system = _system(job)
    by = f"{system.submit_command} {'< ' * (job.system == 'lsf')}{shlex.quote(str(script))}"
    again = f", {AGAIN} queued again" * (job.system == "lsf")
    cores = f"{job.cpus} core{'s' * (job.cpus > 1)}"
    memory = "memory as the batch system gives it" if job.memory is None else f"{job.memory} of memory"
    return [
        f"{script}: {job.nodes} node{'s' * (job.nodes > 1)} of {cores} and {memory}, {job.clock()} (h:m:s); submit it with: {by}",
        f"{BEFORE_THE_END} s before its time is over the run writes a checkpoint, and {system.continued()}.",
        f"{system.cancel_command} ends it for good, with a checkpoint; submitted again, it goes on from there.",
        f"Exit codes: 0 done, 2 wrong input, 3 a failed verdict with --strict, 143 stopped{again}, anything else an error.",
        f"Logs: {job.name}-JOB.log" + (f", and {job.name}-JOB-RANK.log of each worker." if job.nodes > 1 else "."),
    ]


def _system(job: Job) -> BatchSystem:
    require_known("batch system", job.system, SYSTEMS)
    return SYSTEMS[job.system]


def _command(job: Job, arguments: Sequence[str]) -> str:
    given = list(arguments)[1:] if list(arguments[:1]) == ["register"] else list(arguments)
    names = _names(given)
    lacking = "a job needs the output of its run: daskreg submit ... -- FIXED MOVING -o RUN.zarr."
    all_of(partial(require, {"-o", "--output"} & set(names), lacking), partial(require_continuable, given, job.nodes))
    given += [] if "--resume" in names else ["--resume"]
    if job.nodes == 1 and job.gpus > 1 and "--cluster" not in names:
        given += ["--cluster", "cuda"]
    command = f"{_program(job, 'daskreg')} {shlex.join(['register', *given])}"
    return command if job.nodes == 1 else f'{command} --cluster "$scheduler" --workers {_system(job).nodes(job)}'


def _names(arguments: Sequence[str]) -> list[str]:
    return [word.partition("=")[0] for word in arguments]


def require_continuable(arguments: Sequence[str], nodes: int) -> None:
    """Raises ConfigError for arguments of ``daskreg register`` that a job cannot have which goes on, on so many nodes."""
    names = _names(arguments)
    again = "--overwrite would begin again each time that the job is continued; remove the older run first."
    taken = [name for name in CLUSTER_OPTIONS if name in names] if nodes > 1 else []
    follow = f"{' and '.join(taken)} {'follow' if len(taken) > 1 else 'follows'} from the nodes of the job; leave it out."
    all_of(partial(require, "--overwrite" not in names, again), partial(require, not taken, follow))


def _inside(job: Job) -> list[str]:
    """What a command of the container begins with."""
    return [] if job.container is None else ["apptainer", "exec", *(["--nv"] if job.gpus else []), job.container]


def _python(job: Job) -> list[str]:
    """The Python that wrote the script, unless a line of the setup names another; a container has its own."""
    if job.container is not None:
        return list(job.setup)
    missing = "daskreg: no Python at $python on $(hostname); name one that is there: --setup DASKREG_PYTHON=/PATH/TO/python"
    return [
        *job.setup,  # first: directives of SLURM count before the first command only
        f"python=${{DASKREG_PYTHON:-{shlex.quote(sys.executable or 'python3')}}}",
        f'command -v "$python" > /dev/null || {{ echo "{missing}" >&2; exit 127; }}',
    ]


def _program(job: Job, name: str) -> str:
    """How the shell calls daskreg or dask: of the container, or as a module of Python, never one of the working directory."""
    return f'"$python" -P -m {name}' if job.container is None else shlex.join([*_inside(job), name])


def _cluster(job: Job, system: BatchSystem) -> list[str]:
    """A scheduler and a worker on each node, for several."""
    if job.nodes == 1:
        return []
    dask = _program(job, "dask")
    memory = [] if job.memory is None else ["--memory-limit", str(int(0.92 * (parse_memory(job.memory) or 0)))]
    worker = (
        f'{dask} worker "$scheduler" --nworkers 1 --nthreads {job.cpus} '
        f'--local-directory "${{TMPDIR:-/tmp}}"{" " * bool(memory)}{shlex.join(memory)}'
    )
    return [
        f'scheduler="tcp://$(hostname):{PORT}"',
        *_start_scheduler(dask),
        system.workers(job, worker),
        "",
    ]


def _start_scheduler(dask: str) -> list[str]:
    """Starts it, and waits until it listens: no longer than it lives, nor than LISTENS seconds."""
    taken = f"port {PORT} of $(hostname) is taken, perhaps by the scheduler of another job; ask for whole nodes."
    ended = f"the scheduler has ended before it listened on port {PORT}; see above why."
    late = f"no scheduler listens on port {PORT} of $(hostname) after {LISTENS} s."
    return [
        f'listens() {{ (: < "/dev/tcp/$(hostname)/{PORT}") 2>/dev/null; }}',
        'fails() { echo "daskreg: $1" >&2; [ -z "$2" ] || kill "$2" 2>/dev/null; exit 1; }',
        f'if listens; then fails "{taken}"; fi',
        f"{dask} scheduler --port {PORT} &",
        "started=$! waited=0",
        "until listens; do",
        f'  kill -0 "$started" 2>/dev/null || fails "{ended}"',
        f'  [ "$((waited += 1))" -le {LISTENS} ] || fails "{late}" "$started"',
        "  sleep 1",
        "done",
    ]


def _run(job: Job, system: BatchSystem, command: str, script: str) -> list[str]:
    """Registers, and tells the end of its time (USR1, continued) from a cancelled job (TERM, over)."""
    timer = system.timer(job)
    return [
        f"{command} &",
        "run=$! again=",
        """trap 'again=yes; kill -TERM "$run"' USR1   # the time is nearly over""",
        f"""trap 'again=; kill -TERM "$run"' {system.cancel_signals}      # {system.cancel_command}""",
        *timer,
        'wait "$run"; status=$?',
        'while kill -0 "$run" 2>/dev/null; do wait "$run"; status=$?; done   # a trap interrupts the first wait',
        *(['kill "$timer" 2>/dev/null'] if timer else []),
        "",
        *system.again(script),
        'exit "$status"',
    ]
