"""Images and displacements at several resolutions: as stored, and further ones by block means, computed where they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region
from daskreg.lazy.blocks import Reader, by_block, leading_block
from daskreg.storage import RunStore, Stack
from daskreg.storage.runs.layout import DISPLACEMENT
from daskreg.storage.zarr.pyramid import CHUNK, Factors, block_mean, block_mode, pyramid
from daskreg.transforms.link import Link

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

PART_EDGE = 256  # voxels along each axis of what is read at once to compute means
AS_FINE = 1.25  # times the voxels that are wanted, those of a level may be: at most a little coarser


@dataclass(frozen=True)
class CoarseLevel:
    """One resolution: voxels (.., Z, Y, X), a Dask array or whatever slices to an array, and their grid."""

    data: Any
    grid: Grid


def level_for(levels: Sequence[CoarseLevel], wanted: Grid) -> CoarseLevel:
    """The coarsest of levels, finest first, whose voxels are about as large as those of a grid, or smaller."""
    size = _edge(wanted) * AS_FINE
    return [v for k, v in enumerate(levels) if k == 0 or _edge(v.grid.to_unit(wanted.unit)) <= size][-1]


def _edge(grid: Grid) -> float:
    """The edge of a cube of a voxel's volume."""
    return math.prod(grid.spacing) ** (1 / 3)


def extended(levels: Sequence[CoarseLevel], *, labels: bool = False) -> list[CoarseLevel]:
    """The levels, and further ones until the longest axis has 64 voxels, by means (of labels: modes) of the one before."""
    found = list(levels)
    for step in _steps(found[-1].grid):
        found.append(_coarser(found[-1], step, block_mode if labels else block_mean))
    return found


def _steps(grid: Grid) -> list[Factors]:
    steps: list[Factors] = []
    while len(factors := pyramid(grid)) > 1:
        steps.append(factors[1])
        grid = grid.coarsen(factors[1])
    return steps


def _coarser(level: CoarseLevel, step: Factors, reduce: Callable[..., NDArray[Any]]) -> CoarseLevel:
    grid, lead = level.grid.coarsen(step), tuple(level.data.shape[:-3])
    dtype = np.dtype(level.data.dtype).newbyteorder("=")
    fine = Reader(level.data) if isinstance(level.data, da.Array) else level.data
    block = (*leading_block(lead), *(min(CHUNK, n) for n in grid.shape))
    return CoarseLevel(by_block(BlockMeans(fine, step, reduce), (*lead, *grid.shape), dtype, block), grid)


class BlockMeans:
    """Computes any box of a coarser level, in parts, so that little of the finer one is in memory at once."""

    def __init__(self, fine: Any, step: Factors, reduce: Callable[..., NDArray[Any]]) -> None:
        self.fine, self.step, self.reduce = fine, step, reduce

    def __call__(self, box: Region, *lead: range) -> NDArray[Any]:
        """The voxels of ``box``, (.., Z, Y, X)."""
        outer = tuple(slice(r.start, r.stop) for r in lead)
        out = np.empty((*map(len, lead), *box.shape), self.fine.dtype)
        for part in box.split(max(1, PART_EDGE // max(self.step))):
            ends = zip(part.start, part.stop, self.step, self.fine.shape[-3:], strict=True)
            inner = tuple(slice(a * k, min(b * k, n)) for a, b, k, n in ends)
            out[(..., *part.within(box))] = self.reduce(np.asarray(self.fine[(*outer, *inner)]), self.step)
        return out


def stack_levels(stack: Stack, stored: Sequence[Stack] = (), *, labels: bool = False) -> list[CoarseLevel]:
    """An image, its coarser levels as stored, and further ones."""
    return extended([CoarseLevel(s.data, s.grid) for s in (stack, *stored)], labels=labels)


def run_field_levels(run: RunStore) -> list[CoarseLevel] | None:
    """The levels of the displacement of a run, None where it has none."""
    if not run.has(DISPLACEMENT):
        return None
    return [CoarseLevel(run.displacement(k), run.displacement_grid(k)) for k in range(run.displacement_levels)]


def link_levels(links: Sequence[Link], stored: Sequence[CoarseLevel] | None = None) -> list[list[CoarseLevel]]:
    """Levels of the displacement of each link, empty for an affine one. stored: those of the only link, as its run keeps them."""
    if stored is not None and len(links) == 1:
        return [extended(stored)]
    return [extended([_own_level(link)]) if link.displacement is not None else [] for link in links]


def _own_level(link: Link) -> CoarseLevel:
    grid = link.displacement_grid
    whole = by_block(LinkField(link), (3, *grid.shape), np.dtype(np.float32), (3, *(min(CHUNK, n) for n in grid.shape)))
    return CoarseLevel(whole, grid)


class LinkField:
    """Computes any box of the displacement of a link."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def __call__(self, box: Region, components: range) -> NDArray[np.float32]:
        """(components, Z, Y, X)."""
        return self.link.read(box)[components.start : components.stop]


def links_for(links: Sequence[Link], levels: Sequence[Sequence[CoarseLevel]], wanted: Grid) -> list[Link]:
    """The links with each displacement at the resolution of a grid."""
    found = []
    for link, its in zip(links, levels, strict=True):
        level = level_for(its, wanted) if its else None
        same = level is None or level is its[0]
        found.append(link if same or level is None else Link(link.affine, level.grid, Reader(level.data)))
    return found
