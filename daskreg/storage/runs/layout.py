"""What is where in a run, and what its numbers mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOVED = "moved"
DISPLACEMENT = "transform/displacement"
MEANING = (
    "phi(x) = A (x + d(x)) maps a point x of the fixed image to its place in the moving image. Points are in the world, LPS, "
    "in the unit of the fixed grid, components in the order z, y, x. A is 'affine', (4, 4), homogeneous, applied to column "
    "vectors (z, y, x, 1). d is the array 'transform/displacement' on the fixed grid, components first, in world units, along "
    "the fixed grid's own axes z, y, x: its 'direction' times them is along the world's. It is interpolated trilinearly, zero "
    "outside the fixed grid and where the array is absent. moved(x) = moving(phi(x)). The root's 'ome', an NGFF 0.6 scene, says "
    "the same."
)


def transform_attributes(affine: NDArray[np.float64]) -> dict[str, Any]:
    """The attributes of ``transform`` for an affine, (4, 4)."""
    return {"daskreg": {"meaning": MEANING, "order": "z, y, x, 1", "affine": affine.tolist(), "displacement": DISPLACEMENT}}
