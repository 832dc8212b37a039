"""Composition of a small displacement with a large one, and upsampling of a displacement to the next finer level."""

import math

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise

index = int64  # replaced by the launcher
ONE = float32(1)


@formula
def clamp(i, n):
    """The index in 0 .. n - 1 nearest to i."""
    return min(max(i, int32(0)), n - int32(1))


@formula
def lerp(w, a, b):
    """(1 - w) a + w b."""
    return (ONE - w) * a + w * b


@formula
def blend(u, c, k0, k1, j0, j1, i0, i1, wz, wy, wx):
    """Trilinear value of component c between eight voxels, given by two indices per axis."""
    plane0 = lerp(wy, lerp(wx, u[c, k0, j0, i0], u[c, k0, j0, i1]), lerp(wx, u[c, k0, j1, i0], u[c, k0, j1, i1]))
    plane1 = lerp(wy, lerp(wx, u[c, k1, j0, i0], u[c, k1, j0, i1]), lerp(wx, u[c, k1, j1, i0], u[c, k1, j1, i1]))
    return lerp(wz, plane0, plane1)


@formula
def neighbours(i, d, n, lead):
    """The two voxels of the global axis (0 .. n - 1) around i + d, clamped, as local indices, and the weight of the second."""
    whole = math.floor(d)
    k = i + int32(whole)
    return index(clamp(k, n) - lead), index(clamp(k + int32(1), n) - lead), d - float32(whole)


@formula
def store_composed(z, y, x, first, planes, dz, dy, dx, u, composed):
    """``composed`` at a voxel, of a step there."""
    k0, k1, wz = neighbours(int32(z) + int32(first), dz, int32(planes), int32(first))
    j0, j1, wy = neighbours(int32(y), dy, int32(u.shape[2]), int32(0))
    i0, i1, wx = neighbours(int32(x), dx, int32(u.shape[3]), int32(0))
    composed[index(0), z, y, x] = dz + blend(u, index(0), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    composed[index(1), z, y, x] = dy + blend(u, index(1), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    composed[index(2), z, y, x] = dx + blend(u, index(2), k0, k1, j0, j1, i0, i1, wz, wy, wx)


@voxelwise()
def compose(z, y, x, first, planes, scale, d, u, composed):
    """``composed(x) = s d(x) + u(x + s d(x))``, u clamped at the faces of the *global* grid (method, section 5, step 5).

    first: global plane at z = 0;  planes: of the global grid (ints);  scale: (1,) float32;
    d, u, composed: (3, Z, Y, X) float32, voxels
    """
    s = scale[0]
    dz, dy, dx = s * d[index(0), z, y, x], s * d[index(1), z, y, x], s * d[index(2), z, y, x]
    store_composed(z, y, x, first, planes, dz, dy, dx, u, composed)


@formula
def shorten(dz, dy, dx, most):
    """A vector with the same direction and at most this length."""
    square = dz * dz + dy * dy + dx * dx
    part = most / math.sqrt(square) if square > most * most else ONE
    return part * dz, part * dy, part * dx


@voxelwise()
def compose_shortened(z, y, x, first, planes, scale, d, u, composed):
    """``compose`` with ``s d`` of at most ``scale[1]`` voxels; s is ``scale[0]``.

    scale: (2,) float32; the others as there
    """
    s, most = scale[0], scale[1]
    dz, dy, dx = shorten(s * d[index(0), z, y, x], s * d[index(1), z, y, x], s * d[index(2), z, y, x], most)
    store_composed(z, y, x, first, planes, dz, dy, dx, u, composed)


@formula
def coarse_neighbours(i, fine, coarse, n, origin):
    """The two voxels of a coarser level with n voxels around fine voxel i, minus ``origin``, and the weight of the second.

    The position is c = (i fine + (fine - 1)/2 - (coarse - 1)/2) / coarse, exact as a ratio of integers; fine and coarse are
    downsampling factors.
    """
    twice = int32(2) * coarse
    numerator = int32(2) * i * fine + fine - coarse
    k = (numerator + int32(4) * twice) // twice - int32(4)  # floor division of a number that may be slightly negative
    w = float32(numerator - k * twice) / float32(twice)
    return index(clamp(k, n) - origin), index(clamp(k + int32(1), n) - origin), w


@voxelwise()
def upsample(z, y, x, first, origin, planes, fine, coarse, gain, u, finer):
    """A displacement (or a moment of its gradient) on the next finer level, trilinear, clamped at the faces.

    first: global plane at z = 0 of ``finer``;  origin: global plane at the first plane of u;  planes: of the coarse global grid
    (ints);  fine, coarse: downsampling factors of the two levels (3,) int32;  gain: (3,) float32, multiplies the components
    (coarse / fine for voxels);  u, finer: (3, Z, Y, X) float32
    """
    k0, k1, wz = coarse_neighbours(int32(z) + int32(first), fine[0], coarse[0], int32(planes), int32(origin))
    j0, j1, wy = coarse_neighbours(int32(y), fine[1], coarse[1], int32(u.shape[2]), int32(0))
    i0, i1, wx = coarse_neighbours(int32(x), fine[2], coarse[2], int32(u.shape[3]), int32(0))
    finer[index(0), z, y, x] = gain[0] * blend(u, index(0), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    finer[index(1), z, y, x] = gain[1] * blend(u, index(1), k0, k1, j0, j1, i0, i1, wz, wy, wx)
    finer[index(2), z, y, x] = gain[2] * blend(u, index(2), k0, k1, j0, j1, i0, i1, wz, wy, wx)
