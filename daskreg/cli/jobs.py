"""The command that writes and submits jobs of a batch system."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from daskreg.cli.application import app
from daskreg.cli.options import Overwrite


@app.command(context_settings={"allow_interspersed_args": False})  # from FIXED on all is of register, with -- or without
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
    from daskreg.cli.submission import asked_for, summary, written
    from daskreg.workflows.submit import present_system

    asked: dict[str, Any] = {"nodes": nodes, "cpus": cpus, "gpus": gpus, "memory": memory, "time": time, "partition": partition}
    asked |= {"account": account, "name": name, "setup": tuple(setup or ()), "container": container}
    found = system or present_system()
    given, warnings, job = asked_for(arguments, script, overwrite, {**asked, "system": found or "slurm"})
    number = written(given, warnings, script, job, overwrite=overwrite, start=start)
    lines = summary(job, script, number)
    if found is None:
        lines.insert(1, "No sbatch, qsub or bsub is here: it is written for SLURM; --system pbs or lsf writes it for these.")
    typer.echo("\n".join(lines))
