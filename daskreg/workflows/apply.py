"""``daskreg apply``: another image through a transform, block by block, however large."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import get_args

import numpy as np

from daskreg.arguments import checked_arguments
from daskreg.config import DeviceName
from daskreg.deprecation import renamed_arguments
from daskreg.errors import require_known
from daskreg.grid import Grid
from daskreg.lazy.device import resolve_device
from daskreg.lazy.load import TransformLike, load_transform, path_of
from daskreg.lazy.resample import Interpolation, require_size, resampled, warn_of_other_grid, warn_without_overlap
from daskreg.reporting.tasks import with_progress
from daskreg.storage import Stack, Volume, open_stack, open_volume, write_image
from daskreg.storage.fill import Fill, describe_fill, fill_of, require_fill
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.atomic import require_distinct, require_writable
from daskreg.storage.images import ImageSource, grid_of_array, is_bare, open_on
from daskreg.storage.registry import image_formats

log = logging.getLogger("daskreg")
# half of what is looked at along y and x, voxels, and the share of equal neighbours, which scans are far below
HALF, LEAST, SAME = 128, 64, 0.5
LABELS = (
    "%s has areas of one integer, as labels have; by %s interpolation they get values in between, which are other labels. "
    'Labels want --interpolation label (interpolation="label").'
)
FINER = 1.9  # times that voxels of the output are as large where that is worth a word


@renamed_arguments(run="transform")
@checked_arguments()
@with_progress("resampling")
def apply(
    transform: TransformLike,
    image: ImageSource | Volume,
    output: str | Path | None = None,
    *,
    interpolation: Interpolation = "linear",
    like: ImageSource | Volume | Grid | None = None,
    overwrite: bool = False,
    device: DeviceName = "auto",
    fill: Fill = None,
) -> Volume:
    """``moved(x) = image(phi(x))`` on the fixed grid or on that of ``like``, in the image's own type.

    A transform that knows no fixed grid, as a bare affine, resamples an image on its own grid by default.

    Parameters
    ----------
    transform
        An address, the Result of ``register`` or a Transform.
    image
        An address or a Volume, of any grid: only world coordinates matter; all channels of an address that chooses none. An array
        (Z, Y, X) is on the moving grid, whose shape it has to have; of another one ``open_volume`` says where its voxels are.
    output
        A file of any format that is written, of which the first channel and time is returned; None: nothing is computed yet, one
        channel.
    interpolation
        ``"linear"``, ``"nearest"``, ``"cubic"``, or ``"label"`` (the one with the most weight around).
    like
        An image or a Grid, whose grid the output has; by default the fixed one.
    overwrite
        Replace an existing output, once the new one is complete.
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU where this process, or every worker of the current Dask client, has one.
    fill
        Value outside of the image: a number, "nan", or None: 0, or the smallest value at the corners of the (first) image where
        that is negative, as air is in a CT; the log says which.

    Raises InputError and OutputError in all their forms.
    """
    require_known("device", device, get_args(DeviceName))
    require_known("interpolation", interpolation, get_args(Interpolation))
    if output is not None:
        require_distinct(output, path_of(transform), image, like)
        require_writable(parse_address(output).path, overwrite)
    phi = load_transform(transform)
    several = output is not None and not isinstance(image, Volume) and not is_bare(image)
    sides = phi.moving, "moving", phi.fixed
    stack = open_stack(image, grid=grid_of_array(image, *sides)) if several else open_stack(open_on(image, *sides))
    grid = phi.output_grid(stack, like)
    warn_of_other_grid(stack, "moving", phi.grids)
    if like is not None:
        require_size(grid, "the image whose grid the output has (--like)", phi.fixed, "fixed")
    warn_without_overlap(phi.links, phi.unit, grid, stack)
    if interpolation in ("linear", "cubic") and looks_like_labels(stack):
        log.warning(LABELS, stack.name, interpolation)
    if like is None and phi.fixed is not None:
        _tell_of_coarser_output(stack, grid)
    planes = output is not None and image_formats.to_write(parse_address(output).path).streams_planes
    require_fill(fill, stack.dtype, stack.name)
    kind = resolve_device(device)
    if output is not None:
        fill = _chosen_fill(stack, fill)
    moved = resampled(stack, grid, phi.links, phi.unit, interpolation, planes=planes, device=kind, fill=fill)
    if output is None:
        return Volume(moved, grid, f"{stack.name}, moved")
    write_image(output, moved, grid, labels=interpolation in ("nearest", "label"), overwrite=overwrite, axes=stack.lead)
    path = parse_address(output).path
    if not image_formats.to_write(path).reads_at(path):
        return Volume(moved[(0,) * len(stack.axes)], grid, path)
    if not stack.axes:
        return open_volume(output)
    written = open_stack(output)
    return Volume(written.data[(0,) * len(stack.axes)], written.grid, written.name)


def _tell_of_coarser_output(image: Stack, output: Grid) -> None:
    """Say how the output gets the resolution of an image whose voxels are clearly smaller, as a finer level's are."""
    own, other = (g.to_unit(output.unit) for g in (image.grid, output))
    if math.prod(other.spacing) >= FINER * math.prod(own.spacing):
        sizes = (" x ".join(f"{s:.4g}" for s in g.spacing) for g in (own, other))
        log.info(
            "voxels of %s are %s, and those of the output %s %s, as the fixed image of the transform was coarser; "
            "--like (like=) FIXED at full resolution makes it finer",
            image.name, *sizes, output.unit or "units",
        )  # fmt: skip


def looks_like_labels(stack: Stack) -> bool:
    """Whether an image has integers, and most of them that are not 0 equal their neighbours along x, in its middle planes."""
    if stack.dtype.kind not in "iu" or stack.grid.shape[2] < 2:
        return False
    z, y, x = (n // 2 for n in stack.grid.shape)
    middle = (slice(max(0, z - 1), z + 2), slice(max(0, y - HALF), y + HALF), slice(max(0, x - HALF), x + HALF))
    planes = np.asarray(stack.data[(0,) * len(stack.axes)][middle])
    left, right = planes[..., :-1], planes[..., 1:]
    inside = (left != 0) | (right != 0)
    return int(inside.sum()) >= LEAST and bool((left == right)[inside].mean() > SAME)


def _chosen_fill(stack: Stack, fill: Fill) -> float:
    value = fill_of(stack.data, fill)
    log.info("%s", describe_fill(stack.name, fill, value))
    return value
