"""Mean squared error: ``C = sum w (moved - fixed)^2 / N`` (method, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.difference import difference
from daskreg.kernels.launch import Shape
from daskreg.similarity.base import Similarity, Volume


class MeanSquaredError(Similarity):
    """One pass gives both value and gradient."""

    steep = 0.01

    def partial(self, box: Shape, fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> NDArray[np.generic]:
        """Rows of (w e^2, w); ``moved`` already becomes the gradient."""
        return difference(box, fixed, weight, moved)  # type: ignore[no-any-return]

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Sum of squares over sum of weights."""
        return float(total[0]) / max(float(total[1]), 1e-30), float(total[1])

    def finish(
        self, box: Shape, total: NDArray[np.generic], fixed: Volume, weight: Volume, moved: Volume, fields: Volume
    ) -> None:
        """Nothing is left to do."""
