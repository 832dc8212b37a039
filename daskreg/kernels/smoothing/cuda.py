"""Parts of a Gaussian filter for kernels whose blocks move along z plane by plane."""

from numba import int32, uint32, uint64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import clamp, fma

MAX_RADIUS = 9  # most taps on each side for which a filter fits into shared memory


@formula
def filter_sum(line, at, stride, weights, taps):
    """Weighted sum of neighbours, from left to right. 64-bit offsets let constant ones become part of the instruction."""
    total = weights[0] * line[at]
    for t in range(1, taps):
        total = fma(weights[t], line[at + uint64(t) * uint64(stride)], total)
    return total


@formula
def push_plane(sums, start, value, weights, taps):
    """Add a plane to a filter along z and return the sum over the last ``taps`` planes.

    ``sums`` holds the partial sums of later outputs, from index ``start`` on.
    """
    total = fma(weights[taps - 1], value, sums[start + taps - 2]) if taps > 1 else weights[0] * value
    for q in range(taps - 2):
        at = taps - 2 - q
        sums[start + at] = fma(weights[at], value, sums[start + at - 1])
    if taps > 1:
        sums[start] = weights[0] * value
    return total


@formula
def present_plane(k, edge):
    """Plane k, clamped to the planes that the arrays have, for offsets."""
    return uint64(uint32(clamp(k, int32(edge))))
