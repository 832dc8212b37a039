"""How images are read that stay in their files: boxes of whole chunks where they fit into a share of the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from daskreg.grid import Index, Region, Sigmas, Span
from daskreg.planning.layout import Layout

SHARE = 32  # of the memory that a box may take
LEAST, MOST = 16 << 20, 256 << 20  # bytes of a box
AHEAD = 2  # boxes that are being read while one is in use
NUMBER = 4  # bytes of a voxel in memory
CHUNK = 64  # voxels an axis that are written together
WRITTEN = 5  # parts of the result at once: one for each thread that compresses, and one that waits
LEAF = 1 << 13  # voxels of a plane whose sums are one number (``engine.plane_sums``)
MOMENTS_BYTES = 2 * NUMBER * LEAF + 8 * 6 * 16  # of a plane whose sums wait for the next band
SUMS_SHARE = 4  # of the memory that what levels add up may take
TOGETHER = 4  # planes of an image that are added at once


@dataclass(frozen=True)
class Boxes:
    """Boxes that cover planes of an image, bands of rows one after the other, in each of them planes in order.

    shape: of the image;  rows, planes: of a box
    """

    shape: Index
    rows: int
    planes: int

    @classmethod
    def fitting(cls, shape: Index, piece: Index, memory: int | None, most_rows: int | None = None) -> Boxes:
        """For an image of which ``piece`` is decoded at once, and bands of at most so many rows (where a piece has no more)."""
        room = box_bytes(memory)
        depth, high = min(piece[0], shape[0]), min(piece[1], shape[1])
        row = NUMBER * shape[2]
        rows = shape[1] if most_rows is None else max(most_rows, 1)
        rows = _whole(min(rows, max(room // (row * depth), 1)), high, shape[1])
        return cls(shape, rows, _whole(max(room // (row * rows), 1), depth, shape[0]))

    @property
    def bytes(self) -> int:
        """Of a box, float32."""
        return NUMBER * self.rows * self.planes * self.shape[2]

    def over(self, planes: Span) -> Iterator[Region]:
        """All boxes of some planes; they start where pieces do."""
        for y in range(0, self.shape[1], self.rows):
            for z in range(planes.start // self.planes * self.planes, planes.stop, self.planes):
                span = Span(z, z + self.planes) & planes
                yield Region((span.start, y, 0), (span.stop, min(y + self.rows, self.shape[1]), self.shape[2]))


def box_bytes(memory: int | None) -> int:
    """That a box may take."""
    return MOST if memory is None else min(max(memory // SHARE, LEAST), MOST)


def _whole(count: int, piece: int, length: int) -> int:
    """The largest number of whole pieces that is at most ``count``; ``count`` itself where it is less than a piece."""
    if count >= length:
        return length
    return count // piece * piece or count


def source_boxes(plan: Layout, role: int) -> Boxes:
    """Of the fixed (0) or the moving (1) image of a plan: bands so high that what levels add up takes a share of the memory.

    Levels that are out of memory are made of whole planes.
    """
    grid = (plan.fixed, plan.moving)[role]
    streams, whole = list(made_levels(plan, role)), any(one.kept for one in made_levels(plan, role))
    fields = 1 + plan.masks[role]
    row = fields * sum(held_bytes(grid.shape, one.factors, one.sigmas, 1, 0) for one in streams)
    most = None if plan.memory is None or whole or not row else plan.memory // SUMS_SHARE // row
    return Boxes.fitting(grid.shape, plan.encodings[role].piece, plan.memory, most)


@dataclass(frozen=True)
class MadeLevel:
    """A level that is made from an image's file: its shape, planes of the largest rank, whether it is out of memory."""

    factors: Index
    sigmas: Sigmas | None
    shape: Index
    planes: int
    kept: bool


def made_levels(plan: Layout, role: int) -> Iterator[MadeLevel]:
    """Those of all optimising stages, each once."""
    seen = dict[tuple[Index, Sigmas | None], MadeLevel]()
    for level in (level for levels in plan.levels for level in levels):
        factors, sigmas, grid, partition = (
            (level.fixed_factors, None, level.fixed, level.partition),
            (level.moving_factors, level.moving_sigmas, level.moving, level.shards),
        )[role]
        kept = level.images != "device" or ((factors, sigmas) in seen and seen[factors, sigmas].kept)
        seen[factors, sigmas] = MadeLevel(factors, sigmas, grid.shape, max(partition.lengths) + (plan.workers > 1), kept)
    yield from seen.values()


def ready_bytes(plan: Layout, *, kept: bool) -> int:
    """Of the levels of both images that a rank has while stages run, in memory, or (``kept``) out of it."""
    total = 0
    for role in (0, 1):
        for one in made_levels(plan, role):
            planes = one.shape[0] if kept else one.planes
            total += (one.kept == kept) * planes * one.shape[1] * one.shape[2] * NUMBER * (1 + plan.masks[role])
    return total


