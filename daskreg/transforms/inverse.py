"""The inverse of a displacement, box by box: by fixed-point iteration and Newton's method, with what a proof of it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region
from daskreg.transforms.chain import merge_affines
from daskreg.transforms.execution import run_on_cpu
from daskreg.transforms.linear import Matrix
from daskreg.transforms.link import Link
from daskreg.transforms.lipschitz import lipschitz_bound

if TYPE_CHECKING:
    from daskreg.kernels import inversion, vectors
else:
    vectors = DeferredModule("daskreg.kernels.vectors")
    inversion = DeferredModule("daskreg.kernels.inversion")

Array = NDArray[np.float32]
SOLUTION_TOLERANCE = 1e-3  # voxels: the residual at which a voxel counts as solved
MAX_ITERATIONS = 100  # of the fixed point and of Newton's method, after which a voxel is given up; ten and three are usual


@dataclass(frozen=True)
class DisplacementBounds:
    """u in a box, in voxels: the range of each component, and of each component of x + u(x); tuples z, y, x."""

    box: Region
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    lowest_target: tuple[float, ...]
    highest_target: tuple[float, ...]

    @classmethod
    def of(cls, link: Link, box: Region) -> DisplacementBounds:
        """Of a link's displacement in a box of its grid."""
        u = displacement_in_voxels(link, box)
        lowest, highest = _component_ranges(u)
        for c, (a, n) in enumerate(zip(box.start, box.shape, strict=True)):
            u[c] += _along_axis(np.arange(a, a + n, dtype=np.float32), c)
        return cls(box, lowest, highest, *_component_ranges(u))


def displacement_in_voxels(link: Link, box: Region) -> Array:
    """A link's displacement in a box, (3, Z, Y, X), in voxels along its grid's axes."""
    return vectors.apply_matrix(link.displacement_grid.world_to_index[:3, :3], link.read(box))


