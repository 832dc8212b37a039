"""Refinement of many maps at once by the edges of two images: Levenberg-Marquardt on a rotation, a shift and, if asked, a scale.

Maximised is the correlation of the trace-free orientation tensors times the root of the number of voxels N,

    root(N) sum(s^2 - |a|^2 |m|^2 / 3) / (2/3 root(sum |a|^4 sum |m|^4))

where a and m are the normalised gradients of both images at a point, a turned by the map, and s is their scalar product; or, from
further away, that of the smoothed tensors themselves. It is 0 on average where edges are unrelated. N and |a| count as constant
in a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from daskreg.grid import Grid
from daskreg.kernels.device import host, module_of
from daskreg.kernels.pose_sums import pose_sums, tensor_sums

Matrix = NDArray[np.float64]
NORM = 2 / 3  # of a trace-free tensor of a unit vector, squared
DAMPING, EASED, STIFFENED = 0.1, 0.3, 6.0  # of Levenberg and Marquardt: at first, after a better and after a worse step
LARGEST_STEP = 1.0  # moving voxels that a step may move a corner by
LEAST_PART = 0.25  # that steps are made for
UPPER = np.triu_indices(7)


@dataclass(frozen=True)
class EdgeField:
    """Edges along the axes of an isotropic lattice, and 1 where they count, float32: normalised gradients (4, Z, Y, X), or
    smoothed trace-free tensors of them (7, Z, Y, X).
    """

    grid: Grid
    values: Any

    @property
    def size(self) -> float:
        """World volume that counts."""
        return float(self.values[-1].sum()) * float(np.prod(self.grid.spacing))

    def at_every(self, step: int) -> EdgeField:
        """At every ``step``-th point along each axis, the middle one among them."""
        first = [n // 2 % step for n in self.grid.shape]
        values = self.values[(slice(None), *(slice(k, None, step) for k in first))].copy()
        matrix = self.grid.index_to_world @ np.vstack([np.column_stack([step * np.eye(3), first]), [0, 0, 0, 1]])
        return EdgeField(Grid.from_matrix(values.shape[1:], matrix, self.grid.unit), values)


@dataclass(frozen=True)
class Poses:
    """Maps and how well they fit: world (K, 4, 4);  score (K,): correlation;  overlap (K,): part of the smaller domain."""

    world: Matrix
    score: NDArray[np.float64]
    overlap: NDArray[np.float64]

    @property
    def weight(self) -> NDArray[np.float64]:
        """What they are ranked by: a correlation of unrelated edges falls with the root of the number of voxels."""
        return np.asarray(self.score * np.sqrt(np.clip(self.overlap, 0, 1)))

    def rows(self) -> Matrix:
        """(K, 18): score, overlap, map."""
        return np.column_stack([self.score, self.overlap, self.world.reshape(-1, 16)])

    @classmethod
    def of_rows(cls, rows: Matrix) -> Poses:
        """The inverse of ``rows``."""
        return cls(rows[:, 2:].reshape(-1, 4, 4), rows[:, 0], rows[:, 1])

    def joined(self, others: Poses) -> Poses:
        """These and others."""
        return Poses.of_rows(np.concatenate([self.rows(), others.rows()]))

    def distinct(self, corners: Matrix, distance: float, most: int) -> NDArray[np.int64]:
        """Numbers of the best, see ``first_distinct``."""
        order = np.argsort(-self.weight, kind="stable")
        return np.asarray(order[first_distinct(self.world[order], corners, distance, most)], np.int64)


def first_distinct(worlds: Matrix, corners: Matrix, distance: float, most: int) -> list[int]:
    """Numbers of the first maps (K, 4, 4) that take points (N, 3) further than ``distance``, in the mean, from where those before
    do.
    """
    places = worlds[:, :3, :3] @ corners.T + worlds[:, :3, 3:]
    kept: list[int] = []
    before = np.empty((most, *places.shape[1:]))
    for k, place in enumerate(places):
        if len(kept) == most:
            break
        if not kept or _mean_distances(before[: len(kept)], place).min() > distance:
            before[len(kept)] = place
            kept.append(k)
    return kept


def _mean_distances(places: Matrix, place: Matrix) -> NDArray[np.float64]:
    """Of points (3, N) from those of other places (K, 3, N), in the mean: (K,)."""
    apart = places - place
    apart *= apart
    return np.asarray(np.sqrt(apart[:, 0] + apart[:, 1] + apart[:, 2]).mean(axis=1))


class PoseRefinement:
    """Maximises the agreement of the edges of two images over many maps at once.

    scaled: whether a map's scale is refined too
    """

    def __init__(self, fixed: EdgeField, moving: EdgeField, *, scaled: bool) -> None:
        self.fixed, self.moving, self.parameters = fixed, moving, 7 if scaled else 6
        planes, rows, columns = fixed.grid.shape
        self.rows = planes * rows, columns
        self.middle = fixed.grid.to_index(fixed.grid.center)
        self.corners = fixed.grid.to_index(fixed.grid.corners())

    def at_every(self, step: int) -> PoseRefinement:
        """At every ``step``-th of the fixed image's points along each axis, see ``EdgeField.at_every``."""
        return PoseRefinement(self.fixed.at_every(step), self.moving, scaled=self.parameters > 6)

    def refined(self, worlds: Matrix, steps: int) -> Poses:
        """World maps (K, 4, 4) after some steps, each kept only where it improves; no map depends on the others."""
        maps = self.moving.grid.world_to_index @ worlds @ self.fixed.grid.index_to_world
        sums, damping = self.sums(maps), np.full(len(maps), DAMPING)
        for _ in range(steps):
            tried = self._stepped(maps, sums, damping)
            new = self.sums(tried)
            better = _agreement(new) > _agreement(sums)
            maps, sums = np.where(better[:, None, None], tried, maps), np.where(better[:, None], new, sums)
            damping *= np.where(better, EASED, STIFFENED)
        return self._poses(maps, sums)

    def neighbours(self, world: Matrix, distances: tuple[float, ...]) -> Matrix:
        """World maps (K, 4, 4) beside one: both ways along the principal axes of its Gauss-Newton matrix.

        distances: moving voxels, by which a shift moves all points, and a rotation or a scale those halfway to the corners.
        Where an object has two edges side by side, the agreement has a second maximum along such an axis.
        """
        start = (self.moving.grid.world_to_index @ world @ self.fixed.grid.index_to_world)[None]
        radius = float(np.linalg.norm(np.ptp(self.corners, axis=0))) / 4 * float(_scales(start)[0])
        lengths = np.array([1.0, 1, 1, *[radius] * (self.parameters - 3)])
        _, axes = np.linalg.eigh(self._matrices(self.sums(start))[0] / np.outer(lengths, lengths))
        q = np.zeros((2 * len(distances) * self.parameters, 7))
        q[:, : self.parameters] = np.concatenate([sign * d * axes.T / lengths for d in distances for sign in (-1, 1)])
        maps = self._moved(np.repeat(start, len(q), axis=0), q)
        return np.asarray(self.moving.grid.index_to_world @ maps @ self.fixed.grid.world_to_index)

    def sums(self, maps: Matrix) -> NDArray[np.float64]:
        """What ``pose_sums`` adds up, (K, 46), of maps from fixed to moving voxels."""
        unit = _scales(maps) ** -1
        table = np.column_stack([maps[:, :3, :3].reshape(-1, 9), maps[:, :3, 3], self._centers(maps), unit])
        xp = module_of(self.fixed.values)
        kernel = pose_sums if len(self.fixed.values) == 4 else tensor_sums
        rows = kernel((len(maps), *self.rows), xp.asarray(table.astype(np.float32)), self.fixed.values, self.moving.values)
        found = np.asarray(host(rows.sum(axis=2, dtype=np.float64)).T)
        norm = NORM if kernel is pose_sums else 1.0
        found[:, 1:3] *= norm
        found[:, 11:18] *= norm
        return found

    def _centers(self, maps: Matrix) -> Matrix:
        """Where the middle of the fixed image comes to lie: what rotations and scales are about."""
        return np.asarray(maps[:, :3, :3] @ self.middle + maps[:, :3, 3])

    def _stepped(self, maps: Matrix, sums: NDArray[np.float64], damping: NDArray[np.float64]) -> Matrix:
        """After a step that moves no corner by more than LARGEST_STEP."""
        q = self._step(sums, damping)
        far = self._moved(maps, q)
        apart = np.linalg.norm((far - maps)[:, :3, :3] @ self.corners.T + (far - maps)[:, :3, 3:], axis=1).max(axis=1)
        return self._moved(maps, q * np.minimum(1, LARGEST_STEP / np.maximum(apart, 1e-12))[:, None])

    def _step(self, sums: NDArray[np.float64], damping: NDArray[np.float64]) -> Matrix:
        """The seven parameters of a step, (K, 7)."""
        n, each, matrix = self.parameters, np.arange(self.parameters), self._matrices(sums)
        diagonal = matrix[:, each, each]
        matrix[:, each, each] = diagonal * (1 + damping[:, None]) + 1e-6 * diagonal.max(axis=1, keepdims=True) + 1e-9
        q = np.zeros((len(sums), 7))
        part = (sums[:, 0] / np.maximum(sums[:, 2], 1e-30))[:, None]  # of the moving edges' tensors that is in the fixed ones
        slope = sums[:, 4 : 4 + n] - part * sums[:, 11 : 11 + n]
        q[:, :n] = np.linalg.solve(matrix, slope[..., None])[..., 0] / np.maximum(part, LEAST_PART)
        return q

    def _matrices(self, sums: NDArray[np.float64]) -> Matrix:
        """Of Gauss and Newton, (K, n, n)."""
        full = np.zeros((len(sums), 7, 7))
        full[:, UPPER[0], UPPER[1]] = full[:, UPPER[1], UPPER[0]] = sums[:, 18:]
        return full[:, : self.parameters, : self.parameters]

    def _moved(self, maps: Matrix, q: Matrix) -> Matrix:
        """After a shift, a rotation about where the middle is, and a scale."""
        turn = Rotation.from_rotvec(q[:, 3:6]).as_matrix() * np.exp(q[:, 6])[:, None, None]
        centers, out = self._centers(maps), maps.copy()
        out[:, :3, :3] = turn @ maps[:, :3, :3]
        out[:, :3, 3] = (turn @ (maps[:, :3, 3] - centers)[..., None])[..., 0] + centers + q[:, :3]
        return out

    def _poses(self, maps: Matrix, sums: NDArray[np.float64]) -> Poses:
        world = self.moving.grid.index_to_world @ maps @ self.fixed.grid.world_to_index
        smaller = np.minimum(self.fixed.size, self.moving.size / _scales(world) ** 3)
        covered = sums[:, 3] * float(np.prod(self.fixed.grid.spacing))
        return Poses(world, _correlation(sums), np.minimum(1, covered / np.maximum(smaller, 1e-30)))


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the trace-free tensors, where both images are known."""
    return np.asarray(sums[:, 0] / np.sqrt(np.maximum(sums[:, 1] * sums[:, 2], 1e-30)))


def _agreement(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The correlation times the root of the number of voxels."""
    return np.asarray(_correlation(sums) * np.sqrt(sums[:, 3]))


def _scales(maps: Matrix) -> NDArray[np.float64]:
    return np.asarray(np.abs(np.linalg.det(maps[:, :3, :3])) ** (1 / 3))
