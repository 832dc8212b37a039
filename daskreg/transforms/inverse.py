"""The inverse of a displacement, box by box: by fixed point and Newton, with a bound on its error, and a certificate of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from daskreg.grid import Grid, Region
from daskreg.kernels.vectors import apply_matrix
from daskreg.kernels.warp import invert
from daskreg.transforms.chain import SampledMap, launch, sample_chain
from daskreg.transforms.composite import Link

Array = NDArray[np.float32]
TOLERANCE = 1e-3  # voxels that the solution may be off
ROUNDS = 100  # steps, of the fixed point and of Newton, after which a voxel is given up; ten and three are usual
CONTRACTS = 0.9  # Lipschitz constant up to which the bound on the error is one that says something: ten residuals
LIMIT = 0.1  # voxels from which on the way there and back counts as failed


@dataclass(frozen=True)
class DisplacementBounds:
    """u of a box of the grid, voxels: least and most of each component, and least and most of x + u(x); tuples z, y, x."""

    box: Region
    low: tuple[float, ...]
    high: tuple[float, ...]
    first: tuple[float, ...]
    last: tuple[float, ...]


def voxels(link: Link, box: Region) -> Array:
    """A link's displacement in a box, (3, Z, Y, X), in voxels along its grid's axes."""
    return apply_matrix(link.place.world_to_index[:3, :3], link.read(box))


def displacement_bounds(link: Link, box: Region) -> DisplacementBounds:
    """How far a box of the displacement goes."""
    u = voxels(link, box)
    ends = [_ends(part) for part in u]
    for c, (a, n) in enumerate(zip(box.start, box.shape, strict=True)):
        u[c] += np.arange(a, a + n, dtype=np.float32).reshape([-1 if k == c else 1 for k in range(3)])
    low, high = zip(*ends, strict=True)
    first, last = zip(*(_ends(part) for part in u), strict=True)
    return DisplacementBounds(box, low, high, first, last)


def _ends(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())


class InverseField:
    """``v(q) = -d(q + v(q))`` of a link's displacement d, computed where it is asked for; sliced as (3, Z, Y, X), world units.

    It stands on ``grid``: that of d, grown by whole voxels until it holds every x + d(x). d goes on beyond its own grid as at
    its faces, so that v is as smooth there as elsewhere.
    """

    def __init__(self, link: Link, bounds: Sequence[DisplacementBounds], finer: int = 1) -> None:
        """bounds: of boxes that cover the grid of d;  finer: voxels of v in one of d, along each axis."""
        self.finer = finer
        self.link, self.bounds = Link(np.eye(4), link.place, link.displacement), tuple(bounds)
        first = np.floor(np.min([r.first for r in bounds], axis=0)).astype(int)
        last = np.ceil(np.max([r.last for r in bounds], axis=0)).astype(int)
        start, stop = np.minimum(first, 0), np.maximum(last + 1, link.place.shape)
        self.region = Region(tuple(start), tuple(stop))
        z, y, x = ((n - 1) * finer + 1 for n in self.region.shape)
        dz, dy, dx = (s / finer for s in link.place.spacing)
        self.grid = replace(link.place, shape=(z, y, x), spacing=(dz, dy, dx), origin=tuple(link.place.to_world(start)))
        self.shape = (3, *self.grid.shape)
        self._low = np.array([r.low for r in bounds])
        self._high = np.array([r.high for r in bounds])
        self._starts = np.array([r.box.start for r in bounds])
        self._stops = np.array([r.box.stop for r in bounds])

    def __getitem__(self, index: Any) -> Array:
        """The voxels of basic slices, all components."""
        boxes = [range(*s.indices(n)) for s, n in zip(index[-3:], self.shape[-3:], strict=True)]
        start, stop = tuple(b.start for b in boxes), tuple(b.stop for b in boxes)
        return self.solve(Region(start, stop))[0]  # type: ignore[arg-type]

    def solve(self, box: Region) -> tuple[Array, Array, Array]:
        """V in a box of ``grid``, (3, Z, Y, X) world units; the residual ``|w + u(q + w)|``, (Z, Y, X) voxels; and a Lipschitz
        constant L of u within a voxel of q + w, (Z, Y, X).

        Where the residual is below 1 - L, w -> -u(q + w) contracts the ball of that radius into itself: there is one fixed point
        in it, at most residual / (1 - L) away.
        """
        z, y, x = (a * self.finer for a in self.region.start)
        at = box.shift((z, y, x))
        near = self._within(at)
        u = voxels(self.link, near)
        w, residual = np.empty((3, *box.shape), np.float32), np.empty(box.shape, np.float32)
        place = (np.array(v, np.int32) for v in (at.start, near.start, self.link.place.shape))
        launch(invert, box.shape, *place, np.array([TOLERANCE], np.float32), ROUNDS, self.finer, u, w, residual)
        constant = _looked_up(lipschitz_bound(u), _axes(at, near, self.finer), w)
        return apply_matrix(self.link.place.index_to_world[:3, :3], w), residual, constant

    def _within(self, at: Region) -> Region:
        """The voxels of d that the fixed point can look at from a box: twice bounded, by all of d, then by d in reach of it."""
        everywhere = self._around(at, self._low.min(axis=0), self._high.max(axis=0))
        meets = ((self._starts < everywhere.stop) & (self._stops > everywhere.start)).all(axis=1)
        return self._around(at, self._low[meets].min(axis=0), self._high[meets].max(axis=0))

    def _around(self, at: Region, low: NDArray[np.float64], high: NDArray[np.float64]) -> Region:
        """Q - u for q in a box and u between low and high or 0, and the neighbours that interpolation reads."""
        top = np.asarray(self.link.place.shape) - 1
        ends = np.asarray(at.start) / self.finer, (np.asarray(at.stop) - 1) / self.finer
        first = np.clip(np.floor(ends[0] - np.maximum(high, 0)) - 1, 0, top).astype(int)
        last = np.clip(np.ceil(ends[1] - np.minimum(low, 0)) + 2, 0, top).astype(int)
        return Region(tuple(first), tuple(last + 1))


def lipschitz_bound(u: Array) -> Array:
    """A bound on ``|u(a) - u(b)| / |a - b|`` for a, b within a voxel and a half of each voxel, (Z, Y, X); u: voxels, trilinear.

    The derivative along an axis is, anywhere, a mean of differences of neighbours; so it is at most the longest of those near,
    and the norm of the three at most the root of their summed squares.
    """
    total = np.zeros(u.shape[1:], np.float32)
    for axis in range(3):
        if u.shape[axis + 1] > 1:
            steps = (np.diff(u, axis=axis + 1) ** 2).sum(axis=0)
            either = np.maximum(_extended(steps, axis, (1, 0)), _extended(steps, axis, (0, 1)))  # of the two neighbours
            total += maximum_filter(either, 5, mode="nearest")
    return np.asarray(np.sqrt(total), np.float32)


def _extended(values: Array, axis: int, by: tuple[int, int]) -> Array:
    return np.pad(values, [by if k == axis else (0, 0) for k in range(3)])


def _axes(at: Region, near: Region, finer: int) -> list[Array]:
    """Where the nodes of a box are on each axis, in voxels of ``near``."""
    return [(np.arange(a, b) / finer - c).astype(np.float32) for a, b, c in zip(at.start, at.stop, near.start, strict=True)]


def _looked_up(values: Array, axes: Sequence[Array], w: Array) -> Array:
    """The values at the voxels nearest to q + w, q the nodes of the axes; clamped at the faces."""
    index = []
    for c, q in enumerate(axes):
        along = q.reshape([-1 if k == c else 1 for k in range(3)])
        index.append(np.clip(np.rint(along + w[c]), 0, values.shape[c] - 1).astype(np.int32))
    return np.asarray(values[tuple(index)])


def invert_links(links: Sequence[Link], fields: Sequence[InverseField | None]) -> tuple[Link, ...]:
    """The links of the inverse of a chain, last first; fields: of each link, None where it has no displacement."""
    found: list[Link] = []
    for link, field in reversed(list(zip(links, fields, strict=True))):
        back = np.asarray(np.linalg.inv(link.affine), np.float64)
        found.append(Link(back, link.grid if field is None else None))
        if field is not None:
            found.append(Link(np.eye(4), field.grid, field))
    return merge_affines(found)


def merge_affines(links: Iterable[Link]) -> tuple[Link, ...]:
    """The same chain with neighbouring affine maps multiplied."""
    kept: list[Link] = []
    for link in links:
        if link.displacement is None and kept:
            before = kept.pop()
            kept.append(Link(link.affine @ before.affine, before.grid, before.displacement))
        else:
            kept.append(link)
    return tuple(kept)


@dataclass(frozen=True)
class SolutionAccuracy:
    """The solution in a box: voxels, the largest residual and the largest proven error (voxels), voxels without a proof.

    unsolved: voxels whose residual stayed above TOLERANCE, as where space folds;  around: the boxes that they are in
    """

    voxels: int
    residual: float
    bound: float
    unproven: int
    unsolved: int = 0
    around: tuple[Region, ...] = ()

    @classmethod
    def of(cls, residual: Array, constant: Array, box: Region) -> SolutionAccuracy:
        """Of one box; residual and constant as ``InverseField.solve`` gives them."""
        proven = (constant <= CONTRACTS) & (residual < 1 - constant)
        bound = residual[proven] / (1 - constant[proven])
        lost = residual > TOLERANCE
        found = _box(lost, box)
        around = () if found is None else (found,)
        most = float(bound.max(initial=0.0))
        return cls(residual.size, float(residual.max()), most, int((~proven).sum()), int(lost.sum()), around)

    @classmethod
    def merged(cls, parts: Sequence[SolutionAccuracy]) -> SolutionAccuracy:
        """Of all boxes."""
        residual, bound = max(p.residual for p in parts), max(p.bound for p in parts)
        around = tuple(box for p in parts for box in p.around)
        voxels, unproven, unsolved = (sum(getattr(p, k) for p in parts) for k in ("voxels", "unproven", "unsolved"))
        return cls(voxels, residual, bound, unproven, unsolved, around)


@dataclass(frozen=True)
class RoundTrip:
    """``|phi^-1(phi(x)) - x|`` over the voxels of a box, in voxels.

    total, largest: sum and maximum;  worst: the voxel of the maximum;  failed: voxels beyond LIMIT;  around: the box they are
    in, None without any
    """

    voxels: int
    total: float
    largest: float
    worst: tuple[int, int, int]
    failed: int
    around: Region | None

    @property
    def mean(self) -> float:
        """Over all voxels; 0 without any."""
        return self.total / max(1, self.voxels)

    @classmethod
    def of(cls, links: Sequence[Link], back: Sequence[Link], grid: Grid, box: Region, within: Grid | None = None) -> RoundTrip:
        """There through ``links`` and back through ``back``, from every voxel of a box of ``grid``.

        within: a grid in which a voxel must have got to be counted, for a displacement ends at its grid
        """
        at = sample_chain([*links, *back], grid, box)
        to_index = grid.world_to_index
        error = np.zeros(box.shape, np.float32)
        if at.e is not None:
            error = np.sqrt((apply_matrix(to_index[:3, :3] @ at.turn, at.e) ** 2).sum(axis=0))
        drift = to_index @ at.matrix - np.eye(4)  # what the affine parts leave: rounding
        error += np.float32(np.abs(drift[:3, :3]).sum() * max(grid.shape) + np.abs(drift[:3, 3]).sum())
        counted = error.size
        if within is not None:
            inside = _arrives(sample_chain(links, grid, box), within, box)
            error[~inside], counted = 0, int(inside.sum())
        place = np.unravel_index(int(error.argmax()), error.shape)
        z, y, x = (int(a) + s for a, s in zip(place, box.start, strict=True))
        failed = error > LIMIT
        return cls(
            counted, float(error.sum(dtype=np.float64)), float(error.max()), (z, y, x), int(failed.sum()), _box(failed, box)
        )

    @classmethod
    def merged(cls, parts: Sequence[RoundTrip]) -> RoundTrip:
        """Of all boxes."""
        worst = max(parts, key=lambda p: p.largest)
        around = [p.around for p in parts if p.around is not None]
        total = sum(p.total for p in parts)
        failed = sum(p.failed for p in parts)
        return cls(sum(p.voxels for p in parts), total, worst.largest, worst.worst, failed, _hull(around))


def _arrives(at: SampledMap, grid: Grid, box: Region) -> NDArray[np.bool_]:
    """Whether the voxels of a box have got into a grid, (Z, Y, X)."""
    matrix, linear = at.into(grid)
    z, y, x = (np.arange(a, b, dtype=float) for a, b in zip(box.start, box.stop, strict=True))
    inside = np.ones(box.shape, bool)
    moved = None if at.e is None else apply_matrix(linear, at.e)
    for c, (row, n) in enumerate(zip(matrix, grid.shape, strict=False)):
        p = (row[0] * z)[:, None, None] + (row[1] * y)[:, None] + (row[2] * x + row[3])
        p = p if moved is None else p + moved[c]
        inside &= (p >= 0) & (p <= n - 1)
    return inside


def _box(mask: NDArray[np.bool_], box: Region) -> Region | None:
    if not mask.any():
        return None
    ends = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != k))) for k in range(3)]
    start, stop = tuple(int(e[0]) for e in ends), tuple(int(e[-1]) + 1 for e in ends)
    return Region(start, stop).shift(box.start)  # type: ignore[arg-type]


def _hull(boxes: Sequence[Region]) -> Region | None:
    if not boxes:
        return None
    start, stop = np.min([b.start for b in boxes], axis=0), np.max([b.stop for b in boxes], axis=0)
    return Region(tuple(int(v) for v in start), tuple(int(v) for v in stop))  # type: ignore[arg-type]
