"""Commands that show images: view."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from daskreg.cli.application import app
from daskreg.cli.options import (
    ADDRESS,
    DeviceName,
    DeviceOption,
    FillOption,
    Interpolation,
    Like,
    MissingChunksOption,
    TransformArgument,
    saying,
)


class CoarseLevels(StrEnum):
    """How coarser levels are made."""

    auto = "auto"
    means = "means"
    sampled = "sampled"


@app.command()
def view(
    transform: TransformArgument,
    image: Annotated[
        str | None, typer.Argument(metavar="[IMAGE]", help=f"by default the moving image of a run, all channels; {ADDRESS}")
    ] = None,
    fixed: Annotated[str | None, typer.Option("--fixed", metavar="IMAGE", help="by default the fixed image of a run")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="without the fixed image")] = False,
    interpolation: Annotated[Interpolation, typer.Option("--interpolation", help="label: for label maps")] = Interpolation.linear,
    like: Like = None,
    fill: FillOption = None,
    coarse: Annotated[
        CoarseLevels,
        typer.Option("--coarse", help="levels: means of the finest, as apply writes them, or sampled (auto: above 2^26 voxels)"),
    ] = CoarseLevels.auto,
    cache: Annotated[str, typer.Option("--cache", metavar="4GB", help="computed chunks that are kept")] = "1GB",
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free")] = 0,
    device: DeviceOption = DeviceName.auto,
    missing_chunks: MissingChunksOption = None,
) -> None:
    """Serve IMAGE through TRANSFORM, and the fixed image, to napari, Neuroglancer and Fiji until Ctrl-C; nothing is written."""
    from daskreg.workflows.view import view as workflow

    made = workflow(
        transform,
        saying(missing_chunks, image),
        fixed=False if alone else True if fixed is None else saying(missing_chunks, fixed),
        like=like,
        interpolation=interpolation.value,
        fill=fill,
        coarse=coarse.value,
        cache=cache,
        device=device.value,
        host=host,
        port=port,
    )
    with made:
        typer.echo("\n".join([*made.lines(), "Ctrl-C ends it."]))
        try:
            made.wait()
        except KeyboardInterrupt:
            typer.echo("closed", err=True)