def reading_bytes(plan: Layout) -> int:
    """While the levels are made: boxes that are read, and what is added up; beside the levels."""
    return max(_reading(plan, role) for role in (0, 1))


def _reading(plan: Layout, role: int) -> int:
    boxes, fields, shape = source_boxes(plan, role), 1 + plan.masks[role], (plan.fixed, plan.moving)[role].shape
    sums = sum(held_bytes(shape, one.factors, one.sigmas, boxes.rows, one.planes) for one in made_levels(plan, role))
    boxed = (AHEAD + 2) * (fields * boxes.bytes + plan.encodings[role].itemsize * boxes.bytes // NUMBER)
    return boxed + fields * (sums + boxes.bytes) + AHEAD * plan.unpacked[role]


def source_passes(plan: Layout, role: int) -> tuple[int, int]:
    """How often an image is read before its levels are there, and in the whole run."""
    statistics = 1 if plan.encodings[role].counted else 2 + plan.masks[role]
    before = statistics + 1
    if role == 0:
        return before, before + 1  # measured
    measured = 1 if NUMBER * plan.moving.size <= crop_bytes(plan.memory) else 2  # by two maps; kept meanwhile where it is small
    return before, before + measured + 2  # judged by itself, and moved


def held_bytes(shape: Index, factors: Index, sigmas: Sigmas | None, rows: int, planes: int) -> int:
    """Most that the sums of a field take, for bands of so many rows and so many planes of the level."""
    wide: tuple[float | None, ...] = sigmas or (None, None, None)
    y = taps_of(factors[1], wide[1])
    waiting = (math.ceil(y / factors[1]) + 1) * planes if y > 1 and rows < shape[1] else 0
    across = rows + math.ceil(rows / factors[1])  # and the rows of a plane that is finished
    return 4 * shape[2] * (slots_of(factors[0], wide[0]) * rows + across + waiting)


def slots_of(factor: int, sigma: float | None) -> int:
    """Coarse planes that TOGETHER fine ones belong to, at most."""
    taps = taps_of(factor, sigma)
    return math.ceil((taps + TOGETHER) / factor) + 1 if taps > 1 else 0


def taps_of(factor: int, sigma: float | None) -> int:
    """Fine voxels that a coarse one is made of, along an axis."""
    wide = (0.5 * factor if factor > 1 else 0.0) if sigma is None else sigma
    return math.floor(6 * wide) + 1


def crop_bytes(memory: int | None) -> int:
    """That a box of the moving image may take while a box of the fixed grid is sampled, unless a single line needs more."""
    return 2 * box_bytes(memory)


def measuring_bytes(plan: Layout) -> int:
    """While fixed and moved are compared: boxes of the fixed image, those being read, moved, a box of the moving."""
    boxes, encoding = source_boxes(plan, 0), plan.encodings[0]
    fixed = (AHEAD + 2) * (1 + plan.masks[0]) * boxes.bytes + AHEAD * encoding.itemsize * boxes.bytes // NUMBER
    moved = boxes.bytes + 3 * boxes.bytes * plan.deformable
    waiting = 2 * max(plan.partition.lengths) * MOMENTS_BYTES * (boxes.rows < plan.fixed.shape[1])
    comparing = fixed + moved + waiting + _block_rows(plan, 0) + _crops(plan) + max(plan.unpacked)
    other = source_boxes(plan, 1).bytes * (1 + plan.masks[1])
    return max(comparing, (AHEAD + 3) * other + _block_rows(plan, 1) + AHEAD * plan.unpacked[1])


def _block_rows(plan: Layout, role: int) -> int:
    """Sums over blocks, which a row of every plane waits for."""
    grid, partition = ((plan.fixed, plan.partition), (plan.moving, plan.shards))[role]
    return 2 * max(partition.lengths) * NUMBER * grid.shape[2] * (1 + plan.masks[role])


def writing_bytes(plan: Layout) -> int:
    """While the moved image and the displacement are written: boxes of whole chunks, that wait to be compressed too."""
    edge = NUMBER * math.prod(written_box(plan))
    return (WRITTEN + 2) * edge * 3 // 2 * (1 + 3 * plan.deformable) + _crops(plan)


def _crops(plan: Layout) -> int:
    return (2 + plan.masks[1]) * min(crop_bytes(plan.memory), NUMBER * plan.moving.size) + 2 * plan.unpacked[1]


def written_box(plan: Layout) -> Index:
    """Voxels of a part of the result that is made at once: whole chunks."""
    room = max(CHUNK**3, box_bytes(plan.memory) // NUMBER // (1 + 3 * plan.deformable))
    x = min(plan.fixed.shape[2], max(room // CHUNK**3, 1) * CHUNK)
    y = min(plan.fixed.shape[1], max(room // (CHUNK * x) // CHUNK, 1) * CHUNK)
    return min(CHUNK, plan.fixed.shape[0]), y, x
