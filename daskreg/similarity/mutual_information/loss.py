"""Mutual information after Mattes, from a joint histogram in fixed-point integers (method, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import Shape, on_device, threads
from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import Similarity, Volume
from daskreg.similarity.mutual_information.cpu import FIXED_POINT, information_slope, joint_histogram
from daskreg.similarity.mutual_information.cuda import count, slope


class MutualInformation(Similarity):
    """``C = -sum p log(p / (p_i p_j))`` over B x B bins, cubic B-spline Parzen windows for both images."""

    counts = True
    steep = 0.3

    def __init__(self, bins: int) -> None:
        self.bins = bins

    def partial(self, box: Shape, fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> NDArray[np.generic]:
        """The joint counts (B, B) int64: rows moved, columns fixed."""
        if on_device(moved):
            totals = module_of(moved).zeros(self.bins**2, np.int64)
            count(whole_box(box), self.bins, fixed, weight, moved, totals)
            return host(totals).reshape(self.bins, self.bins)
        tiles = np.zeros((threads(), self.bins, self.bins), np.int64)
        joint_histogram(box, tiles, fixed, weight, moved)
        return np.asarray(tiles.sum(axis=0))

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Minus the mutual information in nats, and the number of voxels behind it."""
        p, n = _probabilities(total)
        return -float(np.sum(p * _log_ratio(p))), n

    def finish(
        self, box: Shape, total: NDArray[np.generic], fixed: Volume, weight: Volume, moved: Volume, fields: Volume
    ) -> None:
        """One look-up of 4 x 4 bins a voxel."""
        table = _log_ratio(_probabilities(total)[0]).astype(np.float32)
        if on_device(moved):
            on_gpu = module_of(moved).asarray(table.ravel())
            slope(whole_box(box), self.bins, on_gpu, fixed, weight, moved)
        else:
            information_slope(box, table, fixed, weight, moved)


def _probabilities(total: NDArray[np.generic]) -> tuple[NDArray[np.float64], float]:
    counts = total.astype(np.float64)
    n = float(counts.sum())
    return counts / max(n, 1.0), n / FIXED_POINT


def _log_ratio(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p_ij / (p_i p_j)), 0 where p is."""
    apart = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    return np.log(np.where(p > 0, p, 1) / np.where(p > 0, apart, 1))
