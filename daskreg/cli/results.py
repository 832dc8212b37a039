"""Commands that look at what is there: evaluate, report, info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from daskreg.cli.app import app
from daskreg.cli.options import (
    ADDRESS,
    Overwrite,
    Run,
)


@app.command()
def evaluate(
    run: Run,
    fixed_labels: Annotated[str | None, typer.Option("--fixed-labels", help="label map on the fixed side")] = None,
    moving_labels: Annotated[str | None, typer.Option("--moving-labels", help="label map on the moving side")] = None,
    landmarks: Annotated[
        str | None, typer.Option("--landmarks", metavar="CSV", help="fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z")
    ] = None,
    landmarks_space: Annotated[str, typer.Option("--landmarks-space", help="lps or ras")] = "lps",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Dice of labels, distance of landmarks, folds: before and after."""
    from daskreg.workflows.evaluate import evaluate as workflow

    found = workflow(
        run, fixed_labels=fixed_labels, moving_labels=moving_labels, landmarks=landmarks, landmarks_space=landmarks_space
    )
    typer.echo(json.dumps(found.as_dict()) if as_json else "\n".join(found.lines()))


@app.command()
def report(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="HTML", help="one self-contained page")],
    fixed_labels: Annotated[str | None, typer.Option("--fixed-labels", help="label map on the fixed side")] = None,
    moving_labels: Annotated[str | None, typer.Option("--moving-labels", help="label map on the moving side")] = None,
    landmarks: Annotated[str | None, typer.Option("--landmarks", metavar="CSV", help="as for 'evaluate'")] = None,
    inverse: Annotated[
        Path | None, typer.Option("--inverse", metavar="ZARR", help="what 'daskreg invert' wrote: its certificate is shown")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show the result to a person: views, overlay, Jacobian, losses, numbers, configuration."""
    from daskreg.workflows.report import write_report

    labels = {"fixed_labels": fixed_labels, "moving_labels": moving_labels}
    write_report(run, output, **labels, landmarks=landmarks, inverse=inverse, overwrite=overwrite)
    typer.echo(str(output))


@app.command()
def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help=f"{ADDRESS}; a run, any transform, or points")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What daskreg understood of FILE: where voxels are, levels, channels; the parts of a transform; how many points."""
    from daskreg.workflows.info import describe

    found = describe(file)
    typer.echo(json.dumps(found.as_dict(), default=str) if as_json else "\n".join(found.lines()))
