"""Parts of a Gaussian filter for kernels that march along z."""

from numba import uint64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import fma

MAX_RADIUS = 9  # taps on one side of a filter that fit into shared memory


@formula
def filter_sum(line, at, stride, weights, taps):
    """Left to right. Offsets have 64 bits, so that those known to the compiler go into the instruction."""
    total = weights[0] * line[at]
    for t in range(1, taps):
        total = fma(weights[t], line[at + uint64(t) * uint64(stride)], total)
    return total


@formula
def push_plane(sums, start, value, weights, taps):
    """A plane's value comes in: the sum over the last ``taps`` planes; ``sums`` keeps what later ones have so far."""
    total = fma(weights[taps - 1], value, sums[start + taps - 2]) if taps > 1 else weights[0] * value
    for q in range(taps - 2):
        at = taps - 2 - q
        sums[start + at] = fma(weights[at], value, sums[start + at - 1])
    if taps > 1:
        sums[start] = weights[0] * value
    return total
