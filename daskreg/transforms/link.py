"""One link of a transform, ``W(x + d(x))``: a displacement followed by an affine map."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import ArrayError, Unreadable
from daskreg.grid import Grid, Region

if TYPE_CHECKING:
    from scipy import ndimage
else:
    ndimage = DeferredModule("scipy.ndimage")

LOOKUP_EDGE = 128  # voxels along each axis of a box whose points are looked up together: 24 MiB of displacement
Points = NDArray[np.float64]


def real_array(values: Any, what: str) -> NDArray[np.float64]:
    """The values as an array of float64. Raises ArrayError, which names ``what``, for anything but real numbers."""
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArrayError(f"{what} is {reprlib.repr(values)}; an array of numbers was expected ({error}).") from None


@dataclass(frozen=True, eq=False)
class Link:
    """One map of points, ``W(x + d(x))``, between worlds in LPS, z, y, x, in one unit.

    affine: W, (4, 4), order z, y, x, 1;  grid: the grid of d, None for a map without d that belongs to no image;
    displacement: d, (3, Z, Y, X) on ``grid``, world units, components z, y, x: an array or anything lazy that slices to one,
    None for none. d is trilinear between voxels and 0 outside the grid.

    Raises ArrayError when these do not fit each other.
    """

    affine: NDArray[np.float64]
    grid: Grid | None = None
    displacement: Any = None

    def __post_init__(self) -> None:
        """Check the shapes, once."""
        affine = real_array(self.affine, "an affine")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ArrayError(f"an affine of shape {affine.shape} was given; (4, 4) finite numbers were expected.")
        if self.displacement is not None:
            shape = None if self.grid is None else self.grid.shape
            found = tuple(getattr(self.displacement, "shape", ()))
            if shape is None or found != (3, *shape):
                raise ArrayError(f"a displacement of {found} does not fit a grid of {shape}.")
        object.__setattr__(self, "affine", affine)

    @property
    def displacement_grid(self) -> Grid:
        """The grid of d. Raises ValueError where there is none."""
        if self.grid is None:
            raise ValueError("this map has no displacement, and so no grid of its own.")
        return self.grid

    def to_unit(self, unit: str | None, scale: float) -> Link:
        """The same map in another unit of length, ``scale`` of which are one of the present unit."""
        affine = self.affine.copy()
        affine[:3, 3] *= scale
        grid = None if self.grid is None else self.grid.to_unit(unit)
        return Link(affine, grid, None if self.displacement is None else ScaledField(self.displacement, scale))

    def transform_points(self, fixed: ArrayLike) -> Points:
        """Map fixed points (..., 3) to moving points (..., 3); both world, z, y, x.

        Raises ArrayError unless the last axis has three components.
        """
        p = np.asarray(fixed, float)
        if p.shape[-1:] != (3,):
            raise ArrayError(f"points of shape {p.shape} were given; (..., 3) in the order z, y, x was expected.")
        warped = p if self.displacement is None else p + self.displacement_at(p.reshape(-1, 3)).reshape(p.shape)
        return np.asarray(warped @ self.affine[:3, :3].T + self.affine[:3, 3])

    def displacement_at(self, points: Points) -> Points:
        """Values of d at world points (N, 3), (N, 3); reads only the boxes that hold points."""
        grid = self.displacement_grid
        d, index = np.zeros((len(points), 3)), grid.to_index(points)
        near = np.flatnonzero(((index > -1) & (index < grid.shape)).all(axis=1))
        cells = np.floor(index[near] / LOOKUP_EDGE).astype(int)
        for cell in np.unique(cells, axis=0):
            rows = near[(cells == cell).all(axis=1)]
            d[rows] = self._interpolate(index[rows])
        return d

    def _interpolate(self, index: Points) -> Points:
        low, high = np.floor(index.min(axis=0)).astype(int), np.floor(index.max(axis=0)).astype(int) + 2
        box = Region(tuple(low), tuple(high)) & self.displacement_grid.region
        at, d = (index - box.start).T, self.read(box)
        return np.stack([ndimage.map_coordinates(c, at, np.float64, order=1, mode="grid-constant") for c in d], axis=1)

    def read(self, box: Region) -> NDArray[np.float32]:
        """Values of d in a box of its grid, (3, Z, Y, X). Raises Unreadable where one is not finite."""
        d = np.ascontiguousarray(self.displacement[(slice(None), *box.slices)], np.float32)
        finite = np.isfinite(d).all(axis=0)
        if not finite.all():
            at = tuple(int(k) + a for k, a in zip(np.argwhere(~finite)[0], box.start, strict=True))
            raise Unreadable(f"the displacement is not finite at voxel {at} (z, y, x) of its grid; finite numbers were expected: "
                             "repair the field.")  # fmt: skip
        return d


class ScaledField:
    """A displacement in another unit of length: multiplied by ``scale`` when it is sliced."""

    def __init__(self, field: Any, scale: float) -> None:
        self.field, self.scale, self.shape = field, np.float32(scale), field.shape

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Basic slices, float32."""
        return np.asarray(self.field[index], np.float32) * self.scale
