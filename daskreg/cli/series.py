"""The command that registers a series of images."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from daskreg.cli.application import app
from daskreg.cli.options import (
    ADDRESS,
    Cluster,
    ConfigOption,
    DeviceName,
    DeviceOption,
    FillOption,
    Memory,
    MissingChunksOption,
    Overwrite,
    PresetOption,
    WaitForWorkers,
    Workers,
    saying,
)
from daskreg.cli.registration import FAILED, chosen_config


class To(StrEnum):
    """What each image of a series is registered to."""

    reference = "reference"
    previous = "previous"


@app.command()
def series(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help=f"in their order, or one with several times: {ADDRESS}")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="runs, resampled images and series.csv")],
    config: ConfigOption = None,
    preset: PresetOption = None,
    reference: Annotated[
        int, typer.Option("--reference", min=0, max=100_000, help="number of the image whose space is taken, from 0")
    ] = 0,
    to: Annotated[To, typer.Option("--to", help="register each image to the reference, or to the one before it")] = To.reference,
    channel: Annotated[
        str | None, typer.Option("--channel", help="to register on, by number or name; all channels are resampled")
    ] = None,
    moved: Annotated[bool, typer.Option("--moved/--no-moved", help="resample the images, all of their channels")] = True,
    cluster: Cluster = "local",
    workers: Workers = None,
    wait_for_workers: WaitForWorkers = None,
    device: DeviceOption = DeviceName.auto,
    memory: Memory = None,
    missing_chunks: MissingChunksOption = None,
    fill: FillOption = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help=f"end with exit code {FAILED} where a verdict is 'failed'; everything is written"),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Register rounds, tiles or times of one sample; the same command again continues, and keeps what is complete."""
    from daskreg.storage.fill import parse_fill
    from daskreg.workflows.series import series as workflow

    sources = [saying(missing_chunks, image) for image in images]
    given: dict[str, Any] = {"reference": reference, "to": to.value, "channel": channel, "moved": moved, "overwrite": overwrite}
    given |= {"cluster": None if cluster == "local" else cluster, "workers": workers, "device": device.value, "memory": memory}
    given |= {"wait_for_workers": wait_for_workers, "fill": parse_fill(fill)}
    found = workflow(sources, output, chosen_config(config, preset, {}), tell=typer.echo, **given)
    typer.echo(f"table: {found.table}")
    if any(row.error for row in found.rows):
        raise typer.Exit(1)
    if strict and any(row.chain_verdict == "failed" for row in found.rows):
        raise typer.Exit(FAILED)
