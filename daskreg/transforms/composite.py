"""The whole transform, ``phi(x) = W(x + d(x))``: an affine map behind a displacement, as a run keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from daskreg.grid import Grid, Region
from daskreg.kernels.jacobian import jacobian

BLOCK = 128  # voxels an axis within which points are looked up together: 24 MiB of displacement
LARGE = 192  # voxels an axis of a block of determinants: their rim costs a chunk on every side


@dataclass(frozen=True)
class Stretch:
    """How ``Id + u`` stretches space: percentage of voxels with ``det(I + Du) <= 0``, and the determinant's range and mean."""

    folded_percent: float = 0.0
    smallest: float = 1.0
    largest: float = 1.0
    mean: float = 1.0


@dataclass(frozen=True, eq=False)
class Transform:
    """Maps fixed to moving points, both in the world of the fixed image (LPS, z, y, x, its unit).

    affine: W, (4, 4), order z, y, x, 1;  grid: of the fixed image;
    displacement: d, (3, Z, Y, X) on ``grid``, world units, components z, y, x: an array or anything lazy that slices to one,
    None for none. d is trilinear between voxels and 0 outside the grid.

    Raises ValueError when these do not fit each other.
    """

    affine: NDArray[np.float64]
    grid: Grid
    displacement: Any = None

    def __post_init__(self) -> None:
        """Shapes, checked once."""
        affine = np.asarray(self.affine, float)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"an affine of shape {affine.shape} was given; (4, 4) finite numbers were expected.")
        if self.displacement is not None and tuple(self.displacement.shape) != (3, *self.grid.shape):
            raise ValueError(f"a displacement of {tuple(self.displacement.shape)} does not fit a grid of {self.grid.shape}.")
        object.__setattr__(self, "affine", affine)

    def points(self, fixed: ArrayLike) -> NDArray[np.float64]:
        """Where fixed points (..., 3) lie in the moving image, (..., 3); both world, z, y, x.

        Raises ValueError unless the last axis has three components.
        """
        p = np.asarray(fixed, float)
        if p.shape[-1:] != (3,):
            raise ValueError(f"points of shape {p.shape} were given; (..., 3) in the order z, y, x was expected.")
        warped = p if self.displacement is None else p + self.displacement_at(p.reshape(-1, 3)).reshape(p.shape)
        return np.asarray(warped @ self.affine[:3, :3].T + self.affine[:3, 3])

    fixed_to_moving = points

    def displacement_at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of d at world points (N, 3), (N, 3); reads only the blocks that hold points."""
        d, index = np.zeros((len(points), 3)), self.grid.to_index(points)
        if self.displacement is None:
            return d
        near = np.flatnonzero(((index > -1) & (index < self.grid.shape)).all(axis=1))
        cells = np.floor(index[near] / BLOCK).astype(int)
        for cell in np.unique(cells, axis=0):
            rows = near[(cells == cell).all(axis=1)]
            d[rows] = self._trilinear(index[rows])
        return d

    def _trilinear(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = np.floor(index.min(axis=0)).astype(int), np.floor(index.max(axis=0)).astype(int) + 2
        box = Region(tuple(low), tuple(high)) & self.grid.region
        at, d = (index - box.start).T, self._read(box)
        return np.stack([map_coordinates(c, at, np.float64, order=1, mode="grid-constant") for c in d], axis=1)

    def _read(self, box: Region) -> NDArray[np.float32]:
        return np.asarray(self.displacement[(slice(None), *box.slices)], np.float32)

    def voxels(self, box: Region) -> NDArray[np.float32]:
        """The displacement in a region, (3, Z, Y, X), in voxels along the grid's axes."""
        if self.displacement is None:
            return np.zeros((3, *box.shape), np.float32)
        to_index = self.grid.world_to_index[:3, :3].astype(np.float32)
        return np.asarray(np.tensordot(to_index, self._read(box), 1))

    def jacobian(self, box: Region | None = None) -> NDArray[np.float32]:
        """``det(I + Du)`` of a region (the whole grid by default), (Z, Y, X), by central differences, one-sided at the faces.

        Of the displacement alone: the whole map's is this times the determinant of the affine's linear part.
        """
        inner = box or self.grid.region
        outer = inner.grow(1) & self.grid.region
        determinant = np.empty(outer.shape, np.float32)
        jacobian(outer.shape, 0, self.voxels(outer), determinant)
        return determinant[inner.within(outer)]

    def stretch(self) -> Stretch:
        """Folds and the determinant's range over the whole grid, block by block."""
        if self.displacement is None:
            return Stretch()
        folded, total, low, high = 0, 0.0, np.inf, -np.inf
        for box in blocks(self.grid.shape, LARGE):
            determinant = self.jacobian(box)
            folded += int((determinant <= 0).sum())
            total += float(determinant.sum(dtype=np.float64))
            low, high = min(low, float(determinant.min())), max(high, float(determinant.max()))
        return Stretch(100 * folded / self.grid.size, low, high, total / self.grid.size)


def blocks(shape: tuple[int, int, int], edge: int) -> Iterator[Region]:
    """Boxes of at most ``edge`` voxels an axis that cover a grid."""
    for start in product(*(range(0, n, edge) for n in shape)):
        yield Region(start, tuple(min(a + edge, n) for a, n in zip(start, shape, strict=True)))  # type: ignore[arg-type]
