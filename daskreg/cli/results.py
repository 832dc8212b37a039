"""Commands that read results, evaluate, report, info; and doctor, which reads the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from daskreg.cli.application import app
from daskreg.cli.options import (
    ADDRESS,
    AsJson,
    FixedLabels,
    Landmarks,
    MissingChunksOption,
    MovingLabels,
    Overwrite,
    RunArgument,
    TransformArgument,
    WaitForWorkers,
    saying,
)


@app.command()
def evaluate(
    transform: TransformArgument,
    fixed_labels: FixedLabels = None,
    moving_labels: MovingLabels = None,
    landmarks: Landmarks = None,
    landmarks_space: Annotated[str, typer.Option("--landmarks-space", help="lps or ras")] = "lps",
    missing_chunks: MissingChunksOption = None,
    as_json: AsJson = False,
) -> None:
    """Dice of labels and distances of landmarks, before and after, and folds."""
    from daskreg.workflows.evaluate import evaluate as workflow

    fixed_labels, moving_labels = saying(missing_chunks, fixed_labels), saying(missing_chunks, moving_labels)
    found = workflow(
        transform, fixed_labels=fixed_labels, moving_labels=moving_labels, landmarks=landmarks, landmarks_space=landmarks_space
    )
    typer.echo(json.dumps(found.as_dict()) if as_json else "\n".join(found.lines()))


@app.command()
def report(
    run: RunArgument,
    output: Annotated[str, typer.Option("--output", "-o", metavar="HTML", help="one self-contained page")],
    fixed_labels: FixedLabels = None,
    moving_labels: MovingLabels = None,
    landmarks: Landmarks = None,
    inverse: Annotated[
        str | None, typer.Option("--inverse", metavar="ZARR", help="what 'daskreg invert' wrote: its certificate is shown")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a page about a run: views, overlay, Jacobian, losses, numbers, configuration."""
    from daskreg.workflows.report import report as workflow

    labels = {"fixed_labels": fixed_labels, "moving_labels": moving_labels}
    workflow(run, output, **labels, landmarks=landmarks, inverse=inverse, overwrite=overwrite)
    typer.echo(output)


@app.command()
def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help=f"{ADDRESS}; a run, any transform, or points")],
    as_json: AsJson = False,
    missing_chunks: MissingChunksOption = None,
    voxels: Annotated[bool, typer.Option("--voxels", help="read all voxels of an image, which finds damaged parts")] = False,
) -> None:
    """Describe FILE: grid, levels and channels of an image; parts of a transform; number of points."""
    from daskreg.workflows.info import info as workflow

    found = workflow(saying(missing_chunks, file), voxels)
    typer.echo(json.dumps(found.as_dict(), default=str) if as_json else "\n".join(found.lines()))


@app.command()
def doctor(
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="look at workers of this Dask scheduler too, or jobs of slurm, pbs, lsf, sge",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=100_000, help="that the cluster should have")] = 1,
    wait_for_workers: WaitForWorkers = None,
    scratch: Annotated[Path | None, typer.Option("--scratch", metavar="FOLDER", help="for fields on disk")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what works here, and how to mend what does not: packages, GPUs, links, memory, limits, folders.

    Exit code 1 where something is wrong.
    """
    from daskreg.workflows.doctor import doctor as workflow

    found = workflow(cluster=cluster, workers=workers, scratch=scratch, wait_for_workers=wait_for_workers)
    typer.echo(json.dumps(found.as_dict()) if as_json else "\n".join(found.lines()))
    if not found.ok:
        raise typer.Exit(1)
