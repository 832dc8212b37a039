"""Three orthogonal views of a grid: which slice, how it lies on the page, and which letter stands at which edge."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Grid

AXES = "zyx"
# world axis z, y, x -> letters at its low and high end, in LPS
LETTERS = (("I", "S"), ("A", "P"), ("R", "L"))
PLANES = ("axial", "coronal", "sagittal")
MINIMUM_PIXELS = 192  # along the longest axis: smaller images are drawn with several pixels a voxel
SHORT = {
    "millimeter": "mm",
    "micrometer": "µm",
    "nanometer": "nm",
    "centimeter": "cm",
    "meter": "m",
    "inch": "in",
    "angstrom": "Å",
}


@dataclass(frozen=True)
class View:
    """One slice of ``grid`` on the page, drawn with square pixels of ``pixel`` world units.

    axis: the index axis looked along;  index: the slice;  down, right: index axes of the page's rows and columns;
    flipped: whether rows, columns run against their index axis;  edges: letters at top, right, bottom, left.
    """

    name: str
    grid: Grid
    pixel: float
    axis: int
    index: int
    down: int
    right: int
    flipped: tuple[bool, bool]
    edges: tuple[str, str, str, str]

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels (rows, columns)."""
        return _pixels(self.grid, self.down, self.pixel), _pixels(self.grid, self.right, self.pixel)

    @property
    def where(self) -> str:
        """The slice in words: ``S 12 mm`` is 12 mm above the world's origin."""
        middle = (np.asarray(self.grid.shape) - 1) / 2
        middle[self.axis] = self.index
        world = int(np.argmax(np.abs(np.asarray(self.grid.direction)[:, self.axis])))
        at = float(self.grid.to_world(middle)[world])
        if not self.grid.oriented:
            return f"{AXES[self.axis]} = {at:.4g} {short_unit(self.grid.unit)}"
        return f"{LETTERS[world][at >= 0]} {abs(at):.4g} {short_unit(self.grid.unit)}"

    def steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Index coordinates along ``down`` of the rows, and along ``right`` of the columns; (rows,) and (columns,)."""
        both = []
        for axis, count, flip in zip((self.down, self.right), self.shape, self.flipped, strict=True):
            index = (np.arange(count) + 0.5) * (self.pixel / self.grid.spacing[axis]) - 0.5
            both.append(np.asarray(index[::-1] if flip else index, np.float64))
        return both[0], both[1]

    def points(self) -> NDArray[np.float64]:
        """World positions of the pixels, (rows, columns, 3) z, y, x."""
        index = np.empty((*self.shape, 3))
        rows, columns = self.steps()
        index[..., self.axis], index[..., self.down], index[..., self.right] = self.index, rows[:, None], columns[None, :]
        return self.grid.to_world(index)

    def on_page(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Page positions (column, row) in pixels of index coordinates, (..., 3) -> (..., 2)."""
        position = []
        for axis, count, flip in ((self.right, self.shape[1], self.flipped[1]), (self.down, self.shape[0], self.flipped[0])):
            at = (index[..., axis] + 0.5) * self.grid.spacing[axis] / self.pixel
            position.append(count - at if flip else at)
        return np.stack(position, -1)


def three_views(grid: Grid, slices: tuple[int, int, int], pixel: float) -> tuple[View, ...]:
    """Axial, coronal and sagittal, or xy, xz and zy where the store did not say how its axes lie."""
    return _anatomical(grid, slices, pixel) if grid.oriented else _by_index(grid, slices, pixel)


def pixel_size(grid: Grid) -> float:
    """World units a pixel: the finest spacing, halved until the longest axis has enough pixels."""
    longest, pixel = float(max(grid.extent)), min(grid.spacing)
    while longest / pixel < MINIMUM_PIXELS:
        pixel /= 2
    return pixel


def short_unit(unit: str | None) -> str:
    """``mm`` for ``millimeter``; a word where there is none."""
    return SHORT.get(unit, unit) if unit else "units"


def bar_length(length: float) -> float:
    """A round number, 1, 2 or 5 times a power of ten, of about a quarter of ``length``."""
    power = 10.0 ** math.floor(math.log10(length / 4))
    return float(max(k * power for k in (1, 2, 5) if k == 1 or k * power <= length / 4))


def _pixels(grid: Grid, axis: int, pixel: float) -> int:
    return max(1, round(grid.shape[axis] * grid.spacing[axis] / pixel))


def _anatomical(grid: Grid, slices: tuple[int, int, int], pixel: float) -> tuple[View, ...]:
    """Top is superior or anterior, left is the patient's right, or anterior in the sagittal view."""
    index = world_axes(grid)
    rising = [grid.direction[w][index[w]] > 0 for w in range(3)]
    views = []
    for name, seen, down, right in zip(PLANES, (0, 1, 2), (1, 0, 0), (2, 2, 1), strict=True):
        upright = down == 0  # S is up, but z rises towards S
        top, bottom = LETTERS[down][::-1] if upright else LETTERS[down]
        left, far = LETTERS[right]
        flips = (rising[down] == upright, not rising[right])
        at = index[seen]
        views.append(View(name, grid, pixel, at, slices[at], index[down], index[right], flips, (top, far, bottom, left)))
    return tuple(views)


def world_axes(grid: Grid) -> tuple[int, int, int]:
    """For world z, y, x the index axis that runs most along it."""
    part = np.abs(np.asarray(grid.direction))
    z, y, x = max(itertools.permutations(range(3)), key=lambda order: sum(part[w, a] for w, a in enumerate(order)))
    return z, y, x


def _by_index(grid: Grid, slices: tuple[int, int, int], pixel: float) -> tuple[View, ...]:
    views = []
    for seen, down, right in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        name, edges = f"{AXES[right]}{AXES[down]}", ("", AXES[right] + "+", AXES[down] + "+", "")
        views.append(View(name, grid, pixel, seen, slices[seen], down, right, (False, False), edges))
    return tuple(views)
