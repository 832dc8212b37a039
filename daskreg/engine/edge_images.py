"""What a search over rotations compares of an image: its edges on isotropic lattices, with or without what may be filling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import SingleRank
from daskreg.engine.images import Image
from daskreg.engine.reach import SamplingMap
from daskreg.grid import Grid, Index, Span, shrink_factors
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import host, module_of
from daskreg.kernels.sampling.cpu import EXTENT, sample, sample_stack
from daskreg.kernels.smoothing.whole_arrays import box_around
from daskreg.transforms.orientation import NOISE, along_axes, orientation_tensors
from daskreg.transforms.pose_refinement import EdgeField

Matrix = NDArray[np.float64]
FILL_SHARE = 0.02  # part of an image at one value from which on it may be filling
LARGEST_FILL = 0.95  # more is background with hardly anything in it


@dataclass(frozen=True)
class ComparedPart:
    """A level of an image (Z, Y, X), which of its voxels are compared, and the level's shrink factors."""

    grid: Grid
    voxels: Any
    inside: Any
    factors: Index = (1, 1, 1)
    _tensors: dict[float, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def box(self, axes: Matrix) -> tuple[Matrix, Matrix]:
        """Centre (world) and edges of the box along axes (3, 3) that holds the compared voxels' centres."""
        along = self.ends() @ axes
        return axes @ (along.min(axis=0) + along.max(axis=0)) / 2, np.ptp(along, axis=0)

    def ends(self) -> Matrix:
        """The centres of the first and the last compared voxel of every row, (N, 3) world; none lies further in any direction.

        The whole grid's corners where none are compared.
        """
        inside = host(self.inside)
        rows, last = np.argwhere(inside.any(axis=2)), inside.shape[2] - 1
        first, behind = (side[tuple(rows.T)].argmax(axis=1) for side in (inside, inside[:, :, ::-1]))
        at = np.concatenate([np.column_stack([rows, x]) for x in (first, last - behind)])
        return self.grid.to_world(at) if len(at) else self.grid.corners()

    def tensors(self, voxel: float) -> Any:
        """See ``orientation_tensors``; those of the last voxel size are kept."""
        if voxel not in self._tensors:
            self._tensors.clear()
            self._tensors[voxel] = orientation_tensors(self.voxels, self.inside, self.grid, voxel)
        return self._tensors[voxel]


def whole(image: Image, factors: Index) -> tuple[Any, Any]:
    """All voxels of a level, and the mask's."""
    return image.gather_level(factors, [Span(0, image.grid.coarsen(factors).shape[0])], SingleRank())


def part_of(image: Image, size: float) -> ComparedPart:
    """The level of about a voxel size, where its mask is."""
    factors = shrink_factors(image.grid, size)
    voxels, mask = whole(image, factors)
    return ComparedPart(image.grid.coarsen(factors), voxels, (voxels == voxels) if mask is None else mask > 0.5, factors)


def without_filling(part: ComparedPart) -> ComparedPart:
    """All but what may be filling, and what is mixed with it.

    A voxel of a level is a mean over three of its own along a shrunk axis. So beside those of the filling's value up to three
    are mixed with it, the first two by more than a sixth. Logarithms of intensities make that a higher edge than the object's.
    """
    shrunk = [axis for axis, factor in enumerate(part.factors) if factor > 1]
    return replace(part, inside=part.inside & ~grown(filling(part.voxels), shrunk))


def near_object(part: ComparedPart, margin: float) -> ComparedPart:
    """All within a distance, in world units, of what is no filling; the whole part where there is none."""
    region = filling(part.voxels)
    reach = np.ceil(margin / np.asarray(part.grid.spacing)).astype(int)
    return replace(part, inside=part.inside & box_around(~region, reach)) if bool(region.any()) else part


def filling(voxels: Any) -> Any:
    """Where an image has its most frequent value, and next to it, if that is a fair part of it; else nowhere."""
    value = filling_value(voxels)
    return grown(voxels == np.float32(value)) if value is not None else module_of(voxels).zeros(voxels.shape, bool)


def filling_value(voxels: Any) -> float | None:
    """The most frequent value of an image, if a fair part of it has that; else None."""
    values, counts = module_of(voxels).unique(voxels, return_counts=True)
    fair = FILL_SHARE <= float(counts.max()) / voxels.size < LARGEST_FILL
    return float(values[counts.argmax()]) if fair else None


def grown(region: Any, axes: Iterable[int] = (0, 1, 2)) -> Any:
    """A region and the voxels next to it along axes, whose values are mixed with its own; the same code for NumPy and CuPy."""
    found = region.copy()
    for axis in axes:
        _spread(found, found.copy(), axis, np.bitwise_or if isinstance(region, np.ndarray) else module_of(region).bitwise_or)
    return found


def _spread(target: Any, source: Any, axis: int, combine: Any) -> None:
    """Combine every voxel of ``target`` with both neighbours of ``source`` along an axis."""
    ends = [slice(None)] * target.ndim, [slice(None)] * target.ndim
    ends[0][axis], ends[1][axis] = slice(1, None), slice(None, -1)
    for a, b in (ends, ends[::-1]):
        combine(target[tuple(a)], source[tuple(b)], out=target[tuple(a)])


def lattice_around(center: Matrix, edges: Matrix, voxel: float, frame: Matrix) -> Grid:
    """Cubic voxels along the columns of ``frame`` that cover a box of a centre (world) and edges."""
    n = np.maximum(1, np.ceil(edges / voxel - 1e-6)).astype(int)
    directions: Any = tuple(map(tuple, frame))
    return Grid(tuple(n), (voxel,) * 3, tuple(center - frame @ ((n - 1) / 2 * voxel)), directions)


def sampled(channels: Sequence[Any], part: ComparedPart, lattice: Grid, world: Matrix) -> tuple[Any, Any]:
    """Arrays on a part's grid, at the lattice's points mapped by ``world``: (C, Z, Y, X), 0 where not known, and where known."""
    xp = module_of(part.voxels)
    points = (*SamplingMap.of(0, world, lattice, part.grid), None, 0, part.grid.shape[0], EXTENT)
    images, seen = (*channels, part.inside.astype(np.float32)), xp.empty((len(channels) + 1, *lattice.shape), np.float32)
    if on_device(seen):
        sample_stack(lattice.shape, *points, xp.stack(images), seen)
    else:  # an image after the other is faster: their loops are vectorised
        for image, target in zip(images, seen, strict=True):
            sample(lattice.shape, *points, image, target)
    known = xp.nan_to_num(seen[-1]) > 0.5
    return xp.where(known, xp.nan_to_num(seen[:-1]), 0).astype(np.float32), known


def field_lattice(part: ComparedPart, voxel: float, least: int) -> Grid:
    """Cubic voxels along the image's axes that cover a part.

    Of a part so thin that fewer than ``least`` of its planes lie in the voxels' extent, those alone, and at least the middle one:
    the others would only take away what is known beside them.
    """
    frame = np.asarray(part.grid.direction)
    center, edges = part.box(frame)
    lattice = lattice_around(center, edges + voxel, voxel, frame)
    seen = [_within(n, voxel, e + s) for n, e, s in zip(lattice.shape, edges, part.grid.spacing, strict=True)]
    kept = [n if k >= least else max(1, k) for n, k in zip(lattice.shape, seen, strict=True)]
    return lattice if kept == list(lattice.shape) else lattice_around(center, np.array(kept) * voxel, voxel, frame)


def _within(n: int, voxel: float, extent: float) -> int:
    """How many of n points, a voxel apart, around the middle of an extent lie in it."""
    return int((np.abs(np.arange(n) - (n - 1) / 2) * voxel < extent / 2 * (1 - 1e-6)).sum())


def edge_field(part: ComparedPart, voxel: float) -> EdgeField:
    """Normalised gradients of a part on a lattice of a voxel size along the image's axes."""
    lattice = field_lattice(part, voxel, 3)  # planes that central differences read
    (image,), known = sampled((part.voxels,), part, lattice, np.eye(4))
    xp = module_of(image)
    known = _with_neighbours(known)
    steps = [xp.gradient(image, axis=a) if n > 1 else xp.zeros_like(image) for a, n in enumerate(image.shape)]
    square = sum(step**2 for step in steps)
    eta = NOISE**2 * (square * known).sum() / xp.maximum(known.sum(), 1)
    length = xp.sqrt(square + xp.maximum(eta, 1e-30))
    return EdgeField(lattice, xp.stack([*(xp.where(known, s / length, 0) for s in steps), known]).astype(np.float32))


def tensor_field(part: ComparedPart, voxel: float, spacing: float | None = None) -> EdgeField:
    """Trace-free tensors of a part, smoothed for a voxel size, on a lattice along the image's axes, of that size or a spacing."""
    lattice = field_lattice(part, spacing or voxel, 1)
    tensors, known = sampled(part.tensors(voxel), part, lattice, np.eye(4))
    xp = module_of(tensors)
    return EdgeField(
        lattice, xp.concatenate([along_axes(tensors, np.asarray(part.grid.direction)), known[None]]).astype(np.float32)
    )


def _with_neighbours(known: Any) -> Any:
    """Where a voxel and its neighbours along the axes are known: where a central difference is."""
    kept = known.copy()
    for axis, n in enumerate(known.shape):
        if n > 1:
            _spread(kept, known, axis, module_of(known).bitwise_and)
    return kept
