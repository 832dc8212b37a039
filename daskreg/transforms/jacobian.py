"""The determinant of a transform's Jacobian, and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region
from daskreg.transforms.chain import sample_chain
from daskreg.transforms.execution import KernelRunner, run_on_cpu
from daskreg.transforms.link import Link

if TYPE_CHECKING:
    from daskreg.kernels import jacobian as kernel
    from daskreg.kernels import vectors
else:
    vectors = DeferredModule("daskreg.kernels.vectors")
    kernel = DeferredModule("daskreg.kernels.jacobian")

Array = NDArray[np.float32]
EXTREME = 3.0  # times a voxel's volume, or one over that: few voxels of a right displacement shrink or grow by more


def jacobian_determinant(
    links: Sequence[Link], grid: Grid, box: Region, *, whole: bool = True, run: KernelRunner = run_on_cpu
) -> Array:
    """``det(D phi)`` at the voxels of a box of ``grid``, (Z, Y, X), by central differences, one-sided at the grid's faces.

    whole: False leaves the determinant of the affine links out. A halo of one voxel is computed with the box, so that the
    values do not depend on how a grid is divided.
    """
    outer = box.grow(1) & grid.region
    at = sample_chain(links, grid, outer, run)
    linear = at.matrix[:3, :3]
    factor = np.float32(np.linalg.det(linear) / np.linalg.det(grid.index_to_world[:3, :3])) if whole else np.float32(1)
    if at.e is None:
        return np.full(box.shape, factor, np.float32)
    u = vectors.apply_matrix(np.linalg.inv(linear) @ at.linear, at.e)  # voxels along the grid's axes
    determinant = np.empty(outer.shape, np.float32)
    run(kernel.jacobian, outer.shape, 0, u, determinant)
    return np.asarray(determinant[box.within(outer)] * factor)


@dataclass(frozen=True)
class JacobianStatistics:
    """Percentage of voxels with ``det(I + Du) <= 0`` (folds), and the determinant's range and mean."""

    folded_percent: float = 0.0
    smallest: float = 1.0
    largest: float = 1.0
    mean: float = 1.0

    @classmethod
    def merge(cls, blocks: Sequence[BlockStatistics]) -> JacobianStatistics:
        """Of all blocks of a grid."""
        size, folded = sum(b.voxels for b in blocks), sum(b.folded for b in blocks)
        mean = sum(b.total for b in blocks) / size
        return cls(100 * folded / size, min(b.smallest for b in blocks), max(b.largest for b in blocks), mean)


@dataclass(frozen=True)
class BlockStatistics:
    """Voxels, folded voxels, range and sum of the determinant in a block."""

    voxels: int
    folded: int
    smallest: float
    largest: float
    total: float

    @classmethod
    def of(cls, determinant: Array) -> BlockStatistics:
        """Of a block (Z, Y, X) of determinants."""
        ends = float(determinant.min()), float(determinant.max())
        return cls(determinant.size, int((determinant <= 0).sum()), *ends, float(determinant.sum(dtype=np.float64)))
