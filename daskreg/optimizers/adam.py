"""Adam on a displacement field, one step bounded in voxels (method, section 5)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

EPSILON = 0.1  # of a clear gradient: below it a voxel hardly moves, so that noise, and a perfect match, stay at rest


def rates(betas: tuple[float, float], t: int, steep: float) -> NDArray[np.float32]:
    """What the kernel needs in step t = 1, 2, ...: both decays, both bias corrections, epsilon (``steep``: a clear gradient)."""
    b1, b2 = betas
    return np.array([b1, b2, 1 / (1 - b1**t), 1 / (1 - b2**t), EPSILON * steep], np.float32)


def step_scale(largest_square: float, step: float) -> NDArray[np.float32]:
    """Factor that keeps the longest vector at ``step`` half voxels or less: (1,) float32."""
    return np.array([0.5 * step / max(1.0, math.sqrt(largest_square))], np.float32)
