"""How images are read that stay in their files: boxes of whole chunks where they fit into a share of the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Index, Region, Sigmas, Span
from daskreg.planning.layout import Layout
from daskreg.transforms.linear import index_map

SHARE = 32  # of the memory that a box may take
PIECE_SHARE = 16  # of the memory that it may take where what is decoded at once is as large
SAMPLED_SHARE = 8  # of the memory that voxels of the moved image may take while the moving one is read
DEEP = 8  # planes of a box of the moving image that is sampled, at least, where a band of rows is not too low for that
LEAST, MOST = 16 << 20, 256 << 20  # bytes of a box
AHEAD = 2  # boxes that are being read while one is in use
NUMBER = 4  # bytes of a voxel in memory
CHUNK = 64  # voxels an axis that are written together
WRITTEN = 5  # parts of the result at once: one for each thread that compresses, and one that waits
MOST_BLOCKS = 1 << 14  # of the fixed grid of which it is reckoned what they read
ROUNDING = 1e-5  # voxels, of points
LEAF = 1 << 13  # voxels of a plane whose sums are one number (``engine.plane_sums``)
BRICK = (16, 64, 128)  # voxels of the fixed grid that are sampled together
BRICK_BYTES = 3 * 3 * NUMBER * math.prod(BRICK)  # of the displacement there while it is made
MOMENTS_BYTES = 2 * NUMBER * LEAF + 8 * 6 * 16  # of a plane whose sums wait for the next band
SUMS_SHARE = 4  # of the memory that what levels add up may take
TOGETHER = 4  # planes of an image that are added at once
Matrix = NDArray[np.float64]


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
        depth, high = min(piece[0], shape[0]), min(piece[1], shape[1])
        row = NUMBER * shape[2]
        room = box_bytes(memory)
        if memory is not None:  # larger where a piece would be decoded for several boxes
            room = max(room, min(row * depth * high, memory // PIECE_SHARE))
        rows = shape[1] if most_rows is None else max(most_rows, 1)
        rows = _whole(min(rows, max(room // (row * depth), 1)), high, shape[1])
        return cls(shape, rows, _whole(max(room // (row * rows), 1), depth, shape[0]))

    @property
    def bytes(self) -> int:
        """Of a box, float32."""
        return NUMBER * self.rows * self.planes * self.shape[2]

    def over(self, planes: Span) -> Iterator[Region]:
        """All boxes of some planes; they start where pieces do."""
        return self.within(Region((planes.start, 0, 0), (planes.stop, *self.shape[1:])))

    def within(self, part: Region) -> Iterator[Region]:
        """All boxes of a part of the image, in the same order."""
        (first, top, left), (last, bottom, right) = part.start, part.stop
        for y in range(top // self.rows * self.rows, bottom, self.rows):
            for z in range(first // self.planes * self.planes, last, self.planes):
                span, rows = Span(z, z + self.planes) & Span(first, last), Span(y, y + self.rows) & Span(top, bottom)
                yield Region((span.start, rows.start, left), (span.stop, rows.stop, right))

    def of_rows(self, shape: Index) -> Boxes:
        """The same of an image whose planes were taken for rows."""
        return Boxes(shape, shape[1], self.planes)

    def decoded(self, piece: Index) -> float:
        """How often a voxel is decoded while all boxes are read: more than once where they are thinner than pieces."""
        return _decoded(self.planes, piece[0], self.shape[0]) * _decoded(self.rows, piece[1], self.shape[1])


def box_bytes(memory: int | None) -> int:
    """That a box may take."""
    return MOST if memory is None else min(max(memory // SHARE, LEAST), MOST)


def _decoded(step: int, piece: int, length: int) -> float:
    starts = np.arange(0, length, step)
    pieces = -(-np.minimum(starts + step, length) // piece) - starts // piece
    return float(pieces.sum()) / -(-length // piece)


def _whole(count: int, piece: int, length: int) -> int:
    """The largest number of whole pieces that is at most ``count``; ``count`` itself where it is less than a piece."""
    if count >= length:
        return length
    return count // piece * piece or count


def source_boxes(plan: Layout, role: int) -> Boxes:
    """Of the fixed (0) or the moving (1) image of a plan, where no levels are made of it."""
    return Boxes.fitting((plan.fixed, plan.moving)[role].shape, plan.encodings[role].piece, plan.memory)


def level_boxes(plan: Layout, role: int) -> Boxes:
    """While levels are made of an image: bands so high that what the levels add up takes a share of the memory.

    Levels that are out of memory are made of whole planes.
    """
    shape, piece = (plan.fixed, plan.moving)[role].shape, plan.encodings[role].piece
    streams, fields = list(made_levels(plan, role)), 1 + plan.masks[role]
    if any(one.kept for one in streams):
        return Boxes.fitting((shape[0], 1, shape[1] * shape[2]), (piece[0], 1, 1), plan.memory).of_rows(shape)
    row = fields * sum(held_bytes(shape, one.factors, one.sigmas, 1, 0) for one in streams)
    most = None if plan.memory is None or not row else plan.memory // SUMS_SHARE // row
    return Boxes.fitting(shape, piece, plan.memory, most)


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
    boxes, fields, shape = level_boxes(plan, role), 1 + plan.masks[role], (plan.fixed, plan.moving)[role].shape
    sums = sum(held_bytes(shape, one.factors, one.sigmas, boxes.rows, one.planes) for one in made_levels(plan, role))
    counted, levels = (_boxed(plan, role, some) for some in (source_boxes(plan, role), boxes))
    return max(counted, levels + fields * (sums + boxes.bytes)) + AHEAD * plan.unpacked[role]


def _boxed(plan: Layout, role: int, boxes: Boxes) -> int:
    return (AHEAD + 2) * ((1 + plan.masks[role]) * boxes.bytes + plan.encodings[role].itemsize * boxes.bytes // NUMBER)


def source_passes(plan: Layout, role: int, world: Matrix | None = None) -> tuple[float, float]:
    """How often a voxel of an image is decoded before its levels are there, and in the whole run, at most, by all ranks.

    world: map by which the moving image is sampled; the headers' by default
    """
    each, levels = (some(plan, role).decoded(plan.encodings[role].piece) for some in (source_boxes, level_boxes))
    before = each * (1 if plan.encodings[role].counted else 2 + plan.masks[role]) + levels * _planes_of_ranks(plan, role)
    if role == 0:
        return before, before + each  # measured, and judged on the way
    if is_kept_whole(plan):
        return before, before + each + 2  # read to be measured and to be moved, and judged by itself
    judged = 0 if is_judged_on_the_way(plan) and plan.workers == 1 else each
    return before, before + judged + sampled_passes(plan, measured_block(plan, world), world) + sampled_passes(
        plan, written_block(plan, world), world
    )


def _planes_of_ranks(plan: Layout, role: int) -> float:
    """Planes that the levels of all ranks are made of, over those of the image: ranks read around their own."""
    partition = (plan.partition, plan.shards)[role]
    levels = [level for levels in plan.levels for level in levels]
    rim = max(((2 * lv.fixed_factors[0] + 2, lv.moving_rim)[role] for lv in levels), default=0) if plan.workers > 1 else 0
    return sum(min(length + 2 * rim, partition.planes) for length in partition.lengths) / partition.planes


def is_kept_whole(plan: Layout) -> bool:
    """Whether the moving image is so small that it is in memory while it is sampled."""
    return NUMBER * plan.moving.size <= crop_bytes(plan.memory)


def is_judged_on_the_way(plan: Layout) -> bool:
    """Whether what the verdict needs of the moving image is made while it is read to be measured: in one pass."""
    return not is_kept_whole(plan) and _most(plan, _measured_unit(plan), 2) == math.prod(_own_shape(plan))


def sampled_passes(plan: Layout, block: Index, world: Matrix | None = None) -> float:
    """How often a voxel of the moving image is decoded while the fixed grid is sampled block by block, at most.

    Displacements are not known ahead: the linear part of the map counts.
    """
    each = scanned_boxes(plan).decoded(plan.encodings[1].piece)
    if plan.workers == 1 and block == plan.fixed.shape:
        return each  # whatever the map is
    piece, ends = np.asarray(plan.encodings[1].piece), np.asarray(plan.moving.shape)
    low, high = _reached(plan, world, *_ends_of_blocks(plan, block))
    pieces = np.clip(-(-high // piece) - low // piece, 0, None) * (high > low)
    whole = np.prod(np.asarray(-(-ends // piece), np.float64))
    return float(np.prod(pieces.astype(np.float64), axis=1).sum() / whole) * each


def _ends_of_blocks(plan: Layout, block: Index) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and stops (n, 3) of all blocks of all ranks."""
    z = [(a, min(a + block[0], slab.stop)) for slab in plan.partition.slabs for a in range(slab.start, slab.stop, block[0])]
    y, x = ([(a, min(a + k, n)) for a in range(0, n, k)] for k, n in zip(block[1:], plan.fixed.shape[1:], strict=True))
    found = np.array(list(product(z, y, x)), np.int64).reshape(-1, 3, 2)
    return found[:, :, 0], found[:, :, 1]


