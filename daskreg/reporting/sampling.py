"""The few voxels a report shows: three planes of each image, at about the resolution of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, uniform_filter1d

from daskreg.grid import Grid
from daskreg.reporting.views import View
from daskreg.storage import RunStore, Volume, open_volume
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.zarr.pyramid import lazy_block_mean

Plane = NDArray[np.float32]
LONGEST = 384  # voxels along the longest axis of the level that is shown
PROFILE = 128  # voxels along the longest axis of the level that chooses the slices


def shown_level(run: RunStore, longest: int = LONGEST) -> int:
    """The finest level of ``moved`` that has at most ``longest`` voxels of its finest spacing along each axis."""
    levels = run.read_image("moved").levels
    sizes = [max(n * s for n, s in zip(v.shape, v.spacing, strict=True)) / min(v.spacing) for v in levels]
    fits = [k for k, size in enumerate(sizes) if size <= longest]
    return min(fits, default=len(levels) - 1)


def informative_slices(run: RunStore, grid: Grid) -> tuple[int, int, int]:
    """For each axis the slice of ``grid`` with most edges in it, among those near the middle of what ``moved`` shows."""
    volume = run.read_image("moved", shown_level(run, PROFILE))
    voxels = volume.read()
    energy = np.zeros(voxels.shape)
    for axis in (a for a in range(3) if voxels.shape[a] > 1):
        energy += np.gradient(voxels, axis=axis) ** 2
    z, y, x = (_slice(np.sqrt(energy), axis, grid.shape[axis]) for axis in range(3))
    return z, y, x


def _slice(energy: NDArray[np.float64], axis: int, length: int) -> int:
    """The profile's peak between its 40th and 60th percentile, scaled to an axis of ``length`` voxels."""
    profile = energy.sum(axis=tuple(a for a in range(3) if a != axis)) + 1e-12
    share = np.cumsum(profile) / profile.sum()
    first, last = np.searchsorted(share, (0.4, 0.6))
    smooth = uniform_filter1d(profile, 3, mode="nearest")
    best = first + int(np.argmax(smooth[first : last + 1]))
    return min(length - 1, int((best + 0.5) * length / len(profile)))


@dataclass(frozen=True)
class Source:
    """An image of which planes are sampled. data: (Z, Y, X), lazily."""

    data: da.Array
    grid: Grid

    @classmethod
    def of_input(cls, name: str, grid: Grid, pixel: float) -> Source:
        """The coarsest stored level that is no coarser than the page. ``grid``: level 0, as the run saw it.

        Raises InputError when the image is gone or is another one by now.
        """
        volume = open_volume(name, grid=grid)
        if "level=" in name.partition("::")[2] or not volume.levels:
            return cls(volume.data, grid)
        level = _level(volume, pixel)
        if level == 0:
            return cls(volume.data, grid)
        fine, coarse = volume.levels[0], volume.levels[level]
        factors = np.divide(coarse.spacing, fine.spacing)
        spacing, origin = np.asarray(grid.spacing) * factors, grid.to_world((factors - 1) / 2)
        smaller = replace(grid, shape=coarse.shape, spacing=tuple(spacing), origin=tuple(origin))  # type: ignore[arg-type]  # three each
        return cls(open_volume(f"{name}{',' if '::' in name else '::'}level={level}", grid=smaller).data, smaller)

    def plane(self, view: View) -> tuple[da.Array, NDArray[np.float64]]:
        """The voxels around a view, averaged to its resolution, lazily, and where its pixels are in them, (3, rows, columns)."""
        index = self.grid.to_index(view.points())
        shape, spacing = np.asarray(self.grid.shape), np.asarray(self.grid.spacing)
        factors = np.clip(np.floor(view.pixel / spacing + 1e-3).astype(int), 1, shape)
        low = np.clip(np.floor(index.min(axis=(0, 1))).astype(int) - factors, 0, shape - factors)
        high = np.clip(np.ceil(index.max(axis=(0, 1))).astype(int) + 1 + factors, low + factors, shape)
        box = self.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
        if (factors > 1).any():
            box = lazy_block_mean(box, factors.tolist())
        index[((index < -0.5) | (index > shape - 0.5)).any(axis=-1)] = np.nan
        return box, np.moveaxis((index - low - (factors - 1) / 2) / factors, -1, 0)


def read_planes(sources: Sequence[Source], views: Sequence[View]) -> list[list[Plane]]:
    """For each source its views, float32, zero outside the image; each stored chunk is decoded once. Raises Unreadable."""
    asked = [[source.plane(view) for view in views] for source in sources]
    with read_errors("an image of the run"):
        # Dask does not declare its type
        boxes = dask.compute([[box for box, _ in row] for row in asked], scheduler="threads")[0]  # type: ignore[attr-defined, no-untyped-call]
    return [[_sampled(box, index) for box, (_, index) in zip(*pair, strict=True)] for pair in zip(boxes, asked, strict=True)]


def _sampled(box: Plane, index: NDArray[np.float64]) -> Plane:
    outside = np.isnan(index).any(axis=0)
    plane = map_coordinates(box, np.nan_to_num(index), order=1, mode="nearest")
    return np.where(outside, np.float32(0), np.nan_to_num(plane)).astype(np.float32)


def _level(volume: Volume, pixel: float) -> int:
    """Level 0 unless it is what the address means and a coarser one still has voxels as fine as a pixel."""
    if volume.levels[0].shape != volume.shape:
        return 0
    scale = min(volume.grid.spacing) / min(volume.levels[0].spacing)
    return max(k for k, v in enumerate(volume.levels) if k == 0 or max(v.spacing) * scale <= pixel * 1.001)


@dataclass(frozen=True)
class Warp:
    """The displacement in the plane of a view, at the voxels of its grid.

    u: (3, rows, columns) world units;  determinant: (rows, columns) of I + Du; rows, columns are index axes in rising order.
    """

    view: View
    u: NDArray[np.float32]
    determinant: NDArray[np.float64]

    @classmethod
    def read(cls, run: RunStore, level: int, view: View) -> Warp:
        """Three neighbouring slices are read: central differences need no more."""
        at, grid = view.index, view.grid
        first = max(0, at - 1)
        slab = [slice(None)] * 4
        slab[1 + view.axis] = slice(first, min(grid.shape[view.axis], at + 2))
        u = np.asarray(run.displacement(level)[tuple(slab)].compute(scheduler="threads"), np.float32)
        own = np.asarray(at - first)
        determinant = np.take(_determinant(u, grid), own, axis=view.axis)
        return cls(view, np.asarray(np.take(u, own, axis=1 + view.axis)), np.asarray(determinant))

    def on_page(self, plane: NDArray[np.floating]) -> Plane:
        """A map over the voxels (rows, columns) as pixels of the page."""
        rows, columns = self.view.steps()
        swap = self.view.down > self.view.right
        at = np.meshgrid(rows, columns, indexing="ij")
        return map_coordinates(np.asarray(plane, np.float32), at[::-1] if swap else at, order=1, mode="nearest")


def _determinant(u: NDArray[np.float32], grid: Grid) -> NDArray[np.float64]:
    """det(I + Du) by central differences, u (3, Z, Y, X) in world units."""
    slopes = [np.gradient(u.astype(np.float64), axis=1 + a) if u.shape[1 + a] > 1 else np.zeros(u.shape) for a in range(3)]
    by_index = np.moveaxis(np.stack(slopes, 1), (0, 1), (-2, -1))  # (Z, Y, X, component, index axis)
    jacobian = np.eye(3) + by_index @ grid.world_to_index[:3, :3]
    return np.asarray(np.linalg.det(jacobian))
