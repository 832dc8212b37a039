"""Which planes of the moving image are read: measured at intervals, and bounded for the iterations until the next measurement.

All ranks hold the same table, a row a plane of the level, so that each knows what every other one reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from daskreg.comm import Communicator
from daskreg.engine.halo import Block
from daskreg.engine.planes import Planes, on, pieces
from daskreg.grid import Grid, Index, Partition, Span
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.device import host
from daskreg.kernels.sampling.cpu import plane_range
from daskreg.planning import REACH_INTERVAL
from daskreg.transforms.linear import index_map, linear_part, to_fixed_point

Array = NDArray[np.float32]
EMPTY = Span(0, 0)
LARGEST = 2.0**30  # voxels: where a diverging displacement is taken to lead
ZERO_AFFINE = (np.int64(0),) * 12  # A and t of nothing but the displacement


class SamplingMap(NamedTuple):
    """``p(x) = A x + t + S u(x)`` in voxels of the moving level, as kernels take it.

    first: plane of the level that the arrays begin with;  affine: A and t by rows, 64-bit fixed point, 2^-32 voxel;  linear: S
    by rows.
    """

    first: int
    affine: tuple[np.int64, ...]
    linear: tuple[np.float32, ...]

    @classmethod
    def of(cls, first: int, world: NDArray[np.float64], fixed: Grid, moving: Grid) -> SamplingMap:
        """Of the world map from fixed to moving points, (4, 4), between two grids."""
        matrix = index_map(world, fixed, moving)
        return cls(first, to_fixed_point(matrix), linear_part(matrix))


@dataclass(frozen=True, eq=False)
class Reach:
    """Plane z of a level reads no other planes of the moving image than ``start[z] <= k < stop[z]``.

    partition: who has which planes of the level;  start, stop: (Z,) int64, beyond the image's ends too
    """

    partition: Partition
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    margin: int = 0  # planes around a slab that its rank samples too

    @classmethod
    def between(cls, partition: Partition, low: NDArray[np.float64], high: NDArray[np.float64]) -> Reach:
        """From the range of p_z of every plane, (Z,) each, moving voxels."""
        start, stop = _around(low, high)
        return cls(partition, start, stop)

    @classmethod
    def of_slabs(cls, partition: Partition, needs: Sequence[Span]) -> Reach:
        """All planes of a slab read what the slab does."""
        ends = [np.repeat([getattr(s, end) for s in needs], partition.lengths) for end in ("start", "stop")]
        return cls(partition, ends[0].astype(np.int64), ends[1].astype(np.int64))

    def grown(self, planes: int) -> Reach:
        """With so many planes more on each side."""
        return Reach(self.partition, self.start - planes, self.stop + planes)

    def united(self, other: Reach) -> Reach:
        """What either reads, of the same level."""
        return replace(self, start=np.minimum(self.start, other.start), stop=np.maximum(self.stop, other.stop))

    def covers(self, other: Reach) -> bool:
        """Whether no plane of the other one reads what this one does not cover."""
        return bool((self.start <= other.start).all() and (self.stop >= other.stop).all())

    def within(self, planes: int) -> Reach:
        """For an image of so many planes whose outermost ones count beyond its faces too."""
        return Reach(self.partition, np.clip(self.start, 0, planes - 1), np.clip(self.stop, 1, planes))

    @property
    def needs(self) -> list[Span]:
        """What each slab reads, from the first plane to the last."""
        sampled = [s.grow(self.margin) & self.partition.whole for s in self.partition.slabs]
        return [_hull(self.start[_at(s)], self.stop[_at(s)]) for s in sampled]

    def read_by(self, planes: Span) -> Span:
        """What planes of the level read, from the first plane to the last."""
        return _hull(self.start[_at(planes)], self.stop[_at(planes)])

    def beyond(self, planes: int) -> Reach:
        """Of ranks that sample so many planes around their own."""
        return replace(self, margin=planes)

    def meeting(self, planes: Span, shard: Span) -> tuple[Span, Span]:
        """Of the level's ``planes`` those, first to last, that read any of a shard; and of the shard what they read."""
        start, stop = np.maximum(self.start[_at(planes)], shard.start), np.minimum(self.stop[_at(planes)], shard.stop)
        (found,) = np.nonzero(start < stop)
        if not len(found):
            return EMPTY, EMPTY
        return Span(planes.start + int(found[0]), planes.start + int(found[-1]) + 1), _hull(start[found], stop[found])

    def inner(self, slab: Span, shard: Span, image: Span) -> Span:
        """The longest run of a slab's planes that read nothing of the ``image`` but planes of one shard."""
        start = np.maximum(self.start[_at(slab)], image.start)
        stop = np.minimum(self.stop[_at(slab)], image.stop)
        inside = ((start >= shard.start) & (stop <= shard.stop)) | (start >= stop)
        if not len(shard) or not inside.any():
            return Span(slab.start, slab.start)
        ends = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8))).reshape(-1, 2)
        first, last = (int(v) for v in ends[np.argmax(ends[:, 1] - ends[:, 0])])
        return Span(slab.start + first, slab.start + last)


