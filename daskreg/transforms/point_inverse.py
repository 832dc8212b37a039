"""The inverse of a link at points: fixed-point iteration, then Newton's method with step halving."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.transforms.link import Link, Points

POINT_TOLERANCE = 1e-4  # voxels: the residual at which a point counts as solved
MAX_POINT_ITERATIONS = 30  # of the fixed point, and then of Newton's method, after which a point is given up
MAX_HALVINGS = 12  # of a Newton step that does not reduce the residual
Rows = NDArray[np.intp]


def invert_points(link: Link, moving: Points) -> tuple[Points, NDArray[np.float64]]:
    """Points x (N, 3) with ``link(x) = moving``, and the residuals of ``W^-1 moving``, (N,), in world units.

    Solves x = q - d(x), q = W^-1 y, with d extended beyond its grid by its values at the faces; a point that has no solution
    inside, and lies outside the grid, is its own solution, as d is 0 there.
    """
    q = (moving - link.affine[:3, 3]) @ np.linalg.inv(link.affine[:3, :3]).T
    if link.displacement is None:
        return q, np.zeros(len(q))
    system = _System(link, q)
    p = system.newton(system.fixed_point())
    residual, undisplaced = (_norm(x + link.displacement_at(x) - q) for x in (p, q))
    better = (undisplaced < residual) & (
        residual > 10 * system.tolerance
    )  # else both solve, and the one inside the grid is meant
    p[better] = q[better]
    return p, np.minimum(residual, undisplaced)


class _System:
    """The equations ``p + d(p) = q``, one for each row of q (N, 3), world units."""

    def __init__(self, link: Link, q: Points) -> None:
        self.link, self.grid, self.q = link, link.displacement_grid, q
        self.top = np.asarray(self.grid.shape) - 1
        self.tolerance = POINT_TOLERANCE * min(self.grid.spacing)

    def fixed_point(self) -> Points:
        """Iterate p <- q - d(p) from p = q while the residual falls by a tenth."""
        p, rows, last = self.q.copy(), np.arange(len(self.q)), np.full(len(self.q), np.inf)
        for _ in range(MAX_POINT_ITERATIONS):
            r = self._residual(p[rows], rows)
            left = _norm(r)
            going = (left > self.tolerance) & (left < 0.9 * last)
            rows, last = rows[going], left[going]
            if not rows.size:
                break
            p[rows] -= r[going]
        return p

    def newton(self, p: Points) -> Points:
        """Newton's method from p, which is changed in place; a point stops where no part of a step reduces its residual."""
        rows = np.arange(len(self.q))
        for _ in range(MAX_POINT_ITERATIONS):
            r = self._residual(p[rows], rows)
            left = _norm(r)
            going = left > self.tolerance
            rows, r, left = rows[going], r[going], left[going]
            if not rows.size:
                break
            step = np.einsum("nrc,nc->nr", np.linalg.pinv(np.eye(3) + self._jacobian(p[rows])), r)
            rows = rows[self._line_search(p, rows, step, left)]
        return p

    def _line_search(self, p: Points, rows: Rows, step: Points, left: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Halve each step until it reduces the residual, and take it; whether one was taken, for each row."""
        taken = np.zeros(len(rows), bool)
        for k in range(MAX_HALVINGS):
            trying = np.flatnonzero(~taken)
            if not trying.size:
                break
            at = p[rows[trying]] - step[trying] / 2**k
            better = _norm(self._residual(at, rows[trying])) < left[trying]
            p[rows[trying[better]]] = at[better]
            taken[trying[better]] = True
        return taken

    def _residual(self, p: Points, rows: Rows) -> Points:
        return p + self._displacement(np.clip(self.grid.to_index(p), 0, self.top)) - self.q[rows]

    def _displacement(self, index: Points) -> Points:
        return self.link.displacement_at(self.grid.to_world(index))

    def _jacobian(self, points: Points) -> NDArray[np.float64]:
        """Dd in the cell of each point, (N, 3, 3), dimensionless; 0 along an axis on which a point lies outside."""
        index = self.grid.to_index(points)
        at = np.clip(index, 0, self.top)
        columns = np.zeros((len(points), 3, 3))
        for a in range(3):
            low, high = at.copy(), at.copy()
            low[:, a] = np.clip(np.floor(at[:, a]), 0, max(self.top[a] - 1, 0))
            high[:, a] = np.minimum(low[:, a] + 1, self.top[a])
            columns[:, :, a] = self._displacement(high) - self._displacement(low)
        columns *= ((index >= 0) & (index <= self.top))[:, None, :]
        return np.asarray(columns @ self.grid.world_to_index[:3, :3])


def _norm(vectors: Points) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(vectors, axis=1))
