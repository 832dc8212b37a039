"""A matrix applied to every vector of a field."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def apply_matrix(matrix: NDArray[np.float64], field: NDArray[Any]) -> NDArray[np.float32]:
    """Apply a matrix (3, 3) to every vector of (3, Z, Y, X), with float32 sums in one order on any device."""
    out: NDArray[np.float32] = np.empty_like(field, np.float32, "C")
    for row, total in zip(matrix.astype(np.float32), out, strict=True):
        np.multiply(field[0], row[0], out=total)
        total += field[1] * row[1]
        total += field[2] * row[2]
    return out
