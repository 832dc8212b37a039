"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

ADDRESS = (
    "OME-Zarr, Zarr, NIfTI, TIFF, Imaris, BigDataViewer, N5, HDF5, MetaImage, NRRD, MGH, NumPy; a path or URL, "
    "with '::level=1,channel=0,time=0,spacing=2x1x1,unit=um,axes=zyx,missing=fill' behind it as needed"
)


class DeviceName(StrEnum):
    """Where kernels run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Residency(StrEnum):
    """How a worker holds the moving image."""

    auto = "auto"
    replicate = "replicate"
    window = "window"
    ring = "ring"


class State(StrEnum):
    """Where displacement and optimizer state are."""

    auto = "auto"
    device = "device"
    host = "host"
    disk = "disk"


class Images(StrEnum):
    """Where both images are at full resolution."""

    auto = "auto"
    device = "device"
    host = "host"
    disk = "disk"
    source = "source"


class Comm(StrEnum):
    """How workers communicate."""

    auto = "auto"
    tcp = "tcp"
    ucx = "ucx"
    nccl = "nccl"


class MissingChunks(StrEnum):
    """What chunks are that a Zarr store lacks."""

    fail = "fail"
    fill = "fill"


class Interpolation(StrEnum):
    """How values between voxels are computed."""

    linear = "linear"
    nearest = "nearest"
    cubic = "cubic"
    label = "label"


class Part(StrEnum):
    """The part of a transform that is exported."""

    total = "total"
    warp = "warp"
    affine = "affine"


class JacobianPart(StrEnum):
    """The part of a transform whose Jacobian is computed."""

    total = "total"
    warp = "warp"


RunArgument = Annotated[str, typer.Argument(metavar="RUN.zarr", help="what 'daskreg register' wrote")]
TransformArgument = Annotated[
    str, typer.Argument(metavar="TRANSFORM", help="RUN.zarr, another transform's .zarr, .nii.gz field, .h5, .mat, .tfm or .txt")
]
FixedArgument = Annotated[str, typer.Argument(metavar="FIXED", help=ADDRESS)]
MovingArgument = Annotated[str, typer.Argument(metavar="MOVING", help=ADDRESS)]

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="YAML", help="a configuration; see --print-config")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="brain (default), rigid, affine, multimodal or lightsheet")]
FixedMask = Annotated[str | None, typer.Option("--fixed-mask", help="weights of the fixed image's voxels, on any grid")]
MovingMask = Annotated[str | None, typer.Option("--moving-mask", help="weights of the moving image's voxels, on any grid")]
InitialTransform = Annotated[
    str | None, typer.Option("--initial-transform", help="RUN.zarr, field .nii.gz, .h5, .mat, .tfm: fixed to moving points")
]
Spacing = Annotated[str | None, typer.Option("--spacing", metavar="ZxYxX", help="voxel size of arrays that state none")]
MissingChunksOption = Annotated[
    MissingChunks | None,
    typer.Option(
        "--missing-chunks",
        help="that images lack: fail (by default: they may be lost), or fill (the store was written without its empty ones)",
    ),
]
Like = Annotated[str | None, typer.Option("--like", metavar="GRID", help="an image whose grid the output takes")]
ImageOutput = Annotated[str, typer.Option("--output", "-o", help=".nii, .nii.gz, .mha, .nrrd or .ome.zarr")]
FillOption = Annotated[
    str | None,
    typer.Option(
        "--fill", metavar="VALUE", help="outside of the image: a number, or nan (0, or its smallest corner if negative)"
    ),
]
BackgroundOption = Annotated[
    str | None,
    typer.Option(
        "--background", metavar="VALUE|nan|auto", help="stored voxels that stand for nothing and get weight 0; or FIXED,MOVING"
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an existing output, once the new one is complete")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

FixedLabels = Annotated[str | None, typer.Option("--fixed-labels", help="label map on the fixed side")]
MovingLabels = Annotated[str | None, typer.Option("--moving-labels", help="label map on the moving side")]
Landmarks = Annotated[
    str | None, typer.Option("--landmarks", metavar="CSV", help="fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z")
]

DeviceOption = Annotated[
    DeviceName, typer.Option("--device", help="where kernels run; auto: on a GPU where every worker has one")
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        help="local, cuda (a worker for each GPU here), slurm, pbs, lsf or sge (a job for each worker, from dask-jobqueue's "
        "configuration), or the address of a Dask scheduler",
    ),
]
WaitForWorkers = Annotated[
    str | None,
    typer.Option(
        "--wait-for-workers", metavar="30min", help="at most, for a cluster's workers (jobs in a queue: a day; others: 2 minutes)"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=100_000,
        help="blocks the fixed image is cut into, one a worker (all of a cluster's; else 1)",
    ),
]
Memory = Annotated[str | None, typer.Option("--memory", metavar="48GB", help="what a worker may use (what it has by default)")]
HostMemory = Annotated[
    str | None,
    typer.Option("--host-memory", metavar="48GB", help="what fields may take of the machine's memory beside a GPU's (by default "
                 "three quarters of a worker's share)"),
]  # fmt: skip
StateOption = Annotated[
    State,
    typer.Option("--state", help="where displacement and optimizer state are: on the device, in the machine's memory (host) or "
                 "on disk; auto: the first of these where they fit"),
]  # fmt: skip
ImagesOption = Annotated[
    Images,
    typer.Option("--images", help="where both images are at full resolution: as --state, or in their files (source), read again "
                 "when needed; auto: the first where they fit, source where no stage runs at full resolution"),
]  # fmt: skip
Scratch = Annotated[
    str | None, typer.Option("--scratch", metavar="FOLDER", help="for fields on disk (by default beside the output)")
]
ScratchSize = Annotated[
    str | None, typer.Option("--scratch-size", metavar="500GB", help="what a worker may use of it (by default what is free)")
]
ResidencyOption = Annotated[
    Residency,
    typer.Option(
        "--residency",
        help="how a worker holds the moving image: replicate, all of it; window, the planes that its block "
        "reaches; ring, one shard of it (they go around all workers); auto: the first of these that fits",
    ),
]
CommOption = Annotated[
    Comm,
    typer.Option("--comm", help="how workers communicate; auto: ucx where all have it and TLS is off; nccl: GPUs of a machine"),
]


S = TypeVar("S", str, str | None)


def saying(choice: MissingChunks | None, source: S) -> S:
    """The address of an image that says what missing chunks are, unless it says so itself or none was chosen."""
    from daskreg.storage.fs.address import with_missing

    if source is None or choice is None:
        return source
    return with_missing(source, "fill" if choice is MissingChunks.fill else "error")
