"""Masks: weights of voxels, resampled onto the grid of their image."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from daskreg.errors import GridError, NoOverlap
from daskreg.grid import Grid
from daskreg.lazy.resample import lies_elsewhere, orientation_advice, resampled
from daskreg.storage import Volume, open_volume
from daskreg.storage.images import ImageSource, without_grid

log = logging.getLogger("daskreg")
TOLERANCE = 0.01  # voxels of the image that two grids may be apart to count as the same: headers are rounded
RESAMPLED = "resampled"  # the format of a volume that is computed where it is read


def open_mask(source: ImageSource | Volume | None, image: Volume, role: str) -> Volume | None:
    """A mask on the grid of ``image``: as it is where the grids are the same, else resampled, 0 beyond its own grid.

    source: an address or a Volume, which have a grid of their own, or an array (Z, Y, X) on the image's grid, in memory or in a
    file that states no voxel size. Floating-point weights are interpolated linearly, other types by nearest neighbour.
    role: fixed or moving, for messages.
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
    if mask.shape == image.shape and image.grid.oriented and not mask.grid.oriented:
        log.warning(
            "the %s mask %s has the shape of the %s image, but lies elsewhere: its header does not say how its axes lie in "
            "space, as that of the image does; store it with the image's header, or as an array (.npy)",
            role, mask.name, role,
        )  # fmt: skip
    kind = "linear" if mask.dtype.kind == "f" else "nearest"
    log.info("the %s mask %s is resampled (%s) onto the image's grid", role, mask.name, kind)
    unit = image.grid.unit
    return Volume(resampled(mask, image.grid, (), unit, kind), image.grid, mask.name, RESAMPLED)


def _opened(source: ImageSource | Volume, image: Volume, role: str) -> Volume:
    """The mask with its own grid where it has one, otherwise on the image's. Raises GridError for another shape than that."""
    found = without_grid(source)
    if isinstance(source, Volume) and source.format == "array" and source.grid == Grid(source.shape):
        found = source.name, source.shape
    if found is None:
        return open_volume(source)
    name, shape = found
    if shape != image.shape:
        raise GridError(_of_another_shape(name, shape, image, role))
    if isinstance(source, str | Path):
        log.info("the %s mask %s states no voxel size, and is on the grid of the %s image, whose shape it has", role, name, role)
    return open_volume(source, grid=image.grid)


def _of_another_shape(name: str, shape: tuple[int, ...], image: Volume, role: str) -> str:
    """What is said of a mask that does not say where its voxels are, and is none of the image's."""
    array = name in ("array", "the array")
    placed = "say where its voxels are: daskreg.open_volume(mask, grid=...)" if array else "a file that says where its voxels are"
    found = "is an array" if array else f"{name} states no voxel size and is an array"
    own = f"the {role} image {image.name} has {image.shape}"
    return f"the {role} mask {found} of shape {shape}, {own}; give one of that shape, or {placed}."


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
