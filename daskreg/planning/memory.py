"""Bytes: what a rank holds while a level runs, what it sends, what the run reads and writes. Projections err on the high side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from daskreg.config import Deformable, Optimised
from daskreg.deferred import DeferredModule
from daskreg.planning.layout import SOURCE, Layout, Level
from daskreg.planning.slabs import Reaches, held_planes, sampled_planes, spread_planes, staged_planes, sweeps, total_reach
from daskreg.planning.source import measuring_bytes, reading_bytes, ready_bytes, source_passes, writing_bytes
from daskreg.planning.traffic import ASSUMED_DRIFT, HALF, VALUE, VECTOR, reached, value_bytes, window_planes

if TYPE_CHECKING:
    from daskreg.kernels.smoothing import cpu as smoothing
else:
    smoothing = DeferredModule("daskreg.kernels.smoothing.cpu")

CHUNK = 64  # planes that are written together
PIECES = (
    64 << 20
)  # of fields elsewhere, copied at once (``engine.planes``), and on their way to and from files (``storage.scratch``)
SLACK = 32  # part of buffers by which a process is taken to exceed them
BATCHES = 16  # of the memory: so many batches of an archive would fill it
MEASURED = 32  # planes measured together (``engine.measure``)
STREAMED = 16  # planes of the moving image in each of two staging arrays (``engine.streamed``)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the largest rank during a level, by what they are for.

    host, disk: of fields that are there, while ``fields`` are buffers and what is held beside them
    """

    images: int
    moving: int
    fields: int
    process: int
    host: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        """With what any process needs."""
        return self.images + self.moving + self.fields + self.process


def level_memory(plan: Layout, index: int, level: Level) -> MemoryUse:
    """Of the stage with an index; see ``MemoryUse``."""
    stage = level.in_voxels(plan.config.stages[index])
    assert isinstance(stage, Optimised)
    plane, planes = _plane(level.fixed.shape), max(level.partition.lengths)
    held = min(planes + 2 * level.halo, level.partition.planes) if plan.workers > 1 else planes
    fixed_mask, moving_mask = plan.masks
    coarse, number = max(level.fixed_factors) > 1, value_bytes(stage)
    own = [VALUE if made else number for made in (max(level.fixed_factors) > 1, level.moving_made)]
    whole = _slabs(plan, own) if plan.images == "device" else PIECES
    images = whole + (held + (planes if plan.workers > 1 else 0)) * plane * (number + VALUE * fixed_mask) * coarse
    if plan.images == SOURCE:  # all levels are there from the start; ranks have planes of others beside
        images = ready_bytes(plan, kept=False) + held * plane * (number + VALUE * fixed_mask) * (plan.workers > 1)
    scalars = held * plane * VALUE * (1 + moving_mask)
    if level.images != "device" and isinstance(stage, Deformable):
        rest = MemoryUse(_still(plan, stage, level, number), _streamed(plan, stage, level, number), 0, process_bytes(plan))
        return _with_images(plan, _swept(plan, stage, level, rest))
    if level.images != "device":
        return _with_images(plan, _swept_linear(plan, stage, level))
    if level.state != "device" and isinstance(stage, Deformable):
        rest = MemoryUse(images, _moving(plan, level, number), 0, process_bytes(plan))
        return _with_images(plan, _swept(plan, stage, level, rest))
    fields = scalars + held * plane * _vectors(plan, stage, level)
    return _with_images(plan, MemoryUse(images, _moving(plan, level, number), fields, process_bytes(plan)))


def _with_images(plan: Layout, use: MemoryUse) -> MemoryUse:
    """With what both images take where they are."""
    if plan.images == SOURCE:
        return replace(use, images=max(use.images, ready_bytes(plan, kept=False)), disk=use.disk + ready_bytes(plan, kept=True))
    stored = stored_bytes(plan)
    where = plan.images
    return replace(use, host=use.host + stored * (where == "host"), disk=use.disk + stored * (where == "disk"))


