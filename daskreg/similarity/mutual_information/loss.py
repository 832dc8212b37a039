"""Mutual information after Mattes, from a joint histogram in fixed-point integers (method, section 3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.host_launch import thread_count
from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import LossContext, Samples, Similarity
from daskreg.similarity.mutual_information.cpu import FIXED_POINT, TOGETHER, information_gradient, joint_histogram_rows
from daskreg.similarity.mutual_information.cuda.columns import sample_and_differentiate
from daskreg.similarity.mutual_information.cuda.gradient import compute_gradient
from daskreg.similarity.mutual_information.cuda.histogram import compute_table, count_joint


class MutualInformation(Similarity):
    """``C = -sum p log(p / (p_i p_j))`` over B x B bins, cubic B-spline Parzen windows for both images."""

    def __init__(self, bins: int) -> None:
        self.bins = bins

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """The joint counts (B, B) int64: rows moved, columns fixed."""
        tiles = np.zeros((thread_count(), self.bins**2), np.int64)
        terms = np.empty((len(tiles), 8, TOGETHER), np.float32), np.empty((len(tiles), TOGETHER), np.int32)
        recent = np.zeros(tiles.shape, np.int32)
        joint_histogram_rows(whole_box(s.box), self.bins, tiles, recent, *terms, s.fixed, s.weight, s.moved)
        return np.asarray(tiles.sum(axis=0)).reshape(self.bins, self.bins)

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Minus the mutual information in nats, and the number of voxels behind it."""
        p, n = _probabilities(total)
        return -float(np.sum(p * _log_ratio(p))), n

    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """One look-up of 4 x 4 bins a voxel."""
        table = _log_ratio(_probabilities(total)[0]).astype(np.float32)
        information_gradient(s.box, table, s.fixed, s.weight, s.moved)


class MutualInformationOnGpu(MutualInformation):
    """The same with histograms in shared memory; in a deformable stage the table is made on the device too."""

    asynchronous = True

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """As on a CPU."""
        totals = module_of(s.moved).zeros(self.bins**2, np.int64)
        count_joint(s.box, self.bins, s.fixed, s.weight, s.moved, totals)
        return host(totals).reshape(self.bins, self.bins)

    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """As on a CPU."""
        table = _log_ratio(_probabilities(total)[0]).astype(np.float32)
        on_gpu = module_of(s.moved).asarray(table.ravel())
        compute_gradient(s.box, self.bins, on_gpu, s.fixed, s.weight, s.moved)

    def evaluate(self, on: LossContext) -> None:
        """See ``Similarity.evaluate``."""
        xp, size = module_of(on.samples.moved), self.bins**2
        if not hasattr(self, "_counts"):
            self._counts, self._table = xp.zeros(size, np.int64), xp.zeros(size, np.float32)
        on.sample()
        on.run("histogram", partial(self._count, on.samples))
        on.sum_counts(self._counts)
        on.run("table", lambda: compute_table(self.bins, self._counts, self._table, on.loss))
        self._pull_back(on, self._table)

    def between(self, total: NDArray[np.generic], on: LossContext) -> tuple[Any, float]:
        """The table as ``evaluate`` makes it, on the device."""
        xp = module_of(on.samples.moved)
        table, loss = xp.zeros(self.bins**2, np.float32), xp.zeros(2, np.float64)
        compute_table(self.bins, xp.asarray(np.ascontiguousarray(total, np.int64).ravel()), table, loss)
        return table, float(host(loss)[0])

    def differentiate(self, on: LossContext, between: Any) -> None:
        """See ``Similarity.differentiate``."""
        self._pull_back(on, between)

    def _count(self, s: Samples) -> None:
        self._counts.fill(0)
        count_joint(s.box, self.bins, s.fixed, s.weight, s.moved, self._counts)

    def _pull_back(self, on: LossContext, table: Any) -> None:
        """In one pass with the slope, where the moving image has no mask: the weights of samples are not stored then."""
        s = on.samples
        slope = partial(compute_gradient, bins=self.bins, table=table, fixed=s.fixed, weight=s.weight, moved=s.moved)
        if on.masked:
            on.run("slope", partial(slope, s.box))
            on.pull_back(s.moved)
        else:
            on.pull_back_fused(
                partial(sample_and_differentiate, bins=self.bins, table=table, fixed=s.fixed, weight=s.weight), slope
            )


def _probabilities(total: NDArray[np.generic]) -> tuple[NDArray[np.float64], float]:
    counts = total.astype(np.float64)
    n = float(counts.sum())
    return counts / max(n, 1.0), n / FIXED_POINT


def _log_ratio(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p_ij / (p_i p_j)), 0 where p is."""
    apart = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    return np.log(np.where(p > 0, p, 1) / np.where(p > 0, apart, 1))
