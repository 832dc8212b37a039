"""The inverse of a displacement field."""

import math

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.composition.cpu import blend, neighbours

index = int64  # replaced by the launcher
ONE, ZERO, HALF = float32(1), float32(0), float32(0.5)
SLOW_CONVERGENCE = float32(0.9)  # ratio of residuals above which the fixed point gives way to Newton's method
LARGE = float32(1e30)
SINGULAR = float32(1e-4)  # determinant below which a Newton step is useless
MAX_STEP = float32(8)  # voxels: the derivative of one cell does not hold far from it
MAX_HALVINGS = 12


@formula
def lattice_node(i, finer):
    """Node i of a lattice ``finer`` times as dense, as a whole number of voxels (rounded down) and a fraction."""
    k = (i + int32(1024) * finer) // finer - int32(1024)  # floor division of a number that may be negative
    return k, float32(i - k * finer) / float32(finer)


@formula
def displacement_at(u, gz, gy, gx, pz, py, px, first, size):
    """``u(g + p)``, clamped at the faces of the global grid."""
    k0, k1, fz = neighbours(gz, pz, size[0], first[0])
    j0, j1, fy = neighbours(gy, py, size[1], first[1])
    i0, i1, fx = neighbours(gx, px, size[2], first[2])
    return (blend(u, index(0), k0, k1, j0, j1, i0, i1, fz, fy, fx),
            blend(u, index(1), k0, k1, j0, j1, i0, i1, fz, fy, fx),
            blend(u, index(2), k0, k1, j0, j1, i0, i1, fz, fy, fx))  # fmt: skip


@formula
def cell_derivatives(u, c, k0, k1, j0, j1, i0, i1, wz, wy, wx):
    """Derivatives along z, y and x of the interpolation in ``blend``."""
    return (blend(u, c, k0, k1, j0, j1, i0, i1, ONE, wy, wx) - blend(u, c, k0, k1, j0, j1, i0, i1, ZERO, wy, wx),
            blend(u, c, k0, k1, j0, j1, i0, i1, wz, ONE, wx) - blend(u, c, k0, k1, j0, j1, i0, i1, wz, ZERO, wx),
            blend(u, c, k0, k1, j0, j1, i0, i1, wz, wy, ONE) - blend(u, c, k0, k1, j0, j1, i0, i1, wz, wy, ZERO))  # fmt: skip


@formula
def newton_step(u, gz, gy, gx, pz, py, px, first, size, rz, ry, rx):
    """``(I + Du)^-1 r`` at g + p, at most MAX_STEP voxels long; along ``(I + Du)^T r`` where I + Du is nearly singular."""
    k0, k1, fz = neighbours(gz, pz, size[0], first[0])
    j0, j1, fy = neighbours(gy, py, size[1], first[1])
    i0, i1, fx = neighbours(gx, px, size[2], first[2])
    a, b, c = cell_derivatives(u, index(0), k0, k1, j0, j1, i0, i1, fz, fy, fx)
    d, e, f = cell_derivatives(u, index(1), k0, k1, j0, j1, i0, i1, fz, fy, fx)
    g, h, i = cell_derivatives(u, index(2), k0, k1, j0, j1, i0, i1, fz, fy, fx)
    a, e, i = a + ONE, e + ONE, i + ONE
    det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    sz, sy, sx = a * rz + d * ry + g * rx, b * rz + e * ry + h * rx, c * rz + f * ry + i * rx
    if abs(det) > SINGULAR:
        sz = ((e * i - f * h) * rz + (c * h - b * i) * ry + (b * f - c * e) * rx) / det
        sy = ((f * g - d * i) * rz + (a * i - c * g) * ry + (c * d - a * f) * rx) / det
        sx = ((d * h - e * g) * rz + (b * g - a * h) * ry + (a * e - b * d) * rx) / det
    length = math.sqrt(sz * sz + sy * sy + sx * sx)
    if length > MAX_STEP:
        sz, sy, sx = sz * MAX_STEP / length, sy * MAX_STEP / length, sx * MAX_STEP / length
    return sz, sy, sx, length


@voxelwise()
def invert(z, y, x, at, first, size, tolerance, rounds, finer, u, w, residual):
    """W with ``w(q) = -u(q + w(q))``: q + w is the point that ``p + u(p)`` maps to q.

        First the fixed-point iteration of Chen et al., *A simple fixed-point approach to invert a deformation field* (Med.
    Phys. 2008), while its residual falls by at least a tenth per step. Then Newton's method with the derivative of the
    trilinear cell: the step is halved until the residual falls, and the iteration ends when the step, an estimate of the error
    of w, is within the tolerance. The fixed point needs ``|Du| < 1``; Newton needs ``det(I + Du) > 0``, however small.

        at: node at z = y = x = 0 on a lattice ``finer`` (int) times as dense as the grid of u;  first: voxel at ``u[:, 0, 0,
    0]``, size: of the grid of u, at whose faces u is clamped;  these three are (3,) int32; tolerance: (1,) float32, voxels;
    rounds: most steps of either method (int);  u: (3, Z', Y', X') float32, voxels, everything that q - u can reach;  w: (3, Z,
    Y, X) float32, voxels;  residual: (Z, Y, X) float32, ``|w + u(q + w)|``
    """
    gz, qz = lattice_node(int32(z) + at[0], int32(finer))
    gy, qy = lattice_node(int32(y) + at[1], int32(finer))
    gx, qx = lattice_node(int32(x) + at[2], int32(finer))
    wz, wy, wx = ZERO, ZERO, ZERO
    previous = LARGE
    rz, ry, rx = displacement_at(u, gz, gy, gx, qz, qy, qx, first, size)
    error = math.sqrt(rz * rz + ry * ry + rx * rx)
    for _ in range(rounds):
        if error <= tolerance[0] or error > SLOW_CONVERGENCE * previous:
            break
        previous = error
        wz, wy, wx = wz - rz, wy - ry, wx - rx
        rz, ry, rx = displacement_at(u, gz, gy, gx, qz + wz, qy + wy, qx + wx, first, size)
        rz, ry, rx = rz + wz, ry + wy, rx + wx
        error = math.sqrt(rz * rz + ry * ry + rx * rx)
    for _ in range(rounds):
        sz, sy, sx, length = newton_step(u, gz, gy, gx, qz + wz, qy + wy, qx + wx, first, size, rz, ry, rx)
        step, previous = ONE, error
        for _ in range(MAX_HALVINGS):
            vz, vy, vx = wz - step * sz, wy - step * sy, wx - step * sx
            tz, ty, tx = displacement_at(u, gz, gy, gx, qz + vz, qy + vy, qx + vx, first, size)
            tz, ty, tx = tz + vz, ty + vy, tx + vx
            trial_error = math.sqrt(tz * tz + ty * ty + tx * tx)
            if trial_error < error:
                wz, wy, wx, rz, ry, rx, error = vz, vy, vx, tz, ty, tx, trial_error
                break
            step *= HALF
        if error == previous or length <= tolerance[0]:
            break
    w[index(0), z, y, x], w[index(1), z, y, x], w[index(2), z, y, x] = wz, wy, wx
    residual[z, y, x] = error