def stored_bytes(plan: Layout) -> int:
    """Of both images out of the device's memory, with the largest coarse level that is kept there, and one as it was read."""
    if plan.images in ("device", SOURCE):
        return 0
    number = HALF if any(value_bytes(stage) == HALF for stage in plan.config.stages) else VALUE
    grids, each = (plan.fixed, plan.moving), [number + VALUE * mask for mask in plan.masks]
    held = [n + 2 * rim * _plane(g.shape) for n, rim, g in zip(_own_voxels(plan), plan.rims, grids, strict=True)]
    sizes = [min(n, g.size) for n, g in zip(held, grids, strict=True)]
    coarse = max((lv.fixed.size * each[0] + lv.moving.size * each[1] for lv in _kept(plan)), default=0)
    return sum(n * b for n, b in zip(sizes, each, strict=True)) + coarse + (VALUE + 1) * max(sizes)


def _own_voxels(plan: Layout) -> list[int]:
    return [max(p.lengths) * _plane(g.shape) for p, g in ((plan.partition, plan.fixed), (plan.shards, plan.moving))]


def _kept(plan: Layout) -> list[Level]:
    """Coarse levels whose images are out of memory."""
    levels = [level for stage in plan.levels for level in stage if level.images != "device"]
    return [level for level in levels if max(level.fixed_factors) > 1 or level.moving_made]


def _still(plan: Layout, stage: Deformable, level: Level, number: int) -> int:
    """Planes of the fixed image, and of its mask, that a sweep holds, and those on their way."""
    reaches, planes, n = Reaches.of(stage), level.fixed.shape[0], stage.iterations_per_sweep
    each, ahead, _ = staged_planes(level.slab, on_gpu=plan.host is not None)
    held = min(planes, held_planes(level.slab, planes, reaches, n) + spread_planes(reaches, n)) + each * ahead
    return held * _plane(level.fixed.shape) * (number + VALUE * plan.masks[0])


