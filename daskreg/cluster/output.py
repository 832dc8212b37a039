"""What a worker leaves behind: its rows of the displacement and of the moved image, on their way into the run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block, collect
from daskreg.engine.reach import SamplingMap, affine_reach, displaced_range, spans
from daskreg.engine.report import Outcome
from daskreg.grid import Grid, Index, Partition, Region, Span
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import CPU, Device, module_of, page_locked
from daskreg.kernels.sampling.cpu import sample
from daskreg.planning import Plan
from daskreg.storage import RunStore, Volume
from daskreg.storage.runs.run import DISPLACEMENT, MOVED

PART = 256 << 20  # bytes of a row that are made and compressed at once
BEHIND = 2  # parts that may wait to be compressed while a GPU makes the next


def write_result(path: str, plan: Plan, order: Index, moving: Volume, outcome: Outcome, comm: Communicator) -> None:
    """Affine, displacement in world units and the moved image: rows of whole chunks, each written once, by one rank.

    order: axes of the fixed image as it is stored, in the order in which the plan has them.
    """
    store, grid, dtype = RunStore.attach(path), plan.fixed, moved_type(moving)
    back = int(order.index(0)), int(order.index(1)), int(order.index(2))
    if comm.rank == 0:
        store.set_affine(outcome.affine)
        if outcome.displacement is not None:
            store.create_image(DISPLACEMENT, grid.permute(back), np.float32, components=3)
        store.create_image(MOVED, grid.permute(back), dtype)
    comm.barrier()
    device, chunk = outcome.block.device, store.chunk(MOVED)
    source = Source(moving, device)
    with Output(store, back, chunk[order[1]]) as output:
        for row, owner in rows(chunk[order[0]], outcome.block.partition):
            u = _gathered(outcome, row, owner, comm)
            if owner != comm.rank:
                continue
            if u is not None:
                output.put(DISPLACEMENT, row, u, in_world(grid, device))
            output.put(MOVED, row, resample(plan, outcome.affine, u, row, source), lambda moved: as_type(moved, dtype))
    comm.barrier()


def in_world(grid: Grid, device: Device) -> Callable[[Any], Any]:
    """What makes world units of a displacement in voxels."""
    matrix = device.put((np.asarray(grid.direction) * np.asarray(grid.spacing)).astype(np.float32))
    return lambda u: device.xp.tensordot(matrix, u, 1).astype(np.float32, copy=False)


class Output:
    """Rows of planes on their way into a run, a part at a time; what a GPU made is compressed while it makes the next.

    back: where the axes are in what is stored;  rows: of a stored chunk.
    """

    def __init__(self, store: RunStore, back: Index, rows: int) -> None:
        self.store, self.back, self.rows = store, back, rows
        self._writer = ThreadPoolExecutor(1, "daskreg-output")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *problem: object) -> None:
        try:
            while self._waiting and problem[0] is None:
                self._waiting.popleft().result()
        finally:
            self._writer.shutdown(cancel_futures=True)

    def put(self, name: str, planes: Span, voxels: Any, finish: Callable[[Any], Any]) -> None:
        """Planes (Z, Y, X), or (3, Z, Y, X), of the fixed grid; ``finish`` makes of a part what is stored.

        Raises what writing raises, of earlier parts too.
        """
        depth = max(self.rows, PART // (voxels.nbytes // voxels.shape[-2]) // self.rows * self.rows)
        for y in range(0, voxels.shape[-2], depth):
            part = finish(voxels[..., y : y + depth, :])
            region = Region((planes.start, y, 0), (planes.stop, y + part.shape[-2], part.shape[-1]))
            lead = part.ndim - 3
            stored = part.transpose(*range(lead), *(lead + a for a in self.back))
            self._write(name, _permuted(region, self.back), stored)

    def _write(self, name: str, region: Region, part: Any) -> None:
        if not on_device(part):
            self.store.write(name, region, part)
            return
        while len(self._waiting) >= BEHIND:
            self._waiting.popleft().result()
        self._waiting.append(self._writer.submit(self.store.write, name, region, page_locked(part)))


def _permuted(region: Region, order: Index) -> Region:
    start, stop = ([ends[a] for a in order] for ends in (region.start, region.stop))
    return Region((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def rows(depth: int, partition: Partition) -> list[tuple[Span, int]]:
    """Rows of chunks, and for each the rank that writes it: who owns its middle plane."""
    whole = [Span(z, min(z + depth, partition.planes)) for z in range(0, partition.planes, depth)]
    return [(row, _owner(partition, (row.start + row.stop) // 2)) for row in whole]


def _owner(partition: Partition, plane: int) -> int:
    return next(rank for rank, slab in enumerate(partition.slabs) if slab.start <= plane < slab.stop)


def _gathered(outcome: Outcome, row: Span, owner: int, comm: Communicator) -> NDArray[np.float32] | None:
    """The displacement of a row of chunks, at its owner; every rank calls this for every row."""
    if outcome.displacement is None:
        return None
    block = outcome.block
    if block.own & row == row and owner == comm.rank:
        return outcome.displacement[:, row.within(block.held)]
    wanted = [row if r == owner else Span(0, 0) for r in range(comm.size)]
    return collect(comm, block.partition.slabs, wanted, outcome.displacement, block.first, "output")


class Source:
    """The moving image as it is stored, the planes that are asked for."""

    def __init__(self, volume: Volume, device: Device = CPU) -> None:
        self.volume, self.device = volume, device
        self._whole = (
            device.put(volume.read()) if math.prod(volume.data.numblocks) == 1 else None
        )  # one chunk: unpacked once, not once a row

    def planes(self, span: Span) -> tuple[NDArray[np.float32], int]:
        """At least these planes, as far as the image goes, and the number of the first."""
        if self._whole is not None:
            return self._whole, 0
        here = span & Span(0, self.volume.shape[0])
        return self.device.put(self.volume.planes(here)), here.start


def resample(
    plan: Plan, affine: NDArray[np.float64], u: NDArray[np.float32] | None, row: Span, source: Source
) -> NDArray[np.float32]:
    """Planes of the moving image on the fixed grid, through the whole transform; 0 out of domain."""
    mapping = SamplingMap.of(row.start, affine, plan.fixed, plan.moving)
    block = Block(plan.fixed.shape, Partition(plan.fixed.shape[0], (row,)), device=source.device)
    u = None if u is None else module_of(u).ascontiguousarray(u)
    if u is None:
        reached = affine_reach(mapping, block.partition, block.shape).needs[0]
    else:
        reached = spans(np.array([displaced_range(block, mapping, u)]))[0]
    voxels, origin = source.planes(reached)
    moved = block.scalar()
    sample(moved.shape, *mapping, u, origin, plan.moving.shape[0], voxels, moved)
    filled: NDArray[np.float32] = module_of(moved).nan_to_num(moved, copy=False, nan=0.0)
    return filled


def moved_type(moving: Volume) -> np.dtype[Any]:
    """The stored type of the moved image: that of the moving one."""
    return moving.dtype if moving.dtype != np.bool_ else np.dtype(np.float32)


def as_type(voxels: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """In the stored type: integers rounded and kept in range."""
    if not np.issubdtype(dtype, np.integer):
        return voxels.astype(dtype, copy=False)
    limits, xp = np.iinfo(dtype), module_of(voxels)
    found: NDArray[Any] = xp.clip(xp.rint(voxels.astype(np.float64)), limits.min, limits.max).astype(dtype)
    return found
