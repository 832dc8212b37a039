"""``daskreg.submit``: a job for the arguments of ``daskreg register``, parsed by it before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any

import typer

from daskreg.arguments import checked_arguments
from daskreg.cli.application import USAGE_ERROR
from daskreg.errors import ConfigError, NotFound, all_of, require, require_known
from daskreg.reporting.log import shown
from daskreg.storage.fs.atomic import require_writable
from daskreg.workflows.batch_systems import SYSTEMS
from daskreg.workflows.submit import Job, explanation, require_continuable
from daskreg.workflows.submit import submit as workflow

INPUTS = ("fixed", "moving", "fixed_mask", "moving_mask", "initial_transform")  # of register, which are addresses
NOT_FOR_JOBS = ("dry_run", "print_config")  # options of register that end it before it registers

log = logging.getLogger("daskreg")


PARTS = dict.fromkeys(("fixed", "moving", "output", "config", "preset"), "arguments=['FIXED', 'MOVING', '-o', 'RUN.zarr', ...]")
PARTS |= {field.name: f"job=daskreg.Job({field.name}=...)" for field in fields(Job)}


@checked_arguments(parts=PARTS)
def submit(arguments: Sequence[str], script: str | Path, job: Job, *, overwrite: bool = False, start: bool = False) -> str | None:
    """Write a job that registers, goes on after its time limit and ends when it is cancelled; submit it where ``start``.

    arguments: of ``daskreg register``, as on the command line, which are parsed here: ``["f.ome.zarr", "m.ome.zarr", "-o",
    "run.zarr"]``;  script: the file that is written;  job: what it asks of its batch system.

    What the script does, and how to submit it, is logged. Returns the number of the job, or None.
    Raises ConfigError for what ``daskreg register`` would refuse, OutputExists and OutputError; OutputError too where the batch
    system is not there or refuses the job.
    """
    if isinstance(arguments, str) or not all(isinstance(word, str | Path) for word in arguments):
        raise ConfigError(f"arguments {arguments!r}: a list of words was expected, as in ['f.zarr', 'm.zarr', '-o', 'run.zarr'].")
    if not isinstance(job, Job):
        raise ConfigError(f"job {job!r}: a daskreg.Job was expected, as in daskreg.Job(nodes=1, cpus=16, memory='60GB').")
    if not isinstance(script, str | Path):
        raise ConfigError(f"script {script!r}: the path of the file to write was expected, as in 'daskreg-job.sh'.")
    words = [str(word) for word in arguments]
    (given, warnings), *_ = all_of(
        partial(_arguments_in_python, words),
        partial(require_continuable, words, job.nodes),
        partial(require_known, "batch system", job.system, SYSTEMS),
        partial(require_writable, str(script), overwrite),
    )
    number = written(given, [*warnings, *job_warnings(given, job)], script, job, overwrite=overwrite, start=start)
    with shown():
        for line in summary(job, script, number):
            log.info("%s", line)
    return number


def summary(job: Job, script: str | Path, number: str | None) -> list[str]:
    """Lines about a script that was written, and its job."""
    return [*explanation(job, script), *([] if number is None else [f"submitted as job {number}"])]


def _arguments_in_python(words: list[str]) -> tuple[list[str], list[str]]:
    try:
        return registration_arguments(words)
    except USAGE_ERROR as error:
        raise ConfigError(f"daskreg register: {error.format_message()}") from None
    except typer.Exit:
        raise ConfigError("these arguments print something and register nothing; give two images and -o RUN.zarr.") from None


def asked_for(arguments: Sequence[str], script: str, overwrite: bool, job: Mapping[str, Any]) -> tuple[list[str], list[str], Job]:
    """Arguments of ``daskreg register``, warnings about them, and the job. Raises ConfigError with all that is wrong."""
    (given, warnings), made, *_ = all_of(
        partial(registration_arguments, arguments),
        partial(Job, **job),
        partial(require_continuable, arguments, job["nodes"]),
        partial(require_known, "batch system", job["system"], SYSTEMS),
        partial(require_writable, script, overwrite),
    )
    return given, [*warnings, *job_warnings(given, made)], made


def job_warnings(given: Sequence[str], job: Job) -> list[str]:
    """Sentences about a job that can be written, and probably is not meant. given: arguments of ``daskreg register``"""
    from daskreg.cluster import BATCH_SYSTEMS

    parsed = _parsed(given)
    cluster, workers, one = parsed["cluster"], parsed["workers"] or 1, job.cpus == 1
    queues = f"--cluster {cluster} queues a job for each worker from within this job; leave it out, or register without a job."
    cores = f"{job.cpus} core{'' if one else 's'}"
    share = f"--workers {workers} share {cores} of the job; ask for more by --cpus of submit, or leave --workers out."
    found = [] if job.container is None else [_absent(job.container)]
    found += [queues * (cluster in BATCH_SYSTEMS), share * (cluster == "local" and workers > job.cpus)]
    return [sentence for sentence in found if sentence]


def written(
    given: Sequence[str], warnings: Sequence[str], script: str | Path, job: Job, *, overwrite: bool, start: bool
) -> str | None:
    """The number of the job, or None; warns after the script is written, as nothing that is refused needs a warning."""
    number = workflow(given, script, job, overwrite=overwrite, start=start)
    for sentence in warnings:
        log.warning("%s", sentence)
    return number


def registration_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of ``daskreg register``, without its own name, parsed by it; and warnings, as of an input that is not there.

    Raises what the command raises: usage errors of Typer, and ConfigError.
    """
    from daskreg.cli.registration import require_arguments

    given = list(dropwhile(lambda word: word in ("daskreg", "register"), arguments))
    warnings = []
    if len(given) < len(arguments):
        left = " ".join(arguments[: len(arguments) - len(given)])
        warnings.append(f"{left!r} before the images is left out: what follows -- are arguments of daskreg register.")
    parsed = _parsed(given)
    idle = [f"--{name.replace('_', '-')}" for name in NOT_FOR_JOBS if parsed[name]]
    refused = f"{' and '.join(idle)} registers nothing; give it to daskreg register here, without a job."
    all_of(partial(require, not idle, refused), partial(require_arguments, parsed))
    return given, warnings + [text for name in INPUTS if (text := _missing(parsed[name]))]


def _parsed(arguments: Sequence[str]) -> Mapping[str, Any]:
    """Parameters of ``register``, by name, as its command reads them; it is not run."""
    from daskreg.cli import app
    from daskreg.reporting.log import LEVELS

    group: Any = typer.main.get_command(app)
    with group.make_context("daskreg", ["register", *arguments]) as outer:
        require_known("log level", outer.params["level"] or "info", LEVELS)
        command = group.get_command(outer, "register")
        with command.make_context("register", outer.args, parent=outer) as inner:
            return dict(inner.params)


def _missing(source: str | None) -> str:
    """A sentence about a local input that is not there, else empty.

    What lies in a file, as a dataset of HDF5, is looked for when it is read.
    """
    from daskreg.storage.fs.address import parse_address

    path = None if source is None else parse_address(source).path
    return "" if path is None or any(folder.is_file() for folder in Path(path).parents) else _absent(path)


def _absent(path: str) -> str:
    """A sentence about a local path that is not there, else empty."""
    from daskreg.storage.fs.errors import require_exists

    try:
        require_exists(path)
    except NotFound as error:
        return f"{error} The job is written: it has to be there when the job runs."
    return ""
