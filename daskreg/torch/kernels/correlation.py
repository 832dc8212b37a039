"""Local correlation with separable weighted windows: one formula with constants for all conventions, and its CPU kernels.

With W the sum of a window's weights, A = sum w FM - sum wF sum wM / W, B = sum wMM - (sum wM)^2 / W, C likewise of F; B and C are
raised to ``floor``, and ``additive`` is added to them. The correlation is (A^2 + numerator) / (B C + epsilon), or
A / sqrt(B C + epsilon), at most ``limit``. Voxels beyond the faces are zeros that count, or do not count (``counted``).

The derivative with respect to M at q is sum_p w (D F_q + K M_q + E) over the windows p of q, with D, K and E of each window
(``window_factors``). Values are taken relative to that of the central voxel of their volume, so that variances do not cancel
where the contrast is small.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import row_kernel

index = int64  # replaced by the launcher
ONE, ZERO, HALF, TWO = float32(1), float32(0), float32(0.5), float32(2)
SINGLE, DOUBLE = 3, 5  # factors per window: for the derivative with respect to one image, or both


@formula
def window_factors(w, f, m, ff, mm, fm, floor, additive, epsilon, numerator, limit, squared):
    """The correlation of a window, D, K and E for the derivative with respect to M, and K and E for that with respect to F.

    w, ..., fm: sums of w, wF, wM, wFF, wMM, wFM
    """
    inverse = ONE / w if w > ZERO else w * ZERO
    mean_f, mean_m = f * inverse, m * inverse
    a, b, c = fm - mean_f * m, mm - mean_m * m, ff - mean_f * f
    free_b, free_c = b > floor, c > floor
    b, c = max(b, floor) + additive, max(c, floor) + additive
    product = b * c + epsilon
    known = product > ZERO
    inverse = ONE / product if known else product * ZERO
    if squared:
        value = (a * a + numerator) * inverse
        d, share = TWO * a * inverse, value
    else:
        root = math.sqrt(inverse)
        value = a * root
        d, share = root, HALF * value
    d, share = (d, share) if value < limit else (d * ZERO, share * ZERO)
    value = min(value, limit)
    k = -TWO * share * c * inverse if free_b else share * ZERO
    g = -TWO * share * b * inverse if free_c else share * ZERO
    return value, d, k, -(d * mean_f + k * mean_m), g, -(d * mean_m + g * mean_f)


@formula
def weight_inside(at, n, weights):
    """The sum of the weights of a window around ``at`` that are on the axis."""
    r, total = len(weights) // 2, weights[0] * ZERO
    for t in range(len(weights)):
        q = at + t - r
        total += weights[t] if 0 <= q < n else weights[t] * ZERO
    return total


@formula
def sum_rows(line, y, nx, fixed, moved, f0, m0, outside_f, outside_m, wy):
    """Weighted sums over the window's rows of one plane of F, M, FF, MM, FM into ``line`` (5, X + 2 r), with its ends."""
    r, ry, ny = (line.shape[1] - nx) // 2, len(wy) // 2, fixed.shape[0]
    line[:] = ZERO
    for t in range(len(wy)):
        j, w = y + t - ry, wy[t]
        f, m = outside_f, outside_m
        for x in range(r):
            for at in (index(x), index(line.shape[1] - 1 - x)):
                line[0, at] += w * f
                line[1, at] += w * m
                line[2, at] += w * f * f
                line[3, at] += w * m * m
                line[4, at] += w * f * m
        inside = 0 <= j < ny
        row = index(min(max(j, 0), ny - 1))
        for x in range(nx):
            if inside:
                f, m = fixed[row, index(x)] - f0, moved[row, index(x)] - m0
            at = index(x + r)
            line[0, at] += w * f
            line[1, at] += w * m
            line[2, at] += w * f * f
            line[3, at] += w * m * m
            line[4, at] += w * f * m


@formula
def outside_rows(line, f, m, w):
    """``sum_rows`` for a plane beyond the faces; w: the sum of the weights along y."""
    line[0, :] = w * f
    line[1, :] = w * m
    line[2, :] = w * f * f
    line[3, :] = w * m * m
    line[4, :] = w * f * m


@formula
def sum_ring(ring, oldest, columns, sums, wz, wx):
    """Weighted sums of a ring of lines (k, Q, X + 2 r), oldest first, then along x: (Q, X)."""
    for q in range(columns.shape[0]):
        for x in range(columns.shape[1]):
            columns[index(q), index(x)] = ZERO
        for t in range(len(wz)):
            slot, w = index((oldest + t) % len(wz)), wz[t]
            for x in range(columns.shape[1]):
                columns[index(q), index(x)] += w * ring[slot, index(q), index(x)]
        for x in range(sums.shape[1]):
            value = sums[index(0), index(0)] * ZERO
            for t in range(len(wx)):
                value += wx[t] * columns[index(q), index(x + t)]
            sums[index(q), index(x)] = value


@formula
def write_windows(sums, part, rest, nx, wx, counted, bc, z, y, constants, correlation, factors):
    """What follows from a row of window sums; returns the sum of the correlations.

    part: the weights along z and y that count; rest: the sum of those along x
    """
    floor, additive, epsilon, numerator, limit, squared = constants
    total = sums[index(0), index(0)] * ZERO
    kinds, mapped = factors.shape[0], correlation.shape[0] > 0
    for x in range(nx):
        i = index(x)
        w = part * (weight_inside(x, nx, wx) if counted else rest)
        value, d, k, e, g, h = window_factors(w, sums[0, i], sums[1, i], sums[2, i], sums[3, i], sums[4, i],
                                              floor, additive, epsilon, numerator, limit, squared)  # fmt: skip
        total += value
        if mapped:
            correlation[bc, z, y, i] = value
        if kinds >= SINGLE:
            factors[0, bc, z, y, i], factors[1, bc, z, y, i], factors[2, bc, z, y, i] = d, k, e
        if kinds == DOUBLE:
            factors[3, bc, z, y, i], factors[4, bc, z, y, i] = g, h
    return total


