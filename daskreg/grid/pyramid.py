"""The shrink factors of a level: per axis, so that its voxels are nearly isotropic."""

from __future__ import annotations

import math

from daskreg.grid.grid import Grid
from daskreg.grid.region import Index

MINIMUM_VOXELS = 8  # along each axis of a level: fewer do not show a shape


def shrink_factors(grid: Grid, voxel: float) -> Index:
    """Factors, one for each axis, that bring ``grid`` close to voxels of ``voxel`` world units, never finer than it is."""
    z, y, x = (min(max(1, round(voxel / s)), max(1, n // MINIMUM_VOXELS)) for n, s in zip(grid.shape, grid.spacing, strict=True))
    return z, y, x


def level_factors(fixed: Grid, moving: Grid, scale: int) -> tuple[Index, Index]:
    """Factors of both images at a scale: voxels ``scale`` times the fixed image's finest spacing.

    The moving image is brought to the mean voxel size of the fixed level: finer detail would only alias.
    """
    f = shrink_factors(fixed, scale * min(fixed.spacing))
    return f, shrink_factors(moving, math.prod(fixed.coarsen(f).spacing) ** (1 / 3))
