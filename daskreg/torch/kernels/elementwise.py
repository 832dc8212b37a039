"""Squared differences, and stencils of displacements: first and second differences, Jacobian determinants, Gaussian filters."""

from __future__ import annotations

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise

index = int64  # replaced by the launcher
ONE, ZERO, HALF, TWO, QUARTER = float32(1), float32(0), float32(0.5), float32(2), float32(0.25)


@voxelwise(sums=1)
def squared_difference_batch(p, y, x, fixed, moved):
    """Row sums of ``(fixed - moved)^2``."""
    r = moved[p, y, x] - fixed[p, y, x]
    return (r * r,)


@voxelwise()
def squared_difference_batch_backward(p, y, x, factor, given, fixed, moved, out):
    """``out = factor given[0] (moved - fixed)``."""
    out[p, y, x] = factor * given[index(0)] * (moved[p, y, x] - fixed[p, y, x])


# ---------------------------------------------------------------- first differences


@formula
def penalty(d, squared):
    """d^2 or |d|."""
    return d * d if squared else abs(d)


@formula
def penalty_slope(d, squared):
    """Its derivative."""
    return TWO * d if squared else ((ONE if d > ZERO else ZERO) - (ONE if d < ZERO else ZERO)) * (d * ZERO + ONE)


@voxelwise(sums=1)
def difference_penalty(p, y, x, depth, squared, cz, cy, cx, u):
    """Row sums of the forward differences' penalties, weighted by axis (cz, cy, cx).

    u: (N Z, Y, X) of N volumes with ``depth`` planes
    """
    z = int32(index(p) % index(depth))
    v = u[p, y, x]
    total = v * ZERO
    if z + int32(1) < int32(depth):
        total += cz * penalty(u[index(p + index(1)), y, x] - v, squared)
    if int32(y) + int32(1) < int32(u.shape[1]):
        total += cy * penalty(u[p, index(y + index(1)), x] - v, squared)
    if int32(x) + int32(1) < int32(u.shape[2]):
        total += cx * penalty(u[p, y, index(x + index(1))] - v, squared)
    return (total,)


@voxelwise()
def difference_penalty_backward(p, y, x, depth, squared, cz, cy, cx, given, u, out):
    """``out``: given[0] times the derivative of the sum of ``difference_penalty``."""
    z = int32(index(p) % index(depth))
    v = u[p, y, x]
    total = v * ZERO
    if z + int32(1) < int32(depth):
        total -= cz * penalty_slope(u[index(p + index(1)), y, x] - v, squared)
    if z > int32(0):
        total += cz * penalty_slope(v - u[index(p - index(1)), y, x], squared)
    if int32(y) + int32(1) < int32(u.shape[1]):
        total -= cy * penalty_slope(u[p, index(y + index(1)), x] - v, squared)
    if int32(y) > int32(0):
        total += cy * penalty_slope(v - u[p, index(y - index(1)), x], squared)
    if int32(x) + int32(1) < int32(u.shape[2]):
        total -= cx * penalty_slope(u[p, y, index(x + index(1))] - v, squared)
    if int32(x) > int32(0):
        total += cx * penalty_slope(v - u[p, y, index(x - index(1))], squared)
    out[p, y, x] = given[index(0)] * total


# ---------------------------------------------------------------- second differences


@formula
def interior(z, y, x, nz, ny, nx):
    """Whether a voxel has all its neighbours."""
    return (
        (z > int32(0))
        & (z < int32(nz) - int32(1))
        & (y > int32(0))
        & (y < int32(ny) - int32(1))
        & (x > int32(0))
        & (x < int32(nx) - int32(1))
    )


@formula
def second(u, base, z, y, x, az, ay, ax, bz, by, bx):
    """The second difference along two directions of one voxel: [1, -2, 1] where they are the same, else four corners / 4."""
    k, j, i = base + z, y, x
    if (az == bz) & (ay == by) & (ax == bx):
        return (
            u[index(k + az), index(j + ay), index(i + ax)] - TWO * u[index(k), index(j), index(i)]
            + u[index(k - az), index(j - ay), index(i - ax)]
        )  # fmt: skip
    return QUARTER * (
        (u[index(k + az + bz), index(j + ay + by), index(i + ax + bx)]
         - u[index(k + az - bz), index(j + ay - by), index(i + ax - bx)])
        - (u[index(k - az + bz), index(j - ay + by), index(i - ax + bx)]
           - u[index(k - az - bz), index(j - ay - by), index(i - ax - bx)])
    )  # fmt: skip


@formula
def second_inside(u, base, z, y, x, nz, az, ay, ax, bz, by, bx):
    """``second`` at interior voxels, 0 elsewhere."""
    if interior(z, y, x, nz, u.shape[1], u.shape[2]):
        return second(u, base, z, y, x, az, ay, ax, bz, by, bx)
    return u[index(0), index(0), index(0)] * ZERO


