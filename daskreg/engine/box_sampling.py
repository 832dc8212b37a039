"""The moving image on boxes of the fixed grid, where all of it is in memory; which voxels of it a box reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.reach import LARGEST, SamplingMap
from daskreg.grid import Index, Region
from daskreg.kernels.sampling.cpu import plane_range, sample

Array = NDArray[np.float32]
Read = Callable[[Region], Array]


def sampled(mapping: SamplingMap, image: Array, domain: int, box: Region, u: Array | None = None) -> Array:
    """A whole image in a box of the fixed grid, NaN out of the domain.

    mapping: of the whole fixed grid;  domain: see ``kernels.sampling.cpu``;  u: the displacement there (3, Z, Y, X), voxels
    """
    moved, affine = np.empty(box.shape, np.float32), between(mapping.affine, box.start, (0, 0, 0))
    sample(box.shape, 0, affine, mapping.linear, u, 0, image.shape[0], domain, image, moved)
    return moved


def reads(mapping: SamplingMap, shape: Index, box: Region, u: Array | None = None) -> Region | None:
    """Voxels of an image of a shape that a box of the fixed grid reads, None where it reads none.

    With a voxel of doubt, so that the region's faces are no faces of the image but where the image ends.
    """
    start, stop = [0, 0, 0], [0, 0, 0]
    for line in range(3):
        low, high = _range(mapping, line, box, u)
        start[line] = max(math.floor(low) - 1, 0)
        stop[line] = min(math.floor(high) + 3, shape[line])
        if stop[line] <= start[line]:
            return None
    return Region.of(start, stop)


def _range(mapping: SamplingMap, line: int, box: Region, u: Array | None) -> tuple[float, float]:
    """Least and largest coordinate of the points of a box."""
    if u is None:
        row = [float(v) / 2**32 for v in mapping.affine[4 * line : 4 * line + 4]]
        ends = [(a * s, a * (e - 1)) for a, s, e in zip(row, box.start, box.stop, strict=False)]
        low, high = row[3] + sum(map(min, ends)), row[3] + sum(map(max, ends))
    else:
        affine = between(mapping.affine, box.start, (0, 0, 0))
        row_first = (*affine[4 * line : 4 * line + 4], *affine[:8])
        linear = (*mapping.linear[3 * line : 3 * line + 3], *mapping.linear[:6])
        rows = plane_range(box.shape, 0, row_first, linear, u)
        low, high = -float(rows[1].max()), float(rows[0].max())
    low, high = (float(np.clip(np.nan_to_num(v), -LARGEST, LARGEST)) for v in (low, high))
    return low, high


def between(affine: tuple[np.int64, ...], first: Index, origin: Index) -> tuple[np.int64, ...]:
    """A and t for indices that count from ``first``, to coordinates that count from ``origin``; exact."""
    rows = []
    for line in range(3):
        a = [int(v) for v in affine[4 * line : 4 * line + 4]]
        shift = a[3] + sum(k * s for k, s in zip(a, first, strict=False)) - (origin[line] << 32)
        rows += [np.int64(v) for v in (*a[:3], shift)]
    return cast("tuple[np.int64, ...]", tuple(rows))
