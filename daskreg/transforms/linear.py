"""Rigid, similarity and affine maps of world points, with parameters scaled to move points by comparable distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid

if TYPE_CHECKING:
    from scipy.spatial import transform
else:
    transform = DeferredModule("scipy.spatial.transform")

Matrix = NDArray[np.float64]
LinearKind = Literal["rigid", "similarity", "affine"]
DIFFERENCE_STEP = 1e-5  # of the radius: step of the central differences of W
FRACTION = 2.0**32  # units of a voxel in fixed point
PARAMETER_COUNTS = {"rigid": 6, "similarity": 7, "affine": 12}


def translation(t: NDArray[np.float64]) -> Matrix:
    """(4, 4) of a shift in world units, order z, y, x."""
    m = np.eye(4)
    m[:3, 3] = t
    return m


def linear_about(center: NDArray[np.float64], linear: NDArray[np.float64]) -> Matrix:
    """(4, 4) of a linear map (3, 3) about ``center``, which stays fixed."""
    m = np.eye(4)
    m[:3, :3] = linear
    m[:3, 3] = center - linear @ center
    return m


def scale_of(world: Matrix) -> float:
    """The factor by which a map (4, 4) changes lengths, in the mean: the cube root of that of volumes."""
    return float(np.cbrt(abs(np.linalg.det(world[:3, :3]))))


def transform_points(matrix: Matrix, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a (4, 4) to points (..., 3), z, y, x."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


@dataclass(frozen=True)
class LinearModel:
    """``W(q) = W0 T(q) L(q)``: parameters q act in the fixed space about ``center``, before the map ``initial``, W0.

    A unit of any parameter moves points at distance ``radius`` by about one world unit: angles, scales and shears are
    divided by ``radius``, translations are in world units.
    """

    kind: LinearKind
    center: NDArray[np.float64]
    radius: float
    initial: Matrix

    @property
    def size(self) -> int:
        """Number of parameters."""
        return PARAMETER_COUNTS[self.kind]

    def matrix(self, q: NDArray[np.float64]) -> Matrix:
        """World matrix (4, 4), fixed to moving points."""
        return self.initial @ translation(q[:3]) @ linear_about(self.center, self._linear(q[3:] / self.radius))

    def _linear(self, a: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.kind == "affine":
            return np.eye(3) + a.reshape(3, 3)
        rotation = np.asarray(transform.Rotation.from_rotvec(a[2::-1]).as_matrix())[::-1, ::-1]  # SciPy's order is x, y, z
        return rotation * np.exp(a[3]) if self.kind == "similarity" else rotation

    def apply_jacobian_transpose(self, q: NDArray[np.float64], gradient: Matrix) -> NDArray[np.float64]:
        """dC/dq from the gradient dC/dW (4, 4); dW/dq by central differences, exact to 1e-9."""
        h = DIFFERENCE_STEP * self.radius
        steps = np.eye(self.size) * h
        return np.array([np.sum(gradient * (self.matrix(q + e) - self.matrix(q - e))) / (2 * h) for e in steps])


def index_map(world: Matrix, fixed: Grid, moving: Grid) -> Matrix:
    """(4, 4): fixed voxel index to moving voxel index, of a world map from fixed to moving points."""
    return np.asarray(moving.world_to_index @ world @ fixed.index_to_world)


def world_gradient(index_gradient: Matrix, fixed: Grid, moving: Grid) -> Matrix:
    """The gradient dC/dW (4, 4) from that with respect to the index map: the transpose of ``index_map``."""
    return np.asarray(moving.world_to_index.T @ index_gradient @ fixed.index_to_world.T)


def to_fixed_point(index_matrix: Matrix) -> tuple[np.int64, ...]:
    """(A t) as 12 integers in units of 2^-32 voxel, which the sampler adds exactly."""
    return tuple(np.int64(round(float(v) * FRACTION)) for v in index_matrix[:3].ravel())


def linear_part(index_matrix: Matrix) -> tuple[np.float32, ...]:
    """S = A as 9 float32, row by row."""
    return tuple(np.float32(v) for v in index_matrix[:3, :3].ravel())


def index_gradient_by_plane(rows: NDArray[np.float32], first: int) -> NDArray[np.float64]:
    """Gradients dC/dA and dC/dt of each plane, (12, Z) float64, in the order of (A t)'s rows.

    rows: the sampler's row sums, (6, Z, Y): three of grad C and three of x grad C;  first: global index of plane 0
    """
    d = rows.astype(np.float64)
    y = np.arange(d.shape[2])
    z = np.arange(d.shape[1]) + first
    dt, dx = d[:3].sum(axis=2), d[3:].sum(axis=2)
    dy = (d[:3] * y).sum(axis=2)
    return np.stack([part for c in range(3) for part in (dt[c] * z, dy[c], dx[c], dt[c])])
