"""The loss and its gradient on one slab of a sweep: what ``similarity.base.LossContext`` promises, on a few planes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.reach import SamplingMap
from daskreg.engine.sampler import Resident
from daskreg.kernels.compiler.launch import Shape
from daskreg.similarity.base import FusedKernel, Samples


class SlabEvaluation:
    """One evaluation on planes whose points have been sampled.

    parts: of what ``Similarity.partial`` returned, in the order of the planes.
    """

    masked: bool

    def __init__(
        self,
        samples: Samples,
        slope: Any,
        sampler: Resident,
        mapping: SamplingMap,
        u: Any,
        gradient: Any,
        totals: Any,
        loss: Any,
    ) -> None:
        self.samples, self.slope, self.sampler, self.mapping, self.u = samples, slope, sampler, mapping, u
        self.gradient, self.totals, self.loss, self.masked = gradient, totals, loss, sampler.mask is not None
        self.part: NDArray[np.generic] | None = None

    def sample(self) -> None:
        """That was done, as far as planes around these are read."""

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """At once."""
        launches()

    def total(self, part: NDArray[np.generic]) -> NDArray[np.generic]:
        """Kept; the sum over all slabs is not known yet."""
        self.part = part
        return np.ones(2) if np.issubdtype(part.dtype, np.integer) else part.sum(axis=(1, 2), dtype=np.float64)

    def sum_counts(self, counts: Any) -> None:
        """Between two sweeps."""

    def pull_back(self, slope: Any) -> None:
        """See ``LossContext``."""
        self.sampler.pull_back(self.samples.box, self.mapping, self.u, slope, self.gradient)

    def pull_back_fused(self, fused: FusedKernel, compare: Callable[[Shape], None]) -> None:
        """See ``LossContext``."""
        image = self.sampler
        fused(self.samples.box, sampling=(*self.mapping, self.u, image.origin, image.planes, image.image), gradient=self.gradient)

    def sample_and_pull_back(self, fused: FusedKernel, compare: Callable[[Shape], None]) -> None:
        """See ``LossContext``."""
        self.pull_back_fused(fused, compare)

    def finished(self, loss: float) -> None:
        """Of a slab: of no use."""
