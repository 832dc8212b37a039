"""A chain of links at the voxels of a box, in one piece: whatever is sampled through it is sampled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import InputError
from daskreg.grid import Grid, Region
from daskreg.kernels.jacobian import jacobian
from daskreg.kernels.launch import DISABLED, Kernel
from daskreg.kernels.vectors import apply_matrix
from daskreg.kernels.warp import sample_field
from daskreg.transforms.composite import Link, pieces
from daskreg.transforms.linear import linear_part, to_fixed_point

PART = 32  # voxels an axis of what is bounded together
MARGIN = 2  # voxels around what a block's points reach: trilinear corners and rounding
Matrix = NDArray[np.float64]
Array = NDArray[np.float32]
_ONE_LAUNCH = Lock()  # kernels are parallel themselves, and not every threading layer of Numba bears two launches at once
Launch = Callable[..., Any]


def launch(kernel: Kernel, shape: tuple[int, int, int], *arguments: Any) -> Any:
    """A kernel on this machine's processor, one at a time."""
    with _ONE_LAUNCH:
        return kernel(shape, *arguments)


def launch_on_cuda(kernel: Kernel, shape: tuple[int, int, int], *arguments: Any) -> Any:
    """A kernel on the current CUDA device: arrays go there, the last one comes back. Raises InputError where there is none."""
    from numba import cuda

    if not DISABLED and not cuda.is_available():
        raise InputError(
            "a GPU was asked for and this process sees none that Numba can use; install daskreg[cuda13] (or cuda12), look at "
            'nvidia-smi, or use device="cpu".'
        )
    with _ONE_LAUNCH:
        there = [cuda.to_device(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in arguments]
        rows = kernel.on_cuda(shape, *there)
        if rows is not None:
            return rows.copy_to_host()
        there[-1].copy_to_host(arguments[-1])
    return None


@dataclass(frozen=True)
class SampledMap:
    """Where the voxels x of a box go: ``phi(x) = matrix x + turn e(x)``, in the world that the chain ends in.

    matrix: (4, 4) from global voxel indices;  turn: (3, 3);  e: (3, Z, Y, X) float32, None where every link is affine
    """

    matrix: Matrix
    turn: Matrix
    e: Array | None

    def into(self, grid: Grid) -> tuple[Matrix, Matrix]:
        """A and S of ``p(x) = A x + t + S e(x)`` in voxel indices of a grid: (4, 4) and (3, 3)."""
        to_index = grid.world_to_index
        return to_index @ self.matrix, to_index[:3, :3] @ self.turn

    def beyond(self) -> Array:
        """``phi(x) - matrix x``, (3, Z, Y, X). Raises ValueError where every link is affine."""
        if self.e is None:
            raise ValueError("every link is affine: there is no displacement.")
        return self.e if np.array_equal(self.turn, np.eye(3)) else apply_matrix(self.turn, self.e)


def sample_chain(links: Sequence[Link], here: Grid, box: Region, run: Launch = launch) -> SampledMap:
    """Follow the voxels of ``box`` of the grid ``here`` through all links; each field is read once, where they reach it."""
    at = SampledMap(here.index_to_world, np.eye(3), None)
    for link in links:
        if link.displacement is not None:
            at = _displaced(at, link, box, run)
        at = SampledMap(link.affine @ at.matrix, link.affine[:3, :3] @ at.turn, at.e)
    return at


def _displaced(at: SampledMap, link: Link, box: Region, run: Launch) -> SampledMap:
    d = _field_at(at, link, box, run)
    if d is None:
        return at
    return SampledMap(at.matrix, np.eye(3), d if at.e is None else at.beyond() + d)


def _field_at(at: SampledMap, link: Link, box: Region, run: Launch) -> Array | None:
    """Values of a link's d where the voxels of a box have got to, (3, Z, Y, X) world units; None where none reaches its grid."""
    matrix, linear = at.into(link.place)
    same = None if at.e is not None else _same_lattice(matrix, box)
    d = np.zeros((3, *box.shape), np.float32)
    if same is not None:
        there = same & link.place.region
        if there.size:
            d[(slice(None), *there.within(same))] = link.read(there)
        return d
    there = sampling_bounds(matrix, linear, at.e, box, link.place.shape)
    if not there.size:
        return None
    run(sample_field, box.shape, local_coefficients(matrix, box, there), linear_part(linear), at.e, link.read(there), d)
    return d


def _same_lattice(matrix: Matrix, box: Region) -> Region | None:
    """The voxels of another grid that those of a box are, None where they fall between voxels."""
    whole = np.rint(matrix)
    if np.abs(matrix - whole).max() * max(1, *box.stop) > 1e-6 or not np.array_equal(whole[:3, :3], np.eye(3)):
        return None
    z, y, x = (int(v) for v in whole[:3, 3])
    return box.shift((z, y, x))


def sampling_bounds(
    matrix: Matrix, linear: Matrix, e: Array | None, box: Region, shape: Sequence[int], margin: int = MARGIN
) -> Region:
    """The voxels of an image of ``shape`` that ``p(x) = A x + t + S e(x)`` reads, over all voxels x of a box.

    Every voxel's own e counts, in parts of PART voxels an axis: what bulges inside a box reaches further than its corners and
    faces do.
    """
    parts = [box] if e is None else list(pieces(box, PART))
    ends = [_ends(matrix, linear, None if e is None else e[(slice(None), *part.within(box))], part) for part in parts]
    low, high = np.min([a for a, _ in ends], axis=0), np.max([b for _, b in ends], axis=0)
    low, high = np.clip([low - margin, high + margin + 1], -1.0, np.asarray(shape) + 1.0)  # far away is far enough
    return Region(tuple(np.floor(low).astype(int)), tuple(np.ceil(high).astype(int))) & Region((0, 0, 0), tuple(shape))  # type: ignore[arg-type]


def _ends(matrix: Matrix, linear: Matrix, e: Array | None, box: Region) -> tuple[Matrix, Matrix]:
    """Least and most of A x + t + S e in a box, (3,) each, from the box's corners and the range of each component of e."""
    corners = np.array(list(product(*zip(box.start, np.array(box.stop) - 1, strict=True))))
    at = corners @ matrix[:3, :3].T + matrix[:3, 3]
    low, high = at.min(axis=0), at.max(axis=0)
    if e is not None:
        least, most = linear * e.min(axis=(1, 2, 3)), linear * e.max(axis=(1, 2, 3))
        low, high = low + np.minimum(least, most).sum(axis=1), high + np.maximum(least, most).sum(axis=1)
    return low, high


def local_coefficients(matrix: Matrix, box: Region, there: Region) -> tuple[np.int64, ...]:
    """(A t) for local indices of a block and of the part of the image read for it, exactly: a block changes no bit."""
    a = [int(v) for v in to_fixed_point(matrix)]
    for r in range(3):
        a[4 * r + 3] += sum(a[4 * r + c] * box.start[c] for c in range(3)) - (there.start[r] << 32)
    return tuple(np.int64(v) for v in a)


def jacobian_determinant(links: Sequence[Link], grid: Grid, box: Region, *, whole: bool = True, run: Launch = launch) -> Array:
    """``det(D phi)`` at the voxels of a box of ``grid``, (Z, Y, X), by central differences, one-sided at the grid's faces.

    whole: False leaves the determinant of the affine links out. A rim of one voxel is computed with the box, so that the
    values do not depend on how a grid is cut.
    """
    outer = box.grow(1) & grid.region
    at = sample_chain(links, grid, outer, run)
    linear = at.matrix[:3, :3]
    factor = np.float32(np.linalg.det(linear) / np.linalg.det(grid.index_to_world[:3, :3])) if whole else np.float32(1)
    if at.e is None:
        return np.full(box.shape, factor, np.float32)
    u = apply_matrix(np.linalg.inv(linear) @ at.turn, at.e)  # voxels along the grid's axes
    determinant = np.empty(outer.shape, np.float32)
    run(jacobian, outer.shape, 0, u, determinant)
    return np.asarray(determinant[box.within(outer)] * factor)
