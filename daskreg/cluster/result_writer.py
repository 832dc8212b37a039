"""Write a rank's rows of the displacement and of the moved image into the run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block, gather_planes
from daskreg.engine.planes import on
from daskreg.engine.reach import SamplingMap, affine_reach, displaced_range, spans
from daskreg.engine.report import Outcome
from daskreg.grid import Grid, Index, Partition, Region, Span
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import CPU, Device, module_of, page_locked
from daskreg.kernels.sampling.cpu import EXTENT, sample
from daskreg.planning import Plan
from daskreg.storage import RunStore, Volume
from daskreg.storage.fill import fill_of
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED

PART_BYTES = 256 << 20  # of a row, converted and compressed at once
QUEUE_LENGTH = 2  # parts that may wait to be compressed while a GPU computes the next


def write_result(
    path: str, plan: Plan, order: Index, moving: Volume, outcome: Outcome, comm: Communicator, attempt: str = ""
) -> float:
    """Write affine map, displacement in world units and moved image: rows of whole chunks, each written once, by one rank.

    order: axes of the fixed image as it is stored, in the order in which the plan has them;  attempt: see ``RunStore``.
    Returns the value of the moved image outside of the moving one.
    Raises OutputError where the run was removed, or is continued by another process.
    """
    store, grid, dtype = RunStore.attach(path, attempt), plan.fixed, moved_dtype(moving)
    back = int(order.index(0)), int(order.index(1)), int(order.index(2))
    if comm.rank == 0:
        store.set_affine(outcome.affine)
        if outcome.displacement is not None:
            store.create_image(DISPLACEMENT, grid.permute(back), np.float32, components=3)
        store.create_image(MOVED, grid.permute(back), dtype)
    comm.barrier()
    device, chunk = outcome.block.device, store.chunk(MOVED)
    reader, fill = MovingReader(moving, device), fill_of(moving.data, plan.config.fill)
    with ResultWriter(store, back, chunk[order[1]]) as writer:
        for row, owner in chunk_rows(chunk[order[0]], outcome.block.partition):
            u = _collect_row(outcome, row, owner, comm)
            if owner != comm.rank:
                continue
            store.require_mine()
            if u is not None:
                writer.write(DISPLACEMENT, row, u, to_world(grid, device))
            writer.write(MOVED, row, resample(plan, outcome.affine, u, row, reader), lambda moved: cast(moved, dtype, fill))
    comm.barrier()
    return fill


def to_world(grid: Grid, device: Device) -> Callable[[Any], Any]:
    """A function that converts a displacement from voxels to world units."""
    matrix = device.put((np.asarray(grid.direction) * np.asarray(grid.spacing)).astype(np.float32))
    return lambda u: device.xp.tensordot(matrix, u, 1).astype(np.float32, copy=False)


class ResultWriter:
    """Writes rows of planes into a run, a part at a time; parts from a GPU are compressed while it computes the next.

    back: position of each axis in the stored image;  rows: of a stored chunk.
    """

    def __init__(self, store: RunStore, back: Index, rows: int) -> None:
        self.store, self.back, self.rows = store, back, rows
        self._writer = ThreadPoolExecutor(1, "daskreg-output")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            while self._pending and error[0] is None:
                self._pending.popleft().result()
        finally:
            self._writer.shutdown(cancel_futures=True)

    def write(self, name: str, planes: Span, voxels: Any, convert: Callable[[Any], Any]) -> None:
        """Planes (Z, Y, X), or (3, Z, Y, X), of the fixed grid; ``convert`` turns a part into what is stored.

        Raises what writing raises, also for earlier parts.
        """
        depth = max(self.rows, PART_BYTES // (voxels.nbytes // voxels.shape[-2]) // self.rows * self.rows)
        for y in range(0, voxels.shape[-2], depth):
            part = convert(voxels[..., y : y + depth, :])
            region = Region((planes.start, y, 0), (planes.stop, y + part.shape[-2], part.shape[-1]))
            lead = part.ndim - 3
            stored = part.transpose(*range(lead), *(lead + a for a in self.back))
            self._write(name, _permuted(region, self.back), stored)

    def _write(self, name: str, region: Region, part: Any) -> None:
        if not on_device(part):
            self.store.write(name, region, part)
            return
        while len(self._pending) >= QUEUE_LENGTH:
            self._pending.popleft().result()
        self._pending.append(self._writer.submit(self.store.write, name, region, page_locked(part)))


def _permuted(region: Region, order: Index) -> Region:
    start, stop = ([ends[a] for a in order] for ends in (region.start, region.stop))
    return Region((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def chunk_rows(depth: int, partition: Partition) -> list[tuple[Span, int]]:
    """Rows of chunks, each with the rank that writes it: the owner of its middle plane."""
    whole = [Span(z, min(z + depth, partition.planes)) for z in range(0, partition.planes, depth)]
    return [(row, _owner(partition, (row.start + row.stop) // 2)) for row in whole]


def _owner(partition: Partition, plane: int) -> int:
    return next(rank for rank, slab in enumerate(partition.slabs) if slab.start <= plane < slab.stop)


def _collect_row(outcome: Outcome, row: Span, owner: int, comm: Communicator) -> Any:
    """The displacement of a row of chunks, on its owner; every rank calls this for every row."""
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
    """Reads planes of the stored moving image."""

    def __init__(self, volume: Volume, device: Device = CPU) -> None:
        self.volume, self.device = volume, device
        # a single chunk is decompressed once, not once per row
        self._whole = device.put(volume.read()) if math.prod(volume.data.numblocks) == 1 else None

    def planes(self, span: Span) -> tuple[NDArray[np.float32], int]:
        """At least these planes, as far as they are in the image, and the index of the first."""
        if self._whole is not None:
            return self._whole, 0
        inside = span & Span(0, self.volume.shape[0])
        return self.device.put(self.volume.planes(inside)), inside.start


def resample(
    plan: Plan, affine: NDArray[np.float64], u: NDArray[np.float32] | None, row: Span, reader: MovingReader
) -> NDArray[np.float32]:
    """Planes of the moving image on the fixed grid, through the whole transform; NaN outside its domain."""
    mapping = SamplingMap.of(row.start, affine, plan.fixed, plan.moving)
    block = Block(plan.fixed.shape, Partition(plan.fixed.shape[0], (row,)), device=reader.device)
    u = None if u is None else module_of(u).ascontiguousarray(u)
    if u is None:
        reached = affine_reach(mapping, block.partition, block.shape).needs[0]
    else:
        reached = spans(np.array([displaced_range(block, mapping, u)]))[0]
    voxels, origin = reader.planes(reached)
    moved = block.scalar()
    sample(moved.shape, *mapping, u, origin, plan.moving.shape[0], EXTENT, voxels, moved)
    return moved


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
        limits = np.iinfo(dtype)
        found = xp.clip(xp.rint(xp.nan_to_num(voxels).astype(np.float64)), limits.min, limits.max).astype(dtype)
    found[outside] = fill
    return found
