"""Local normalised cross-correlation: ``C = -sum w cc / N`` (method, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import Shape, on_device
from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import Similarity, Volume
from daskreg.similarity.lncc.cpu import march_factors, march_slope
from daskreg.similarity.lncc.cuda.launch import slope, windows

Box = tuple[int, int, int, int]


class LocalCorrelation(Similarity):
    """Windows of (2 radius + 1)^3 voxels; the gradient is exact, or that of the centre window alone."""

    def __init__(self, radius: int, epsilon: float = 1e-12, flat: float = 0.0, exact: bool = True) -> None:
        self.radius, self.exact = radius, exact
        self.epsilon, self.flat = np.float32(epsilon), np.float32(flat**2)
        self.reach = 2 * radius if exact else radius
        self.steep = 0.1 if exact else 0.1 / (2 * radius + 1) ** 3  # the exact gradient adds up as many windows as one has voxels
        self._ones = (np.float32(1),) * (2 * radius + 1)

    def partial(self, box: Shape, fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> NDArray[np.generic]:
        """Rows of (w cc, w); ``fields`` receives w D, w K, w (K mu_M - D mu_F)."""
        first, planes, ny, _ = n = self.windows(box, moved)
        if on_device(moved):
            return self._counted(n, whole_box(box), fixed, weight, moved, fields)
        rows = np.zeros((2, planes, ny), np.float32)
        march_factors(n, rows, self._ones, self.epsilon, self.flat, fixed, weight, moved, fields)
        own = whole_box(box)
        return rows[:, own[0] - first : own[0] - first + own[1]]

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Minus the mean squared correlation."""
        mean, n = self.ratio(total)
        return -mean, n

    def finish(
        self, box: Shape, total: NDArray[np.generic], fixed: Volume, weight: Volume, moved: Volume, fields: Volume
    ) -> None:
        """Window sums of ``fields``, or their centre."""
        if on_device(moved):
            self._finish_on_device(whole_box(box), fixed, weight, moved, fields)
            return
        ones = self._ones if self.exact else self._ones[:1]
        march_slope(whole_box(box), ones, fields, fixed, weight, moved)

    def _counted(
        self, n: Box, own: tuple[int, ...], fixed: Volume, weight: Volume, moved: Volume, fields: Volume
    ) -> NDArray[np.generic]:
        """On a GPU: sums in units."""
        totals = module_of(moved).zeros(2, np.int64)
        span = own[0], own[0] + own[1]
        self.look(n, span, fixed, weight, moved, fields, totals)
        return host(totals)

    def look(self, n: Box, own: tuple[int, int], fixed: Volume, weight: Volume, moved: Volume, out: Volume, totals: Any) -> None:
        """On a GPU, ``lncc_march.windows``; nothing is waited for."""
        windows(n, self.origin, own, self.radius, self.epsilon, self.flat, fixed, weight, moved, out, totals)

    def _finish_on_device(self, n: Box, fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> None:
        if self.exact:
            slope(n, self.origin, self.radius, fields, fixed, weight, moved)
        else:
            own, planes = fields[0], slice(n[0], n[0] + n[1])
            self.look(n, (0, 0), fixed, weight, moved, own, module_of(moved).zeros(2, np.int64))
            moved[planes] = own[planes]

    def windows(self, box: Shape, moved: Volume) -> Box:
        """The planes whose windows are needed: for the exact gradient also those that overlap the box from outside."""
        first, planes, ny, nx = whole_box(box)
        more = self.radius if self.exact and planes else 0
        start, stop = max(0, first - more), min(moved.shape[0], first + planes + more)
        return start, stop - start, ny, nx
