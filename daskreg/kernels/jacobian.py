"""The Jacobian determinant of a displacement field."""

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise

index = int64  # replaced by the launcher
ONE, HALF = float32(1), float32(0.5)


@formula
def finite_difference(low, high, whole):
    """Central difference where both neighbours exist, one-sided at a face."""
    return (high - low) * (HALF if whole else ONE)


@formula
def neighbours(i, n):
    """The neighbours of i on an axis of n voxels, and whether both exist."""
    return index(max(i - int32(1), int32(0))), index(min(i + int32(1), n - int32(1))), int32(0) < i < n - int32(1)


@voxelwise()
def jacobian(z, y, x, lead, u, determinant):
    """``det(I + Du)`` with central differences; not positive where the map folds.

    lead: planes of u before z = 0 (its halo, int);  u: (3, Z, Y, X) float32, voxels;  determinant: (Z, Y, X) float32
    """
    kz = int32(z) + int32(lead)
    k0, k1, bz = neighbours(kz, int32(u.shape[1]))
    j0, j1, by = neighbours(int32(y), int32(u.shape[2]))
    i0, i1, bx = neighbours(int32(x), int32(u.shape[3]))
    k, a, b, c = index(kz), index(0), index(1), index(2)
    zz, zy, zx = (
        finite_difference(u[a, k0, y, x], u[a, k1, y, x], bz),
        finite_difference(u[a, k, j0, x], u[a, k, j1, x], by),
        finite_difference(u[a, k, y, i0], u[a, k, y, i1], bx),
    )
    yz, yy, yx = (
        finite_difference(u[b, k0, y, x], u[b, k1, y, x], bz),
        finite_difference(u[b, k, j0, x], u[b, k, j1, x], by),
        finite_difference(u[b, k, y, i0], u[b, k, y, i1], bx),
    )
    xz, xy, xx = (
        finite_difference(u[c, k0, y, x], u[c, k1, y, x], bz),
        finite_difference(u[c, k, j0, x], u[c, k, j1, x], by),
        finite_difference(u[c, k, y, i0], u[c, k, y, i1], bx),
    )
    zz, yy, xx = ONE + zz, ONE + yy, ONE + xx
    determinant[z, y, x] = zz * (yy * xx - yx * xy) - zy * (yz * xx - yx * xz) + zx * (yz * xy - yy * xz)