@row_kernel(items=lambda wz, wy, wx, constants, counted, fixed, *_: fixed.shape[0] * fixed.shape[2])
def correlation_rows(begin, end, wz, wy, wx, constants, counted, fixed, moved, rows, correlation, factors):
    """Sums of the correlation by row, and what else is asked for.

    wz, wy, wx: weights, of odd numbers;  constants: floor, additive, epsilon, numerator, limit, squared;  fixed, moved:
    (N, Z, Y, X);  rows: (N, Y);  correlation: (N, Z, Y, X) or (0, 0, 0, 0);  factors: (0, 3 or 5, N, Z, Y, X)
    """
    _, nz, ny, nx = fixed.shape
    kz, rz, rx = len(wz), len(wz) // 2, len(wx) // 2
    for by in range(begin, end):
        bc, y = by // ny, by % ny
        f0, m0 = fixed[bc, nz // 2, ny // 2, nx // 2], moved[bc, nz // 2, ny // 2, nx // 2]
        outside_f, outside_m = (f0 * ZERO, m0 * ZERO) if counted else (-f0, -m0)
        ring = np.zeros((kz, 5, nx + 2 * rx), fixed.dtype)
        columns, sums = np.empty((5, nx + 2 * rx), fixed.dtype), np.zeros((5, nx), fixed.dtype)
        whole_y, whole_x = weight_inside(len(wy), 3 * len(wy), wy), weight_inside(len(wx), 3 * len(wx), wx)
        whole_z, inside_y = weight_inside(kz, 3 * kz, wz), weight_inside(y, ny, wy)
        total = f0 * ZERO
        for step in range(-rz, nz + rz):
            line = ring[(step + rz) % kz]
            if 0 <= step < nz:
                sum_rows(line, y, nx, fixed[bc, step], moved[bc, step], f0, m0, outside_f, outside_m, wy)
            else:
                outside_rows(line, outside_f, outside_m, whole_y)
            z = step - rz
            if z >= 0:
                sum_ring(ring, z % kz, columns, sums, wz, wx)
                part = weight_inside(z, nz, wz) * inside_y if counted else whole_z * whole_y
                total += write_windows(sums, part, whole_x, nx, wx, counted, bc, z, y, constants, correlation, factors)
        rows[bc, y] = total


@formula
def sum_factor_rows(line, y, nx, weight, factors, first, second, third, bc, z, wy):
    """Weighted sums over the window's rows of one plane of three factors, times a map of weights where there is one."""
    r, ry, ny, mapped = (line.shape[1] - nx) // 2, len(wy) // 2, factors.shape[3], weight.shape[0] > 0
    line[:] = ZERO
    for t in range(len(wy)):
        j = y + t - ry
        if 0 <= j < ny:
            for x in range(nx):
                i = index(x)
                w = wy[t] * weight[bc, z, j, i] if mapped else wy[t]
                at = index(x + r)
                line[0, at] += w * factors[first, bc, z, j, i]
                line[1, at] += w * factors[second, bc, z, j, i]
                line[2, at] += w * factors[third, bc, z, j, i]


@row_kernel(items=lambda wz, wy, wx, kinds, scale, given, weight, factors, fixed, *_: fixed.shape[0] * fixed.shape[2])
def correlation_gradient_rows(begin, end, wz, wy, wx, kinds, scale, given, weight, factors, fixed, moved, out):
    """``out``: scale given times the derivative of the sum of the correlation with respect to ``moved``.

    kinds: which factors are D, K, E;  given: (N,), or (1,) for all;  weight: (N, Z, Y, X), the derivative with respect to the
    correlation of each window, or (0, 0, 0, 0);  out: (N, Z, Y, X);  other arguments as in ``correlation_rows``
    """
    _, nz, ny, nx = fixed.shape
    kz, rz, rx = len(wz), len(wz) // 2, len(wx) // 2
    first, second, third = kinds
    for by in range(begin, end):
        bc, y = by // ny, by % ny
        f0, m0 = fixed[bc, nz // 2, ny // 2, nx // 2], moved[bc, nz // 2, ny // 2, nx // 2]
        ring = np.zeros((kz, 3, nx + 2 * rx), fixed.dtype)
        columns, sums = np.empty((3, nx + 2 * rx), fixed.dtype), np.zeros((3, nx), fixed.dtype)
        g = scale * given[bc if given.shape[0] > 1 else 0]
        for step in range(-rz, nz + rz):
            line = ring[(step + rz) % kz]
            if 0 <= step < nz:
                sum_factor_rows(line, y, nx, weight, factors, first, second, third, bc, step, wy)
            else:
                line[:] = ZERO
            z = step - rz
            if z >= 0:
                sum_ring(ring, z % kz, columns, sums, wz, wx)
                for x in range(nx):
                    i = index(x)
                    f, m = fixed[bc, z, y, i] - f0, moved[bc, z, y, i] - m0
                    out[bc, z, y, i] = g * (f * sums[0, i] + m * sums[1, i] + sums[2, i])
