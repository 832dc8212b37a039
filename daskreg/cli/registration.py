"""Commands that register: register, plan, verify, refine, demo."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daskreg.cli.application import app, logged_beside, quiet
from daskreg.cli.options import (
    ADDRESS,
    BackgroundOption,
    Cluster,
    Comm,
    CommOption,
    ConfigOption,
    DeviceName,
    DeviceOption,
    FillOption,
    FixedArgument,
    FixedMask,
    HostMemory,
    Images,
    ImagesOption,
    InitialTransform,
    Memory,
    MissingChunksOption,
    MovingArgument,
    MovingMask,
    Overwrite,
    PresetOption,
    Residency,
    ResidencyOption,
    Scratch,
    ScratchSize,
    Spacing,
    State,
    StateOption,
    TransformArgument,
    WaitForWorkers,
    Workers,
    saying,
)
from daskreg.errors import ConfigError, all_of

FAILED = 3  # exit code of a run with a result whose verdict is "failed"

if TYPE_CHECKING:
    from daskreg.config import Config


@app.command()
def register(
    fixed: Annotated[str | None, typer.Argument(metavar="FIXED", help=ADDRESS)] = None,
    moving: Annotated[str | None, typer.Argument(metavar="MOVING", help=ADDRESS)] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="RUN.zarr", help="where the result goes")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    fixed_mask: FixedMask = None,
    moving_mask: MovingMask = None,
    initial_transform: InitialTransform = None,
    spacing: Spacing = None,
    missing_chunks: MissingChunksOption = None,
    fill: FillOption = None,
    background: BackgroundOption = None,
    cluster: Cluster = "local",
    workers: Workers = None,
    wait_for_workers: WaitForWorkers = None,
    device: DeviceOption = DeviceName.auto,
    memory: Memory = None,
    residency: ResidencyOption = Residency.auto,
    state: StateOption = State.auto,
    images: ImagesOption = Images.auto,
    host_memory: HostMemory = None,
    scratch: Scratch = None,
    scratch_size: ScratchSize = None,
    comm: CommOption = Comm.auto,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=4096, help="CPU threads of a worker (default: its share)")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue from the last checkpoint of an unfinished RUN.zarr; a complete one is kept"),
    ] = False,
    inputs_changed: Annotated[
        bool,
        typer.Option("--inputs-changed", help="with --resume: continue although inputs changed; the result mixes both"),
    ] = False,
    checkpoint: Annotated[
        float,
        typer.Option(
            "--checkpoint-every",
            min=0,
            max=1e9,
            help="seconds between two (0: every iteration; fields on disk then take twice the space, not more time)",
        ),
    ] = 180.0,
    retries: Annotated[int, typer.Option("--retries", min=0, max=1000, help="how often to continue without a lost worker")] = 1,
    deadline: Annotated[
        float, typer.Option("--deadline", min=0.1, max=1e6, help="seconds after which a worker without response counts as lost")
    ] = 600.0,
    candidates: Annotated[
        str | None,
        typer.Option("--try", metavar="PRESETS", help="as brain,rigid: try these coarsely, run the one with the best verdict"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help=f"end with exit code {FAILED} where the verdict is 'failed'; the result is written")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the effective configuration and stop")] = False,
) -> None:
    """Register MOVING onto FIXED: affine and displacement field, and the moved image, in RUN.zarr."""
    from daskreg.storage.fill import parse_fill
    from daskreg.workflows.background import parse_background

    fixed, moving = saying(missing_chunks, fixed), saying(missing_chunks, moving)
    fixed_mask, moving_mask = saying(missing_chunks, fixed_mask), saying(missing_chunks, moving_mask)
    files = {"fixed_mask": fixed_mask, "moving_mask": moving_mask, "initial_transform": initial_transform}
    names = _recipes(candidates, config, preset)
    chosen = chosen_config(config, preset, {**files, "fill": parse_fill(fill)}, parse_background(background))
    if names and (print_config or dry_run):
        raise ConfigError("--try chooses a preset when it runs; --print-config and --dry-run show one: give --preset.")
    if print_config:
        typer.echo(chosen.dump(), nl=False)
        return
    _require_images(fixed, moving, resume)
    given: dict[str, Any] = {"spacing": spacing, "memory": memory, "residency": residency.value, **files}
    given |= {"state": state.value, "images": images.value, "host_memory": host_memory}
    if dry_run:
        assumed = DeviceName.cuda if cluster == "cuda" else device
        _print_plan(fixed, moving, chosen, workers, assumed, given, local=cluster == "local")
        _require_output(output, scratch if cluster == "local" else None, overwrite=overwrite, resume=resume)
        return
    output = _named(output)
    if names or (resume and config is None and preset is None and _exists(output)):
        given["config"] = None  # the best of the recipes, or an unfinished run, which knows its configuration
    given |= {
        "fill": fill,
        "background": background,
        "comm": comm.value,
        "scratch": scratch,
        "scratch_size": scratch_size,
        "threads": threads,
        "checkpoint": checkpoint,
        "retries": retries,
        "deadline": deadline,
        "wait_for_workers": wait_for_workers,
    }
    given |= {"cluster": None if cluster == "local" else cluster, "workers": workers, "device": device.value}
    given |= {"overwrite": overwrite, "resume": resume, "inputs_changed": inputs_changed, "candidates": names}
    _register(fixed, moving, strict=strict, **{"config": chosen, "output": output, **given})


def _register(*images: str | None, strict: bool, **given: Any) -> None:
    """Register, with progress on the terminal, and print a summary. strict: exit code FAILED for a verdict of failure."""
    from daskreg.workflows.progress import summary
    from daskreg.workflows.register import register as workflow

    result = workflow(*images, **given)
    if not quiet():
        typer.echo("\n".join(summary(result.path, result.report, logged=logged_beside())))
    if strict and result.verdict is not None and result.verdict.status == "failed":
        raise typer.Exit(FAILED)


@app.command()
def plan(
    fixed: FixedArgument,
    moving: MovingArgument,
    config: ConfigOption = None,
    preset: PresetOption = None,
    workers: Workers = None,
    memory: Memory = None,
    residency: ResidencyOption = Residency.auto,
    state: StateOption = State.auto,
    images: ImagesOption = Images.auto,
    host_memory: HostMemory = None,
    device: Annotated[
        DeviceName, typer.Option("--device", help="whose speed is assumed; cuda: an H200's, no GPU is needed")
    ] = DeviceName.auto,
    fixed_mask: FixedMask = None,
    moving_mask: MovingMask = None,
    initial_transform: InitialTransform = None,
    spacing: Spacing = None,
    missing_chunks: MissingChunksOption = None,
) -> None:
    """What a registration would need, level by level: blocks, memory, traffic, disk and time. Nothing is read or written."""
    fixed, moving = saying(missing_chunks, fixed), saying(missing_chunks, moving)
    fixed_mask, moving_mask = saying(missing_chunks, fixed_mask), saying(missing_chunks, moving_mask)
    files = {"fixed_mask": fixed_mask, "moving_mask": moving_mask, "initial_transform": initial_transform}
    given = {"memory": memory, "residency": residency.value, "spacing": spacing, **files}
    given |= {"state": state.value, "images": images.value, "host_memory": host_memory}
    _print_plan(fixed, moving, chosen_config(config, preset, files), workers, device, given)


def _print_plan(
    fixed: Any,
    moving: Any,
    config: Config,
    workers: int | None,
    device: DeviceName,
    given: dict[str, Any],
    *,
    local: bool = False,
) -> None:
    """Print the table; local: then refuse what the same command without --dry-run would refuse on this machine."""
    from daskreg.workflows.plan import link_between_workers, require_local_memory, time_of_first_run
    from daskreg.workflows.plan import plan as workflow

    planned = workflow(fixed, moving, config, workers=workers or 1, device=device.value, **given)
    for text in (str(planned), time_of_first_run(planned), link_between_workers(planned)):
        if text:
            typer.echo(text)
    if local:
        require_local_memory(planned)


def _require_output(output: str | None, scratch: str | None, *, overwrite: bool, resume: bool) -> None:
    """Refuse what the same command without --dry-run would refuse to write to."""
    from daskreg.storage.scratch import require_scratch
    from daskreg.workflows.register import require_run_place

    if output is not None:
        require_run_place(output, overwrite=overwrite, resume=resume)
    if scratch is not None:
        require_scratch(Path(scratch))


@app.command()
def verify(
    fixed: FixedArgument,
    moving: MovingArgument,
    workers: Annotated[str, typer.Option("--workers", metavar="1,2,3", help="numbers of workers to compare")] = "1,2,3",
    residencies: Annotated[str, typer.Option("--residency", metavar="LIST", help="replicate,window,ring, or auto")] = "auto",
    config: ConfigOption = None,
    preset: PresetOption = None,
    comm: CommOption = Comm.auto,
    spacing: Spacing = None,
    missing_chunks: MissingChunksOption = None,
) -> None:
    """Register on different numbers of workers and compare: the results must be the same, bit for bit."""
    from daskreg.workflows.verify import verify as workflow

    counts = [_whole(n) for n in workers.split(",")]
    given: dict[str, Any] = {"residencies": residencies.split(","), "comm": comm.value, "spacing": spacing}
    fixed, moving = saying(missing_chunks, fixed), saying(missing_chunks, moving)
    found = workflow(fixed, moving, chosen_config(config, preset, {}), counts, echo=typer.echo, **given)
    if not found.same:
        raise typer.Exit(1)


@app.command()
def refine(
    transform: TransformArgument,
    fixed: Annotated[str, typer.Argument(metavar="FIXED", help=f"of any resolution: {ADDRESS}")],
    moving: MovingArgument,
    output: Annotated[str, typer.Option("--output", "-o", metavar="REFINED.zarr", help="an OME-NGFF 0.6 store")],
    region: Annotated[str, typer.Option("--region", metavar="Z:Z,Y:Y,X:X", help="voxels of FIXED, as 10:90,0:64,32:96")],
    blend: Annotated[
        int, typer.Option("--blend", min=1, max=4096, help="voxels along each face over which the change fades")
    ] = 8,
    config: Annotated[Path | None, typer.Option("--config", metavar="YAML", help="a configuration of deformable stages")] = None,
    workers: Workers = None,
    missing_chunks: MissingChunksOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Register a part of FIXED again, starting from TRANSFORM, and blend it back without a seam."""
    from daskreg.workflows.inputs import as_config
    from daskreg.workflows.refine import refine as workflow

    given: dict[str, Any] = {} if config is None else {"stages": as_config(config).stages}
    fixed, moving = saying(missing_chunks, fixed), saying(missing_chunks, moving)
    found = workflow(transform, fixed, moving, output, region, blend=blend, overwrite=overwrite, workers=workers, **given)
    typer.echo(f"{output}: {found.line()}")


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="where the results go")] = "daskreg_demo",
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="800MB", help="register at 1 mm, which takes 1.0 GB, within this memory")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Register a bundled pair, Colin27 onto MNI152 2009c, affine and deformable, and write a report."""
    from daskreg.workflows.demo import demo as workflow
    from daskreg.workflows.progress import summary

    result, page = workflow(out, memory=memory, overwrite=overwrite)
    if not quiet():
        typer.echo("\n".join([*summary(result.path, result.report, logged=logged_beside()), f"report: {page}"]))


def chosen_config(
    config: Path | None, preset: str | None, files: dict[str, Any], backgrounds: dict[str, Any] | None = None
) -> Config:
    """The chosen configuration, with what other options say; of ``files``, what is not None."""
    from daskreg.workflows.inputs import CONFIG_ENDINGS, as_config
    from daskreg.workflows.presets import preset as named

    if config is not None and preset is not None:
        raise ConfigError("--config and --preset were both given; a configuration holds everything, so give one of them.")
    if preset is not None and preset.lower().endswith(CONFIG_ENDINGS):
        raise ConfigError(f"--preset takes a name, and {preset!r} is that of a file; give it by --config.")
    chosen = as_config(config) if config else named(preset or "brain")
    return chosen.model_copy(update={k: v for k, v in files.items() if v is not None} | (backgrounds or {}))


def require_arguments(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for parameters of ``register``, by name, that it refuses before it looks for an image."""
    from daskreg.storage.fill import parse_fill
    from daskreg.storage.fs.address import parse_address, parse_spacing
    from daskreg.workflows.background import parse_background
    from daskreg.workflows.resources import parse_duration, parse_memory, require_cluster_name

    output, spacing = given["output"], given["spacing"]
    all_of(
        partial(_recipes, given["candidates"], given["config"], given["preset"]),
        partial(chosen_config, given["config"], given["preset"], {}),
        partial(parse_fill, given["fill"]),
        partial(parse_background, given["background"]),
        *(partial(parse_memory, given[name]) for name in ("memory", "host_memory", "scratch_size")),
        partial(parse_duration, given["wait_for_workers"]),
        partial(require_cluster_name, given["cluster"]),
        lambda: spacing is None or parse_spacing(spacing),
        lambda: parse_address(_named(output)),
        lambda: _require_images(given["fixed"], given["moving"], given["resume"] or (output is not None and _exists(output))),
    )


def _require_images(fixed: str | None, moving: str | None, resume: bool) -> None:
    if (fixed is None or moving is None) and not resume:
        raise ConfigError("two images are needed: daskreg register FIXED MOVING -o RUN.zarr.")


def _named(output: str | None) -> str:
    if output is None:
        raise ConfigError("no output was named; add -o RUN.zarr.")
    return output


def _recipes(text: str | None, config: Path | None, preset: str | None) -> list[str] | None:
    """Names of presets to try. Raises ConfigError."""
    from daskreg.workflows.recipes import require_recipes

    if text is None:
        return None
    if config is not None or preset is not None:
        raise ConfigError("--try was given with --config or --preset; it chooses between presets, so give one of them.")
    names = [name.strip() for name in text.split(",")]
    require_recipes(names)
    return names


def _exists(output: str) -> bool:
    from daskreg.storage import exists
    from daskreg.storage.fs.address import parse_address

    return exists(parse_address(output).path)


def _whole(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"--workers {text!r} is not a list of numbers of workers; write it like 1,2,3.")
    return int(text)
