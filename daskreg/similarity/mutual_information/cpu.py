"""Joint histograms in fixed-point integers, whose sums do not depend on their order, and the gradient of mutual information.

Intensities are scaled to [0, 1]. The bin coordinate is ``c = 2 + I (B - 5)``, with two padding bins at each end, so the four bins
of a cubic B-spline always exist and their weights sum to one.
"""

from collections.abc import Callable

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import row_kernel, voxelwise
from daskreg.kernels.intrinsics.four import add_rounded
from daskreg.kernels.weights import weight_at

index = int64  # replaced by the launcher
ONE, ZERO, HALF, SIXTH, TWO_THIRDS = float32(1), float32(0), float32(0.5), float32(1 / 6), float32(2 / 3)
FIXED_POINT = 2**20  # counts per voxel of weight 1, split over 4 x 4 bins
SCALE = float32(FIXED_POINT)
TOGETHER = 64  # voxels whose terms are computed at once
RECENT = 4096  # voxels whose counts fit into 32 bits: each adds 4 / 9 of FIXED_POINT to a bin at most


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
def add_recent(counts, recent):
    """Add counts of 32 bits to those of 64, and set them to 0."""
    for k in range(counts.shape[0]):
        counts[index(k)] += int64(recent[index(k)])
        recent[index(k)] = int32(0)


@row_kernel(items=lambda n, bins, counts, *_: len(counts))
def joint_histogram_rows(begin, end, n, bins, counts, recent, terms, places, fixed, weight, moved):
    """``joint_histogram`` in two steps: what is added for some voxels of a row, then the sixteen additions of each, by fours.

    counts: (tiles, B^2) int64;  recent: the same, int32, 0: counts of the last RECENT voxels at most;
    terms: (tiles, 8, TOGETHER) float32 and places: (tiles, TOGETHER) int32, scratch;
    fixed, weight, moved: as in ``joint_histogram``, weights in [0, 1]
    """
    z0, nz, ny, nx = n
    tiles = counts.shape[0]
    masked = weight.shape[0] > 0
    for tile in range(begin, end):
        mine, new, term, place = counts[tile], recent[tile], terms[tile], places[tile]
        counted = 0
        for zy in range(tile * nz * ny // tiles, (tile + 1) * nz * ny // tiles):
            z, y = index(z0 + zy // ny), index(zy % ny)
            for first in range(0, nx, TOGETHER):
                some = min(TOGETHER, nx - first)
                for k in range(some):
                    t, x = index(k), index(first + k)
                    value = moved[z, y, x]
                    w = weight[z, y, x] if masked else ONE
                    seen = value == value and w > ZERO
                    i, moved_fraction = bin_coordinate(value if seen else ZERO, bins)
                    j, fixed_fraction = bin_coordinate(fixed[z, y, x] if seen else ZERO, bins)
                    w = (w if seen else ZERO) * SCALE
                    p, q, r, s = spline(moved_fraction)
                    term[0, t], term[1, t], term[2, t], term[3, t] = w * p, w * q, w * r, w * s
                    term[4, t], term[5, t], term[6, t], term[7, t] = spline(fixed_fraction)
                    place[t] = i * int32(bins) + j
                for k in range(some):
                    t, at = index(k), int64(place[index(k)])
                    a, b, c, d = term[4, t], term[5, t], term[6, t], term[7, t]
                    add_rounded(new, at, a, b, c, d, term[0, t])
                    add_rounded(new, at + bins, a, b, c, d, term[1, t])
                    add_rounded(new, at + 2 * bins, a, b, c, d, term[2, t])
                    add_rounded(new, at + 3 * bins, a, b, c, d, term[3, t])
                counted += some
                if counted > RECENT - TOGETHER:
                    add_recent(mine, new)
                    counted = 0
        add_recent(mine, new)


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
