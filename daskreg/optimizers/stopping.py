"""When a level has given what it can: the slope of the last losses."""

from __future__ import annotations

import numpy as np


class Plateau:
    """Stop when the loss falls by less than ``tolerance`` of its size an iteration, over ``window`` iterations.

    The ANTs triple [iterations, tolerance, window]; the slope is a least-squares line, so that a noisy loss neither stops
    a level early nor keeps it alive (a rule that waits for the loss to rise would).
    """

    def __init__(self, tolerance: float, window: int) -> None:
        self.tolerance, self.window = tolerance, window
        self._at = np.arange(window) - (window - 1) / 2

    def reached(self, losses: list[float]) -> bool:
        """Whether the last losses lie on a plateau."""
        if self.tolerance <= 0 or len(losses) < self.window:
            return False
        last = np.asarray(losses[-self.window :])
        slope = float(self._at @ (last - last.mean()) / (self._at @ self._at))
        return -slope < self.tolerance * max(abs(float(last.mean())), 1e-12)