def _component_ranges(u: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(float(c.min()) for c in u), tuple(float(c.max()) for c in u)


def _along_axis(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Values of an axis, to be broadcast over (Z, Y, X)."""
    return values.reshape([-1 if k == axis else 1 for k in range(3)])


class InverseField:
    """``v(q) = -d(q + v(q))`` of a link's displacement d, computed where it is sliced, (3, Z, Y, X), world units.

    Its ``grid`` is that of d, grown by whole voxels until it holds every x + d(x), and refined by ``upsampling``. d is extended
    beyond its own grid by its values at the faces, so that v is as smooth there as elsewhere.
    """

    def __init__(self, link: Link, bounds: Sequence[DisplacementBounds], upsampling: int = 1) -> None:
        """bounds: of boxes that cover the grid of d;  upsampling: voxels of v in one of d, along each axis."""
        self.link, self.bounds, self.upsampling = Link(np.eye(4), link.grid, link.displacement), tuple(bounds), upsampling
        self.source = link.displacement_grid
        self.region = _target_region(self.source, bounds)
        self.grid = _upsampled(self.source, self.region, upsampling)
        self.shape = (3, *self.grid.shape)
        self._lowest, self._highest = (np.array([getattr(b, k) for b in bounds]) for k in ("lowest", "highest"))
        self._starts, self._stops = (np.array([getattr(b.box, k) for b in bounds]) for k in ("start", "stop"))

    def __getitem__(self, index: Any) -> Array:
        """The voxels of basic slices, all components."""
        ranges = [range(*s.indices(n)) for s, n in zip(index[-3:], self.shape[-3:], strict=True)]
        return self.solve(Region.of((r.start for r in ranges), (r.stop for r in ranges)))[0]

    def solve(self, box: Region) -> tuple[Array, Array, Array]:
        """V in a box of ``grid``, (3, Z, Y, X) world units; the residual ``|w + u(q + w)|``, (Z, Y, X) voxels; and a Lipschitz
        constant L of u within a voxel of q + w, (Z, Y, X).

        Where the residual is below 1 - L, w -> -u(q + w) contracts the ball of that radius into itself: it holds exactly one
        fixed point, at most residual / (1 - L) away.
        """
        nodes = box.shift(tuple(a * self.upsampling for a in self.region.start))  # type: ignore[arg-type]
        read = self._read_region(nodes)
        u = displacement_in_voxels(self.link, read)
        w, residual = np.empty((3, *box.shape), np.float32), np.empty(box.shape, np.float32)
        origins = (np.array(v, np.int32) for v in (nodes.start, read.start, self.source.shape))
        tolerance = np.array([SOLUTION_TOLERANCE], np.float32)
        run_on_cpu(inversion.invert, box.shape, *origins, tolerance, MAX_ITERATIONS, self.upsampling, u, w, residual)
        constant = _nearest(lipschitz_bound(u), self._node_axes(nodes, read), w)
        return vectors.apply_matrix(self.source.index_to_world[:3, :3], w), residual, constant

    def _read_region(self, nodes: Region) -> Region:
        """The voxels of d that the iteration can read from a box: bounded by the range of all of d, then of d in that region."""
        coarse = self._reached(nodes, self._lowest.min(axis=0), self._highest.max(axis=0))
        meets = ((self._starts < coarse.stop) & (self._stops > coarse.start)).all(axis=1)
        return self._reached(nodes, self._lowest[meets].min(axis=0), self._highest[meets].max(axis=0))

    def _reached(self, nodes: Region, lowest: Matrix, highest: Matrix) -> Region:
        """Q - u for q in a box and u between lowest and highest or 0, and the neighbours that interpolation reads."""
        top = np.asarray(self.source.shape) - 1
        start, stop = np.asarray(nodes.start) / self.upsampling, (np.asarray(nodes.stop) - 1) / self.upsampling
        first = np.clip(np.floor(start - np.maximum(highest, 0)) - 1, 0, top)
        last = np.clip(np.ceil(stop - np.minimum(lowest, 0)) + 2, 0, top)
        return Region.of(first, last + 1)

    def _node_axes(self, nodes: Region, read: Region) -> list[Array]:
        """Positions of the nodes of a box along each axis, in voxels of ``read``."""
        ends = zip(nodes.start, nodes.stop, read.start, strict=True)
        return [(np.arange(a, b) / self.upsampling - c).astype(np.float32) for a, b, c in ends]


def _target_region(grid: Grid, bounds: Sequence[DisplacementBounds]) -> Region:
    """The voxels of a grid, grown until they hold every x + u(x)."""
    first = np.floor(np.min([b.lowest_target for b in bounds], axis=0))
    last = np.ceil(np.max([b.highest_target for b in bounds], axis=0))
    return Region.of(np.minimum(first, 0), np.maximum(last + 1, grid.shape))


def _upsampled(grid: Grid, region: Region, factor: int) -> Grid:
    """A region of a grid with ``factor`` voxels in one along each axis, the region's outer voxels in place."""
    z, y, x = ((n - 1) * factor + 1 for n in region.shape)
    dz, dy, dx = (s / factor for s in grid.spacing)
    return replace(grid, shape=(z, y, x), spacing=(dz, dy, dx), origin=tuple(grid.to_world(region.start)))


def _nearest(values: Array, axes: Sequence[Array], w: Array) -> Array:
    """The values at the voxels nearest to q + w, q the nodes of the axes; clamped at the faces."""
    positions = (np.rint(_along_axis(q, c) + w[c]) for c, q in enumerate(axes))
    index = (np.clip(p, 0, n - 1).astype(np.int32) for p, n in zip(positions, values.shape, strict=True))
    return np.asarray(values[tuple(index)])


def invert_links(links: Sequence[Link], fields: Sequence[InverseField | None]) -> tuple[Link, ...]:
    """The links of the inverse of a chain, last first; fields: of each link, None where it has no displacement."""
    found: list[Link] = []
    for link, field in reversed(list(zip(links, fields, strict=True))):
        back = np.asarray(np.linalg.inv(link.affine), np.float64)
        found.append(Link(back, link.grid if field is None else None))
        if field is not None:
            found.append(Link(np.eye(4), field.grid, field))
    return merge_affines(found)
