"""The peaks of maps on a GPU: a block for each map, and no transfer to the host between two peaks."""

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


@formula
def place_of(value, weights, first, size):
    """Where the first of ``size`` values from ``first`` that equals ``value`` is; the last of them where none does, as of NaN."""
    x = int32(0)
    while x < size - int32(1) and weights[first + x] != value:
        x = x + int32(1)
    return x


@formula
def beside(k, step, size):
    """The index ``step - PEAK_DISTANCE`` from k along a periodic axis."""
    return (k + step + (size - int32(1)) * int32(PEAK_DISTANCE)) % size


def highest_of_block(threads: int) -> Any:
    """Returns a formula that brings the highest of a block's values, of equal ones that of the first row, to the first thread."""

    @formula
    def reduce(best, where, t):
        half = int32(threads // 2)
        while half > int32(0):
            if t < half:
                other, line = best[t + half], where[t + half]
                if (other > best[t]) | ((other == best[t]) & (line < where[t])):
                    best[t], where[t] = other, line
            cuda.syncthreads()
            half = half // int32(2)

    return reduce


@cooperative_kernel(launch_bounds=(1024, 1))
def separate_peaks_of_maps() -> Callable[..., None]:
    """``peaks.cpu.separate_peaks``; one block for each map.

    planes, rows, columns: int32, of a map;  maps: (C, voxels of a map) float32;  highest: (C, planes * rows) float32, for the
    highest value of every row;  at: (count, C) int32, voxels of the peaks, and values: (count, C) float32
    """
    threads, near, reduce = THREADS, int32(NEAR), highest_of_block(THREADS)

    def body(planes, rows, columns, maps, highest, at, values):
        best = cuda.shared.array(threads, float32)
        where = cuda.shared.array(threads, int32)
        m, t, step = int32(cuda.blockIdx.x), int32(cuda.threadIdx.x), int32(threads)
        weights, maxima, lines = maps[m], highest[m], planes * rows
        for line in range(t, lines, step):
            maxima[line] = highest_of_row(weights, line * columns, columns)
        cuda.syncthreads()
        for k in range(at.shape[0]):
            best[t], where[t] = maxima[0], int32(0)
            for line in range(t, lines, step):
                if maxima[line] > best[t]:
                    best[t], where[t] = maxima[line], line
            cuda.syncthreads()
            reduce(best, where, t)
            value, line = best[0], where[0]
            z, y, x = line // rows, line % rows, place_of(value, weights, line * columns, columns)
            cuda.syncthreads()  # all threads have found x by themselves
            if t == int32(0):
                at[k, m], values[k, m] = line * columns + x, value
            for one in range(t, near * near * near, step):
                row = beside(z, one // (near * near), planes) * rows + beside(y, one // near % near, rows)
                weights[row * columns + beside(x, one % near, columns)] = TAKEN
            cuda.syncthreads()
            for one in range(t, near * near, step):
                row = beside(z, one // near, planes) * rows + beside(y, one % near, rows)
                maxima[row] = highest_of_row(weights, row * columns, columns)
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
