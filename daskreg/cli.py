"""argv -> one workflow -> exit code; no numerics."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from daskreg.errors import ConfigError, DaskregError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="3D image registration from a laptop-sized brain to a 10-gigavoxel archive.",
)

INTERRUPTED = 130  # what a shell calls Ctrl-C
TERMINATED = 143  # and SIGTERM: batch systems send it before they kill
PATIENCE = 10.0  # seconds that threads have to end after a signal: blocks being computed, a kernel being compiled
MOMENT = 0.05  # seconds until a signal is heard that came at the wrong time
DEAF = ("_gc_callback", "__del__")  # Dask's callback of the garbage collector, and the end of an object
ADDRESS = "NIfTI, OME-Zarr or Zarr; a path or URL, with '::level=1,channel=0,time=0,spacing=2x1x1,unit=um' behind it as needed"


class Device(StrEnum):
    """Where kernels run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Interpolation(StrEnum):
    """How values between voxels are made."""

    linear = "linear"
    nearest = "nearest"
    cubic = "cubic"
    label = "label"


class Part(StrEnum):
    """What of the transform is exported."""

    total = "total"
    warp = "warp"
    affine = "affine"


class Stretching(StrEnum):
    """Of what the Jacobian is."""

    total = "total"
    warp = "warp"


Run = Annotated[str, typer.Argument(metavar="RUN.zarr", help="what 'daskreg register' wrote")]
Moves = Annotated[
    str, typer.Argument(metavar="TRANSFORM", help="RUN.zarr, another transform's .zarr, .nii.gz field, .h5, .mat, .tfm or .txt")
]
Cluster = Annotated[
    str, typer.Option("--cluster", help="local, cuda (a worker for each GPU here), or the address of a Dask scheduler")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="blocks the fixed image is cut into, one a worker (all of a cluster's; local: 1)"),
]
Memory = Annotated[str | None, typer.Option("--memory", metavar="48GB", help="what a worker may use (what it has by default)")]
Residency = Annotated[
    str, typer.Option("--residency", metavar="auto|replicate|window|ring", help="where a worker finds the moving image")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an existing output, once the new one is complete")]


def _version(wanted: bool) -> None:
    if wanted:
        import daskreg

        typer.echo(daskreg.__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", is_eager=True, callback=_version)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log more")] = False,
) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("daskreg").setLevel(logging.DEBUG if verbose else logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)


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


def _whole(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"--workers {text!r} is no number of workers; write them like 1,2,3.")
    return int(text)


@app.command()
def apply(
    transform: Moves,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help=ADDRESS)],
    output: Annotated[str, typer.Option("--output", "-o", help=".nii, .nii.gz or .ome.zarr")],
    interpolation: Annotated[Interpolation, typer.Option("--interpolation", help="label: for label maps")] = Interpolation.linear,
    like: Annotated[str | None, typer.Option("--like", metavar="GRID", help="an image whose grid the output takes")] = None,
    device: Annotated[
        Device, typer.Option("--device", help="where kernels run; auto: on a GPU where there is one")
    ] = Device.auto,
    overwrite: Overwrite = False,
) -> None:
    """Bring IMAGE, which lies where the moving image lay, onto the fixed grid."""
    from daskreg.workflows.apply import apply as workflow

    given: dict[str, Any] = {"interpolation": interpolation.value, "device": device.value}
    moved = workflow(transform, image, output, like=like, overwrite=overwrite, **given)
    typer.echo(f"{output}: {' x '.join(map(str, moved.shape))} voxels, {moved.dtype}")


