"""How much a map changes lengths beyond another one, as a number with a derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def strain_energy(world: Matrix, start: Matrix) -> tuple[float, Matrix]:
    """Squared Frobenius norm of the Green strain of ``world`` beyond ``start``, and its derivative by ``world``, both (4, 4).

    0 where they differ by a rotation and a translation; e^2 for a stretch by 1 + e along one axis, if e is small.
    """
    inverse = np.linalg.inv(start[:3, :3])
    f = world[:3, :3] @ inverse
    strain = (f.T @ f - np.eye(3)) / 2
    slope = np.zeros((4, 4))
    slope[:3, :3] = 2 * f @ strain @ inverse.T
    return float((strain * strain).sum()), slope


@dataclass
class Stiffness:
    """Adds to a loss what a strain costs: ``stiffness`` times the loss's first value, in magnitude, times ``strain_energy``."""

    loss: Callable[[Matrix], tuple[float, Matrix]]
    start: Matrix
    stiffness: float
    unit: float | None = None

    def __call__(self, world: Matrix) -> tuple[float, Matrix]:
        """Value, and derivative by ``world`` (4, 4)."""
        value, slope = self.loss(world)
        if self.unit is None:
            self.unit = self.stiffness * abs(value)
        energy, along = strain_energy(world, self.start)
        return value + self.unit * energy, slope + self.unit * along
