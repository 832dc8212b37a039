"""Blocks whose points reach over more of an image than is in memory at once: it is read part by part, in its file's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from daskreg import machine
from daskreg.engine.file_order import FileOrderSampler, PlacedMap
from daskreg.engine.pass_progress import PassProgress
from daskreg.engine.reach import SamplingMap
from daskreg.grid import Index, Region
from daskreg.planning.source import AHEAD, NUMBER, Boxes, box_bytes
from daskreg.storage.batches import read_ahead
from daskreg.transforms.linear import Matrix, linear_part, to_fixed_point

Read = Callable[[Region], NDArray[np.float32]]
SHARE = 8  # of the memory, for a block
DEEP = 8  # planes that are read together


def sample_large(
    read: Read, shape: Index, chunk: Index, box: Region, matrix: Matrix, linear: Matrix, e: NDArray[np.float32] | None,
    domain: int, name: str,
) -> NDArray[np.float32]:  # fmt: skip
    """``image(A x + t + S e(x))`` in a box, NaN out of the domain, with the bits of ``kernels.sampling.cpu.sample``.

    read: gives parts of the image, of which ``shape`` is that of the whole one and ``chunk`` is decoded at once;  e: (3, Z, Y, X)
    in the box, None for zero
    """
    memory = machine.memory().value // SHARE
    rows = max(box_bytes(memory) // (NUMBER * shape[2] * max(DEEP, chunk[0])), chunk[1])
    sampler = FileOrderSampler(shape, Boxes.fitting(shape, chunk, memory, rows), chunk, domain)
    place = PlacedMap(SamplingMap(0, to_fixed_point(matrix), linear_part(linear)), None if e is None else _part_of(e, box))
    return sampler.sample(box, [place], lambda regions: _read(read, regions, name))[0].part(box)


def _part_of(e: NDArray[np.float32], box: Region) -> Callable[[Region], NDArray[np.float32]]:
    return lambda part: np.ascontiguousarray(e[(slice(None), *part.within(box))])


def _read(read: Read, regions: Sequence[Region], name: str) -> Iterator[tuple[Region, NDArray[np.float32]]]:
    progress = PassProgress(f"{name} is read", sum(region.size for region in regions))
    for region, found in read_ahead(read, regions, AHEAD):
        yield region, found
        progress.add(region.size)


def halves(box: Region) -> Iterable[Region]:
    """Of its longest axis; the box itself where it is a single voxel."""
    axis = max(range(3), key=lambda k: box.shape[k])
    middle = (box.start[axis] + box.stop[axis]) // 2
    if box.shape[axis] < 2:
        return (box,)
    stop, start = list(box.stop), list(box.start)
    stop[axis] = start[axis] = middle
    return Region.of(box.start, stop), Region.of(start, box.stop)
