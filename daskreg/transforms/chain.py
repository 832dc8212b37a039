"""A chain of links at the voxels of a box, as one map: whatever is sampled through it is sampled once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region
from daskreg.transforms.bounds import local_coefficients, sampling_bounds
from daskreg.transforms.execution import KernelRunner, run_on_cpu
from daskreg.transforms.linear import Matrix, linear_part
from daskreg.transforms.link import Link

if TYPE_CHECKING:
    from daskreg.kernels import vectors
    from daskreg.kernels.sampling import field
else:
    vectors = DeferredModule("daskreg.kernels.vectors")
    field = DeferredModule("daskreg.kernels.sampling.field")

LATTICE_TOLERANCE = 1e-6  # voxels at the far end of a box by which two lattices may differ and still count as one
Array = NDArray[np.float32]


@dataclass(frozen=True)
class SampledMap:
    """A map of points at the voxels x of a box: ``phi(x) = matrix x + linear e(x)``, in the world that the chain ends in.

    matrix: (4, 4) from global voxel indices;  linear: (3, 3);  e: (3, Z, Y, X) float32, None where every link is affine
    """

    matrix: Matrix
    linear: Matrix
    e: Array | None

    def in_voxels(self, grid: Grid) -> tuple[Matrix, Matrix]:
        """A and S of ``p(x) = A x + t + S e(x)`` in voxel indices of a grid: (4, 4) and (3, 3)."""
        to_index = grid.world_to_index
        return to_index @ self.matrix, to_index[:3, :3] @ self.linear

    def world_displacement(self) -> Array:
        """``phi(x) - matrix x``, (3, Z, Y, X). Raises ValueError where every link is affine."""
        if self.e is None:
            raise ValueError("every link is affine: there is no displacement.")
        return self.e if np.array_equal(self.linear, np.eye(3)) else vectors.apply_matrix(self.linear, self.e)


def sample_chain(links: Sequence[Link], grid: Grid, box: Region, run: KernelRunner = run_on_cpu) -> SampledMap:
    """The map of all links at the voxels of ``box`` of ``grid``; each displacement is read once, where they reach it."""
    at = SampledMap(grid.index_to_world, np.eye(3), None)
    for link in links:
        if link.displacement is not None:
            at = _add_displacement(at, link, box, run)
        at = SampledMap(link.affine @ at.matrix, link.affine[:3, :3] @ at.linear, at.e)
    return at


def _add_displacement(at: SampledMap, link: Link, box: Region, run: KernelRunner) -> SampledMap:
    d = _sample_displacement(at, link, box, run)
    if d is None:
        return at
    return SampledMap(at.matrix, np.eye(3), d if at.e is None else at.world_displacement() + d)


def _sample_displacement(at: SampledMap, link: Link, box: Region, run: KernelRunner) -> Array | None:
    """A link's d at the mapped voxels of a box, (3, Z, Y, X) world units; None where none of them is in its grid."""
    grid = link.displacement_grid
    matrix, linear = at.in_voxels(grid)
    same = None if at.e is not None else _same_lattice(matrix, box)
    d = np.zeros((3, *box.shape), np.float32)
    if same is not None:
        read = same & grid.region
        if read.size:
            d[(slice(None), *read.within(same))] = link.read(read)
        return d
    read = sampling_bounds(matrix, linear, at.e, box, grid.shape)
    if not read.size:
        return None
    run(field.sample_field, box.shape, local_coefficients(matrix, box, read), linear_part(linear), at.e, link.read(read), d)
    return d


def _same_lattice(matrix: Matrix, box: Region) -> Region | None:
    """The voxels of another grid that coincide with those of a box, None where they fall between voxels."""
    whole = np.rint(matrix)
    if np.abs(matrix - whole).max() * max(1, *box.stop) > LATTICE_TOLERANCE or not np.array_equal(whole[:3, :3], np.eye(3)):
        return None
    z, y, x = (int(v) for v in whole[:3, 3])
    return box.shift((z, y, x))


def merge_affines(links: Iterable[Link]) -> tuple[Link, ...]:
    """The same chain with neighbouring affine maps multiplied."""
    kept: list[Link] = []
    for link in links:
        if link.displacement is None and kept:
            before = kept.pop()
            kept.append(Link(link.affine @ before.affine, before.grid, before.displacement))
        else:
            kept.append(link)
    return tuple(kept)
