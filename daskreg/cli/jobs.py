"""The command that writes and submits jobs of a batch system."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any

import typer

from daskreg.cli.application import app
from daskreg.cli.options import Overwrite
from daskreg.cli.registration import require_arguments
from daskreg.errors import ConfigError, NotFound, require_known

INPUTS = ("fixed", "moving", "fixed_mask", "moving_mask", "initial_transform")  # of register, which are addresses
NOT_FOR_JOBS = ("dry_run", "print_config")  # options of register that end it before it registers

log = logging.getLogger("daskreg")


@app.command()
def submit(
    arguments: Annotated[list[str], typer.Argument(metavar="-- FIXED MOVING -o RUN.zarr ...", help="of 'daskreg register'")],
    script: Annotated[str, typer.Option("--script", help="the file that is written")] = "daskreg-job.sh",
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=100_000, help="with one worker each")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", min=1, max=4096, help="of a node")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=64, help="of a node")] = 0,
    memory: Annotated[str | None, typer.Option("--memory", metavar="250GB", help="of a node")] = None,
    time: Annotated[str, typer.Option("--time", help="after which the job is continued in another one")] = "08:00:00",
    partition: Annotated[str | None, typer.Option("--partition", help="or queue")] = None,
    account: Annotated[str | None, typer.Option("--account", help="or project, that pays")] = None,
    name: Annotated[str, typer.Option("--name", help="of the job and its logs")] = "daskreg",
    setup: Annotated[list[str] | None, typer.Option("--setup", help="a line of shell that comes first; several times")] = None,
    container: Annotated[str | None, typer.Option("--container", help="an image for Apptainer with daskreg in it")] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="slurm, pbs or lsf (the one whose command is here; else slurm)")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="submit it, too")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a job of SLURM, PBS or LSF that registers, goes on after its time limit, and ends when it is cancelled."""
    from daskreg.workflows.submit import Job, explanation, present_system
    from daskreg.workflows.submit import submit as workflow

    given = registration_arguments(arguments)
    asked: dict[str, Any] = {"nodes": nodes, "cpus": cpus, "gpus": gpus, "memory": memory, "time": time, "partition": partition}
    chosen = system or present_system()
    job = Job(**asked, account=account, name=name, setup=tuple(setup or ()), container=container, system=chosen)
    number = workflow(given, script, job, overwrite=overwrite, start=start)
    typer.echo("\n".join([*explanation(job, script), *([] if number is None else [f"submitted as job {number}"])]))


def registration_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``daskreg register``, without its own name, parsed by it; an input that is not there is a warning.

    Raises what the command raises: usage errors of Typer, and ConfigError.
    """
    given = list(dropwhile(lambda word: word in ("daskreg", "register"), arguments))
    if len(given) < len(arguments):
        left = " ".join(arguments[: len(arguments) - len(given)])
        log.warning("%r before the images is left out: what follows -- are arguments of daskreg register.", left)
    parsed = _parsed(given)
    for name in NOT_FOR_JOBS:
        if parsed[name]:
            raise ConfigError(f"--{name.replace('_', '-')} registers nothing; give it to daskreg register here, without a job.")
    require_arguments(parsed)
    for name in INPUTS:
        _tell_missing(parsed[name])
    return given


def _parsed(arguments: Sequence[str]) -> Mapping[str, Any]:
    """Parameters of ``register``, by name, as its command reads them; it is not run."""
    from daskreg.reporting.log import LEVELS

    group: Any = typer.main.get_command(app)
    with group.make_context("daskreg", ["register", *arguments]) as outer:
        require_known("log level", outer.params["level"] or "info", LEVELS)
        command = group.get_command(outer, "register")
        with command.make_context("register", outer.args, parent=outer) as inner:
            return dict(inner.params)


def _tell_missing(source: str | None) -> None:
    """Warn of a local input that is not there; what lies in a file, as a dataset of HDF5, is looked for when it is read."""
    from daskreg.storage.fs.address import parse_address
    from daskreg.storage.fs.errors import require_exists

    path = None if source is None else parse_address(source).path
    if path is None or any(folder.is_file() for folder in Path(path).parents):
        return
    try:
        require_exists(path)
    except NotFound as error:
        log.warning("%s The job is written: it has to be there when the job runs.", error)