@formula
def adjoint(u, base, z, y, x, nz, az, ay, ax, bz, by, bx):
    """The transpose of ``second_inside`` applied to it."""
    if (az == bz) & (ay == by) & (ax == bx):
        return (
            second_inside(u, base, z - az, y - ay, x - ax, nz, az, ay, ax, bz, by, bx)
            - TWO * second_inside(u, base, z, y, x, nz, az, ay, ax, bz, by, bx)
            + second_inside(u, base, z + az, y + ay, x + ax, nz, az, ay, ax, bz, by, bx)
        )
    return QUARTER * (
        (second_inside(u, base, z - az - bz, y - ay - by, x - ax - bx, nz, az, ay, ax, bz, by, bx)
         - second_inside(u, base, z - az + bz, y - ay + by, x - ax + bx, nz, az, ay, ax, bz, by, bx))
        - (second_inside(u, base, z + az - bz, y + ay - by, x + ax - bx, nz, az, ay, ax, bz, by, bx)
           - second_inside(u, base, z + az + bz, y + ay + by, x + ax + bx, nz, az, ay, ax, bz, by, bx))
    )  # fmt: skip


@formula
def axis_factors(p, depth, components, normalized, nz, ny, nx):
    """What differences along z, y, x are multiplied by for the component of plane p, squared, and divided by: 1, or extents."""
    if not normalized:
        return ONE, ONE, ONE, ONE
    c = int32((index(p) // index(depth)) % index(components))
    fz, fy, fx = float32(int32(nz)), float32(int32(ny)), float32(int32(nx))
    own = fz if c == int32(0) else (fy if c == int32(1) else fx)
    return fz * fz, fy * fy, fx * fx, own * own


@voxelwise(sums=1)
def bending(p, y, x, depth, components, normalized, u):
    """Row sums of the squared second differences of interior voxels, mixed ones twice.

    normalized: derivatives of a displacement in fractions of the extent;  other arguments as in ``difference_penalty``
    """
    z, j, i, nz = int32(index(p) % index(depth)), int32(y), int32(x), int32(depth)
    base, one, none = int32(p) - z, int32(1), int32(0)
    if not interior(z, j, i, nz, u.shape[1], u.shape[2]):
        return (u[p, y, x] * ZERO,)
    sz, sy, sx, own = axis_factors(p, depth, components, normalized, nz, u.shape[1], u.shape[2])
    zz = second(u, base, z, j, i, one, none, none, one, none, none)
    yy = second(u, base, z, j, i, none, one, none, none, one, none)
    xx = second(u, base, z, j, i, none, none, one, none, none, one)
    zy = second(u, base, z, j, i, one, none, none, none, one, none)
    zx = second(u, base, z, j, i, one, none, none, none, none, one)
    yx = second(u, base, z, j, i, none, one, none, none, none, one)
    pure = sz * sz * zz * zz + sy * sy * yy * yy + sx * sx * xx * xx
    return ((pure + TWO * (sz * sy * zy * zy + sz * sx * zx * zx + sy * sx * yx * yx)) / own,)


@voxelwise()
def bending_backward(p, y, x, depth, components, normalized, factor, given, u, out):
    """``out``: factor given[0] times half the derivative of the sum of ``bending``."""
    z, j, i, nz = int32(index(p) % index(depth)), int32(y), int32(x), int32(depth)
    base, one, none = int32(p) - z, int32(1), int32(0)
    sz, sy, sx, own = axis_factors(p, depth, components, normalized, nz, u.shape[1], u.shape[2])
    total = sz * sz * adjoint(u, base, z, j, i, nz, one, none, none, one, none, none)
    total += sy * sy * adjoint(u, base, z, j, i, nz, none, one, none, none, one, none)
    total += sx * sx * adjoint(u, base, z, j, i, nz, none, none, one, none, none, one)
    total += TWO * sz * sy * adjoint(u, base, z, j, i, nz, one, none, none, none, one, none)
    total += TWO * sz * sx * adjoint(u, base, z, j, i, nz, one, none, none, none, none, one)
    total += TWO * sy * sx * adjoint(u, base, z, j, i, nz, none, one, none, none, none, one)
    out[p, y, x] = factor * given[index(0)] * total / own


# ---------------------------------------------------------------- Jacobian determinant


@formula
def bounds(i, n):
    """The neighbours of i on an axis, and 1 / their distance: 1/2, or 1 at a face; 0 on an axis of one voxel."""
    low, high = max(int32(i) - int32(1), int32(0)), min(int32(i) + int32(1), int32(n) - int32(1))
    return low, high, (HALF if high - low == int32(2) else (ONE if high - low == int32(1) else ZERO))


@formula
def jacobian_row(u, base, z, y, x, nz):
    """The derivatives of one component along z, y, x by central differences, one-sided at a face."""
    k0, k1, hz = bounds(z, nz)
    j0, j1, hy = bounds(y, u.shape[1])
    i0, i1, hx = bounds(x, u.shape[2])
    k, j, i = index(base + z), index(y), index(x)
    return (
        hz * (u[index(base + k1), j, i] - u[index(base + k0), j, i]),
        hy * (u[k, index(j1), i] - u[k, index(j0), i]),
        hx * (u[k, j, index(i1)] - u[k, j, index(i0)]),
    )


@formula
def jacobian_matrix(u, first, z, y, x, nz):
    """I + Du as nine numbers; ``first``: the first plane of u_z."""
    zz, zy, zx = jacobian_row(u, first, z, y, x, nz)
    yz, yy, yx = jacobian_row(u, first + nz, z, y, x, nz)
    xz, xy, xx = jacobian_row(u, first + int32(2) * nz, z, y, x, nz)
    return ONE + zz, zy, zx, yz, ONE + yy, yx, xz, xy, ONE + xx


@voxelwise()
def determinant(p, y, x, depth, u, out):
    """``det(I + Du)``.  u: (3 B Z, Y, X), voxels;  out: (B Z, Y, X)"""
    nz = int32(depth)
    b = int32(index(p) // index(depth))
    z = int32(p) - b * nz
    zz, zy, zx, yz, yy, yx, xz, xy, xx = jacobian_matrix(u, int32(3) * b * nz, z, int32(y), int32(x), nz)
    out[p, y, x] = zz * (yy * xx - yx * xy) - zy * (yz * xx - yx * xz) + zx * (yz * xy - yy * xz)


@formula
def cofactor_row(u, slope, first, b, z, y, x, nz, line, axis):
    """``slope`` times the derivative of the determinant at a voxel with respect to the entry (line, axis) of I + Du."""
    zz, zy, zx, yz, yy, yx, xz, xy, xx = jacobian_matrix(u, first, z, y, x, nz)
    r = slope[index(b * nz + z), index(y), index(x)]
    if line == 0:
        c0, c1, c2 = yy * xx - yx * xy, yx * xz - yz * xx, yz * xy - yy * xz
    elif line == 1:
        c0, c1, c2 = zx * xy - zy * xx, zz * xx - zx * xz, zy * xz - zz * xy
    else:
        c0, c1, c2 = zy * yx - zx * yy, zx * yz - zz * yx, zz * yy - zy * yz
    return r * (c0 if axis == 0 else (c1 if axis == 1 else c2))


@formula
def difference_adjoint(u, slope, first, b, z, y, x, nz, line, axis):
    """What voxel (z, y, x) of a component gets back from the differences along an axis that read it."""
    n = nz if axis == 0 else (int32(u.shape[1]) if axis == 1 else int32(u.shape[2]))
    at = z if axis == 0 else (y if axis == 1 else x)
    total = u[index(0), index(0), index(0)] * ZERO
    for step in range(-1, 2):  # the voxels whose difference may read this one
        q = at + int32(step)
        if (q >= int32(0)) & (q < n):
            low, high, h = bounds(q, n)
            sign = (ONE if high == at else ZERO) - (ONE if low == at else ZERO)
            if sign != ZERO:
                kz, ky, kx = (q if axis == 0 else z), (q if axis == 1 else y), (q if axis == 2 else x)
                total += sign * h * cofactor_row(u, slope, first, b, kz, ky, kx, nz, line, axis)
    return total


@voxelwise()
def determinant_backward(p, y, x, depth, u, slope, out):
    """The derivative with respect to u from that with respect to the determinant.  out: of the shape of u"""
    nz = int32(depth)
    plane = int32(p)
    z = plane % nz
    line, b = (plane // nz) % int32(3), plane // (int32(3) * nz)
    first = int32(3) * b * nz
    total = difference_adjoint(u, slope, first, b, z, int32(y), int32(x), nz, line, 0)
    total += difference_adjoint(u, slope, first, b, z, int32(y), int32(x), nz, line, 1)
    total += difference_adjoint(u, slope, first, b, z, int32(y), int32(x), nz, line, 2)
    out[p, y, x] = total


# ---------------------------------------------------------------- filters


@voxelwise()
def filter_axis(p, y, x, axis, depth, transposed, weights, norms, source, out):
    """A symmetric filter along one axis; voxels beyond the faces have no weight.

    weights: (2 r + 1,);  norms: (n,), what the sum at each voxel of the axis is multiplied by, or before the sum if
    ``transposed``;  source, out: (N Z, Y, X)
    """
    z = int32(index(p) % index(depth))
    at = z if axis == 0 else (int32(y) if axis == 1 else int32(x))
    n = int32(depth) if axis == 0 else (int32(source.shape[1]) if axis == 1 else int32(source.shape[2]))
    r = int32(weights.shape[0] // 2)
    total = source[p, y, x] * ZERO
    for t in range(max(-r, -at), min(r, n - int32(1) - at) + 1):
        q = at + int32(t)
        k = index(int32(p) + int32(t)) if axis == 0 else p
        j, i = index(q) if axis == 1 else y, index(q) if axis == 2 else x
        w = weights[index(int32(t) + r)]
        total += w * source[k, j, i] * (norms[index(q)] if transposed else w * ZERO + ONE)
    out[p, y, x] = total if transposed else total * norms[index(at)]
