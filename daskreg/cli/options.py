"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

ADDRESS = (
    "NIfTI, MetaImage, NRRD, OME-Zarr or Zarr; a path or URL, "
    "with '::level=1,channel=0,time=0,spacing=2x1x1,unit=um' behind it as needed"
)


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
