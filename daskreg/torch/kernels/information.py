"""Mutual information with Parzen windows of few bins: one formula with constants for all conventions, and its CPU kernels.

A voxel's intensity I has the bin coordinate t = (min(max(I, low), high) - origin) per_intensity, and a weight in the ``taps``
bins around it: a Gaussian, normalised over the bins that exist, or a cubic B-spline. With p(i, j) the mean product of the
weights of moved and fixed, MI = sum p log((p + numerator) / (p_i p_j + denominator) + additive). The derivative with respect to
an intensity is a sum over ``taps`` x ``taps`` entries of a table, so nothing is stored per voxel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import float32, int32, int64
from numpy.typing import NDArray

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import row_kernel
from daskreg.kernels.intrinsics.arithmetic import floor_int32

index = int64  # replaced by the launcher
ONE, ZERO, HALF, TWO, THREE, FOUR = (float32(k) for k in (1, 0, 0.5, 2, 3, 4))
GAUSSIAN, SPLINE = 0, 1
CHUNKS = 16  # of a volume on a CPU, each with a histogram of its own; sums do not depend on the number of threads


class ParzenWindow(NamedTuple):
    """A Parzen window. bins: that exist;  pad: bins added on each side, always empty;  steepness: h of exp(-h d^2), d in bins."""

    kind: int
    bins: int
    taps: int
    pad: int
    low: float
    high: float
    origin: float
    per_intensity: float
    steepness: float

    @property
    def edge(self) -> int:
        """Bins of the stored histogram along an axis."""
        return self.bins + 2 * self.pad


def gaussian_window(bins: int, ratio: float, low: float, high: float, clip: float) -> ParzenWindow:
    """Bins centred from ``low`` to ``high``, a Gaussian of ``ratio`` bins; intensities are clamped to clip .. high.

    Weights further away than 4.5 sigma are left out.
    """
    radius = max(1, math.ceil(4.5 * ratio - 0.5))
    return ParzenWindow(GAUSSIAN, bins, 2 * radius + 1, radius, clip, high, low, (bins - 1) / (high - low), 0.5 / ratio**2)


def spline_window(bins: int, low: float, high: float) -> ParzenWindow:
    """Cubic B-splines after Mattes, with two more bins at each end."""
    per = (bins - 5) / (high - low)
    return ParzenWindow(SPLINE, bins, 4, 0, low, high, low - 2 / per, per, 0.0)


@formula
def bin_place(value, kind, taps, low, high, origin, per):
    """The bin coordinate of an intensity, and the first bin of its window."""
    t = (min(max(value, low), high) - origin) * per
    return t, (floor_int32(t + HALF) - int32(taps // 2) if kind == GAUSSIAN else floor_int32(t) - int32(1))


@formula
def within(first, taps, bins, pad):
    """The first bin of a window as it is: that of an intensity that is not a number may be anywhere."""
    return min(max(first, -int32(pad)), int32(bins + pad - taps))


@formula
def spline_weight(d):
    """The cubic B-spline at a distance."""
    a = abs(d)
    near = (FOUR - a * a * (float32(6) - THREE * a)) / float32(6)
    far = (TWO - a) * (TWO - a) * (TWO - a) / float32(6)
    return near if a < ONE else (far if a < TWO else a * ZERO)


@formula
def spline_slope(d):
    """Its derivative."""
    a, sign = abs(d), (ONE if d > ZERO else -ONE)
    near, far = a * (float32(1.5) * a - TWO), -HALF * (TWO - a) * (TWO - a)
    return sign * (near if a < ONE else (far if a < TWO else a * ZERO))


@formula
def fill_weights(t, first, kind, taps, bins, steepness, weights):
    """The weights of the bins from ``first`` on; 0 for bins that do not exist."""
    total = t * ZERO
    for k in range(taps):
        i = first + int32(k)
        d = t - float32(i)
        w = math.exp(-steepness * d * d) if kind == GAUSSIAN else spline_weight(d)
        w = w if (i >= int32(0)) & (i < int32(bins)) else w * ZERO
        weights[k] = w
        total += w
    if kind == GAUSSIAN:
        total = ONE / total
        for k in range(taps):
            weights[k] *= total


@formula
def fill_slopes(t, first, kind, taps, steepness, weights, slopes):
    """The derivatives of the weights with respect to t."""
    mean = t * ZERO
    for k in range(taps):
        d = t - float32(first + int32(k))
        slopes[k] = -TWO * steepness * d if kind == GAUSSIAN else spline_slope(d)
        mean += weights[k] * slopes[k]
    if kind == GAUSSIAN:
        for k in range(taps):
            slopes[k] = weights[k] * (slopes[k] - mean)


@row_kernel(items=lambda window, fixed, moved, counts: fixed.shape[0] * counts.shape[1])
def joint_rows(begin, end, window, fixed, moved, counts):
    """Add the joint histogram of each chunk of each volume.  fixed, moved: (N, voxels);  counts: (N, CHUNKS, edge, edge)"""
    kind, bins, taps, pad, low, high, origin, per, steepness = window
    n, chunks = fixed.shape[1], counts.shape[1]
    for bc in range(begin, end):
        b, chunk = bc // chunks, bc % chunks
        mine = counts[b, chunk]
        of_moved, of_fixed = np.empty(taps, fixed.dtype), np.empty(taps, fixed.dtype)
        for v in range(chunk * n // chunks, (chunk + 1) * n // chunks):
            t, i = bin_place(moved[b, v], kind, taps, low, high, origin, per)
            s, j = bin_place(fixed[b, v], kind, taps, low, high, origin, per)
            i, j = within(i, taps, bins, pad), within(j, taps, bins, pad)
            fill_weights(t, i, kind, taps, bins, steepness, of_moved)
            fill_weights(s, j, kind, taps, bins, steepness, of_fixed)
            for k in range(taps):
                for q in range(taps):
                    mine[i + int32(k + pad), j + int32(q + pad)] += of_moved[k] * of_fixed[q]


@row_kernel(items=lambda window, factor, given, table, fixed, *_: fixed.shape[0] * CHUNKS)
def information_gradient_rows(begin, end, window, factor, given, table, fixed, moved, out):
    """``out``: factor given times the derivative of MI times the number of voxels with respect to ``moved``.

    given: (N,), or (1,) for all;  table: (N, edge, edge), bins of moved first;  other arguments as in ``joint_rows``
    """
    kind, bins, taps, pad, low, high, origin, per, steepness = window
    n = fixed.shape[1]
    for bc in range(begin, end):
        b, chunk = bc // CHUNKS, bc % CHUNKS
        mine, g = table[b], factor * given[b if given.shape[0] > 1 else 0] * per
        of_moved, of_fixed, slopes = np.empty(taps, fixed.dtype), np.empty(taps, fixed.dtype), np.empty(taps, fixed.dtype)
        for v in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
            value = moved[b, v]
            t, i = bin_place(value, kind, taps, low, high, origin, per)
            s, j = bin_place(fixed[b, v], kind, taps, low, high, origin, per)
            i, j = within(i, taps, bins, pad), within(j, taps, bins, pad)
            fill_weights(t, i, kind, taps, bins, steepness, of_moved)
            fill_slopes(t, i, kind, taps, steepness, of_moved, slopes)
            fill_weights(s, j, kind, taps, bins, steepness, of_fixed)
            total = t * ZERO
            for k in range(taps):
                row = t * ZERO
                for q in range(taps):
                    row += mine[i + int32(k + pad), j + int32(q + pad)] * of_fixed[q]
                total += slopes[k] * row
            out[b, v] = g * total if (value >= low) & (value <= high) else total * ZERO


def information_tables(
    counts: NDArray[np.float64], numerator: float, denominator: float, additive: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """MI of each histogram (N, edge, edge), and the tables for the derivatives with respect to moved and fixed.

    Tables are (N, edge, edge), with the bins of their own image first.
    """
    p = counts / counts.sum((1, 2), keepdims=True)
    of_moved, of_fixed = p.sum(2, keepdims=True), p.sum(1, keepdims=True)
    product = of_moved * of_fixed
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(product + denominator <= 0, 0.0, (p + numerator) / (product + denominator))
        inside = ratio + additive
        empty = inside <= 0  # not of what is no number
        logarithm = np.where(empty, 0.0, np.log(inside))
        share = np.where(empty, 0.0, p / inside / (product + denominator))
        to_joint = logarithm + share
        to_product = np.where(empty, 0.0, -share * ratio)
    value = (p * logarithm).sum((1, 2))
    to_moved = to_joint + (to_product * of_fixed).sum(2, keepdims=True)
    to_fixed = to_joint + (to_product * of_moved).sum(1, keepdims=True)
    return value, to_moved, np.ascontiguousarray(to_fixed.transpose(0, 2, 1))
