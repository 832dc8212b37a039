"""Which voxels a level has: shrink factors per axis that bring the voxels near to isotropic."""

from __future__ import annotations

import math

from daskreg.grid.grid import Grid
from daskreg.grid.region import Index

FEWEST = 8  # voxels an axis keeps: fewer say nothing about shape


def shrink_factors(grid: Grid, voxel: float) -> Index:
    """Factors an axis that bring ``grid`` close to voxels of ``voxel`` world units, never finer than it is."""
    z, y, x = (min(max(1, round(voxel / s)), max(1, n // FEWEST)) for n, s in zip(grid.shape, grid.spacing, strict=True))
    return z, y, x


def level_factors(fixed: Grid, moving: Grid, scale: int) -> tuple[Index, Index]:
    """Factors of both images at a scale: voxels ``scale`` times the fixed image's finest spacing.

    The moving image is brought to the mean voxel size of the fixed level: finer detail than that cannot be matched, only aliased.
    """
    f = shrink_factors(fixed, scale * min(fixed.spacing))
    return f, shrink_factors(moving, math.prod(fixed.coarsen(f).spacing) ** (1 / 3))
