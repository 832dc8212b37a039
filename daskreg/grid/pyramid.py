"""The shrink factors of a level, per axis, so that its voxels are nearly isotropic; and how far the moving image is smoothed."""

from __future__ import annotations

import math

from daskreg.grid.grid import Grid
from daskreg.grid.region import Index

Sigmas = tuple[float, float, float]  # one for each axis
MINIMUM_VOXELS = 8  # along each axis of a level: fewer do not show a shape


def shrink_factors(grid: Grid, voxel: float) -> Index:
    """Factors, one for each axis, that bring ``grid`` close to voxels of ``voxel`` world units, never finer than it is."""
    z, y, x = (min(max(1, round(voxel / s)), max(1, n // MINIMUM_VOXELS)) for n, s in zip(grid.shape, grid.spacing, strict=True))
    return z, y, x


def level_factors(fixed: Grid, moving: Grid, scale: int, oversampling: int = 1) -> tuple[Index, Index]:
    """Factors of both images at a scale: voxels ``scale`` times the fixed image's finest spacing.

    The moving image is brought to the mean voxel size of the fixed level, divided by ``oversampling``.
    """
    f = shrink_factors(fixed, scale * min(fixed.spacing))
    return f, shrink_factors(moving, _mean_voxel(fixed, f) / oversampling)


def nearest_scale(fixed: Grid, voxel: float) -> int:
    """The scale whose voxels come nearest to an edge in the fixed image's world."""
    return max(1, round(voxel / min(fixed.spacing)))


def matching_sigmas(fixed: Grid, moving: Grid, factors: tuple[Index, Index]) -> Sigmas:
    """Sigmas, in voxels of the moving image, with which its level, once interpolated, is as smooth as the fixed level.

    The fixed level has a sigma of half a voxel h. Trilinear interpolation between voxels k adds the variance k^2 / 6 in the
    mean, so that sqrt(h^2 / 4 - k^2 / 6) is left; along an axis that is shrunk no less than half a voxel k, as in any level.
    """
    h = _mean_voxel(fixed, factors[0])

    def sigma(factor: int, spacing: float) -> float:
        k = factor * spacing
        least = k / 2 if factor > 1 else 0.0
        return math.sqrt(max(h**2 / 4 - k**2 / 6, least**2)) / spacing

    z, y, x = (sigma(n, s) for n, s in zip(factors[1], moving.spacing, strict=True))
    return z, y, x


def _mean_voxel(grid: Grid, factors: Index) -> float:
    return math.prod(grid.coarsen(factors).spacing) ** (1 / 3)
