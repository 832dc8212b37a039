"""Coarser levels of a stored image, chunk by chunk from the level below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region
from daskreg.storage.axes import SPACE
from daskreg.storage.zarr.chunks import ALL_STORED

if TYPE_CHECKING:
    import dask
    import dask.array as da
    import zarr
    import zarr.codecs

    from daskreg.storage.zarr import codecs
else:
    dask, da, zarr = DeferredModule("dask"), DeferredModule("dask.array"), DeferredModule("zarr")
    codecs = DeferredModule("daskreg.storage.zarr.codecs")

CHUNK = 64  # voxels along each axis: 1 MiB of float32, and blocks of a partition can start at every 64th voxel
CACHED_BYTES = 2 << 20  # of voxels of which means are computed at once: they stay in the processor's cache
COARSEST_LENGTH = 64  # voxels along the longest axis at which a pyramid stops
FIELD_CODEC: dict[str, Any] = {"cname": "lz4", "clevel": 5}
IMAGE_CODEC: dict[str, Any] = {"cname": "zstd", "clevel": 1}  # higher levels take longer and save little
Factors = tuple[int, int, int]


def pyramid(grid: Grid) -> list[Factors]:
    """Factors of each level from level 0, (1, 1, 1) first; an axis is halved only while its voxels are the finer ones."""
    levels = [(1, 1, 1)]
    while max(grid.coarsen(levels[-1]).shape) > COARSEST_LENGTH:
        step = _step(grid.coarsen(levels[-1]))
        z, y, x = (a * b for a, b in zip(levels[-1], step, strict=True))
        levels.append((z, y, x))
    return levels


def levels_within(factors: Sequence[Factors], chunk: int) -> int:
    """How many levels, from level 0, are means within chunks of ``chunk`` voxels: they need nothing of the chunks around."""
    return sum(all(chunk % k == 0 for k in f) for f in factors)


def coarse_region(region: Region, step: Factors) -> Region:
    """The voxels that are means of those of a region; the region starts at multiples of ``step``."""
    ends = zip(region.start, region.stop, step, strict=True)
    start, stop = zip(*((a // k, -(-b // k)) for a, b, k in ends), strict=True)
    return Region.of(start, stop)


def new_array(
    group: zarr.Group,
    path: str,
    shape: tuple[int, int, int],
    dtype: Any,
    components: int = 0,
    chunk: int = CHUNK,
    lead: Sequence[tuple[str, int]] = (),
) -> zarr.Array[Any]:
    """An empty level (Z, Y, X), or (components, Z, Y, X), compressed by Blosc after byte shuffling.

    Displacements by lz4: their lower bits are mostly noise, of which zstd saves little and takes several times as long.

    lead: names and lengths of leading axes whose entries are stored apart, unlike components
    """
    names = tuple(n for n, _ in lead) or (("c",) if components else ())
    lengths = tuple(n for _, n in lead) or ((components,) if components else ())
    array = group.create_array(
        path,
        shape=lengths + shape,
        chunks=(*(1 for _ in lead), *lengths[len(lead) :], *(min(chunk, n) for n in shape)),
        dtype=dtype,
        compressors=zarr.codecs.BloscCodec(**(FIELD_CODEC if components else IMAGE_CODEC), shuffle="shuffle"),
        dimension_names=names + SPACE,
        fill_value=0,
        attributes=ALL_STORED,
    )
    return codecs.with_zarrs_codecs(array)


class LevelWriter:
    """Takes boxes of level 0, each once, and writes them with the coarser chunks that they hold all voxels of.

    arrays: of all levels;  blocks: lengths of the boxes along z, y, x, in order;  done: levels that are complete when all boxes
    are written;  labels: coarser levels are modes, not means
    """

    def __init__(
        self, arrays: Sequence[zarr.Array[Any]], factors: Sequence[Factors], blocks: Sequence[Sequence[int]], *, labels: bool
    ) -> None:
        whole = [_whole(blocks, array.chunks[-3:], f) for array, f in zip(arrays, factors, strict=True)]
        self.done = max(1, (*whole, False).index(False))
        self.arrays, self.steps = arrays[: self.done], steps(factors[: self.done])
        self.reduce = block_mode if labels else block_mean

    def __setitem__(self, index: tuple[slice, ...], voxels: NDArray[Any]) -> None:
        """Write the voxels of slices of level 0."""
        self.arrays[0][index] = voxels
        lead, box = index[:-3], Region.of((s.start for s in index[-3:]), (s.stop for s in index[-3:]))
        voxels = np.asarray(voxels, self.arrays[0].dtype)
        for array, step in zip(self.arrays[1:], self.steps, strict=True):
            voxels, box = self.reduce(voxels, step), coarse_region(box, step)
            array[lead + box.slices] = voxels


def _whole(blocks: Sequence[Sequence[int]], chunk: Sequence[int], factors: Factors) -> bool:
    """Whether blocks start where the chunks of a level do."""
    return all(n % (c * k) == 0 for axis, c, k in zip(blocks, chunk, factors, strict=True) for n in axis[:-1])


def coarsen(source: zarr.Array[Any], target: zarr.Array[Any], step: Factors, *, labels: bool = False) -> None:
    """Fill ``target`` with block means (of labels: modes) of ``source``, one task per target chunk."""
    # as arguments of a task, Dask would search the arrays' metadata for lazy values
    chunk = dask.delayed(partial(_coarsen_chunk, source, target, step, labels), traverse=False)  # type: ignore[attr-defined]  # dask exports it lazily
    tasks = [chunk(r.start, r.stop) for r in regions(target)]
    dask.compute(*tasks)  # type: ignore[attr-defined, no-untyped-call]  # dask exports it lazily


def regions(array: zarr.Array[Any]) -> Iterator[Region]:
    """The chunks of an array, along z, y, x; all entries of its leading axes belong to each."""
    shape, chunks = array.shape[-3:], array.chunks[-3:]
    for az, ay, ax in product(*(range(0, n, c) for n, c in zip(shape, chunks, strict=True))):
        z, y, x = (min(a + c, n) for a, c, n in zip((az, ay, ax), chunks, shape, strict=True))
        yield Region((az, ay, ax), (z, y, x))


def block_mean(voxels: NDArray[Any], step: Factors) -> NDArray[Any]:
    """Means over blocks of ``step`` voxels along the last three axes; blocks at the far edge may be smaller.

    voxels: of NumPy or CuPy, with the same bits.
    """
    shape = tuple(-(-n // k) for n, k in zip(voxels.shape[-3:], step, strict=True))
    means: NDArray[Any] = np.empty_like(voxels, shape=voxels.shape[:-3] + shape, order="C")
    plane = step[0] * math.prod(voxels.shape[-2:]) * _sum_type(voxels.dtype)().itemsize
    planes = max(1, CACHED_BYTES // max(1, plane)) if isinstance(voxels, np.ndarray) else shape[0]
    for lead in np.ndindex(voxels.shape[:-3]):
        for z in range(0, shape[0], planes):
            part = voxels[lead][z * step[0] : (z + planes) * step[0]]
            for axis, k in zip((-3, -2, -1), step, strict=True):
                part = _axis_mean(part, axis, k) if k > 1 else part
            means[lead][z : z + planes] = np.rint(part) if voxels.dtype.kind in "iub" else part
    return means


def lazy_block_mean(voxels: da.Array, step: Sequence[int]) -> da.Array:
    """Means of whole blocks of a Dask array, computed where they are read; what is left over at the end of an axis is cut off."""
    with np.errstate(invalid="ignore"):  # Dask tries the mean on a voxel that nobody has written
        means: da.Array = da.coarsen(np.mean, voxels, dict(enumerate(step)), trim_excess=True)
    return means


def _sum_type(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """What sums are computed in: float64 where they may be beyond what float32 holds."""
    return np.float64 if dtype.itemsize > (4 if dtype.kind == "f" else 2) else np.float32


def block_mode(voxels: NDArray[Any], step: Factors) -> NDArray[Any]:
    """Most frequent values of blocks of ``step`` voxels along the last three axes; blocks at the far edge may be smaller.

    The smallest of labels that are equally frequent, as where labels are interpolated.
    """
    lead, shape = voxels.shape[:-3], voxels.shape[-3:]
    spare = [(0, -n % k) for n, k in zip(shape, step, strict=True)]
    whole = np.pad(voxels, [(0, 0)] * len(lead) + spare, mode="edge")  # repeated voxels do not change the mode
    nz, ny, nx = (-(-n // k) for n, k in zip(shape, step, strict=True))
    parts = whole.reshape(*lead, nz, step[0], ny, step[1], nx, step[2])
    members = [parts[..., :, a, :, b, :, c] for a, b, c in np.ndindex(step)]
    winner, most = members[0], np.zeros(members[0].shape, np.uint8)
    for member in members:
        votes = sum(((member == other).view(np.uint8) for other in members), np.zeros_like(most))
        ahead = (votes > most) | ((votes == most) & (member < winner))
        winner, most = np.where(ahead, member, winner), np.maximum(most, votes)
    return np.asarray(winner, voxels.dtype)


def _axis_mean(values: NDArray[Any], axis: int, k: int) -> NDArray[Any]:
    # strided additions: several times as fast as ``np.add.reduceat``
    behind = (slice(None),) * (-axis - 1)

    def every(start: int, stop: int | None = None, step: int | None = None) -> tuple[Any, ...]:
        return (..., slice(start, stop, step), *behind)

    kind = _sum_type(values.dtype)
    if k == 2 and values.shape[axis] % 2 == 0:  # in two passes
        pairs: NDArray[Any] = np.add(values[every(0, None, 2)], values[every(1, None, 2)], dtype=kind)
        pairs *= kind(0.5)
        return pairs
    whole = values.shape[axis] // k
    total: NDArray[Any] = values[every(0, None, k)].astype(kind)
    head, tail, rest = total[every(0, whole)], total[every(whole)], values[every(whole * k)]
    for j in range(1, k):
        head += values[every(j, whole * k, k)]
        if j < rest.shape[axis]:  # else -0.0 + 0 would be 0.0
            tail += values[every(whole * k + j, whole * k + j + 1)]
    head /= kind(k)
    tail /= kind(max(rest.shape[axis], 1))
    return total


def _step(grid: Grid) -> Factors:
    finest = min(s for s, n in zip(grid.spacing, grid.shape, strict=True) if n > 1)
    z, y, x = (2 if n > 1 and s < 1.5 * finest else 1 for s, n in zip(grid.spacing, grid.shape, strict=True))
    return z, y, x


def _coarsen_chunk(
    source: zarr.Array[Any], target: zarr.Array[Any], step: Factors, labels: bool, start: Factors, stop: Factors
) -> None:
    lead = (slice(None),) * (target.ndim - 3)
    fine = tuple(slice(a * k, min(b * k, n)) for a, b, k, n in zip(start, stop, step, source.shape[-3:], strict=True))
    voxels = np.asarray(source[lead + fine])
    target[lead + Region(start, stop).slices] = (block_mode if labels else block_mean)(voxels, step)


def steps(levels: Sequence[Factors]) -> list[Factors]:
    """Factors from each level to the next."""
    return [_ratio(b, a) for a, b in pairwise(levels)]


def _ratio(coarse: Factors, fine: Factors) -> Factors:
    z, y, x = (math.floor(b / a) for a, b in zip(fine, coarse, strict=True))
    return z, y, x