def _reached(
    plan: Layout, world: Matrix | None, start: NDArray[np.int64], stop: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What blocks of the fixed grid read of the moving image."""
    matrix = index_map(np.eye(4) if world is None else world, plan.fixed, plan.moving)
    ends = np.stack([start[:, None] * matrix[:3, :3], (stop[:, None] - 1) * matrix[:3, :3]])
    low, high = (
        edge.sum(axis=2) + matrix[:3, 3] + by for edge, by in ((ends.min(axis=0), -ROUNDING), (ends.max(axis=0), ROUNDING))
    )
    shape = np.asarray(plan.moving.shape, np.float64)
    return np.clip(np.floor(low) - 1, 0, shape).astype(np.int64), np.clip(np.floor(high) + 3, 0, shape).astype(np.int64)


def measured_block(plan: Layout, world: Matrix | None = None) -> Index:
    """Voxels of the fixed grid that are sampled by two maps while the moving image is read once."""
    return _block(plan, _measured_unit(plan), 2, world)


def _measured_unit(plan: Layout) -> Index:
    boxes = source_boxes(plan, 0)
    return min(boxes.planes, plan.fixed.shape[0]), min(boxes.rows, plan.fixed.shape[1]), plan.fixed.shape[2]


def written_block(plan: Layout, world: Matrix | None = None) -> Index:
    """Voxels of the result that are sampled while the moving image is read once: boxes that are written."""
    return _block(plan, written_box(plan), 1, world)


def _most(plan: Layout, unit: Index, maps: int) -> int:
    """Voxels that a block may have, of units, if it is sampled by so many maps."""
    room = sampled_bytes(plan.memory) // (maps * NUMBER)
    return min(max(room, math.prod(unit)), math.prod(_own_shape(plan)))


def _block(plan: Layout, unit: Index, maps: int, world: Matrix | None) -> Index:
    """Of units, the block for which the least is decoded."""
    shape, room = _own_shape(plan), _most(plan, unit, maps)
    if math.prod(shape) <= room:
        return shape
    rows, columns = (_multiples(k, n) for k, n in zip(unit[1:], shape[1:], strict=True))
    found = list[Index]()
    for y, x in product(rows, columns):
        planes = min(room // (y * x) // unit[0] * unit[0], shape[0])
        if planes or (y, x) == unit[1:]:
            found.append((planes or unit[0], y, x))
    few = [b for b in found if math.prod(-(-n // k) for n, k in zip(plan.fixed.shape, b, strict=True)) <= MOST_BLOCKS]
    return min(few or found[-1:], key=lambda block: sampled_passes(plan, block, world))


def _multiples(unit: int, length: int) -> list[int]:
    """Of a unit, each twice the one before, and the whole length."""
    return [k for k in (unit << n for n in range(length.bit_length())) if k < length] + [length]


def blocks_of(part: Region, block: Index, unit: int) -> Iterator[Region]:
    """A part of the fixed grid in blocks, rows slowest; they start where it does, or at multiples of ``unit`` planes."""
    (first, top, left), (last, bottom, right) = part.start, part.stop
    lowest = first if last - first <= block[0] else first // unit * unit
    for y, x, z in product(range(top, bottom, block[1]), range(left, right, block[2]), range(lowest, last, block[0])):
        stop = min(z + block[0], last), min(y + block[1], bottom), min(x + block[2], right)
        yield Region((max(z, first), y, x), stop)


def _own_shape(plan: Layout) -> Index:
    """Of the largest rank's part of the fixed grid."""
    return max(plan.partition.lengths), plan.fixed.shape[1], plan.fixed.shape[2]


def sampled_bytes(memory: int | None) -> int:
    """That voxels of the moved image may take while the moving one is read."""
    return 4 * MOST if memory is None else max(memory // SAMPLED_SHARE, 4 * LEAST)


def scanned_boxes(plan: Layout) -> Boxes:
    """Of the moving image while it is sampled: low bands, of some planes each."""
    shape, piece = plan.moving.shape, plan.encodings[1].piece
    rows = box_bytes(plan.memory) // (NUMBER * shape[2] * max(DEEP, min(piece[0], shape[0])))
    return Boxes.fitting(shape, piece, plan.memory, max(rows, min(piece[1], shape[1])))


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
    """That the moving image may take where it is kept while the fixed grid is sampled."""
    return 2 * box_bytes(memory)


def measuring_bytes(plan: Layout) -> int:
    """While fixed and moved are compared: boxes of the fixed image, those being read, moved, what is sampled of the moving."""
    boxes, encoding = source_boxes(plan, 0), plan.encodings[0]
    fixed = (AHEAD + 2) * (1 + plan.masks[0]) * boxes.bytes + AHEAD * encoding.itemsize * boxes.bytes // NUMBER
    moved = 2 * boxes.bytes + 3 * boxes.bytes * plan.deformable
    waiting = 2 * max(plan.partition.lengths) * MOMENTS_BYTES * (boxes.rows < plan.fixed.shape[1])
    blocks = _block_rows(plan, 0) + _block_rows(plan, 1)
    comparing = fixed + moved + waiting + max(plan.unpacked)
    if is_kept_whole(plan):
        comparing += 2 * NUMBER * plan.moving.size * (1 + plan.masks[1])
    else:
        comparing = 2 * NUMBER * _most(plan, _measured_unit(plan), 2) + max(comparing, _scanning(plan, 1 + plan.masks[1]))
    other = source_boxes(plan, 1).bytes * (1 + plan.masks[1])
    return blocks + max(comparing, (AHEAD + 3) * other + AHEAD * plan.unpacked[1])


def _block_rows(plan: Layout, role: int) -> int:
    """Sums over blocks, which a row of every plane waits for."""
    grid, partition = ((plan.fixed, plan.partition), (plan.moving, plan.shards))[role]
    return 2 * max(partition.lengths) * NUMBER * grid.shape[2] * (1 + plan.masks[role])


def _scanning(plan: Layout, fields: int) -> int:
    """While the moving image is read to be sampled: boxes, those being read, and planes and rows at their faces."""
    boxes, (planes, _, columns) = scanned_boxes(plan), plan.moving.shape
    faces = NUMBER * columns * (3 * boxes.rows + 2 * boxes.planes + planes * (boxes.rows < boxes.shape[1]))
    read = (AHEAD + 2) * fields * boxes.bytes + (AHEAD + 1) * plan.encodings[1].itemsize * boxes.bytes // NUMBER
    return read + faces + BRICK_BYTES * plan.deformable + AHEAD * plan.unpacked[1]


def writing_bytes(plan: Layout) -> int:
    """While the moved image and the displacement are written: boxes of whole chunks, that wait to be compressed too."""
    edge = NUMBER * math.prod(written_box(plan))
    written = (WRITTEN + 2) * edge * 3 // 2 * (1 + 3 * plan.deformable)
    if is_kept_whole(plan):
        return written + 2 * NUMBER * plan.moving.size + 2 * plan.unpacked[1]
    return NUMBER * _most(plan, written_box(plan), 1) + max(written, _scanning(plan, 1))


def written_box(plan: Layout) -> Index:
    """Voxels of a part of the result that is made at once: whole chunks."""
    room = max(CHUNK**3, box_bytes(plan.memory) // NUMBER // (1 + 3 * plan.deformable))
    x = min(plan.fixed.shape[2], max(room // CHUNK**3, 1) * CHUNK)
    y = min(plan.fixed.shape[1], max(room // (CHUNK * x) // CHUNK, 1) * CHUNK)
    return min(CHUNK, plan.fixed.shape[0]), y, x
