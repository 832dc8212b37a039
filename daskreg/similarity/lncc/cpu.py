"""Local normalised cross-correlation over a cubic window (method, section 3).

The plain bodies sum each window directly, on either device. On a CPU ``factor_rows`` and ``gradient_rows`` compute the same sums
separably: threads move along z with a ring of plane sums, 3 k additions per voxel instead of k^3. Every window is still summed
from its own voxels in a fixed order, so rounding does not depend on where a block starts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import row_kernel, voxelwise
from daskreg.kernels.intrinsics.arithmetic import divide_fast, divide_normal, select_positive
from daskreg.kernels.weights import weight_at

index = int64  # replaced by the launcher
ONE, ZERO, TWO = float32(1), float32(0), float32(2)


@formula
def signal_share(c, n, noise, divide):
    """C / (c + noise n), or 1 without noise."""
    return divide(c, c + noise * n) if noise > ZERO else ONE


@signal_share.on_cuda
def _selected_share() -> Callable[..., Any]:
    """Without a branch, so that the computations of several voxels overlap."""

    def share(c, n, noise, divide):
        return select_positive(noise, divide(c, c + noise * n), ONE)

    return share


@formula
def factors(n, f, m, ff, mm, fm, epsilon, variances, divide):
    """Cc, D, K and K mu_M - D mu_F of a window from its sums of w, wF, wM, wFF, wMM, wFM; without the weight of the centre.

    variances: the least, and that of noise, 0 or at least 2^-126;  divide: by a sum of weights, ``divide_normal`` where that is
    a number of voxels. All are 0 where either image's variance is below the least: where b c is as small as epsilon, contrast
    itself would be rewarded, and identical images would be pulled apart. Otherwise they are multiplied by v / (v + noise), v the
    variance of the fixed image.
    """
    least, noise = variances
    count = n if n > ZERO else ONE
    mean_f, mean_m = divide(f, count), divide(m, count)
    a = fm - mean_f * m
    b, c = max(mm - mean_m * m, ZERO), max(ff - mean_f * f, ZERO)
    inverse = divide_normal(ONE, b * c + epsilon)
    inverse = inverse if min(b, c) >= least * n else ZERO
    d = TWO * a * inverse
    k = d * a * c * inverse
    share = signal_share(c, count, noise, divide)
    return share * (a * a * inverse), share * d, share * k, share * (k * mean_m - d * mean_f)


@formula
def window_sums(z, y, x, radius, fixed, weight, moved):
    """Sums of w, wF, wM, wFF, wMM, wFM over the window around a voxel."""
    n, f, m, ff, mm, fm = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    kz, ky, kx = int32(z), int32(y), int32(x)
    for k in range(max(kz - radius, 0), min(kz + radius + 1, fixed.shape[0])):
        for j in range(max(ky - radius, 0), min(ky + radius + 1, fixed.shape[1])):
            for i in range(max(kx - radius, 0), min(kx + radius + 1, fixed.shape[2])):
                moved_value = moved[index(k), index(j), index(i)]
                w = weight_at(index(k), index(j), index(i), weight, moved_value)
                if w > ZERO:
                    fixed_value = fixed[index(k), index(j), index(i)]
                    n, f, m = n + w, f + w * fixed_value, m + w * moved_value
                    ff, mm, fm = (
                        ff + w * fixed_value * fixed_value,
                        mm + w * moved_value * moved_value,
                        fm + w * fixed_value * moved_value,
                    )
    return n, f, m, ff, mm, fm


@voxelwise(sums=2)
def lncc_factors(z, y, x, radius, epsilon, variances, fixed, weight, moved, dkc):
    """Write w D, w K and w (K mu_M - D mu_F) of each window; row sums (w cc, w).

    radius: int;  epsilon: float32;  variances: (2,) float32, see ``factors``;  fixed, moved: (Z, Y, X) float32, moved NaN
    outside the domain;  weight: the same shape or empty;  dkc: (3, Z, Y, X) float32. A window reads ``radius`` planes on each
    side, as far as the arrays have them.
    """
    w = weight_at(z, y, x, weight, moved[z, y, x])
    cc, d, k, c = ZERO, ZERO, ZERO, ZERO
    if w > ZERO:
        n, f, m, ff, mm, fm = window_sums(z, y, x, radius, fixed, weight, moved)
        cc, d, k, c = factors(n, f, m, ff, mm, fm, epsilon, variances, divide_fast)
    dkc[index(0), z, y, x], dkc[index(1), z, y, x], dkc[index(2), z, y, x] = w * d, w * k, w * c
    return w * cc, w


@voxelwise()
def lncc_gradient(z, y, x, radius, dkc, fixed, weight, moved):
    """Replace ``moved`` by ``-w (F sum D - M sum K + sum (K mu_M - D mu_F))``, sums over windows of dkc: N times the exact
    gradient.

    radius 0 gives the centre-window gradient;  other arguments as in ``lncc_factors``
    """
    value = moved[z, y, x]
    w = weight_at(z, y, x, weight, value)
    result = ZERO
    if w > ZERO:
        d, k, c = ZERO, ZERO, ZERO
        kz, ky, kx = int32(z), int32(y), int32(x)
        for p in range(max(kz - radius, 0), min(kz + radius + 1, dkc.shape[1])):
            for j in range(max(ky - radius, 0), min(ky + radius + 1, dkc.shape[2])):
                for i in range(max(kx - radius, 0), min(kx + radius + 1, dkc.shape[3])):
                    d += dkc[index(0), index(p), index(j), index(i)]
                    k += dkc[index(1), index(p), index(j), index(i)]
                    c += dkc[index(2), index(p), index(j), index(i)]
        result = -w * (fixed[z, y, x] * d - value * k + c)
    moved[z, y, x] = result


@formula
def sum_products(line, y, fixed, moved, weight, ones):
    """Sum w, wF, wM, wFF, wMM, wFM over the window's rows of one plane into lines (6, X + 2 radius), whose ends stay zero."""
    r, ny, masked = len(ones) // 2, fixed.shape[0], weight.shape[0] > 0
    for x in range(fixed.shape[1]):
        a, b, c, d, e, f = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
        for t in range(len(ones)):
            j = y + t - r
            row, at = index(min(max(j, 0), ny - 1)), index(x)
            m, s = moved[row, at], fixed[row, at]
            defined = m == m
            w = weight[row, at] if masked else ONE
            w = w if defined and 0 <= j < ny else ZERO
            m = m if defined else ZERO
            wf, wm = w * s, w * m
            a, b, c, d, e, f = a + w, b + wf, c + wm, d + wf * s, e + wm * m, f + wf * m
        at = index(x + r)
        line[index(0), at], line[index(1), at], line[index(2), at] = a, b, c
        line[index(3), at], line[index(4), at], line[index(5), at] = d, e, f


