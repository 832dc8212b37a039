"""Which voxels of an image a map reads, bounded over all voxels of a box; and the map's coefficients within such boxes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Region
from daskreg.transforms.linear import Matrix, to_fixed_point

BOUND_EDGE = 32  # voxels along each axis of a part that is bounded as one
INTERPOLATION_MARGIN = 2  # voxels around what a block's points reach: trilinear corners and rounding
Array = NDArray[np.float32]


def sampling_bounds(
    matrix: Matrix, linear: Matrix, e: Array | None, box: Region, shape: Sequence[int], margin: int = INTERPOLATION_MARGIN
) -> Region:
    """The voxels of an image of ``shape`` that ``p(x) = A x + t + S e(x)`` reads, over all voxels x of a box.

    Every voxel's own e counts, in parts of BOUND_EDGE voxels along each axis: a bump inside a box can reach further than the
    box's corners and faces.
    """
    parts = [box] if e is None else list(box.split(BOUND_EDGE))
    ends = [_point_range(matrix, linear, None if e is None else e[(slice(None), *part.within(box))], part) for part in parts]
    low, high = np.min([a for a, _ in ends], axis=0), np.max([b for _, b in ends], axis=0)
    low, high = np.clip([low - margin, high + margin + 1], -1.0, np.asarray(shape) + 1.0)  # before far values become integers
    return Region.of(np.floor(low), np.ceil(high)) & Region.of((0, 0, 0), shape)


def _point_range(matrix: Matrix, linear: Matrix, e: Array | None, box: Region) -> tuple[Matrix, Matrix]:
    """Bounds of A x + t + S e in a box, (3,) each, from the box's corners and the range of each component of e."""
    corners = np.array(list(product(*zip(box.start, np.array(box.stop) - 1, strict=True))))
    at = corners @ matrix[:3, :3].T + matrix[:3, 3]
    low, high = at.min(axis=0), at.max(axis=0)
    if e is not None:
        least, most = linear * e.min(axis=(1, 2, 3)), linear * e.max(axis=(1, 2, 3))
        low, high = low + np.minimum(least, most).sum(axis=1), high + np.maximum(least, most).sum(axis=1)
    return low, high


def local_coefficients(matrix: Matrix, box: Region, read: Region) -> tuple[np.int64, ...]:
    """(A t) in fixed point for local indices of a box and of the part of the image read for it, exactly.

    The offsets are integers, so a block's origin changes no bit of p(x).
    """
    a = [int(v) for v in to_fixed_point(matrix)]
    for r in range(3):
        a[4 * r + 3] += sum(a[4 * r + c] * box.start[c] for c in range(3)) - (read.start[r] << 32)
    return tuple(np.int64(v) for v in a)
