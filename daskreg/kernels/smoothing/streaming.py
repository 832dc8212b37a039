"""Gaussian downsampling of an image that comes in parts, each of which is added to its sums in the order of the taps.

The sums are those of ``smoothing.downsampling``, bit for bit: a tap that it leaves out has weight 0 there.
"""

from numba import int32, int64

from daskreg.kernels.compiler.launch import voxelwise

index = int64  # replaced by the launcher


@voxelwise()
def add_four_planes(y, z, x, weights, image, total):
    """``total[z] += weights[z, t] * image[t]`` for four planes t in order; launched over (Y, Z, X): rows stay in the cache.

    weights: (Z, 4) float32;  image: (4, Y, X) float32;  total: (Z, Y, X) float32
    """
    value = total[z, y, x] + weights[z, index(0)] * image[index(0), y, x]
    value += weights[z, index(1)] * image[index(1), y, x]
    value += weights[z, index(2)] * image[index(2), y, x]
    total[z, y, x] = value + weights[z, index(3)] * image[index(3), y, x]


@voxelwise()
def add_plane(y, z, x, weights, image, total):
    """``total[z] += weights[z] * image``, launched over (Y, Z, X).

    weights: (Z,), image: (Y, X), total: (Z, Y, X), float32
    """
    total[z, y, x] += weights[z] * image[y, x]


@voxelwise()
def add_rows(z, y, x, low, high, first, table, image, total):
    """``total[y] += table[y, t] * image[first[y] + t]`` for the taps t from ``low[y]`` to ``high[y]`` in order.

    low, high, first: (Y,) int32, first may be negative;  table: (Y, taps) float32;  image: (Z, Y', X), total: (Z, Y, X), float32
    """
    value = total[z, y, x]
    for t in range(high[y] - low[y]):
        tap = int32(t) + low[y]
        value += table[y, index(tap)] * image[z, index(first[y] + tap), x]
    total[z, y, x] = value
