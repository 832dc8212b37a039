"""The grid that a file states, before it is validated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from daskreg.grid import IDENTITY, Grid
from daskreg.grid.grid import Matrix3, Triple


def triple(values: Iterable[float]) -> Triple:
    """Three numbers as a tuple of floats. Raises ValueError for another count."""
    z, y, x = (float(v) for v in values)
    return z, y, x


def matrix3(rows: Iterable[Iterable[float]]) -> Matrix3:
    """Three rows of three numbers as tuples. Raises ValueError for another count."""
    z, y, x = (triple(row) for row in rows)
    return z, y, x


@dataclass(frozen=True)
class GridMetadata:
    """spacing and translation along the image's own axes (z, y, x); direction, unit and oriented as in Grid.

    ``world = direction @ (translation + spacing * index)``;  sized: whether the spacing is stated; else it is relative to that of
    the finest level, and one has to be given;  unit_stated: False where the unit is that which readers of the format take
    """

    spacing: Triple
    translation: Triple = (0.0, 0.0, 0.0)
    direction: Matrix3 = IDENTITY
    unit: str | None = None
    oriented: bool = False
    origin: Triple | None = None  # when the store states it directly; else direction @ translation
    sized: bool = True
    unit_stated: bool = True

    @classmethod
    def of(cls, grid: Grid) -> GridMetadata:
        """The metadata of a grid."""
        return cls(grid.spacing, (0.0, 0.0, 0.0), grid.direction, grid.unit, grid.oriented, grid.origin)

    @property
    def places(self) -> bool:
        """Whether it states where voxels are in space: their size, or how they lie; without either an image is an array."""
        return self.sized or self.direction != IDENTITY or any(self.origin or ())

    def grid(self, shape: tuple[int, ...], spacing: Triple | None = None, unit: str | None = None) -> Grid:
        """The grid; a given spacing rescales the image about the world's origin, a given unit renames.

        Raises GridError and UnitsError.
        """
        origin = np.asarray(self.origin if self.origin is not None else np.asarray(self.direction) @ np.asarray(self.translation))
        if spacing is not None:
            origin = self._rescaled(origin, spacing)
        z, y, x = shape
        return Grid((z, y, x), spacing or self.spacing, triple(origin), self.direction, unit or self.unit, self.oriented)

    def _rescaled(self, origin: object, spacing: Triple) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        direction = np.asarray(self.direction)
        stored = np.where(np.asarray(self.spacing) == 0, 1, self.spacing)
        along = np.linalg.solve(direction, np.asarray(origin, float)) * np.asarray(spacing) / stored
        return np.asarray(direction @ along, float)