class ReachMonitor:
    """Measures the displacement along the moving image's planes every ``REACH_INTERVAL`` iterations, on all ranks at the same
    ones.

    Iterations are counted from where a level starts or resumes: an interruption changes when it measures, and no result.
    reach: voxels within which a step mixes displacements;  step: the longest step, voxels.
    """

    def __init__(
        self, block: Block, mapping: SamplingMap, planes: Partition, reach: int, step: float, comm: Communicator
    ) -> None:
        self.block, self.mapping, self.partition, self.reach, self.step, self.comm = block, mapping, planes, reach, step, comm
        self.since = 0

    def begin(self, u: Array, done: int) -> Reach:
        """Before the first look, after ``done`` iterations of the level."""
        self.since = done
        return self.combine(self.measure(u))

    def due(self, t: int) -> bool:
        """Whether to measure the displacement before the level's t-th step; the bound known before holds up to it."""
        return t - 1 > self.since and (t - 1 - self.since) % REACH_INTERVAL == 0

    def due_in_group(self, t: int, iterations: int) -> bool:
        """Whether to measure before the level's t-th step, the last of a group, so that a bound holds in the next group, of so
        many iterations; if so, iterations are counted from there.
        """
        if t + iterations - 1 <= self.since + REACH_INTERVAL:
            return False
        self.since = t - 1
        return True

    def measure(self, u: Array) -> Any:
        """(2, own planes) float32: largest (S u)_z of every plane, moving voxels, and largest -(S u)_z; where u lies."""
        if not len(self.block.own):
            return np.empty((2, 0), np.float32)
        return self.measure_planes(self.block.box(), self.mapping.first, u)

    def measure_planes(self, box: Shape, first: int, u: Array) -> Any:
        """``measure`` on the planes of a box; ``first``: plane of the level that u begins with."""
        return plane_range(box, first, ZERO_AFFINE, self.mapping.linear, u).max(axis=2)

    def combine(self, mine: Any) -> Reach:
        """What all planes can read from the displacement that was measured to ``REACH_INTERVAL`` steps after it."""
        lengths = self.partition.lengths
        padded = np.zeros((2, max(lengths)))
        padded[:, : lengths[self.comm.rank]] = host(mine)
        parts = [part[:, :n] for part, n in zip(self.comm.gather(padded), lengths, strict=True)]
        table = np.concatenate(parts, axis=1)
        return bound_reach(self.mapping, self.partition, self.block.shape, table, REACH_INTERVAL, self.reach, self.step)


def bound_reach(
    mapping: SamplingMap, partition: Partition, shape: Index, table: NDArray[np.float64], steps: int, reach: int, step: float
) -> Reach:
    """What planes read from a displacement to ``steps`` steps after it; ``table``: (2, Z), largest q and -q, q = (S u)_z.

    A step replaces u(x) by a mean, with weights that sum to 1, of s d(y) + u(z), where z is at most ``reach`` voxels away from x
    along each axis and |s d| <= step. The same mean makes the new q(x) of (S s d(y))_z + q(z), whose first part is at most
    |S_z| step, |S_z| the sum of absolute values. So after j steps q(x) lies in the range of q over the planes at most j reach
    away, widened by j |S_z| step; and p_z(x) = (A x + t)_z + q(x) in that of x's own plane, widened by it.
    """
    width, room = 2 * steps * reach + 1, steps * sum(abs(float(v)) for v in mapping.linear[:3]) * step
    most, least = (maximum_filter1d(np.nan_to_num(row), width, mode="nearest") for row in table)
    low, high = _affine_range(mapping, shape)
    return Reach.between(partition, low - least - room, high + most + room)


def affine_reach(mapping: SamplingMap, partition: Partition, shape: Index) -> Reach:
    """What every plane of the level reads under A x + t: its corners bound it."""
    return Reach.between(partition, *_affine_range(mapping, shape))


def displaced_range(block: Block, mapping: SamplingMap, u: Array) -> tuple[float, float]:
    """Least and largest p_z over the own planes; (inf, -inf) for an idle rank."""
    rows = host(plane_range(block.box(), *mapping, u))
    return (-float(rows[1].max()), float(rows[0].max())) if rows.size else (math.inf, -math.inf)


def displaced_reach(u: Planes, block: Block, mapping: SamplingMap, comm: Communicator) -> Reach:
    """What every plane of the level reads at a displacement, wherever that is; all ranks hold the same."""
    lengths = block.partition.lengths
    mine = np.full((2, max(lengths)), -math.inf)
    for planes in pieces(block.own, 12 * block.shape[1] * block.shape[2]):
        part = Block(block.shape, Partition(block.shape[0], (planes,)), device=block.device)
        here = block.device.xp.ascontiguousarray(on(block.device, u, planes))
        rows = host(plane_range(part.box(), *mapping._replace(first=planes.start), here))
        mine[:, planes.within(block.own)] = rows.max(axis=2)
    table = np.concatenate([p[:, :n] for p, n in zip(comm.gather(mine), lengths, strict=True)], axis=1)
    return Reach.between(block.partition, -table[1], table[0])


def spans(ranges: NDArray[np.float64]) -> list[Span]:
    """Planes for every rank from the table (ranks, 2) of least and largest p_z."""
    found = [_around(low, high) if low <= high else (0, 0) for low, high in ranges]
    return [Span(int(start), int(stop)) for start, stop in found]


def _affine_range(mapping: SamplingMap, shape: Index) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and largest (A x + t)_z of every plane."""
    a, b, c, t = (float(v) / 2**32 for v in mapping.affine[:4])
    ends, along = [(0.0, b * (shape[1] - 1)), (0.0, c * (shape[2] - 1))], a * np.arange(shape[0], dtype=np.float64) + t
    return along + sum(min(e) for e in ends), along + sum(max(e) for e in ends)


def _around(low: Any, high: Any) -> tuple[Any, Any]:
    """The planes on both sides of positions between low and high, first and last but one; a voxel of doubt is added."""
    start, stop = (np.floor(np.clip(end, -LARGEST, LARGEST)).astype(np.int64) for end in (low, high))
    return start - 1, stop + 3


def _hull(start: NDArray[np.int64], stop: NDArray[np.int64]) -> Span:
    """From the first plane of any span to the last."""
    return Span(int(start.min()), int(stop.max())) if len(start) else EMPTY


def _at(planes: Span) -> slice:
    return slice(planes.start, planes.stop)
