"""A displacement field at a block's points, and the inverse of one."""

import math

from numba import float32, int32, int64

from daskreg.kernels.compose import blend, bracket
from daskreg.kernels.launch import formula, voxelwise
from daskreg.kernels.sample import point, trilinear

index = int64  # replaced by the launcher
ONE, NIL, HALF = float32(1), float32(0), float32(0.5)
SLOW, LEAST, FAR = float32(0.9), float32(1 / 16), float32(1e30)


@voxelwise()
def sample_field(z, y, x, affine, linear, u, field, values):
    """``values(x) = field(A x + t + S u(x))``, trilinear, zero outside.

    field: (3, Z', Y', X') float32;  values: (3, Z, Y, X) float32;  the rest as in ``sample``
    """
    k, j, i, wz, wy, wx = point(z, y, x, 0, affine, linear, u)
    values[index(0), z, y, x] = trilinear(field[index(0)], k, j, i, wz, wy, wx)
    values[index(1), z, y, x] = trilinear(field[index(1)], k, j, i, wz, wy, wx)
    values[index(2), z, y, x] = trilinear(field[index(2)], k, j, i, wz, wy, wx)


@formula
def lattice(i, finer):
    """Node i of a lattice ``finer`` times as dense, in whole voxels (downwards) and the rest."""
    k = (i + int32(1024) * finer) // finer - int32(1024)  # floor division of a number that may be negative
    return k, float32(i - k * finer) / float32(finer)


@formula
def beyond(u, gz, gy, gx, pz, py, px, first, size):
    """``u(g + p)``, clamped at the faces of the global grid."""
    k0, k1, fz = bracket(gz, pz, size[0], first[0])
    j0, j1, fy = bracket(gy, py, size[1], first[1])
    i0, i1, fx = bracket(gx, px, size[2], first[2])
    return (blend(u, index(0), k0, k1, j0, j1, i0, i1, fz, fy, fx),
            blend(u, index(1), k0, k1, j0, j1, i0, i1, fz, fy, fx),
            blend(u, index(2), k0, k1, j0, j1, i0, i1, fz, fy, fx))  # fmt: skip


@voxelwise()
def invert(z, y, x, at, first, size, tolerance, rounds, finer, u, w, residual):
    """W with ``w(q) = -u(q + w(q))``: q + w is the point that ``p + u(p)`` brings to q.

    By the fixed point of Chen et al., *A simple fixed-point approach to invert a deformation field* (Med. Phys. 2008), the step
    halved where the residual does not fall by a tenth: where u contracts that never happens.

    at: node of z = y = x = 0 on a lattice ``finer`` (int) times as dense as the grid of u;  first: voxel of ``u[:, 0, 0, 0]``,
    size: of the grid of u, which is clamped there;  these three (3,) int32;
    tolerance: (1,) float32, voxels;  rounds: most steps (int);  u: (3, Z', Y', X') float32, voxels, all that q - u can reach;
    w: (3, Z, Y, X) float32, voxels;  residual: (Z, Y, X) float32, ``|w + u(q + w)|``
    """
    gz, qz = lattice(int32(z) + at[0], int32(finer))
    gy, qy = lattice(int32(y) + at[1], int32(finer))
    gx, qx = lattice(int32(x) + at[2], int32(finer))
    wz, wy, wx = NIL, NIL, NIL
    step, last = ONE, FAR
    rz, ry, rx = beyond(u, gz, gy, gx, qz, qy, qx, first, size)
    left = math.sqrt(rz * rz + ry * ry + rx * rx)
    for _ in range(rounds):
        if left <= tolerance[0]:
            break
        if left > SLOW * last:
            step = max(step * HALF, LEAST)
        last = left
        wz, wy, wx = wz - step * rz, wy - step * ry, wx - step * rx
        rz, ry, rx = beyond(u, gz, gy, gx, qz + wz, qy + wy, qx + wx, first, size)
        rz, ry, rx = rz + wz, ry + wy, rx + wx
        left = math.sqrt(rz * rz + ry * ry + rx * rx)
    w[index(0), z, y, x], w[index(1), z, y, x], w[index(2), z, y, x] = wz, wy, wx
    residual[z, y, x] = left
