"""The peaks of maps on a GPU: a block for each map, without a word from the host between two peaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int32
from numpy.typing import NDArray

from daskreg.kernels.compiler.configuration import block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.device import host, module_of
from daskreg.kernels.peaks.cpu import PEAK_DISTANCE, TAKEN

THREADS = block_size(1024)  # of a block, a power of two
NEAR = 2 * PEAK_DISTANCE + 1  # voxels along an axis that a peak takes


@formula
def highest_of_row(weights, first, size):
    """The highest of ``size`` values from ``first``."""
    found = weights[first]
    for x in range(int32(1), size):
        found = max(found, weights[first + x])
    return found


@cooperative_kernel(launch_bounds=(1024, 1))
def separate_peaks_of_maps() -> Callable[..., None]:
    """``peaks.cpu.separate_peaks``; one block for each map.

    planes, rows, columns: int32, of a map;  maps: (C, voxels of a map) float32;  highest: (C, planes * rows) float32, for the
    highest value of every row;  at: (count, C) int32, voxels of the peaks, and values: (count, C) float32
    """
    threads, distance, near, taken = THREADS, int32(PEAK_DISTANCE), int32(NEAR), TAKEN

    def body(planes, rows, columns, maps, highest, at, values):
        best = cuda.shared.array(threads, float32)
        where = cuda.shared.array(threads, int32)
        m, t = int32(cuda.blockIdx.x), int32(cuda.threadIdx.x)
        weights, maxima, lines = maps[m], highest[m], planes * rows
        for line in range(t, lines, int32(threads)):
            maxima[line] = highest_of_row(weights, line * columns, columns)
        cuda.syncthreads()
        for k in range(at.shape[0]):
            value, first = maxima[0], int32(0)
            for line in range(t, lines, int32(threads)):
                if maxima[line] > value:
                    value, first = maxima[line], line
            best[t], where[t] = value, first
            cuda.syncthreads()
            half = int32(threads // 2)
            while half > int32(0):
                if t < half:
                    other, line = best[t + half], where[t + half]
                    if (other > best[t]) | ((other == best[t]) & (line < where[t])):
                        best[t], where[t] = other, line
                cuda.syncthreads()
                half = half // int32(2)
            value, line = best[0], where[0]
            x = int32(0)
            while maps[m, line * columns + x] != value:  # every thread by itself: all read the same
                x = x + int32(1)
            cuda.syncthreads()  # before it is taken
            z, y = line // rows, line % rows
            if t == int32(0):
                at[k, m], values[k, m] = line * columns + x, value
            for one in range(t, near * near * near, int32(threads)):
                i, j = one // (near * near), one // near % near
                kz = (z + i + (planes - int32(1)) * distance) % planes
                ky = (y + j + (rows - int32(1)) * distance) % rows
                kx = (x + one % near + (columns - int32(1)) * distance) % columns
                weights[(kz * rows + ky) * columns + kx] = taken
            cuda.syncthreads()
            for one in range(t, near * near, int32(threads)):
                kz = (z + one // near + (planes - int32(1)) * distance) % planes
                ky = (y + one % near + (rows - int32(1)) * distance) % rows
                maxima[kz * rows + ky] = highest_of_row(weights, (kz * rows + ky) * columns, columns)
            cuda.syncthreads()

    return body


def separate_peaks(maps: Any, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """``peaks.cpu.separate_peaks`` on the current device."""
    xp, (number, *shape) = module_of(maps), maps.shape
    at, values = xp.empty((count, number), np.int32), xp.empty((count, number), np.float32)
    highest = xp.empty((number, shape[0] * shape[1]), np.float32)
    sizes = map(np.int32, shape)
    separate_peaks_of_maps((), (number, 1, 1), (THREADS, 1, 1), *sizes, maps.reshape(number, -1), highest, at, values)
    return np.array(np.unravel_index(host(at), shape)), host(values)