@formula
def sum_fields(line, y, source, ones):
    """Sum the window's rows of one plane of a (3, Y, X) field into lines (3, X + 2 radius)."""
    r, ny = len(ones) // 2, source.shape[1]
    for q in range(3):
        for x in range(source.shape[2]):
            total = ZERO
            for t in range(len(ones)):
                j = y + t - r
                total += (ONE if 0 <= j < ny else ZERO) * source[index(q), index(min(max(j, 0), ny - 1)), index(x)]
            line[index(q), index(x + r)] = total


@formula
def sum_window(ring, oldest, column_sums, sums, ones):
    """Sum a ring of plane lines (k, Q, X + 2 radius), oldest first, then along x from left to right: (Q, X)."""
    k = len(ones)
    for q in range(column_sums.shape[0]):
        for x in range(column_sums.shape[1]):
            value = ZERO
            for t in range(len(ones)):
                slot = oldest + t
                value += ring[index(slot if slot < k else slot - k), index(q), index(x)]
            column_sums[index(q), index(x)] = value
        for x in range(sums.shape[1]):
            value = ZERO
            for t in range(len(ones)):
                value += column_sums[index(q), index(x + t)]
            sums[index(q), index(x)] = value


@formula
def write_factors(sums, moved, mask, epsilon, variances, ds, ks, cs, row_sums):
    """Factors of a row from its window sums; the row's sums of w cc and w."""
    correlation, weights, masked = ZERO, ZERO, mask.shape[0] > 0
    for x in range(moved.shape[0]):
        at = index(x)
        w = (mask[at] if masked else ONE) if moved[at] == moved[at] else ZERO
        cc, d, k, c = factors(sums[index(0), at], sums[index(1), at], sums[index(2), at],
                              sums[index(3), at], sums[index(4), at], sums[index(5), at], epsilon, variances,
                              divide_fast)  # fmt: skip
        ds[at], ks[at], cs[at] = w * d, w * k, w * c
        sums[index(0), at], sums[index(1), at] = w * cc, w
    for x in range(moved.shape[0]):
        correlation += sums[index(0), index(x)]
        weights += sums[index(1), index(x)]
    row_sums[0], row_sums[1] = correlation, weights