def _swept_linear(plan: Layout, stage: Optimised, level: Level) -> MemoryUse:
    """Where a linear stage compares a slab after the other."""
    held = min(sampled_planes(level.slab, stage), level.fixed.shape[0])
    each = 5 * VALUE + VALUE * sum(plan.masks) + stage.similarity.scratch
    arrays = 2 * held * _plane(level.fixed.shape) * each  # the last slab's are there until the next ones are made
    moving = _streamed(plan, stage, level, VALUE)
    return MemoryUse(PIECES, moving, arrays + (arrays + moving) // SLACK, process_bytes(plan))


def _streamed(plan: Layout, stage: Optimised, level: Level, number: int) -> int:
    """Planes of the moving image that a slab reads: the last ones stay until the next ones are whole; and those on their way."""
    window = window_planes(plan, level, sampled_planes(level.slab, stage))
    return (2 * window + 2 * STREAMED) * window_bytes(plan, level, number)


def window_bytes(plan: Layout, level: Level, number: int) -> int:
    """Of a plane of the moving level, and of its mask."""
    return _plane(level.moving.shape) * (number + VALUE * plan.masks[1])


def batch_planes(plan: Layout) -> int:
    """Planes of an archive that are read at once where images are not held in memory."""
    most = CHUNK if plan.memory is None else plan.memory // BATCHES // _largest_plane(plan)
    return max(1, min(CHUNK, most))


def _largest_plane(plan: Layout) -> int:
    """Bytes of a plane of either image, as it is read."""
    return VALUE * max(_plane(plan.fixed.shape), _plane(plan.moving.shape))


def _swept(plan: Layout, stage: Deformable, level: Level, rest: MemoryUse) -> MemoryUse:
    """Where slabs come from fields that are elsewhere."""
    reaches, plane, n = Reaches.of(stage), _plane(level.fixed.shape), stage.iterations_per_sweep
    held = held_planes(level.slab, level.fixed.shape[0], reaches, n)
    state = stage.optimizer.swept_bytes(stage.storage)
    each_has = stage.model.state_bytes() + VECTOR + 3 * value_bytes(stage) + state  # before and after, g
    buffers = held * plane * (n * (each_has + VALUE * (1 + plan.masks[1])) + 2 * VECTOR)  # two to work with
    buffers += 2 * n * reaches.total * plane * VECTOR
    if level.state == "disk" or plan.host is not None:
        each, ahead, behind = staged_planes(level.slab, on_gpu=plan.host is not None)
        buffers += (ahead + behind) * each * plane * (stage.model.state_bytes() + state)
    planes = min(max(level.partition.lengths) + 2 * total_reach(stage) * (plan.workers > 1), level.fixed.shape[0])
    fields = planes * plane * (stage.model.state_bytes() + state)
    on_host = fields if level.state == "host" else 0
    beside = on_host if plan.host is None else 0  # in the memory that ``memory`` limits
    again = 2 * reaches.direction + reaches.gradient  # planes that are read again after they were replaced
    copies = n * again * plane * VECTOR
    buffers += copies + (buffers + rest.moving) // SLACK
    return replace(
        rest, fields=buffers + beside + min(PIECES, fields), host=on_host - beside, disk=fields if level.state == "disk" else 0
    )


def _vectors(plan: Layout, stage: Optimised, level: Level) -> int:
    """Bytes a voxel: a deformable stage's state and buffers; a linear stage's scratch, and the gradient that a ring stores."""
    ring = level.residency == "ring" and plan.workers > 1
    if not isinstance(stage, Deformable):
        return stage.similarity.scratch + VECTOR * ring
    state = stage.model.state_bytes() + stage.optimizer.state_bytes(stage.storage)
    gradient, direction = VECTOR, VECTOR if stage.storage != "mixed" else VECTOR * needs_spare(stage, level, plan.workers)
    return state + gradient + direction


def needs_spare(stage: Deformable, level: Level, workers: int) -> bool:
    """Whether mixed storage takes three float32 more: for the gradient that a ring stores, or to smooth axis by axis."""
    taps = smoothing.gaussian_radius(stage.smooth_gradient)
    return (level.residency == "ring" and workers > 1) or taps > stage.optimizer.fused_reach


def process_bytes(plan: Layout) -> int:
    """What a worker's process takes without arrays, as measured or estimated by whoever made the plan."""
    return plan.process


def _slabs(plan: Layout, numbers: Sequence[int] = (VALUE, VALUE)) -> int:
    """Both images at full resolution, this rank's planes and the rim; ``numbers``: bytes of a voxel of each."""
    total = 0
    for grid, partition, rim, mask, number in zip(
        (plan.fixed, plan.moving), (plan.partition, plan.shards), plan.rims, plan.masks, numbers, strict=True
    ):
        planes = min(max(partition.lengths) + 2 * rim, grid.shape[0])
        total += planes * _plane(grid.shape) * (number + VALUE * mask)
    return total


def _moving(plan: Layout, level: Level, number: int) -> int:
    """The moving level beyond the full-resolution slab; ``number``: bytes of a voxel."""
    plane, each = _plane(level.moving.shape), number + VALUE * plan.masks[1]
    shard = max(level.shards.lengths)
    coarse = level.moving_made
    made = shard * coarse
    if plan.workers == 1:
        return made * plane * each
    window = 2 * max(map(len, reached(plan, level)))  # the old one stays until the new one is whole
    kept = {"replicate": level.shards.planes, "window": window + shard * coarse, "ring": 2 * shard + shard * coarse}
    return (made + kept[level.residency]) * plane * each


def input_bytes(plan: Layout) -> int:
    """Peak while the images are read: their slabs, and the chunk that is unpacked."""
    if plan.images == SOURCE:
        return ready_bytes(plan, kept=False) + reading_bytes(plan) + process_bytes(plan)
    if plan.images != "device":
        return 3 * batch_planes(plan) * _largest_plane(plan) + max(plan.unpacked) + 3 * PIECES + process_bytes(plan)
    return _slabs(plan) + max(plan.unpacked) + process_bytes(plan)


def output_bytes(plan: Layout) -> int:
    """Peak while the result is measured and written: the images' slabs, u, and what one row of chunks needs."""
    if plan.images == SOURCE:
        return ready_bytes(plan, kept=False) + max(measuring_bytes(plan), writing_bytes(plan)) + process_bytes(plan)
    plane, across = _plane(plan.fixed.shape), _plane(plan.moving.shape)
    row = min(CHUNK, plan.fixed.shape[0])
    planes = max(plan.partition.lengths) + 2
    u = planes * plane * VECTOR if plan.deformable and result_in_memory(plan) else 0
    window = max(map(len, reached(plan, plan.full))) if plan.workers > 1 else 0
    measure = _slabs(plan) + u + planes * plane * VALUE * 2 + window * across * VALUE
    if plan.images != "device":
        measure = u + MEASURED * plane * 8 * VALUE + 2 * window_planes(plan, plan.full, MEASURED) * across * VALUE + PIECES
    write = u + row * plane * (2 * VECTOR * plan.deformable + 3 * VALUE) + _source(plan, row) * across
    return max(measure, write) + process_bytes(plan)


def result_in_memory(plan: Layout) -> bool:
    """Whether the displacement at full resolution is in the memory that ``memory`` limits."""
    last = plan.levels[-1][-1] if plan.levels and plan.levels[-1] else None
    return last is None or last.state == "device" or (last.state == "host" and plan.host is None)


def elsewhere(plan: Layout) -> tuple[int, int]:
    """Most bytes of the machine's memory beside a GPU's, and of disk, that a worker's fields take at once."""
    uses = [level_memory(plan, k, level) for k, levels in enumerate(plan.levels) for level in levels]
    return max((use.host for use in uses), default=0), max((use.disk for use in uses), default=0)


def swept_bytes(plan: Layout, stage: Deformable, level: Level) -> int:
    """Bytes that a rank reads, and as many that it writes, in an iteration of a level whose fields are elsewhere.

    Of several iterations a sweep, a mean.
    """
    voxels = max(level.partition.lengths) * _plane(level.fixed.shape)
    return _of_iteration(voxels * (stage.model.state_bytes() + stage.optimizer.swept_bytes(stage.storage)), stage, level)


def _of_iteration(moved: int, stage: Deformable, level: Level) -> int:
    """Of the bytes of a sweep."""
    return moved * sweeps(level.iterations, stage.iterations_per_sweep) // level.iterations if level.iterations else moved


def image_bytes(plan: Layout, stage: Optimised, level: Level) -> int:
    """Bytes of both images that a rank reads in an iteration, or a linear stage in an evaluation, where they are elsewhere."""
    number, (fixed_mask, moving_mask) = value_bytes(stage), plan.masks
    fixed = max(level.partition.lengths) * _plane(level.fixed.shape) * (number + VALUE * fixed_mask)
    moving = max(level.shards.lengths) * _plane(level.moving.shape) * (number + VALUE * moving_mask)
    return _of_iteration(fixed + moving, stage, level) if isinstance(stage, Deformable) else 2 * (fixed + moving)


def _source(plan: Layout, row: int) -> int:
    """Bytes behind a voxel of a plane of the moving image while a row is written: its footprint, or all of a single chunk."""
    if plan.unpacked[1] >= plan.moving.size:
        return plan.moving.shape[0] * VALUE + plan.unpacked[1] // _plane(plan.moving.shape)
    ratio = plan.fixed.spacing[0] / plan.moving.spacing[0]
    return min(plan.moving.shape[0], math.ceil(row * ratio) + 2 * ASSUMED_DRIFT) * VALUE


def peak_bytes(plan: Layout) -> int:
    """Projected peak of a worker's process: arrays of the largest level, and what any process needs."""
    levels = [level_memory(plan, k, level).total for k, levels in enumerate(plan.levels) for level in levels]
    return max([*levels, input_bytes(plan), output_bytes(plan)])


def checkpoint_bytes(plan: Layout) -> int:
    """Disk for u and the optimizer's fields in float32, twice: the last good one survives while the next is written."""
    stages = zip(plan.config.stages, plan.levels, strict=True)
    sizes = [
        (VECTOR + s.optimizer.state_bytes("float32")) * max(level.fixed.size for level in levels)
        for s, levels in stages
        if isinstance(s, Deformable)
    ]
    return 2 * max(sizes, default=0)


def _plane(shape: tuple[int, int, int]) -> int:
    return shape[1] * shape[2]


@dataclass(frozen=True)
class Disk:
    """Bytes read and written, before compression."""

    read: int
    written: int


def disk_bytes(plan: Layout) -> Disk:
    """Each image is read once by its owners (with their rims) and the moving one once more for the result."""
    written = int(plan.fixed.size * (VALUE + VECTOR * plan.deformable) * 8 / 7)
    if plan.images == SOURCE:
        sizes = [grid.size * e.itemsize for grid, e in zip((plan.fixed, plan.moving), plan.encodings, strict=True)]
        return Disk(sum(int(source_passes(plan, role)[1] * size) for role, size in enumerate(sizes)), written)
    rims = 2 * sum(r * _plane(g.shape) for r, g in zip(plan.rims, (plan.fixed, plan.moving), strict=True)) * (plan.workers - 1)
    read = (plan.fixed.size * (1 + plan.masks[0]) + plan.moving.size * (2 + plan.masks[1]) + rims) * VALUE
    return Disk(read, written)
