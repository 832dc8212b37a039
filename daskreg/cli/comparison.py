"""The command that runs other programs: compare."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from daskreg.cli.application import app
from daskreg.cli.options import AsJson, FixedLabels, MissingChunksOption, MovingLabels, Overwrite, RunArgument, saying


@app.command()
def compare(
    run: RunArgument,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="for compare.csv, compare.json and compare.md")],
    against: Annotated[
        str,
        typer.Option(
            "--against", metavar="NAMES", help="greedy, greedy_tuned, ants, ants_cc, fireants, fireants_cuda, elastix, niftyreg"
        ),
    ] = "greedy,ants,fireants",
    environment: Annotated[
        list[str] | None,
        typer.Option("--environment", metavar="NAME=PATH", help="its interpreter, or greedy's binary (else this one, the PATH)"),
    ] = None,
    fixed: Annotated[str | None, typer.Option("--fixed", metavar="IMAGE", help="instead of the run's")] = None,
    moving: Annotated[str | None, typer.Option("--moving", metavar="IMAGE", help="instead of the run's")] = None,
    fixed_labels: FixedLabels = None,
    moving_labels: MovingLabels = None,
    again: Annotated[bool, typer.Option("--again", help="run daskreg again too, here, as the others")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="of each program (all cores)")] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", min=1, max=1e9, metavar="SECONDS", help="of each program")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep what the programs write")] = False,
    missing_chunks: MissingChunksOption = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Run other programs on the pair of RUN, each in its own environment; measure all alike: time, memory, likeness, folds."""
    from daskreg.errors import ConfigError
    from daskreg.workflows.compare import compare as workflow

    environments = {}
    for entry in environment or ():
        name, equals, path = entry.partition("=")
        if not equals or not path:
            raise ConfigError(f"--environment {entry}: NAME=PATH was expected, such as greedy=venv/bin/python.")
        environments[name] = path
    found = workflow(
        run,
        [name.strip() for name in against.split(",") if name.strip()],
        output,
        environments=environments,
        fixed=saying(missing_chunks, fixed),
        moving=saying(missing_chunks, moving),
        fixed_labels=saying(missing_chunks, fixed_labels),
        moving_labels=saying(missing_chunks, moving_labels),
        again=again,
        threads=threads,
        time_limit=time_limit,
        keep=keep,
        overwrite=overwrite,
    )
    typer.echo(json.dumps(found.as_dict()) if as_json else "\n".join(found.lines()))
    if all(row.state in ("missing", "failed") for row in found.rows[2:]):
        raise typer.Exit(1)
