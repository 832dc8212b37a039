"""Mean squared error: ``C = sum w (moved - fixed)^2 / N`` (method, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import Shape, on_device
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import Similarity, Volume
from daskreg.similarity.mse.cpu import difference
from daskreg.similarity.mse.cuda import difference_of


class MeanSquaredError(Similarity):
    """One pass gives both value and gradient."""

    steep = 0.01

    def partial(self, box: Shape, fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> NDArray[np.generic]:
        """Rows of (w e^2, w); ``moved`` already becomes the gradient."""
        if on_device(moved):
            totals = module_of(moved).zeros(2, np.int64)
            difference_of(box, fixed, weight, moved, totals)
            return host(totals)
        return difference(box, fixed, weight, moved)  # type: ignore[no-any-return]

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Sum of squares over sum of weights."""
        return self.ratio(total)

    def finish(
        self, box: Shape, total: NDArray[np.generic], fixed: Volume, weight: Volume, moved: Volume, fields: Volume
    ) -> None:
        """Nothing is left to do."""
