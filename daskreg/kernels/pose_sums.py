"""How well the edges of two images agree under many maps at once, and how that changes with each map's parameters."""

import math

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.sampling.cpu import clamp

index = int64  # replaced by the launcher
ZERO, ONE, TWO, HALF, THIRD = float32(0), float32(1), float32(2), float32(0.5), float32(1 / 3)


@formula
def beyond(p, n):
    """Whether a coordinate lies beyond the extent of an axis of n voxels."""
    return (p < -HALF) | (p > float32(int32(n)) - HALF)


@formula
def component(field, c, k0, k1, j0, j1, i0, i1, wz, wy, wx):
    """Trilinear value of a component and its derivatives along z, y and x."""
    a, b, d, e = field[c, k0, j0, i0], field[c, k0, j0, i1], field[c, k0, j1, i0], field[c, k0, j1, i1]
    f, g, h, m = field[c, k1, j0, i0], field[c, k1, j0, i1], field[c, k1, j1, i0], field[c, k1, j1, i1]
    ab, de, fg, hm = a + wx * (b - a), d + wx * (e - d), f + wx * (g - f), h + wx * (m - h)
    low, high = ab + wy * (de - ab), fg + wy * (hm - fg)
    dy = (de - ab) + wz * ((hm - fg) - (de - ab))
    x0, x1 = (b - a) + wy * ((e - d) - (b - a)), (g - f) + wy * ((m - h) - (g - f))
    return low + wz * (high - low), high - low, dy, x0 + wz * (x1 - x0)


@formula
def curvature(m2, mz, my, mx, az, ay, ax, bz, by, bx):
    """Half of <dT, dT> for T = m m^T, of two changes a and b of m."""
    along = (mz * az + my * ay + mx * ax) * (mz * bz + my * by + mx * bx)
    return m2 * (az * bz + ay * by + ax * bx) + along


NOTHING = (ZERO,) * 46


