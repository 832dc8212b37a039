"""Commands that take a transform: apply, points, invert, jacobian, export."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from daskreg.cli.application import app
from daskreg.cli.options import (
    ADDRESS,
    DeviceName,
    DeviceOption,
    FillOption,
    ImageOutput,
    Interpolation,
    JacobianPart,
    Like,
    MissingChunksOption,
    Overwrite,
    Part,
    TransformArgument,
    saying,
)
from daskreg.errors import counted

WRITTEN = {  # what a part is, in words
    Part.total: "the whole transform of {} (all affine maps and displacements)",
    Part.warp: "the displacement of {} alone, without its affine map",
    Part.affine: "the affine map of {} alone, without a displacement",
}


@app.command()
def apply(
    transform: TransformArgument,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help=ADDRESS)],
    output: ImageOutput,
    interpolation: Annotated[Interpolation, typer.Option("--interpolation", help="label: for label maps")] = Interpolation.linear,
    like: Like = None,
    device: DeviceOption = DeviceName.auto,
    fill: FillOption = None,
    missing_chunks: MissingChunksOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Resample IMAGE, in the space of the moving image, on the fixed grid."""
    from daskreg.workflows.apply import apply as workflow

    given: dict[str, Any] = {"interpolation": interpolation.value, "device": device.value, "fill": fill}
    image = saying(missing_chunks, image)
    moved = workflow(transform, image, output, like=like, overwrite=overwrite, **given)
    typer.echo(f"{output}: {' x '.join(map(str, moved.shape))} voxels, {moved.dtype}")


@app.command()
def points(
    transform: TransformArgument,
    source: Annotated[str, typer.Argument(metavar="POINTS", help=".csv, .tsv or .txt with x, y, z; .npy (N, 3); or a mesh")],
    output: Annotated[str, typer.Option("--output", "-o", help="the same kind of file")],
    to: Annotated[str, typer.Option("--to", help="moving (from fixed points) or fixed (from moving points)")] = "moving",
    space: Annotated[str, typer.Option("--space", help="lps or ras (world), or index (voxels of their own image)")] = "lps",
    order: Annotated[
        str | None, typer.Option("--order", help="of unnamed columns, and of napari's axis-0, -1, -2: xyz (tables) or zyx (.npy)")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Map POINTS from one image to the other."""
    from daskreg.lazy.load import load_transform
    from daskreg.workflows.points import points as workflow

    moved = workflow(transform, source, output, to=to, space=space, order=order, overwrite=overwrite)
    unit = "voxels" if space == "index" else load_transform(transform).unit or "no unit"
    typer.echo(f"{output}: {counted(len(moved), 'point')} in the {to} image, {space}, {unit}")


@app.command()
def invert(
    transform: TransformArgument,
    output: Annotated[str, typer.Option("--output", "-o", metavar="INVERSE.zarr", help="an OME-NGFF 0.6 store")],
    upsampling: Annotated[
        int,
        typer.Option(
            "--upsampling", "--finer", min=1, max=16, help="voxels of the inverse per voxel of the field, along each axis"
        ),
    ] = 1,
    both: Annotated[bool, typer.Option("--both", help="keep the transform beside its inverse: a bijection")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the inverse transform, with a certificate of its error at every voxel."""
    from daskreg.workflows.invert import invert as workflow

    certificate = workflow(transform, output, upsampling=upsampling, both=both, overwrite=overwrite)
    typer.echo("\n".join([str(output), *certificate.lines()]))


@app.command()
def jacobian(
    transform: TransformArgument,
    output: ImageOutput,
    like: Like = None,
    part: Annotated[
        JacobianPart, typer.Option("--part", help="total, or warp: without the affine's determinant")
    ] = JacobianPart.total,
    overwrite: Overwrite = False,
) -> None:
    """Write the map of Jacobian determinants, and count folded voxels."""
    from daskreg.workflows.jacobian import jacobian as workflow

    found = workflow(transform, output, like=like, part=part.value, overwrite=overwrite)
    typer.echo(f"{output}: {found.line()}")


@app.command()
def export(
    transform: TransformArgument,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help=".nii.gz or .nii: one field; .h5: ITK composite; .zarr: NGFF 0.6 scene; .tfm, .mat, .txt: affine",
        ),
    ],
    part: Annotated[
        Part,
        typer.Option("--part", help="total: all of it, in one field where a file holds one; warp or affine: that part alone"),
    ] = Part.total,
    images: Annotated[bool, typer.Option("--images", help="link the run's OME-Zarr archives into the .zarr scene")] = False,
    fixed: Annotated[str | None, typer.Option("--fixed", metavar="OME-ZARR", help="archive to link as the fixed image")] = None,
    moving: Annotated[
        str | None, typer.Option("--moving", metavar="OME-ZARR", help="archive to link as the moving image")
    ] = None,
    one_field: Annotated[bool, typer.Option("--one-field", help="affine and all in one field, in a .zarr too")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a transform for other programs: fields are phi(x) - x, LPS, mm, NIfTI intent 1007."""
    from daskreg.workflows.export import export as workflow

    ends: dict[str, Any] = {"images": images, "fixed": fixed, "moving": moving}
    workflow(transform, output, part=part.value, **ends, one_field=one_field, overwrite=overwrite)
    typer.echo(f"{output}: {WRITTEN[part].format(transform)}")
