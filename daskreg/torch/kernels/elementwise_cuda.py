"""Stencils of displacements on a GPU: as in ``sampling_cuda`` a block owns a tile of the plane and moves along z.

Where all voxels of a stencil are inside, a thread loads them without conditions; elsewhere the formulas of ``elementwise`` say
which count.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import Formula, formula
from daskreg.kernels.intrinsics.memory import address, load, store
from daskreg.torch.kernels.blocks import TILE_X, TILE_Y, block_place, block_total
from daskreg.torch.kernels.elementwise import adjoint, axis_factors, bounds, interior, penalty, penalty_slope

THREADS = TILE_X * TILE_Y
ONE, ZERO, HALF, TWO = float32(1), float32(0), float32(0.5), float32(2)
FOUR, SIX, QUARTER, SIXTEENTH = float32(4), float32(6), float32(0.25), float32(0.0625)


def summing(terms: Formula) -> Callable[..., None]:
    """The body of a kernel that adds up ``terms`` of all voxels in a fixed order, one sum per block.

    n: Z, Y, X, planes per block, components; uint32;  factors: along z, y, x; float32;  u: flat;  partials: (blocks,)
    """
    add_terms = block_total(THREADS)

    def body(n, cz, cy, cx, u, partials):
        shared = cuda.shared.array(THREADS, float32)
        v, z, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[3], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(TILE_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        stop, plane, total = min(uint32(z + n[3]), n[0]), uint32(n[1] * n[2]), ZERO
        where = address(u, OFFSET(v) * OFFSET(n[0]) * OFFSET(plane))
        at = uint32(uint32(z * n[1] + y) * n[2] + x)
        while y < n[1] and x < n[2] and z < stop:
            total += terms(where, at, v, z, y, x, n, cz, cy, cx)
            z, at = uint32(z + uint32(1)), uint32(at + plane)
        t = uint32(cuda.threadIdx.y * uint32(TILE_X) + cuda.threadIdx.x)
        shared[t] = total
        add_terms(shared, t)
        if t == uint32(0):
            partials[uint32(cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x)] = shared[0]

    return body


@cooperative_kernel()
def difference_penalty_tiled(squared: bool) -> Callable[..., None]:
    """``difference_penalty``, see ``summing``."""

    @formula
    def terms(where, at, v, z, y, x, n, cz, cy, cx):
        c, total, one = load(where, at), ZERO, uint32(1)
        if uint32(z + one) < n[0]:
            total += cz * penalty(load(where, uint32(at + uint32(n[1] * n[2]))) - c, squared)
        if uint32(y + one) < n[1]:
            total += cy * penalty(load(where, uint32(at + n[2])) - c, squared)
        if uint32(x + one) < n[2]:
            total += cx * penalty(load(where, uint32(at + one)) - c, squared)
        return total

    return summing(terms)


@cooperative_kernel()
def difference_penalty_backward_tiled(squared: bool) -> Callable[..., None]:
    """``difference_penalty_backward``.  n: Z, Y, X, planes per block, components; uint32;  u, out: flat"""

    @formula
    def pair(where, at, c, step, i, extent):
        """The slopes of the differences to the two neighbours along an axis."""
        total, one = ZERO, uint32(1)
        if uint32(i + one) < extent:
            total -= penalty_slope(load(where, uint32(at + step)) - c, squared)
        if i > uint32(0):
            total += penalty_slope(c - load(where, uint32(at - step)), squared)
        return total

    def body(n, cz, cy, cx, given, u, out):
        v, z, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[3], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(TILE_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        if y >= n[1] or x >= n[2]:
            return
        stop, plane, factor = min(uint32(z + n[3]), n[0]), uint32(n[1] * n[2]), given[0]
        first = OFFSET(v) * OFFSET(n[0]) * OFFSET(plane)
        where, to = address(u, first), address(out, first)
        at = uint32(uint32(z * n[1] + y) * n[2] + x)
        while z < stop:
            c = load(where, at)
            total = cz * pair(where, at, c, plane, z, n[0]) + cy * pair(where, at, c, n[2], y, n[1])
            store(to, at, factor * (total + cx * pair(where, at, c, uint32(1), x, n[2])))
            z, at = uint32(z + uint32(1)), uint32(at + plane)

    return body


@cooperative_kernel()
def bending_tiled(normalized: bool) -> Callable[..., None]:
    """``bending``, see ``summing``; the factors are not read."""

    @formula
    def pure(where, at, c, step):
        return load(where, uint32(at + step)) - TWO * c + load(where, uint32(at - step))

    @formula
    def mixed(where, at, a, b):
        return QUARTER * (
            load(where, uint32(at + uint32(a + b))) - load(where, uint32(at + uint32(a - b)))
            - (load(where, uint32(at - uint32(a - b))) - load(where, uint32(at - uint32(a + b))))
        )  # fmt: skip

    @formula
    def terms(where, at, v, z, y, x, n, cz, cy, cx):
        if not interior(int32(z), int32(y), int32(x), n[0], n[1], n[2]):
            return ZERO
        sz, sy, sx, own = axis_factors(uint32(v * n[0]), n[0], n[4], normalized, n[0], n[1], n[2])
        plane, row, one, c = uint32(n[1] * n[2]), n[2], uint32(1), load(where, at)
        zz, yy, xx = pure(where, at, c, plane), pure(where, at, c, row), pure(where, at, c, one)
        zy, zx, yx = mixed(where, at, plane, row), mixed(where, at, plane, one), mixed(where, at, row, one)
        squares = sz * sz * zz * zz + sy * sy * yy * yy + sx * sx * xx * xx
        return (squares + TWO * (sz * sy * zy * zy + sz * sx * zx * zx + sy * sx * yx * yx)) / own

    return summing(terms)


@formula
def inner(i, n):
    """Whether a voxel is at least two from both faces."""
    return (int32(i) >= int32(2)) & (int32(i) < int32(n) - int32(2))


@formula
def bending_inside(where, at, row, plane, zz, yy, xx):
    """The derivative of half the bending energy where no stencil meets a face; zz, yy, xx: factors of the second differences."""
    c = load(where, at)
    row2, plane2, one, two = uint32(row + row), uint32(plane + plane), uint32(1), uint32(2)
    z1 = load(where, uint32(at - plane)) + load(where, uint32(at + plane))
    y1 = load(where, uint32(at - row)) + load(where, uint32(at + row))
    x1 = load(where, uint32(at - one)) + load(where, uint32(at + one))
    above, below, back, front = uint32(at - plane2), uint32(at + plane2), uint32(at - row2), uint32(at + row2)
    z2, y2 = load(where, above) + load(where, below), load(where, back) + load(where, front)
    x2 = load(where, uint32(at - two)) + load(where, uint32(at + two))
    zy = (load(where, uint32(above - row2)) + load(where, uint32(above + row2))) + (
        load(where, uint32(below - row2)) + load(where, uint32(below + row2))
    )
    zx = (load(where, uint32(above - two)) + load(where, uint32(above + two))) + (
        load(where, uint32(below - two)) + load(where, uint32(below + two))
    )
    yx = (load(where, uint32(back - two)) + load(where, uint32(back + two))) + (
        load(where, uint32(front - two)) + load(where, uint32(front + two))
    )
    pure = zz * zz * (z2 - FOUR * z1 + SIX * c) + yy * yy * (y2 - FOUR * y1 + SIX * c) + xx * xx * (x2 - FOUR * x1 + SIX * c)
    mixed = zz * yy * (zy - TWO * (z2 + y2) + FOUR * c) + zz * xx * (zx - TWO * (z2 + x2) + FOUR * c)
    mixed += yy * xx * (yx - TWO * (y2 + x2) + FOUR * c)
    return pure + TWO * SIXTEENTH * mixed


@formula
def bending_near_faces(u, base, z, y, x, n, zz, yy, xx):
    """The same near faces, by a loop over pairs of axes, which keeps the kernel small."""
    total, a, b = ZERO, int32(0), int32(0)
    while a < int32(3):
        az, ay, ax = int32(a == int32(0)), int32(a == int32(1)), int32(a == int32(2))
        bz, by, bx = int32(b == int32(0)), int32(b == int32(1)), int32(b == int32(2))
        factor = (zz if az else (yy if ay else xx)) * (zz if bz else (yy if by else xx))
        found = adjoint(u, base, z, y, x, int32(n[0]), az, ay, ax, bz, by, bx)
        total += (factor if a == b else TWO * factor) * found
        b = int32(b + int32(1))
        if b > int32(2):
            a = int32(a + int32(1))
            b = a
    return total


@cooperative_kernel(launch_bounds=(TILE_X * TILE_Y, 4))
def bending_backward_tiled(normalized: bool) -> Callable[..., None]:
    """``bending_backward``.  n: Z, Y, X, planes per block, components; uint32;  u, out: flat;  planes: u as (N Z, Y, X)"""

    def body(n, factor, given, u, planes, out):
        v, z, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[3], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(TILE_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        if y >= n[1] or x >= n[2]:
            return
        stop, plane = min(uint32(z + n[3]), n[0]), uint32(n[1] * n[2])
        first = OFFSET(v) * OFFSET(n[0]) * OFFSET(plane)
        where, to = address(u, first), address(out, first)
        sz, sy, sx, own = axis_factors(uint32(v * n[0]), n[0], n[4], normalized, n[0], n[1], n[2])
        scale = factor * given[0] / own
        base, deep = int32(v) * int32(n[0]), inner(y, n[1]) & inner(x, n[2])
        at = uint32(uint32(z * n[1] + y) * n[2] + x)
        while z < stop:
            if deep & inner(z, n[0]):
                total = bending_inside(where, at, n[2], plane, sz, sy, sx)
            else:
                total = bending_near_faces(planes, base, int32(z), int32(y), int32(x), n, sz, sy, sx)
            store(to, at, scale * total)
            z, at = uint32(z + uint32(1)), uint32(at + plane)

    return body


# ---------------------------------------------------------------- Jacobian determinant


@formula
def neighbour_offsets(z, y, x, at, n):
    """Offsets of the neighbours along z, y, x of a voxel, and 1 / their distances."""
    k0, k1, hz = bounds(z, n[0])
    j0, j1, hy = bounds(y, n[1])
    i0, i1, hx = bounds(x, n[2])
    plane = uint32(n[1] * n[2])
    here = int32(z), int32(y), int32(x)
    return (
        uint32(at - uint32(uint32(here[0] - k0) * plane)), uint32(at + uint32(uint32(k1 - here[0]) * plane)),
        uint32(at - uint32(uint32(here[1] - j0) * n[2])), uint32(at + uint32(uint32(j1 - here[1]) * n[2])),
        uint32(at - uint32(here[2] - i0)), uint32(at + uint32(i1 - here[2])), hz, hy, hx,
    )  # fmt: skip


@formula
def derivatives(where, near):
    """The derivatives of a component along z, y, x."""
    a, b, c, d, e, f, hz, hy, hx = near
    return hz * (load(where, b) - load(where, a)), hy * (load(where, d) - load(where, c)), hx * (load(where, f) - load(where, e))


@cooperative_kernel(launch_bounds=(TILE_X * TILE_Y, 5))
def determinant_tiled() -> Callable[..., None]:
    """``determinant``.  n: Z, Y, X, planes per block, 3; uint32;  u, out: flat"""

    def body(n, u, out):
        b, z, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[3], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(TILE_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        if y >= n[1] or x >= n[2]:
            return
        stop, plane = min(uint32(z + n[3]), n[0]), uint32(n[1] * n[2])
        volume = OFFSET(n[0]) * OFFSET(plane)
        first = OFFSET(b) * OFFSET(3) * volume
        of_z, of_y, of_x = address(u, first), address(u, first + volume), address(u, first + OFFSET(2) * volume)
        to, at = address(out, OFFSET(b) * volume), uint32(uint32(z * n[1] + y) * n[2] + x)
        while z < stop:
            near = neighbour_offsets(z, y, x, at, n)
            (zz, zy, zx), (yz, yy, yx), (xz, xy, xx) = derivatives(of_z, near), derivatives(of_y, near), derivatives(of_x, near)
            zz, yy, xx = ONE + zz, ONE + yy, ONE + xx
            store(to, at, zz * (yy * xx - yx * xy) - zy * (yz * xx - yx * xz) + zx * (yz * xy - yy * xz))
            z, at = uint32(z + uint32(1)), uint32(at + plane)

    return body


GRADIENT_Y = block_size(16, least=4)  # rows of a block of threads, with those of its neighbours
GRADIENT_THREADS = TILE_X * GRADIENT_Y


@formula
def span(i, n):
    """1 / the distance of the neighbours of voxel i."""
    _, _, h = bounds(i, n)
    return h


@formula
def adjoint_weights(i, n):
    """What voxel i of an axis gets back from the differences of the voxel before, its own and that of the voxel after."""
    i, n, one = int32(i), int32(n), int32(1)
    before, after = span(i - one, n) if i > int32(0) else ZERO, -span(i + one, n) if i < n - one else ZERO
    own = (ONE if i == n - one else ZERO) - (ONE if i == int32(0) else ZERO)
    return before, own, after


@formula
def weighted(weights, before, own, after):
    """A sum with ``adjoint_weights``."""
    return weights[0] * before + weights[1] * own + weights[2] * after


@cooperative_kernel(launch_bounds=(GRADIENT_THREADS, 2))
def determinant_backward_tiled() -> Callable[..., None]:
    """``determinant_backward``.  n: Z, Y, X, planes per block; uint32;  u, slope, out: flat

    Each thread computes the cofactors of a voxel once, those of the rows and columns around the tile included; its neighbours
    along y and x get them through shared memory, those along z are the thread's own.
    """

    def body(n, u, slope, out):
        kept = cuda.shared.array((6, GRADIENT_THREADS), float32)
        b, z0, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[3], TILE_X - 2)
        ty, tx = uint32(cuda.threadIdx.y), uint32(cuda.threadIdx.x)
        t = uint32(ty * uint32(TILE_X) + tx)
        y = int32(cuda.blockIdx.y) * int32(GRADIENT_Y - 2) + int32(ty) - int32(1)
        x = int32(column) + int32(tx) - int32(1)
        exists = (y >= int32(0)) & (y < int32(n[1])) & (x >= int32(0)) & (x < int32(n[2]))
        mine = (ty > uint32(0)) & (ty < uint32(GRADIENT_Y - 1)) & (tx > uint32(0)) & (tx < uint32(TILE_X - 1)) & exists
        plane = uint32(n[1] * n[2])
        volume = OFFSET(n[0]) * OFFSET(plane)
        first = OFFSET(b) * OFFSET(3) * volume
        of_z, of_y, of_x = address(u, first), address(u, first + volume), address(u, first + OFFSET(2) * volume)
        to_z, to_y, to_x = address(out, first), address(out, first + volume), address(out, first + OFFSET(2) * volume)
        given, nz = address(slope, OFFSET(b) * volume), int32(n[0])
        along_y, along_x = adjoint_weights(y, n[1]), adjoint_weights(x, n[2])
        z, stop = int32(z0) - int32(1), min(int32(z0) + int32(n[3]), nz)
        # derivatives along z of the two planes before, for the components z, y, x; sums in the plane before
        az, ay, ax, bz, by, bx = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
        pz, py, px = ZERO, ZERO, ZERO
        while z <= stop:
            cz, cy, cx, qz, qy, qx = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            if (z >= int32(0)) & (z < nz):
                zy, zx, yy, yx, xy, xx = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
                if exists:
                    at = uint32(uint32(uint32(z) * n[1] + uint32(y)) * n[2] + uint32(x))
                    near, r = neighbour_offsets(z, y, x, at, n), load(given, at)
                    (d0, d1, d2), (e0, e1, e2), (f0, f1, f2) = (
                        derivatives(of_z, near), derivatives(of_y, near), derivatives(of_x, near)
                    )  # fmt: skip
                    d0, e1, f2 = ONE + d0, ONE + e1, ONE + f2
                    cz, zy, zx = r * (e1 * f2 - e2 * f1), r * (e2 * f0 - e0 * f2), r * (e0 * f1 - e1 * f0)
                    cy, yy, yx = r * (d2 * f1 - d1 * f2), r * (d0 * f2 - d2 * f0), r * (d1 * f0 - d0 * f1)
                    cx, xy, xx = r * (d1 * e2 - d2 * e1), r * (d2 * e0 - d0 * e2), r * (d0 * e1 - d1 * e0)
                kept[0, t], kept[1, t], kept[2, t] = zy, yy, xy
                kept[3, t], kept[4, t], kept[5, t] = zx, yx, xx
                cuda.syncthreads()
                if mine:
                    up, down = uint32(t - uint32(TILE_X)), uint32(t + uint32(TILE_X))
                    left, right = uint32(t - uint32(1)), uint32(t + uint32(1))
                    qz = weighted(along_y, kept[0, up], zy, kept[0, down])
                    qy = weighted(along_y, kept[1, up], yy, kept[1, down])
                    qx = weighted(along_y, kept[2, up], xy, kept[2, down])
                    qz += weighted(along_x, kept[3, left], zx, kept[3, right])
                    qy += weighted(along_x, kept[4, left], yx, kept[4, right])
                    qx += weighted(along_x, kept[5, left], xx, kept[5, right])
                cuda.syncthreads()
            if mine and z > int32(z0):  # plane z - 1 is complete
                along_z = adjoint_weights(z - int32(1), nz)
                at = uint32(uint32(uint32(z - int32(1)) * n[1] + uint32(y)) * n[2] + uint32(x))
                store(to_z, at, pz + weighted(along_z, az, bz, cz))
                store(to_y, at, py + weighted(along_z, ay, by, cy))
                store(to_x, at, px + weighted(along_z, ax, bx, cx))
            az, ay, ax, bz, by, bx, pz, py, px = bz, by, bx, cz, cy, cx, qz, qy, qx
            z = int32(z + int32(1))

    return body