@voxelwise(sums=46)
def pose_sums(z, y, x, maps, fixed, moving):
    """Row sums over the fixed edges of the agreement under a map, its gradient and its Gauss-Newton matrix.

    z: number of the map;  y: row of the fixed lattice, over all planes;  maps: (K, 16) float32, A (3, 3) row by row and t of
    p = A x + t, from voxels to voxels, the centre of rotation (3) among moving voxels, and 1 / det(A)^(1/3);  fixed, moving:
    (4, Z, Y, X) float32, normalised gradients along the lattice's axes, and 1 where they count.
    With a the turned fixed edge, m the moving one and s = <a, m>, returns the sums of s^2 - |a|^2 |m|^2 / 3 (0 for unrelated
    edges), |a|^4, |m|^4 and 1; half the gradient of the first and a quarter of that of |m|^4 (shift z, y, x, rotation z, y,
    x, logarithm of the scale); and the upper triangle of a Gauss-Newton matrix, half of
    the sum of <dT, dT> for T = m m^T.
    """
    rows = int32(fixed.shape[2])
    row = int32(y)
    plane = row // rows
    k, j = index(plane), index(row - plane * rows)
    cz, cy, cx = float32(plane), float32(row - plane * rows), float32(int32(x))
    pz = maps[z, 0] * cz + maps[z, 1] * cy + maps[z, 2] * cx + maps[z, 9]
    py = maps[z, 3] * cz + maps[z, 4] * cy + maps[z, 5] * cx + maps[z, 10]
    px = maps[z, 6] * cz + maps[z, 7] * cy + maps[z, 8] * cx + maps[z, 11]
    nz, ny, nx = moving.shape[1], moving.shape[2], moving.shape[3]
    if (fixed[index(3), k, j, x] == ZERO) | beyond(pz, nz) | beyond(py, ny) | beyond(px, nx):
        return NOTHING
    if moving[index(3), clamp(int32(math.floor(pz + HALF)), nz), clamp(int32(math.floor(py + HALF)), ny),
              clamp(int32(math.floor(px + HALF)), nx)] == ZERO:  # fmt: skip
        return NOTHING
    bz, by, bx = math.floor(pz), math.floor(py), math.floor(px)
    wz, wy, wx = pz - float32(bz), py - float32(by), px - float32(bx)
    k0, k1 = clamp(int32(bz), nz), clamp(int32(bz) + int32(1), nz)
    j0, j1 = clamp(int32(by), ny), clamp(int32(by) + int32(1), ny)
    i0, i1 = clamp(int32(bx), nx), clamp(int32(bx) + int32(1), nx)
    mz, zz, zy, zx = component(moving, index(0), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    my, yz, yy, yx = component(moving, index(1), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    mx, xz, xy, xx = component(moving, index(2), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    fz, fy, fx = fixed[index(0), k, j, x], fixed[index(1), k, j, x], fixed[index(2), k, j, x]
    unit = maps[z, 15]
    az = unit * (maps[z, 0] * fz + maps[z, 1] * fy + maps[z, 2] * fx)
    ay = unit * (maps[z, 3] * fz + maps[z, 4] * fy + maps[z, 5] * fx)
    ax = unit * (maps[z, 6] * fz + maps[z, 7] * fy + maps[z, 8] * fx)
    s, a2, m2 = az * mz + ay * my + ax * mx, az * az + ay * ay + ax * ax, mz * mz + my * my + mx * mx
    # half the derivative of s^2 - a2 m2 / 3 by a shift
    tz, ty, tx = az * zz + ay * yz + ax * xz, az * zy + ay * yy + ax * xy, az * zx + ay * yx + ax * xx
    hz, hy, hx = mz * zz + my * yz + mx * xz, mz * zy + my * yy + mx * xy, mz * zx + my * yx + mx * xx  # of |m|^2 / 2
    third = a2 * THIRD
    gz, gy, gx = s * tz - third * hz, s * ty - third * hy, s * tx - third * hx
    hz, hy, hx = m2 * hz, m2 * hy, m2 * hx
    rz, ry, rx = pz - maps[z, 12], py - maps[z, 13], px - maps[z, 14]
    # a rotation w moves p by w x r and turns a by w x a: ds = <w, r x grad s> + <w, a x m>, with z, y, x as axes 0, 1, 2
    cross_z, cross_y, cross_x = ay * mx - ax * my, ax * mz - az * mx, az * my - ay * mz
    vz = ry * gx - rx * gy + s * cross_z
    vy = rx * gz - rz * gx + s * cross_y
    vx = rz * gy - ry * gz + s * cross_x
    v = rz * gz + ry * gy + rx * gx
    # changes of m, as it is seen in the fixed image's frame: by a shift d = (zz, yz, xz), ...; by rotations, d (w x r) - w x m
    pz0, pz1, pz2 = ry * zx - rx * zy, ry * yx - rx * yy + mx, ry * xx - rx * xy - my
    py0, py1, py2 = rx * zz - rz * zx - mx, rx * yz - rz * yx, rx * xz - rz * xx + mz
    px0, px1, px2 = rz * zy - ry * zz + my, rz * yy - ry * yz - mz, rz * xy - ry * xz
    q0, q1, q2 = rz * zz + ry * zy + rx * zx, rz * yz + ry * yy + rx * yx, rz * xz + ry * xy + rx * xx
    return (s * s - a2 * m2 * THIRD, a2 * a2, m2 * m2, ONE, gz, gy, gx, vz, vy, vx, v,
            hz, hy, hx, ry * hx - rx * hy, rx * hz - rz * hx, rz * hy - ry * hz, rz * hz + ry * hy + rx * hx,
            curvature(m2, mz, my, mx, zz, yz, xz, zz, yz, xz),
            curvature(m2, mz, my, mx, zz, yz, xz, zy, yy, xy),
            curvature(m2, mz, my, mx, zz, yz, xz, zx, yx, xx),
            curvature(m2, mz, my, mx, zz, yz, xz, pz0, pz1, pz2),
            curvature(m2, mz, my, mx, zz, yz, xz, py0, py1, py2),
            curvature(m2, mz, my, mx, zz, yz, xz, px0, px1, px2),
            curvature(m2, mz, my, mx, zz, yz, xz, q0, q1, q2),
            curvature(m2, mz, my, mx, zy, yy, xy, zy, yy, xy),
            curvature(m2, mz, my, mx, zy, yy, xy, zx, yx, xx),
            curvature(m2, mz, my, mx, zy, yy, xy, pz0, pz1, pz2),
            curvature(m2, mz, my, mx, zy, yy, xy, py0, py1, py2),
            curvature(m2, mz, my, mx, zy, yy, xy, px0, px1, px2),
            curvature(m2, mz, my, mx, zy, yy, xy, q0, q1, q2),
            curvature(m2, mz, my, mx, zx, yx, xx, zx, yx, xx),
            curvature(m2, mz, my, mx, zx, yx, xx, pz0, pz1, pz2),
            curvature(m2, mz, my, mx, zx, yx, xx, py0, py1, py2),
            curvature(m2, mz, my, mx, zx, yx, xx, px0, px1, px2),
            curvature(m2, mz, my, mx, zx, yx, xx, q0, q1, q2),
            curvature(m2, mz, my, mx, pz0, pz1, pz2, pz0, pz1, pz2),
            curvature(m2, mz, my, mx, pz0, pz1, pz2, py0, py1, py2),
            curvature(m2, mz, my, mx, pz0, pz1, pz2, px0, px1, px2),
            curvature(m2, mz, my, mx, pz0, pz1, pz2, q0, q1, q2),
            curvature(m2, mz, my, mx, py0, py1, py2, py0, py1, py2),
            curvature(m2, mz, my, mx, py0, py1, py2, px0, px1, px2),
            curvature(m2, mz, my, mx, py0, py1, py2, q0, q1, q2),
            curvature(m2, mz, my, mx, px0, px1, px2, px0, px1, px2),
            curvature(m2, mz, my, mx, px0, px1, px2, q0, q1, q2),
            curvature(m2, mz, my, mx, q0, q1, q2, q0, q1, q2))  # fmt: skip


@formula
def product(a, b):
    """<A, B> of two symmetric matrices, as their components 00, 11, 22, 01, 02, 12."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + TWO * (a[3] * b[3] + a[4] * b[4] + a[5] * b[5])


@formula
def commuted(t, z, y, x):
    """[w] T - T [w] of a symmetric T, with [w] the matrix of the cross product with (z, y, x)."""
    t00, t11, t22, t01, t02, t12 = t
    return (
        TWO * (y * t02 - x * t01),
        TWO * (x * t01 - z * t12),
        TWO * (z * t12 - y * t02),
        y * t12 - x * t11 + x * t00 - z * t02,
        y * t22 - x * t12 + z * t01 - y * t00,
        x * t02 - z * t22 + z * t11 - y * t01,
    )


@formula
def carried(maps, z, t):
    """U T U^T with U the rotation of a map."""
    u = maps[z, 15]
    a, b, c = u * maps[z, 0], u * maps[z, 1], u * maps[z, 2]
    d, e, f = u * maps[z, 3], u * maps[z, 4], u * maps[z, 5]
    g, h, i = u * maps[z, 6], u * maps[z, 7], u * maps[z, 8]
    t00, t11, t22, t01, t02, t12 = t
    a0, a1, a2 = a * t00 + b * t01 + c * t02, a * t01 + b * t11 + c * t12, a * t02 + b * t12 + c * t22
    d0, d1, d2 = d * t00 + e * t01 + f * t02, d * t01 + e * t11 + f * t12, d * t02 + e * t12 + f * t22
    g0, g1, g2 = g * t00 + h * t01 + i * t02, g * t01 + h * t11 + i * t12, g * t02 + h * t12 + i * t22
    return (
        a0 * a + a1 * b + a2 * c,
        d0 * d + d1 * e + d2 * f,
        g0 * g + g1 * h + g2 * i,
        a0 * d + a1 * e + a2 * f,
        a0 * g + a1 * h + a2 * i,
        d0 * g + d1 * h + d2 * i,
    )


@formula
def along(b, c, d, z, y, x):
    """Z b + y c + x d of six components."""
    return (
        z * b[0] + y * c[0] + x * d[0],
        z * b[1] + y * c[1] + x * d[1],
        z * b[2] + y * c[2] + x * d[2],
        z * b[3] + y * c[3] + x * d[3],
        z * b[4] + y * c[4] + x * d[4],
        z * b[5] + y * c[5] + x * d[5],
    )


@formula
def less(a, b):
    """A - b of six components."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4], a[5] - b[5])


@voxelwise(sums=46)
def tensor_sums(z, y, x, maps, fixed, moving):
    """As ``pose_sums`` for smoothed trace-free tensors: components 00, 11, 22, 01, 02, 12 along the lattice's axes, and 1 where
    they count, (7, Z, Y, X) float32. The first three sums are those of <A, T>, <A, A> and <T, T>, with A the turned fixed tensor.
    """
    rows = int32(fixed.shape[2])
    row = int32(y)
    plane = row // rows
    k, j = index(plane), index(row - plane * rows)
    cz, cy, cx = float32(plane), float32(row - plane * rows), float32(int32(x))
    pz = maps[z, 0] * cz + maps[z, 1] * cy + maps[z, 2] * cx + maps[z, 9]
    py = maps[z, 3] * cz + maps[z, 4] * cy + maps[z, 5] * cx + maps[z, 10]
    px = maps[z, 6] * cz + maps[z, 7] * cy + maps[z, 8] * cx + maps[z, 11]
    nz, ny, nx = moving.shape[1], moving.shape[2], moving.shape[3]
    if (fixed[index(6), k, j, x] == ZERO) | beyond(pz, nz) | beyond(py, ny) | beyond(px, nx):
        return NOTHING
    if moving[index(6), clamp(int32(math.floor(pz + HALF)), nz), clamp(int32(math.floor(py + HALF)), ny),
              clamp(int32(math.floor(px + HALF)), nx)] == ZERO:  # fmt: skip
        return NOTHING
    bz, by, bx = math.floor(pz), math.floor(py), math.floor(px)
    wz, wy, wx = pz - float32(bz), py - float32(by), px - float32(bx)
    k0, k1 = clamp(int32(bz), nz), clamp(int32(bz) + int32(1), nz)
    j0, j1 = clamp(int32(by), ny), clamp(int32(by) + int32(1), ny)
    i0, i1 = clamp(int32(bx), nx), clamp(int32(bx) + int32(1), nx)
    t0, z0, y0, x0 = component(moving, index(0), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    t1, z1, y1, x1 = component(moving, index(1), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    t2, z2, y2, x2 = component(moving, index(2), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    t3, z3, y3, x3 = component(moving, index(3), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    t4, z4, y4, x4 = component(moving, index(4), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    t5, z5, y5, x5 = component(moving, index(5), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    t = (t0, t1, t2, t3, t4, t5)
    dz = (z0, z1, z2, z3, z4, z5)
    dy = (y0, y1, y2, y3, y4, y5)
    dx = (x0, x1, x2, x3, x4, x5)
    stored = (
        fixed[index(0), k, j, x],
        fixed[index(1), k, j, x],
        fixed[index(2), k, j, x],
        fixed[index(3), k, j, x],
        fixed[index(4), k, j, x],
        fixed[index(5), k, j, x],
    )
    a = carried(maps, z, stored)
    rz, ry, rx = pz - maps[z, 12], py - maps[z, 13], px - maps[z, 14]
    # changes of T, as it is seen in the fixed image's frame: by shifts, rotations (w x r . grad) T - [w] T + T [w], and a scale
    uz = less(along(dz, dy, dx, ZERO, -rx, ry), commuted(t, ONE, ZERO, ZERO))
    uy = less(along(dz, dy, dx, rx, ZERO, -rz), commuted(t, ZERO, ONE, ZERO))
    ux = less(along(dz, dy, dx, -ry, rz, ZERO), commuted(t, ZERO, ZERO, ONE))
    us = along(dz, dy, dx, rz, ry, rx)
    return (product(a, t), product(a, a), product(t, t), ONE,
            HALF * product(a, dz), HALF * product(a, dy), HALF * product(a, dx), HALF * product(a, uz),
            HALF * product(a, uy), HALF * product(a, ux), HALF * product(a, us),
            HALF * product(t, dz), HALF * product(t, dy), HALF * product(t, dx), HALF * product(t, uz),
            HALF * product(t, uy), HALF * product(t, ux), HALF * product(t, us),
            HALF * product(dz, dz), HALF * product(dz, dy), HALF * product(dz, dx), HALF * product(dz, uz),
            HALF * product(dz, uy), HALF * product(dz, ux), HALF * product(dz, us), HALF * product(dy, dy),
            HALF * product(dy, dx), HALF * product(dy, uz), HALF * product(dy, uy), HALF * product(dy, ux),
            HALF * product(dy, us), HALF * product(dx, dx), HALF * product(dx, uz), HALF * product(dx, uy),
            HALF * product(dx, ux), HALF * product(dx, us), HALF * product(uz, uz), HALF * product(uz, uy),
            HALF * product(uz, ux), HALF * product(uz, us), HALF * product(uy, uy), HALF * product(uy, ux),
            HALF * product(uy, us), HALF * product(ux, ux), HALF * product(ux, us), HALF * product(us, us))  # fmt: skip
