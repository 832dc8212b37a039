"""Joint histograms in fixed-point integers, whose sums do not depend on their order, and the gradient of mutual information.

Intensities are scaled to [0, 1]. The bin coordinate is ``c = 2 + I (B - 5)``, with two padding bins at each end, so the four bins
of a cubic B-spline always exist and their weights sum to one.
"""

from collections.abc import Callable

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.weights import weight_at

index = int64  # replaced by the launcher
ONE, ZERO, HALF, SIXTH, TWO_THIRDS = float32(1), float32(0), float32(0.5), float32(1 / 6), float32(2 / 3)
FIXED_POINT = 2**20  # counts per voxel of weight 1, split over 4 x 4 bins
SCALE = float32(FIXED_POINT)


@formula
def bin_coordinate(value, bins):
    """The first of the four bins, and the fraction of a bin after the second."""
    c = float32(2) + min(max(value, ZERO), ONE) * float32(int32(bins) - int32(5))
    whole = int32(c)
    return whole - int32(1), c - float32(whole)


@formula
def spline(w):
    """Cubic B-spline weights of the four bins around a point a fraction w after the second; they sum to one."""
    v = ONE - w
    a, d = v * v * v * SIXTH, w * w * w * SIXTH
    b = TWO_THIRDS - w * w * (ONE - HALF * w)
    return a, b, TWO_THIRDS - v * v * (ONE - HALF * v), d


@formula
def spline_derivative(w):
    """Derivatives of the weights of ``spline`` with respect to w."""
    v = ONE - w
    return -HALF * v * v, w * (float32(1.5) * w - float32(2)), v * (float32(2) - float32(1.5) * v), HALF * w * w


@formula
def add_to_bin(counts, i, j, value):
    """``counts[i, j] += value``, for threads with counts of their own."""
    counts[i, j] += value


@add_to_bin.on_cuda
def _atomic_deposit() -> Callable[..., None]:
    """``counts[i, j] += value`` for all threads of a GPU."""
    from numba import cuda

    def deposit_atomically(counts, i, j, value):
        cuda.atomic.add(counts, (i, j), value)

    return deposit_atomically


@formula
def add_to_row(counts, i, j, a, b, c, d):
    """Add to four neighbouring bins of a row."""
    add_to_bin(counts, i, j, int64(a + HALF))
    add_to_bin(counts, i, index(j + index(1)), int64(b + HALF))
    add_to_bin(counts, i, index(j + index(2)), int64(c + HALF))
    add_to_bin(counts, i, index(j + index(3)), int64(d + HALF))


@voxelwise(scatter=True)
def joint_histogram(z, y, x, counts, fixed, weight, moved):
    """``counts[i, j] += 2^20 w w_i(moved) w_j(fixed)``.

    counts: (tiles, B, B) int64;  fixed, moved: (Z, Y, X) float32 in [0, 1], moved NaN outside the domain;
    weight: the same shape or empty
    """
    value = moved[z, y, x]
    w = weight_at(z, y, x, weight, value)
    if w > ZERO:
        i, moved_fraction = bin_coordinate(value, counts.shape[1])
        j, fixed_fraction = bin_coordinate(fixed[z, y, x], counts.shape[1])
        p, q, r, s = spline(moved_fraction)
        a, b, c, d = spline(fixed_fraction)
        k, col, w = index(i), index(j), w * SCALE
        add_to_row(counts, k, col, w * p * a, w * p * b, w * p * c, w * p * d)
        add_to_row(counts, index(k + index(1)), col, w * q * a, w * q * b, w * q * c, w * q * d)
        add_to_row(counts, index(k + index(2)), col, w * r * a, w * r * b, w * r * c, w * r * d)
        add_to_row(counts, index(k + index(3)), col, w * s * a, w * s * b, w * s * c, w * s * d)


@formula
def dot_row(table, i, j, a, b, c, d):
    """Dot product of four neighbouring entries of a row with four weights."""
    return (table[i, j] * a + table[i, index(j + index(1))] * b) + (
        table[i, index(j + index(2))] * c + table[i, index(j + index(3))] * d
    )


@voxelwise()
def information_gradient(z, y, x, table, fixed, weight, moved):
    """Replace ``moved`` by ``-w sum_ij T_ij w'_i(moved) w_j(fixed)``: N times the gradient of -MI (method, section 3).

        table: (B, B) float32, T_ij = log(p_ij / (p_i p_j));  other arguments as in ``joint_histogram``; 0 where the intensity
    is clamped
    """
    value = moved[z, y, x]
    w = weight_at(z, y, x, weight, value)
    result = ZERO
    if w > ZERO and ZERO < value < ONE:
        i, moved_fraction = bin_coordinate(value, table.shape[0])
        j, fixed_fraction = bin_coordinate(fixed[z, y, x], table.shape[0])
        p, q, r, s = spline_derivative(moved_fraction)
        a, b, c, d = spline(fixed_fraction)
        k, col = index(i), index(j)
        total = p * dot_row(table, k, col, a, b, c, d) + q * dot_row(table, index(k + index(1)), col, a, b, c, d)
        total += r * dot_row(table, index(k + index(2)), col, a, b, c, d) + s * dot_row(
            table, index(k + index(3)), col, a, b, c, d
        )
        result = -w * total * float32(int32(table.shape[0]) - int32(5))
    moved[z, y, x] = result
