"""Commands that register: register, plan, verify, refine, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from daskreg.cli.app import app
from daskreg.cli.options import (
    ADDRESS,
    Cluster,
    Device,
    Memory,
    Moves,
    Overwrite,
    Residency,
    Workers,
)
from daskreg.errors import ConfigError


@app.command()
def register(
    fixed: Annotated[str | None, typer.Argument(metavar="FIXED", help=ADDRESS)] = None,
    moving: Annotated[str | None, typer.Argument(metavar="MOVING", help=ADDRESS)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="RUN.zarr", help="where the result goes")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="YAML", help="a recipe; see --print-config")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="brain (default), multimodal, rigid or lightsheet")] = None,
    fixed_mask: Annotated[str | None, typer.Option("--fixed-mask", help="weights on the fixed grid")] = None,
    moving_mask: Annotated[str | None, typer.Option("--moving-mask", help="weights on the moving grid")] = None,
    initial_transform: Annotated[
        str | None,
        typer.Option("--initial-transform", help="RUN.zarr, field .nii.gz, .h5, .mat, .tfm: fixed to moving points"),
    ] = None,
    spacing: Annotated[
        str | None, typer.Option("--spacing", metavar="ZxYxX", help="voxel size of arrays that state none")
    ] = None,
    cluster: Cluster = "local",
    workers: Workers = None,
    memory: Memory = None,
    residency: Residency = "auto",
    comm: Annotated[str, typer.Option("--comm", metavar="auto|tcp|ucx", help="how workers talk to each other")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of a worker (default: its share)")] = None,
    device: Annotated[
        Device, typer.Option("--device", help="where kernels run; auto: on a GPU where every worker has one")
    ] = Device.auto,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint of an unfinished RUN.zarr")] = False,
    checkpoint: Annotated[
        float, typer.Option("--checkpoint-every", min=0, help="seconds between two (0: every iteration)")
    ] = 180.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="how often to go on without a lost worker")] = 1,
    deadline: Annotated[float, typer.Option("--deadline", help="seconds after which a silent worker counts as lost")] = 600.0,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the effective configuration and stop")] = False,
) -> None:
    """Register MOVING onto FIXED: affine and displacement field, and the moved image, in RUN.zarr."""
    from daskreg.storage import exists
    from daskreg.workflows import progress
    from daskreg.workflows import register as workflow

    chosen = _config(config, preset, fixed_mask, moving_mask, initial_transform)
    if print_config:
        typer.echo(chosen.dump(), nl=False)
        return
    if (fixed is None or moving is None) and not resume:
        raise ConfigError("two images are needed: daskreg register FIXED MOVING -o RUN.zarr.")
    if dry_run:
        found = workflow.plan(fixed, moving, chosen, workers=workers or 1, memory=memory, residency=residency, spacing=spacing)
        typer.echo("\n".join(found.lines(_speed(Device.cuda if cluster == "cuda" else device, workers or 1))))
        return
    if output is None:
        raise ConfigError("no output was named; add -o RUN.zarr.")
    known = resume and config is None and preset is None and exists(str(output))  # an unfinished run knows its recipe
    with progress.shown() as watch:
        result = workflow.register(
            fixed, moving, None if known else chosen, output=output, cluster=None if cluster == "local" else cluster,
            spacing=spacing, overwrite=overwrite, resume=resume, progress=watch, fixed_mask=fixed_mask,
            moving_mask=moving_mask, workers=workers, memory=memory, residency=residency, comm=comm,
            threads=threads, checkpoint=checkpoint, retries=retries, deadline=deadline, device=device.value,
        )  # fmt: skip
    for line in progress.summary(result.path, result.report):
        typer.echo(line)


@app.command()
def plan(
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help=ADDRESS)],
    moving: Annotated[str, typer.Argument(metavar="MOVING", help=ADDRESS)],
    config: Annotated[Path | None, typer.Option("--config", metavar="YAML", help="a recipe")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="brain (default), multimodal, rigid or lightsheet")] = None,
    workers: Workers = None,
    memory: Memory = None,
    residency: Residency = "auto",
    device: Annotated[
        Device, typer.Option("--device", help="whose speed is assumed; cuda: an H200's, no GPU is needed")
    ] = Device.auto,
    fixed_mask: Annotated[str | None, typer.Option("--fixed-mask", help="weights on the fixed grid")] = None,
    moving_mask: Annotated[str | None, typer.Option("--moving-mask", help="weights on the moving grid")] = None,
    spacing: Annotated[str | None, typer.Option("--spacing", metavar="ZxYxX", help="voxel size of arrays without one")] = None,
) -> None:
    """What a registration would need, level by level: blocks, memory, traffic, disk and time. Nothing is read or written."""
    from daskreg.workflows import register as workflow

    chosen = _config(config, preset, fixed_mask, moving_mask, None)
    given: dict[str, Any] = {"workers": workers or 1, "memory": memory, "residency": residency, "spacing": spacing}
    typer.echo("\n".join(workflow.plan(fixed, moving, chosen, **given).lines(_speed(device, workers or 1))))


@app.command()
def verify(
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help=ADDRESS)],
    moving: Annotated[str, typer.Argument(metavar="MOVING", help=ADDRESS)],
    workers: Annotated[str, typer.Option("--workers", metavar="1,2,3", help="numbers of workers to compare")] = "1,2,3",
    residencies: Annotated[str, typer.Option("--residency", metavar="LIST", help="replicate,window,ring, or auto")] = "auto",
    config: Annotated[Path | None, typer.Option("--config", metavar="YAML", help="a recipe")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="brain (default), multimodal, rigid or lightsheet")] = None,
    comm: Annotated[str, typer.Option("--comm", metavar="auto|tcp|ucx", help="how workers talk to each other")] = "auto",
    spacing: Annotated[str | None, typer.Option("--spacing", metavar="ZxYxX", help="voxel size of arrays without one")] = None,
) -> None:
    """Register on different numbers of workers and compare: the results must be the same, bit for bit."""
    from daskreg.workflows.verify import verify as workflow

    counts = [_whole(n) for n in workers.split(",")]
    chosen = _config(config, preset, None, None, None)
    found = workflow(fixed, moving, chosen, counts, residencies.split(","), comm=comm, spacing=spacing, tell=typer.echo)
    if not found.same:
        raise typer.Exit(1)


@app.command()
def refine(
    transform: Moves,
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help=f"of any resolution: {ADDRESS}")],
    moving: Annotated[str, typer.Argument(metavar="MOVING", help=ADDRESS)],
    output: Annotated[str, typer.Option("--output", "-o", metavar="REFINED.zarr", help="an OME-NGFF 0.6 store")],
    region: Annotated[str, typer.Option("--region", metavar="Z:Z,Y:Y,X:X", help="voxels of FIXED, as 10:90,0:64,32:96")],
    blend: Annotated[int, typer.Option("--blend", min=1, help="voxels along each face over which the change fades")] = 8,
    config: Annotated[Path | None, typer.Option("--config", metavar="YAML", help="a recipe of deformable stages")] = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Register a part of FIXED again, starting from TRANSFORM, and blend it back without a seam."""
    from daskreg.config import Config
    from daskreg.workflows.refine import refine as workflow

    given: dict[str, Any] = {} if config is None else {"stages": Config.load(config).stages}
    found = workflow(transform, fixed, moving, output, region, blend=blend, overwrite=overwrite, workers=workers, **given)
    typer.echo(f"{output}: {found.line()}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where the results go")] = Path("daskreg_demo"),
    overwrite: Overwrite = False,
) -> None:
    """Register a bundled pair, Colin27 onto MNI152 2009c, affine and deformable, and write a report."""
    from daskreg.workflows import progress
    from daskreg.workflows.demo import demo as workflow

    with progress.shown() as watch:
        result, page = workflow(out, overwrite=overwrite, progress=watch)
    for line in [*progress.summary(result.path, result.report), f"report: {page}"]:
        typer.echo(line)


def _config(config: Path | None, preset: str | None, fixed_mask: str | None, moving_mask: str | None, start: str | None) -> Any:
    from daskreg.config import Config
    from daskreg.workflows.presets import preset as named

    if config is not None and preset is not None:
        raise ConfigError("--config and --preset were both given; a recipe holds everything, so give one of them.")
    chosen = Config.load(config) if config else named(preset or "brain")
    given = {"fixed_mask": fixed_mask, "moving_mask": moving_mask, "initial_transform": start}
    return chosen.model_copy(update={k: v for k, v in given.items() if v is not None})


def _speed(device: Device, workers: int) -> str:
    """Whose speed a plan assumes: a GPU's where one is asked for, or found for each worker."""
    from daskreg.cluster import device_of

    return "cuda" if device is Device.cuda else device_of(None, device.value, workers)


def _whole(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"--workers {text!r} is no number of workers; write them like 1,2,3.")
    return int(text)
