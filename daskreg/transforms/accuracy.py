"""How exact an inverse is: the residual of its equation, a proven bound on its error, and round trips through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region
from daskreg.transforms.chain import SampledMap, sample_chain
from daskreg.transforms.inverse import SOLUTION_TOLERANCE
from daskreg.transforms.link import Link

if TYPE_CHECKING:
    from daskreg.kernels import vectors
else:
    vectors = DeferredModule("daskreg.kernels.vectors")

MAX_LIPSCHITZ = 0.9  # Lipschitz constant up to which the bound on the error is meaningful: ten residuals
ROUND_TRIP_LIMIT = 0.1  # voxels: the round-trip error from which on a voxel counts as failed
Array = NDArray[np.float32]


@dataclass(frozen=True)
class SolutionAccuracy:
    """The solution in a box: voxels, the largest residual and the largest proven error (voxels), voxels without a proof.

    unsolved: voxels whose residual stayed above SOLUTION_TOLERANCE, as where space folds;  unsolved_boxes: the boxes that hold
    them
    """

    voxels: int
    residual: float
    bound: float
    unproven: int
    unsolved: int = 0
    unsolved_boxes: tuple[Region, ...] = ()

    @classmethod
    def of(cls, residual: Array, constant: Array, box: Region) -> SolutionAccuracy:
        """Of one box; residual and constant as ``InverseField.solve`` gives them."""
        proven = (constant <= MAX_LIPSCHITZ) & (residual < 1 - constant)
        bound = residual[proven] / (1 - constant[proven])
        unsolved = residual > SOLUTION_TOLERANCE
        found = _bounding_box(unsolved, box)
        boxes = () if found is None else (found,)
        largest = float(bound.max(initial=0.0))
        return cls(residual.size, float(residual.max()), largest, int((~proven).sum()), int(unsolved.sum()), boxes)

    @classmethod
    def merge(cls, parts: Sequence[SolutionAccuracy]) -> SolutionAccuracy:
        """Of all boxes."""
        residual, bound = max(p.residual for p in parts), max(p.bound for p in parts)
        boxes = tuple(box for p in parts for box in p.unsolved_boxes)
        voxels, unproven, unsolved = (sum(getattr(p, k) for p in parts) for k in ("voxels", "unproven", "unsolved"))
        return cls(voxels, residual, bound, unproven, unsolved, boxes)


@dataclass(frozen=True)
class RoundTrip:
    """``|phi^-1(phi(x)) - x|`` over the voxels of a box, in voxels.

    total, largest: sum and maximum;  worst: the voxel of the maximum;  failed: voxels beyond ROUND_TRIP_LIMIT;  failed_box: the
    box that holds them, None without any
    """

    voxels: int
    total: float
    largest: float
    worst: tuple[int, int, int]
    failed: int
    failed_box: Region | None

    @property
    def mean(self) -> float:
        """Over all voxels; 0 without any."""
        return self.total / max(1, self.voxels)

    @classmethod
    def of(cls, links: Sequence[Link], back: Sequence[Link], grid: Grid, box: Region, within: Grid | None = None) -> RoundTrip:
        """Through ``links`` and back through ``back``, from every voxel of a box of ``grid``.

        within: a grid that a voxel must be mapped into to be counted, for a displacement ends at its grid
        """
        error = _round_trip_error([*links, *back], grid, box)
        counted = error.size
        if within is not None:
            inside = _maps_inside(sample_chain(links, grid, box), within, box)
            error[~inside], counted = 0, int(inside.sum())
        worst = np.unravel_index(int(error.argmax()), error.shape)
        z, y, x = (int(a) + s for a, s in zip(worst, box.start, strict=True))
        failed = error > ROUND_TRIP_LIMIT
        total, largest = float(error.sum(dtype=np.float64)), float(error.max())
        return cls(counted, total, largest, (z, y, x), int(failed.sum()), _bounding_box(failed, box))

    @classmethod
    def merge(cls, parts: Sequence[RoundTrip]) -> RoundTrip:
        """Of all boxes."""
        worst = max(parts, key=lambda p: p.largest)
        boxes = [p.failed_box for p in parts if p.failed_box is not None]
        voxels, failed = sum(p.voxels for p in parts), sum(p.failed for p in parts)
        return cls(voxels, sum(p.total for p in parts), worst.largest, worst.worst, failed, _enclosing_box(boxes))


def _round_trip_error(links: Sequence[Link], grid: Grid, box: Region) -> Array:
    """``|phi(x) - x|`` at the voxels of a box, (Z, Y, X) voxels, with what the affine maps leave to rounding."""
    at, to_index = sample_chain(links, grid, box), grid.world_to_index
    error = np.zeros(box.shape, np.float32)
    if at.e is not None:
        error = np.sqrt((vectors.apply_matrix(to_index[:3, :3] @ at.linear, at.e) ** 2).sum(axis=0))
    drift = to_index @ at.matrix - np.eye(4)
    error += np.float32(np.abs(drift[:3, :3]).sum() * max(grid.shape) + np.abs(drift[:3, 3]).sum())
    return error


def _maps_inside(at: SampledMap, grid: Grid, box: Region) -> NDArray[np.bool_]:
    """Whether the voxels of a box are mapped into a grid, (Z, Y, X)."""
    matrix, linear = at.in_voxels(grid)
    z, y, x = (np.arange(a, b, dtype=float) for a, b in zip(box.start, box.stop, strict=True))
    inside = np.ones(box.shape, bool)
    displaced = None if at.e is None else vectors.apply_matrix(linear, at.e)
    for c, (row, n) in enumerate(zip(matrix, grid.shape, strict=False)):
        p = (row[0] * z)[:, None, None] + (row[1] * y)[:, None] + (row[2] * x + row[3])
        p = p if displaced is None else p + displaced[c]
        inside &= (p >= 0) & (p <= n - 1)
    return inside


def _bounding_box(mask: NDArray[np.bool_], box: Region) -> Region | None:
    """The box around the voxels of a mask over ``box``, None without any."""
    if not mask.any():
        return None
    ends = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != k))) for k in range(3)]
    return Region.of((e[0] for e in ends), (e[-1] + 1 for e in ends)).shift(box.start)


def _enclosing_box(boxes: Sequence[Region]) -> Region | None:
    """The smallest box that holds all boxes, None without any."""
    if not boxes:
        return None
    return Region.of(np.min([b.start for b in boxes], axis=0), np.max([b.stop for b in boxes], axis=0))