@app.command()
def export(
    transform: Moves,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help=".nii.gz or .nii: one field; .h5: ITK composite; .zarr: NGFF 0.6 scene; .tfm, .mat, .txt: affine",
        ),
    ],
    part: Annotated[Part, typer.Option("--part", help="total: warp and affine in one field")] = Part.total,
    images: Annotated[bool, typer.Option("--images", help="link the run's OME-Zarr archives into the .zarr scene")] = False,
    fixed: Annotated[str | None, typer.Option("--fixed", metavar="OME-ZARR", help="archive to link as the fixed image")] = None,
    moving: Annotated[
        str | None, typer.Option("--moving", metavar="OME-ZARR", help="archive to link as the moving image")
    ] = None,
    one_field: Annotated[bool, typer.Option("--one-field", help="affine and all in one field, in a .zarr too")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the transform for other programs: fields are phi(x) - x, LPS, mm, NIfTI intent 1007."""
    from daskreg.workflows.export import export as workflow

    ends: dict[str, Any] = {"images": images, "fixed": fixed, "moving": moving}
    workflow(transform, output, part=part.value, **ends, one_field=one_field, overwrite=overwrite)
    typer.echo(f"{output}: {part.value} of {transform}")


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


@app.command()
def points(
    transform: Moves,
    source: Annotated[str, typer.Argument(metavar="POINTS", help=".csv, .tsv or .txt with x, y, z; .npy (N, 3); or a mesh")],
    output: Annotated[str, typer.Option("--output", "-o", help="the same kind of file")],
    to: Annotated[str, typer.Option("--to", help="moving (from fixed points) or fixed (from moving points)")] = "moving",
    space: Annotated[str, typer.Option("--space", help="lps or ras (world), or index (voxels of their own image)")] = "lps",
    order: Annotated[str | None, typer.Option("--order", help="of unnamed columns: xyz (tables), zyx (.npy)")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Where POINTS of one image lie in the other."""
    from daskreg.workflows.load import load_transform
    from daskreg.workflows.points import points as workflow

    moved = workflow(transform, source, output, to=to, space=space, order=order, overwrite=overwrite)
    unit = "voxels" if space == "index" else load_transform(transform).unit or "no unit"
    typer.echo(f"{output}: {len(moved)} points in the {to} image, {space}, {unit}")


@app.command()
def invert(
    transform: Moves,
    output: Annotated[str, typer.Option("--output", "-o", metavar="INVERSE.zarr", help="an OME-NGFF 0.6 store")],
    finer: Annotated[int, typer.Option("--finer", min=1, help="voxels of the inverse in one of the field, an axis")] = 1,
    both: Annotated[bool, typer.Option("--both", help="keep the transform beside its inverse: a bijection")] = False,
    overwrite: Overwrite = False,
) -> None:
    """The transform from moving to fixed points, with a certificate of its error over all voxels."""
    from daskreg.workflows.invert import invert as workflow

    certificate = workflow(transform, output, finer=finer, both=both, overwrite=overwrite)
    typer.echo("\n".join([str(output), *certificate.lines()]))


@app.command()
def jacobian(
    transform: Moves,
    output: Annotated[str, typer.Option("--output", "-o", help=".nii, .nii.gz or .ome.zarr")],
    like: Annotated[str | None, typer.Option("--like", metavar="GRID", help="an image whose grid the map takes")] = None,
    part: Annotated[
        Stretching, typer.Option("--part", help="total, or warp: without the affine's determinant")
    ] = Stretching.total,
    overwrite: Overwrite = False,
) -> None:
    """The map of Jacobian determinants, and how many voxels fold."""
    from daskreg.workflows.jacobian import jacobian as workflow

    found = workflow(transform, output, like=like, part=part.value, overwrite=overwrite)
    typer.echo(f"{output}: {found.line()}")


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


def _terminate(*_: Any) -> None:
    """Unwind as Ctrl-C does, so that what is half written goes and what was replaced comes back."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the clearing up
    raise SystemExit(TERMINATED)


def _listen(number: int, stop: Callable[[int, FrameType | None], Any]) -> None:
    """Let ``stop`` raise at a signal, a moment later where Python would swallow what is raised, but not for ever."""
    later = iter(range(round(PATIENCE / MOMENT)))

    def heard(_: int, frame: FrameType | None) -> None:
        deaf = any(f.f_code.co_name in DEAF for f, _ in traceback.walk_stack(frame))
        if deaf and next(later, None) is not None:
            signal.signal(signal.SIGALRM, heard)
            signal.setitimer(signal.ITIMER_REAL, MOMENT)
        else:
            stop(number, frame)

    signal.signal(number, heard)


def main() -> None:
    """Run the command line; every deliberate failure is one sentence on standard error and its exit code."""
    _listen(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job has none
        _listen(signal.SIGINT, signal.default_int_handler)
    # of what a signal breaks off between two of Zarr's steps
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
        app()
    except DaskregError as error:
        typer.echo("\n".join([f"daskreg: {error}", *getattr(error, "__notes__", [])]), err=True)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, TERMINATED):
            kept = getattr(stop, "__notes__", ["nothing was written."])
            typer.echo(f"daskreg: stopped; {' '.join(kept)}", err=True)
            threading.Thread(target=_end, args=(stop.code,), daemon=True).start()
        raise


def _end(code: int) -> None:
    """At its end Python waits for all threads; one that the signal met while it was being started never hears that it may go."""
    threading.main_thread().join()
    time.sleep(PATIENCE)
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    main()