@row_kernel(items=lambda n, *_: n[2])
def factor_rows(begin, end, n, rows, ones, epsilon, variances, fixed, weight, moved, dkc):
    """``lncc_factors`` on a CPU, a thread per row y; ``ones``: tuple of 2 radius + 1 ones, so that loops are unrolled."""
    z0, nz, _, nx = n
    k, r = len(ones), len(ones) // 2
    for y in range(begin, end):
        ring = np.zeros((k, 6, nx + 2 * r), np.float32)
        column_sums, sums = np.empty((6, nx + 2 * r), np.float32), np.empty((6, nx), np.float32)
        none2, none = np.empty((0, 0), np.float32), np.empty(0, np.float32)
        for step in range(-r, nz + r):
            line, plane = ring[(step + r) % k], step + z0
            if 0 <= plane < fixed.shape[0]:
                mask2 = weight[plane] if weight.shape[0] > 0 else none2
                sum_products(line, y, fixed[plane], moved[plane], mask2, ones)
            else:
                line[:] = ZERO
            row, z = step - r, step - r + z0
            if row >= 0:
                sum_window(ring, row % k, column_sums, sums, ones)
                mask = weight[z, y] if weight.shape[0] > 0 else none
                of_row = dkc[0, z, y], dkc[1, z, y], dkc[2, z, y], rows[:, row, y]
                write_factors(sums, moved[z, y], mask, epsilon, variances, *of_row)


@formula
def write_gradient(sums, fixed, mask, moved):
    """Replace a row of ``moved`` by the gradient."""
    masked = mask.shape[0] > 0
    for x in range(fixed.shape[0]):
        at = index(x)
        m = moved[at]
        defined = m == m
        w = (mask[at] if masked else ONE) if defined else ZERO
        m = m if defined else ZERO
        moved[at] = -w * (fixed[at] * sums[index(0), at] - m * sums[index(1), at] + sums[index(2), at])


@row_kernel(items=lambda n, *_: n[2])
def gradient_rows(begin, end, n, ones, dkc, fixed, weight, moved):
    """``lncc_gradient`` on a CPU, a thread per row y; ``ones``: tuple of 2 radius + 1 ones, so that loops are unrolled."""
    z0, nz, _, nx = n
    k, r = len(ones), len(ones) // 2
    for y in range(begin, end):
        ring = np.zeros((k, 3, nx + 2 * r), np.float32)
        column_sums, sums = np.empty((3, nx + 2 * r), np.float32), np.empty((3, nx), np.float32)
        none = np.empty(0, np.float32)
        for step in range(-r, nz + r):
            line, plane = ring[(step + r) % k], step + z0
            if 0 <= plane < dkc.shape[1]:
                sum_fields(line, y, dkc[:, plane], ones)
            else:
                line[:] = ZERO
            row, z = step - r, step - r + z0
            if row >= 0:
                sum_window(ring, row % k, column_sums, sums, ones)
                mask = weight[z, y] if weight.shape[0] > 0 else none
                write_gradient(sums, fixed[z, y], mask, moved[z, y])
