"""Masks: weights of voxels, resampled onto the grid of their image."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from daskreg.errors import GridError, NoOverlap
from daskreg.grid import Grid
from daskreg.lazy.resample import lies_elsewhere, orientation_advice, resampled
from daskreg.storage import Volume, open_volume
from daskreg.storage.images import ImageSource, states_grid

log = logging.getLogger("daskreg")
TOLERANCE = 0.01  # voxels of the image that two grids may be apart to count as the same: headers are rounded
RESAMPLED = "resampled"  # the format of a volume that is computed where it is read


def open_mask(source: ImageSource | Volume | None, image: Volume, role: str) -> Volume | None:
    """A mask on the grid of ``image``: as it is where the grids are the same, else resampled, 0 beyond its own grid.

    source: an address or a Volume, which have a grid of their own, or an array (Z, Y, X) on the image's grid. Floating-point
    weights are interpolated linearly, other types by nearest neighbour.  role: fixed or moving, for messages.
    Raises InputError in all its forms, NoOverlap where mask and image do not overlap in space.
    """
    if source is None:
        return None
    mask = _opened(source, image, role)
    if None in (mask.grid.unit, image.grid.unit):  # a mask is of its image: what states no unit is in the other's
        mask = replace(mask, grid=replace(mask.grid, unit=image.grid.unit))
    if same_grid(mask.grid, image.grid):
        return replace(mask, grid=image.grid)
    _require_overlap(mask, image, role)
    kind = "linear" if mask.dtype.kind == "f" else "nearest"
    log.info("the %s mask %s is resampled (%s) onto the image's grid", role, mask.name, kind)
    unit = image.grid.unit
    return Volume(resampled(mask, image.grid, (), unit, kind), image.grid, mask.name, RESAMPLED)


def _opened(source: ImageSource | Volume, image: Volume, role: str) -> Volume:
    """The mask with its own grid where it has one, otherwise on the image's. Raises GridError for another shape than that."""
    if not isinstance(source, Volume) and states_grid(source):
        return open_volume(source)
    if isinstance(source, Volume) and (source.format != "array" or source.grid != Grid(source.shape)):
        return source
    shape = tuple(getattr(source, "shape", image.shape))
    if shape != image.shape:
        raise GridError(
            f"the {role} mask is an array of shape {shape}, the {role} image {image.name} has {image.shape}; give one of that "
            "shape, or say where its voxels are: daskreg.open_volume(mask, grid=...)."
        )
    return open_volume(source, grid=image.grid)


def same_grid(a: Grid, b: Grid) -> bool:
    """Whether the voxels of ``a`` are those of ``b``: same shape, corners within TOLERANCE voxels. Raises UnitsError."""
    if a.shape != b.shape:
        return False
    corners = b.to_index(a.to_unit(b.unit).corners())
    return bool(np.abs(corners - b.to_index(b.corners())).max() <= TOLERANCE)


def _require_overlap(mask: Volume, image: Volume, role: str) -> None:
    """Compare the boxes around each grid along the axes of the other. Raises NoOverlap."""
    theirs = mask.grid.to_unit(image.grid.unit)
    if _apart(theirs, image.grid) or _apart(image.grid, theirs) or lies_elsewhere(theirs, image.grid):
        away = np.linalg.norm(theirs.center - image.grid.center)
        raise NoOverlap(
            f"the {role} mask {mask.name} does not overlap the {role} image {image.name} in space: their centres are {away:.6g} "
            f"{image.grid.unit or 'units'} apart; repair its header, or give a mask of this image. "
            f"{orientation_advice(mask, image.grid, image.name)}"
        )


def _apart(a: Grid, b: Grid) -> bool:
    """Whether the box around ``a``, along the axes of ``b``, has no voxel of ``b``."""
    corners = b.to_index(a.corners())
    return bool((corners.max(axis=0) < 0).any() or (corners.min(axis=0) > np.asarray(b.shape) - 1).any())
