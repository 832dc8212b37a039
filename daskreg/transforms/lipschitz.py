"""A bound on how fast a displacement varies: its local Lipschitz constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule

if TYPE_CHECKING:
    from scipy import ndimage
else:
    ndimage = DeferredModule("scipy.ndimage")

NEIGHBOURHOOD = 5  # voxels along each axis of the window in which the bound holds
Array = NDArray[np.float32]


def lipschitz_bound(u: Array) -> Array:
    """A bound on ``|u(a) - u(b)| / |a - b|`` for a, b within a voxel and a half of each voxel, (Z, Y, X); u: voxels, trilinear.

    The derivative along an axis is, anywhere, a mean of differences of neighbours; so it is at most the longest of those near,
    and the norm of the three at most the root of their summed squares.
    """
    total = np.zeros(u.shape[1:], np.float32)
    for axis in range(3):
        if u.shape[axis + 1] > 1:
            steps = (np.diff(u, axis=axis + 1) ** 2).sum(axis=0)
            either = np.maximum(_padded(steps, axis, (1, 0)), _padded(steps, axis, (0, 1)))  # of the two neighbours
            total += ndimage.maximum_filter(either, NEIGHBOURHOOD, mode="nearest")
    return np.asarray(np.sqrt(total), np.float32)


def _padded(values: Array, axis: int, by: tuple[int, int]) -> Array:
    return np.pad(values, [by if k == axis else (0, 0) for k in range(3)])
