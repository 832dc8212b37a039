"""Write a rank's rows of the displacement and of the moved image into the run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.cluster.coarse_rows import CoarseRows
from daskreg.comm import Communicator
from daskreg.engine.box_sampling import sampled
from daskreg.engine.counted_reader import RegionReader
from daskreg.engine.file_order import FileOrderSampler, PlacedMap
from daskreg.engine.halo import Block, gather_planes
from daskreg.engine.pass_progress import PassProgress
from daskreg.engine.planes import ArrayPlanes, on
from daskreg.engine.reach import SamplingMap, affine_reach, displaced_range, spans
from daskreg.engine.report import Outcome
from daskreg.engine.upsampled import UpsampledField
from daskreg.grid import Grid, Index, Partition, Region, Span
from daskreg.kernels.compiler.host_launch import thread_count
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import CPU, Device, module_of, page_locked
from daskreg.kernels.sampling.cpu import EXTENT, sample
from daskreg.planning import SOURCE, Plan
from daskreg.planning.source import AHEAD, blocks_of, is_kept_whole, scanned_boxes, written_block, written_box
from daskreg.storage import RunStore, Volume
from daskreg.storage.batches import read_ahead
from daskreg.storage.fill import fill_of
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED

Array = NDArray[np.float32]
PART_BYTES = 96 << 20  # of a row, converted and compressed at once
MAX_WRITERS = 4  # threads, each with a part; the codec uses all cores for the chunks of each
STORED = "daskreg-output"  # name of these threads


def write_result(
    path: str, plan: Plan, order: Index, moving: Volume, outcome: Outcome, comm: Communicator, attempt: str = "",
    voxels: RegionReader | None = None,
) -> float:  # fmt: skip
    """Write affine map, displacement in world units and moved image: rows of whole chunks, each written once, by one rank.

    order: axes of the fixed image as it is stored, in the order in which the plan has them;  attempt: see ``RunStore``;
    voxels: what reads ``moving``, if not itself.
    Returns the value of the moved image outside of the moving one.
    Raises OutputError where the run was removed, or is continued by another process.
    """
    store, grid, dtype = RunStore.attach(path, attempt), plan.fixed, moved_dtype(moving)
    back = int(order.index(0)), int(order.index(1)), int(order.index(2))
    if comm.rank == 0:
        store.set_affine(outcome.affine)
        coarser = plan.images != SOURCE  # rows of coarser levels are large where planes are
        if outcome.displacement is not None:
            store.create_image(DISPLACEMENT, grid.permute(back), np.float32, components=3, coarser=coarser)
        store.create_image(MOVED, grid.permute(back), dtype, coarser=coarser)
    comm.barrier()
    device, rows = outcome.block.device, chunk_rows(store.chunk(MOVED)[order[0]], outcome.block.partition)
    fill = fill_of(moving.data, plan.config.fill)
    if plan.images == SOURCE:
        with ResultWriter(store, back, order, rows, comm) as writer:
            mine = [row for row, owner in rows if owner == comm.rank]
            convert = partial(cast, dtype=dtype, fill=fill)
            _write_boxes(plan, voxels or moving, outcome, mine, writer, convert, f"the moving image {moving.name}")
            writer.finish()
        comm.barrier()
        return fill
    reader = MovingReader(moving, device)
    with reader, ResultWriter(store, back, order, rows, comm) as writer:
        for part in moved_rows(plan, outcome, _own_rows(outcome, rows, comm), reader):
            store.require_mine()
            if part.u is not None:
                writer.write(DISPLACEMENT, part.row, part.u, to_world(grid, device))
            writer.write(MOVED, part.row, part.sample(plan.moving.shape[0]), lambda found: cast(found, dtype, fill))
        writer.finish()
    comm.barrier()
    return fill


def _write_boxes(
    plan: Plan, voxels: RegionReader, outcome: Outcome, rows: Sequence[Span], writer: ResultWriter,
    convert: Callable[[Any], Any], name: str,
) -> None:  # fmt: skip
    """What this rank writes, a box of whole chunks at a time."""
    u, world = outcome.displacement, to_world(plan.fixed, CPU)
    assert u is None or isinstance(u, UpsampledField), "a run whose images stay in their files ends at a coarse level"
    place = PlacedMap(SamplingMap.of(0, outcome.affine, plan.fixed, plan.moving), None if u is None else u.box)
    progress = PassProgress("the result is written", sum(map(len, rows)) * math.prod(plan.fixed.shape[1:]))
    for block, moved in _moved_blocks(plan, voxels, outcome, rows, place, name):
        for row in (row for row in rows if block.start[0] <= row.start < block.stop[0]):
            writer.store.require_mine()
            for box in blocks_of(Region((row.start, *block.start[1:]), (row.stop, *block.stop[1:])), written_box(plan), 1):
                if u is not None:
                    writer.write(DISPLACEMENT, row, u.box(box), world, box)
                writer.write(MOVED, row, moved(box), convert, box)
                progress.add(box.size)


def _moved_blocks(
    plan: Plan, voxels: RegionReader, outcome: Outcome, rows: Sequence[Span], place: PlacedMap, name: str
) -> Iterator[tuple[Region, Callable[[Region], Array]]]:
    """Blocks of rows of chunks, and what gives the moved image in a box of them."""
    if not rows:
        return
    part = Region((rows[0].start, 0, 0), (rows[-1].stop, *plan.fixed.shape[1:]))
    if is_kept_whole(plan):
        image = voxels.read()
        yield part, lambda box: sampled(place.mapping, image, EXTENT, box, place.displacement(box))
        return
    sampler = FileOrderSampler(plan.moving.shape, scanned_boxes(plan), plan.encodings[1].piece, EXTENT)
    blocks = list(blocks_of(part, _of_rows(written_block(plan, outcome.affine), rows), 1))
    for number, block in enumerate(blocks):
        purpose = "the result" + (f", part {number + 1} of {len(blocks)}" if len(blocks) > 1 else "")
        yield block, sampler.sample(block, [place], partial(_read, voxels, f"{name} is read for {purpose}"))[0].part


def _of_rows(block: Index, rows: Sequence[Span]) -> Index:
    """A block of whole rows of chunks."""
    depth = len(rows[0])
    return max(block[0] // depth, 1) * depth if block[0] < rows[-1].stop - rows[0].start else block[0], block[1], block[2]


def _read(voxels: RegionReader, what: str, regions: Sequence[Region]) -> Iterator[tuple[Region, Array]]:
    progress = PassProgress(what, sum(region.size for region in regions))
    for region, found in read_ahead(voxels.read, regions, AHEAD):
        yield region, found
        progress.add(region.size)


def to_world(grid: Grid, device: Device) -> Callable[[Any], Any]:
    """A function that converts a displacement from voxels to world units."""
    matrix = (np.asarray(grid.direction) * np.asarray(grid.spacing)).astype(np.float32)
    axes = [np.flatnonzero(line) for line in matrix]
    if all(len(found) == 1 for found in axes):  # along the axes of the world, up to their order
        return lambda u: device.xp.stack([u[a[0]] * line[a[0]] + np.float32(0) for a, line in zip(axes, matrix, strict=True)])
    there = device.put(matrix)
    return lambda u: device.xp.tensordot(there, u, 1).astype(np.float32, copy=False)


class ResultWriter:
    """Writes rows of planes into a run with their coarser levels, a part at a time; parts are compressed while others are made.

    back: position of each axis in the stored image, order: the reverse;  rows: of chunks, with the rank that writes each.
    """

    def __init__(self, store: RunStore, back: Index, order: Index, rows: Sequence[tuple[Span, int]], comm: Communicator) -> None:
        self.store, self.back, self.order, self.comm = store, back, order, comm
        self.written = [_written(rows, rank) for rank in range(comm.size)]
        self.threads = max(1, min(MAX_WRITERS, thread_count()))
        self._writer = ThreadPoolExecutor(self.threads, STORED)
        self._pending: deque[Future[None]] = deque()
        self._coarse: dict[str, CoarseRows] = {}

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.shutdown(cancel_futures=True)

    def write(self, name: str, planes: Span, voxels: Any, convert: Callable[[Any], Any], box: Region | None = None) -> None:
        """Planes (Z, Y, X), or (3, Z, Y, X), of the fixed grid, or a box of them; ``convert`` turns a part into what is stored.

        Raises what writing raises, also for earlier parts.
        """
        coarse, rows = self._rows_of(name), self.store.chunk(name)[self.order[1]]
        _, top, left = (0, 0, 0) if box is None else box.start
        depth = max(rows, PART_BYTES // max(1, voxels.nbytes // voxels.shape[-2]) // rows * rows)
        for y in range(0, voxels.shape[-2], depth):
            part = voxels[..., y : y + depth, :]
            corner = planes.stop, top + y + part.shape[-2], left + part.shape[-1]
            region = _permuted(Region((planes.start, top + y, left), corner), self.back)
            while len(self._pending) > self.threads:
                self._pending.popleft().result()
            make = partial(self._stored, coarse, name, convert, part)
            if on_device(part):  # copied here: the threads of the writer do not use the device
                make = partial(_same, tuple(None if a is None else page_locked(a) for a in make()))
            self._pending.append(self._writer.submit(self._write, coarse, name, region, make))

    def finish(self) -> None:
        """Wait for all parts, and write what coarser levels share with other ranks; every rank calls this once."""
        while self._pending:
            self._pending.popleft().result()
        for name in (DISPLACEMENT, MOVED):
            if self.store.has(name):  # a rank without rows takes part as well
                self._rows_of(name).finish(self.comm)

    def _stored(self, coarse: CoarseRows, name: str, convert: Callable[[Any], Any], part: Any) -> tuple[Any, Any]:
        """A part as it is stored and its means, where the part is: on the host or on the device."""
        made = convert(part)
        lead = made.ndim - 3
        stored = self.store.as_stored(name, made.transpose(*range(lead), *(lead + a for a in self.back)))
        return stored, coarse.means(stored)

    def _write(self, coarse: CoarseRows, name: str, region: Region, make: Callable[[], tuple[Any, Any]]) -> None:
        stored, means = make()
        self.store.write_stored(name, 0, region, stored)
        coarse.add(region, means)

    def _rows_of(self, name: str) -> CoarseRows:
        if name not in self._coarse:
            self._coarse[name] = CoarseRows(self.store, name, self.order[0], self.written, self.comm.rank)
        return self._coarse[name]


def _same(found: Any) -> Any:
    return found


def _written(rows: Sequence[tuple[Span, int]], rank: int) -> Span:
    """The planes that a rank writes: its rows follow each other."""
    mine = [row for row, owner in rows if owner == rank]
    return Span(mine[0].start, mine[-1].stop) if mine else Span(0, 0)


def _permuted(region: Region, order: Index) -> Region:
    start, stop = ([ends[a] for a in order] for ends in (region.start, region.stop))
    return Region((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def chunk_rows(depth: int, partition: Partition) -> list[tuple[Span, int]]:
    """Rows of chunks, each with the rank that writes it: the owner of its middle plane."""
    whole = [Span(z, min(z + depth, partition.planes)) for z in range(0, partition.planes, depth)]
    return [(row, _owner(partition, (row.start + row.stop) // 2)) for row in whole]


def _owner(partition: Partition, plane: int) -> int:
    return next(rank for rank, slab in enumerate(partition.slabs) if slab.start <= plane < slab.stop)


def _own_rows(outcome: Outcome, rows: Sequence[tuple[Span, int]], comm: Communicator) -> Iterator[tuple[Span, Any]]:
    """The rows that this rank writes, with the displacement there, in order.

    Rows that are divided between ranks are collected first, so that no rank waits for another's writing.
    """
    slabs = outcome.block.partition.slabs
    divided = [(row, owner) for row, owner in rows if row & slabs[owner] != row]
    collected = {row: _collect_row(outcome, row, owner, comm) for row, owner in divided}
    for row, owner in rows:
        if owner == comm.rank:
            yield row, collected.pop(row) if row in collected else _collect_row(outcome, row, owner, comm)


def _collect_row(outcome: Outcome, row: Span, owner: int, comm: Communicator) -> Any:
    """The displacement of a row of chunks, on its owner; every rank calls this for every row that is divided between ranks."""
    if outcome.displacement is None:
        return None
    block = outcome.block
    mine = block.own & row
    here = (
        on(block.device, outcome.displacement, mine) if len(mine) else block.device.xp.empty((3, 0, *block.shape[1:]), np.float32)
    )
    if mine == row and owner == comm.rank:
        return here
    wanted = [row if r == owner else Span(0, 0) for r in range(comm.size)]
    owned = [slab & row for slab in block.partition.slabs]
    return gather_planes(comm, owned, wanted, here, mine.start, "output")


class MovingReader:
    """Reads planes of the stored moving image, in a thread of its own."""

    def __init__(self, volume: Volume, device: Device = CPU) -> None:
        self.volume, self.device = volume, device
        # a single chunk is decompressed once, not once per row
        self._whole = volume.read() if math.prod(volume.data.numblocks) == 1 else None
        self._thread = ThreadPoolExecutor(1, "daskreg-input")

    def __enter__(self) -> MovingReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def start(self, span: Span) -> Future[tuple[NDArray[np.float32], int]]:
        """Begin to read at least these planes, as far as they are in the image; they come with the index of the first."""
        return self._thread.submit(self._planes, span)

    def _planes(self, span: Span) -> tuple[NDArray[np.float32], int]:
        if self._whole is not None:
            return self._whole, 0
        inside = span & Span(0, self.volume.shape[0])
        return self.volume.planes(inside), inside.start


@dataclass
class MovedRow:
    """A row of the moved image: its planes, the displacement there, and the voxels of the moving image that it needs."""

    row: Span
    u: Any
    mapping: SamplingMap
    block: Block
    voxels: Future[tuple[NDArray[np.float32], int]]

    @classmethod
    def start(cls, plan: Plan, affine: NDArray[np.float64], row: Span, u: Any, reader: MovingReader) -> MovedRow:
        """Begin to read what a row needs."""
        mapping = SamplingMap.of(row.start, affine, plan.fixed, plan.moving)
        block = Block(plan.fixed.shape, Partition(plan.fixed.shape[0], (row,)), device=reader.device)
        if u is None:
            reached = affine_reach(mapping, block.partition, block.shape).needs[0]
        else:
            u = module_of(u).ascontiguousarray(u)
            reached = spans(np.array([displaced_range(block, mapping, u)]))[0]
        return cls(row, u, mapping, block, reader.start(reached))

    def sample(self, planes: int) -> NDArray[np.float32]:
        """The moving image of ``planes`` planes on the fixed grid, through the whole transform; NaN outside its domain."""
        voxels, origin = self.voxels.result()
        moved = self.block.scalar()
        sample(moved.shape, *self.mapping, self.u, origin, planes, EXTENT, self.block.device.put(voxels), moved)
        return moved


def moved_rows(plan: Plan, outcome: Outcome, rows: Iterable[tuple[Span, Any]], reader: MovingReader) -> Iterator[MovedRow]:
    """The rows, each with its part of the moving image being read; that of the next one while this one is in use.

    A displacement that is not on the device is fetched for one row at a time.
    """
    u = outcome.displacement
    early = u is None or (isinstance(u, ArrayPlanes) and on_device(u.array) == (reader.device.kind == "cuda"))
    started = deque[MovedRow]()
    for row, found in rows:
        started.append(MovedRow.start(plan, outcome.affine, row, found, reader))
        while len(started) > early:
            yield started.popleft()
    yield from started


def moved_dtype(moving: Volume) -> np.dtype[Any]:
    """The stored dtype of the moved image: that of the moving image, float32 for booleans."""
    return moving.dtype if moving.dtype != np.bool_ else np.dtype(np.float32)


def cast(voxels: NDArray[np.float32], dtype: np.dtype[Any], fill: float = 0) -> NDArray[Any]:
    """Convert to the stored dtype; integers are rounded and clipped, NaN is replaced by ``fill``."""
    xp = module_of(voxels)
    outside = xp.isnan(voxels)
    if not np.issubdtype(dtype, np.integer):
        found: NDArray[Any] = voxels.astype(dtype, copy=False)
    else:
        limits, exact = np.iinfo(dtype), np.float32 if dtype.itemsize <= 2 else np.float64  # holds the limits
        found = xp.clip(xp.rint(xp.nan_to_num(voxels).astype(exact, copy=False)), limits.min, limits.max).astype(dtype)
    found[outside] = fill
    return found
