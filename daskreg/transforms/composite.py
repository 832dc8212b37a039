"""One link of a transform, ``W(x + d(x))``: an affine map behind a displacement, as a run keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from daskreg.errors import Unreadable
from daskreg.grid import Grid, Region

BLOCK = 128  # voxels an axis within which points are looked up together: 24 MiB of displacement
CLOSE = 1e-4  # voxels within which a point's source is found
ROUNDS = 30  # steps of the fixed point, and then of Newton, after which a point is given up
HALVINGS = 12  # of a Newton step that does not bring a point nearer


@dataclass(frozen=True)
class JacobianStatistics:
    """How ``Id + u`` stretches space: percentage of voxels with ``det(I + Du) <= 0``, and the determinant's range and mean."""

    folded_percent: float = 0.0
    smallest: float = 1.0
    largest: float = 1.0
    mean: float = 1.0


@dataclass(frozen=True, eq=False)
class Link:
    """One map of points, ``W(x + d(x))``, between worlds in LPS, z, y, x, in one unit.

    affine: W, (4, 4), order z, y, x, 1;  grid: where d is given, None for a map without d that belongs to no image;
    displacement: d, (3, Z, Y, X) on ``grid``, world units, components z, y, x: an array or anything lazy that slices to one,
    None for none. d is trilinear between voxels and 0 outside the grid.

    Raises ValueError when these do not fit each other.
    """

    affine: NDArray[np.float64]
    grid: Grid | None = None
    displacement: Any = None

    def __post_init__(self) -> None:
        """Shapes, checked once."""
        affine = np.asarray(self.affine, float)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"an affine of shape {affine.shape} was given; (4, 4) finite numbers were expected.")
        if self.displacement is not None:
            shape = None if self.grid is None else self.grid.shape
            if shape is None or tuple(self.displacement.shape) != (3, *shape):
                raise ValueError(f"a displacement of {tuple(self.displacement.shape)} does not fit a grid of {shape}.")
        object.__setattr__(self, "affine", affine)

    @property
    def place(self) -> Grid:
        """The grid of d. Raises ValueError where there is none."""
        if self.grid is None:
            raise ValueError("this map has no displacement, and so no grid of its own.")
        return self.grid

    def scaled(self, k: float, unit: str | None) -> Link:
        """The same map in another unit of length, of which the present one has ``k``."""
        affine = self.affine.copy()
        affine[:3, 3] *= k
        grid = None if self.grid is None else self.grid.to_unit(unit)
        return Link(affine, grid, None if self.displacement is None else Scaled(self.displacement, k))

    def points(self, fixed: ArrayLike) -> NDArray[np.float64]:
        """Where fixed points (..., 3) lie in the moving image, (..., 3); both world, z, y, x.

        Raises ValueError unless the last axis has three components.
        """
        p = np.asarray(fixed, float)
        if p.shape[-1:] != (3,):
            raise ValueError(f"points of shape {p.shape} were given; (..., 3) in the order z, y, x was expected.")
        warped = p if self.displacement is None else p + self.displacement_at(p.reshape(-1, 3)).reshape(p.shape)
        return np.asarray(warped @ self.affine[:3, :3].T + self.affine[:3, 3])

    def displacement_at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of d at world points (N, 3), (N, 3); reads only the blocks that hold points."""
        d, index = np.zeros((len(points), 3)), self.place.to_index(points)
        near = np.flatnonzero(((index > -1) & (index < self.place.shape)).all(axis=1))
        cells = np.floor(index[near] / BLOCK).astype(int)
        for cell in np.unique(cells, axis=0):
            rows = near[(cells == cell).all(axis=1)]
            d[rows] = self._trilinear(index[rows])
        return d

    def _trilinear(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = np.floor(index.min(axis=0)).astype(int), np.floor(index.max(axis=0)).astype(int) + 2
        box = Region(tuple(low), tuple(high)) & self.place.region
        at, d = (index - box.start).T, self.read(box)
        return np.stack([map_coordinates(c, at, np.float64, order=1, mode="grid-constant") for c in d], axis=1)

    def read(self, box: Region) -> NDArray[np.float32]:
        """Values of d in a box of its grid, (3, Z, Y, X). Raises Unreadable where one is not finite."""
        d = np.ascontiguousarray(self.displacement[(slice(None), *box.slices)], np.float32)
        finite = np.isfinite(d).all(axis=0)
        if not finite.all():
            at = tuple(int(k) + a for k, a in zip(np.argwhere(~finite)[0], box.start, strict=True))
            raise Unreadable(f"the displacement is not finite at voxel {at} (z, y, x) of its grid; finite numbers were expected: "
                             "repair the field.")  # fmt: skip
        return d

    def sources(self, moving: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Points (N, 3) that ``points`` brings to ``moving`` (N, 3), and how far from them it brings each, (N,) world units.

        By the fixed point p <- q - d(p), q = W^-1 y, with d going on beyond the grid as at its faces; a point that has no source
        inside, and lies out there, is its own, as d is 0 there. Where this does not contract, Newton's method with the derivative
        of the cell, its step halved until the residual falls.
        """
        q = (moving - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        if self.displacement is None:
            return q, np.zeros(len(q))
        p = self._newton(self._fixed_point(q), q)
        left, unmoved = (np.linalg.norm(x + self.displacement_at(x) - q, axis=1) for x in (p, q))
        better = (unmoved < left) & (left > 10 * self._enough)  # else both are sources, and the one inside the grid is meant
        p[better] = q[better]
        return p, np.minimum(left, unmoved)

    def _fixed_point(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        p, rows, last = q.copy(), np.arange(len(q)), np.full(len(q), np.inf)
        for _ in range(ROUNDS):
            r = self._residual(p[rows], q[rows])
            left = np.linalg.norm(r, axis=1)
            on = (left > self._enough) & (left < 0.9 * last)
            rows, last = rows[on], left[on]
            if not rows.size:
                break
            p[rows] -= r[on]
        return p

    def _newton(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        """From p, which is changed; a point that comes no nearer stays where it is."""
        rows = np.arange(len(q))
        for _ in range(ROUNDS):
            r = self._residual(p[rows], q[rows])
            left = np.linalg.norm(r, axis=1)
            on = left > self._enough
            rows, r, left = rows[on], r[on], left[on]
            if not rows.size:
                break
            move = np.einsum("nrc,nc->nr", np.linalg.pinv(np.eye(3) + self._slopes(p[rows])), r)
            rows = rows[self._nearer(p, q, rows, move, left)]
        return p

    def _nearer(
        self, p: NDArray[np.float64], q: NDArray[np.float64], rows: NDArray[np.intp], move: NDArray[np.float64],
        left: NDArray[np.float64],
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Move points, each by as much of its step as brings it nearer; which of them moved."""
        moved = np.zeros(len(rows), bool)
        for k in range(HALVINGS):
            trying = np.flatnonzero(~moved)
            if not trying.size:
                break
            at = p[rows[trying]] - move[trying] / 2**k
            better = np.linalg.norm(self._residual(at, q[rows[trying]]), axis=1) < left[trying]
            p[rows[trying[better]]] = at[better]
            moved[trying[better]] = True
        return moved

    @property
    def _enough(self) -> float:
        return CLOSE * min(self.place.spacing)

    def _residual(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        return p + self._clamped(p) - q

    def _slopes(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Dd in the cell of each point, (N, 3, 3): world units by world units; 0 along an axis on which a point is outside."""
        grid, top = self.place, np.asarray(self.place.shape) - 1
        index = grid.to_index(points)
        at = np.clip(index, 0, top)
        columns = np.zeros((len(points), 3, 3))
        for a in range(3):
            low, high = at.copy(), at.copy()
            low[:, a] = np.clip(np.floor(at[:, a]), 0, max(top[a] - 1, 0))
            high[:, a] = np.minimum(low[:, a] + 1, top[a])
            columns[:, :, a] = self.displacement_at(grid.to_world(high)) - self.displacement_at(grid.to_world(low))
        columns *= ((index >= 0) & (index <= top))[:, None, :]
        return np.asarray(columns @ grid.world_to_index[:3, :3])

    def _clamped(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.clip(self.place.to_index(points), 0, np.asarray(self.place.shape) - 1)
        return self.displacement_at(self.place.to_world(inside))


class Scaled:
    """A displacement in another unit of length."""

    def __init__(self, field: Any, k: float) -> None:
        self.field, self.k, self.shape = field, np.float32(k), field.shape

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """The voxels of basic slices."""
        return np.asarray(self.field[index], np.float32) * self.k


def blocks(shape: tuple[int, int, int], edge: int) -> Iterator[Region]:
    """Boxes of at most ``edge`` voxels an axis that cover a grid."""
    return pieces(Region((0, 0, 0), shape), edge)


def pieces(box: Region, edge: int) -> Iterator[Region]:
    """Boxes of at most ``edge`` voxels an axis that cover a box."""
    for start in product(*(range(a, b, edge) for a, b in zip(box.start, box.stop, strict=True))):
        yield Region(start, tuple(min(a + edge, n) for a, n in zip(start, box.stop, strict=True)))  # type: ignore[arg-type]
