"""The highest values of periodic maps that lie apart from each other, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import import_function, on_device

PEAK_DISTANCE = 3  # voxels along an axis: around a peak, in which no other lies
TAKEN = np.float32(-1)  # what is written there


def separate_peaks(maps: Any, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The highest values of maps (C, Z, Y, X) float32: indices (3, count, C) and values (count, C), in host memory.

    The first of equal values counts. What is around a peak is set to TAKEN; indices wrap.
    """
    if on_device(maps):
        found: tuple[NDArray[np.int64], NDArray[np.float32]] = import_function("peaks.cuda.separate_peaks")(maps, count)
        return found
    at, values = np.empty((3, count, len(maps)), np.int64), np.empty((count, len(maps)), np.float32)
    for k in range(count):
        flat = maps.reshape(len(maps), -1)
        best = flat.argmax(axis=1)
        values[k], at[:, k] = flat[np.arange(len(flat)), best], np.unravel_index(best, maps.shape[1:])
        _take(maps, at[:, k])
    return at, values


def _take(maps: NDArray[np.float32], peaks: NDArray[np.int64]) -> None:
    """Take what is around a peak of every map, at indices (3, C)."""
    near = np.arange(-PEAK_DISTANCE, PEAK_DISTANCE + 1)
    z, y, x = ((at[:, None] + near) % n for at, n in zip(peaks, maps.shape[1:], strict=True))
    each = np.arange(len(maps))[:, None, None, None]
    maps[each, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]] = TAKEN
