"""The derivative of sampling with respect to the image on a GPU: a block adds in shared memory first.

There it adds integers: an addition of floating-point numbers in shared memory is a loop that compares and swaps, with several
instructions and waits; one of integers is one instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import floor_int32, round_int32
from daskreg.kernels.intrinsics.memory import add_beyond, address, load
from daskreg.torch.kernels.blocks import TILE_X, block_place
from daskreg.torch.kernels.sampling import around, bordered, rounded
from daskreg.torch.kernels.sampling_cuda import affine_rows, field_at, offset, sampling_point

ONE, ZERO = float32(1), float32(0)
SCATTER_Y = block_size(16, least=2)  # rows of a block
SCATTER_THREADS = TILE_X * SCATTER_Y
BLOCK_MEMORY = 2  # blocks of a multiprocessor that share its memory
MAX_WINDOW = 27648  # voxels of the image that a block keeps in shared memory, at most
FAR = 2**31 - 1
AT_ONCE = 4  # planes whose points or slopes are loaded at once
COUNTS = float32(2.1e9)  # a sum of magnitudes as an integer: no sum of integers, each rounded, exceeds 2^31
LARGEST = float32(3e38)
SECTOR = 3  # the first column of a window is a multiple of 2^SECTOR, the voxels that are added to at once


@formula
def least_of_warp(a):
    """The least of an int32 of all threads of a warp."""
    return a


@least_of_warp.intrinsic
def _least_by_shuffles() -> Callable[..., Any]:
    from numba import cuda

    def least_by_shuffles(a):
        everyone = uint32(0xFFFFFFFF)
        a = min(a, cuda.shfl_xor_sync(everyone, a, 16))
        a = min(a, cuda.shfl_xor_sync(everyone, a, 8))
        a = min(a, cuda.shfl_xor_sync(everyone, a, 4))
        a = min(a, cuda.shfl_xor_sync(everyone, a, 2))
        return min(a, cuda.shfl_xor_sync(everyone, a, 1))

    return least_by_shuffles


@formula
def sum_of_warp(a):
    """The sum of a float32 of all threads of a warp."""
    return a


@sum_of_warp.intrinsic
def _sum_by_shuffles() -> Callable[..., Any]:
    from numba import cuda

    def sum_by_shuffles(a):
        everyone = uint32(0xFFFFFFFF)
        a += cuda.shfl_xor_sync(everyone, a, 16)
        a += cuda.shfl_xor_sync(everyone, a, 8)
        a += cuda.shfl_xor_sync(everyone, a, 4)
        a += cuda.shfl_xor_sync(everyone, a, 2)
        return a + cuda.shfl_xor_sync(everyone, a, 1)

    return sum_by_shuffles


@formula
def first_of_warp(t):
    """Whether a thread states what its warp found."""
    return True


@first_of_warp.intrinsic
def _lane_is_zero() -> Callable[..., Any]:
    def lane_is_zero(t):
        return uint32(t & uint32(31)) == uint32(0)

    return lane_is_zero


@formula
def near(p, n, border):
    """A coordinate as the border treats it, moved to at most one voxel outside, where it has no weight; p: any number or none."""
    return min(max(-ONE, bordered(p, n, border)[0]), float32(int32(n)))


@formula
def before(p, nearest):
    """The voxel before a coordinate, or nearest to it."""
    return rounded(p) if nearest else floor_int32(p)


@formula
def shares(value, at_z, at_y, at_x):
    """``value`` times the weights of eight voxels, x fastest."""
    z0, z1 = value * at_z[2], value * at_z[3]
    a, c, e, g = z0 * at_y[2], z0 * at_y[3], z1 * at_y[2], z1 * at_y[3]
    x0, x1 = at_x[2], at_x[3]
    return a * x0, a * x1, c * x0, c * x1, e * x0, e * x1, g * x0, g * x1


@cooperative_kernel(launch_bounds=(SCATTER_THREADS, BLOCK_MEMORY))
def scatter_tiled(mode: int, border: int, nearest: bool) -> Callable[..., None]:
    """The derivative with respect to the image of ``sample_batch_backward``; other arguments as in ``sample_tiled``.

    A block adds in shared memory, to a window of the image with all voxels that the points of its planes are between, and one
    more outside the image, and the window to the image, whose voxels are then next to each other. Where the window does not fit,
    the planes are divided, and in the end added to the image at once. n[10]: voxels of a window, 4 bytes each of dynamic shared
    memory; scattered: flat

    A window has integers, the sum of the magnitudes of a block's slopes is ``COUNTS``: each addition is rounded to
    2^-31 of the sum, about 2^-19 of the mean slope.
    """

    @formula
    def point(n, z, y, x, scale, matrix, u, first, volume, at):
        """Where a voxel is sampled."""
        uz, uy, ux = field_at(mode, u, first, volume, at)
        return sampling_point(mode, z, y, x, uz, uy, ux, n, scale, matrix)

    @formula
    def voxel(n, z, y, x):
        """The offset of a voxel."""
        return uint32(uint32(z * n[1] + y) * n[2] + x)

    @formula
    def bound(box, t, mine, lows, highs):
        """The least box around the voxels between the least and largest coordinates of all threads: lows, and minus highs."""
        cuda.syncthreads()
        if t < uint32(6):
            box[t] = int32(FAR)
        cuda.syncthreads()
        for axis in range(3):
            low, high = int32(FAR), int32(FAR)
            if mine:
                low, high = before(lows[axis], nearest), -int32(before(highs[axis], nearest) + int32(1))
            low, high = least_of_warp(low), least_of_warp(high)
            if first_of_warp(t):
                cuda.atomic.min(box, axis, low)
                cuda.atomic.min(box, axis + 3, high)
        cuda.syncthreads()

    @formula
    def total_magnitude(magnitude, t, mine, n, z0, z1, y, x, where):
        """The sum of the magnitudes of slopes."""
        total, z, last = ZERO, z0, uint32(z1 - uint32(1))
        while mine and z < z1:
            for s in range(AT_ONCE):
                there = uint32(z + uint32(s))
                value = load(where, voxel(n, min(there, last), y, x))
                total += abs(value) if there < z1 else ZERO
            z = uint32(z + uint32(AT_ONCE))
        if t == uint32(0):
            magnitude[0] = ZERO
        cuda.syncthreads()
        total = sum_of_warp(total)
        if first_of_warp(t):
            cuda.atomic.add(magnitude, 0, total)
        cuda.syncthreads()
        return magnitude[0]

    @formula
    def add_directly(where, n, value, pz, py, px):
        """Add to the image."""
        at_z, at_y, at_x = around(pz, n[3], border, nearest), around(py, n[4], border, nearest), around(px, n[5], border, nearest)
        added = shares(value, at_z, at_y, at_x)
        k0, k1, j0, j1, i0, i1 = at_z[0], at_z[1], at_y[0], at_y[1], at_x[0], at_x[1]
        add_beyond(where, offset(k0, j0, i0, n), added[0])
        if not nearest:
            add_beyond(where, offset(k0, j0, i1, n), added[1])
            add_beyond(where, offset(k0, j1, i0, n), added[2])
            add_beyond(where, offset(k0, j1, i1, n), added[3])
            add_beyond(where, offset(k1, j0, i0, n), added[4])
            add_beyond(where, offset(k1, j0, i1, n), added[5])
            add_beyond(where, offset(k1, j1, i0, n), added[6])
            add_beyond(where, offset(k1, j1, i1, n), added[7])

    @formula
    def add_row(window, at, value, wx):
        """Add to two voxels of a window."""
        high = value * wx
        cuda.atomic.add(window, OFFSET(at), round_int32(value - high))
        cuda.atomic.add(window, OFFSET(at) + OFFSET(1), round_int32(high))

    @formula
    def add_to_window(window, n, value, pz, py, px, origin, columns, page):
        """Add to a window; ``origin``: of voxel 0 of the image before its first voxel, ``page``: voxels of a plane of it."""
        qz, qy, qx = near(pz, n[3], border), near(py, n[4], border), near(px, n[5], border)
        k, j, i = before(qz, nearest), before(qy, nearest), before(qx, nearest)
        at = uint32(int32(int32(k * int32(page)) + int32(j * int32(columns)) + i) - origin)
        if nearest:
            cuda.atomic.add(window, OFFSET(at), round_int32(value))
        else:
            wz, wy, wx = qz - float32(k), qy - float32(j), qx - float32(i)
            upper = value * wz
            lower = value - upper
            upper_far, lower_far = upper * wy, lower * wy
            add_row(window, at, lower - lower_far, wx)
            add_row(window, uint32(at + columns), lower_far, wx)
            add_row(window, uint32(at + page), upper - upper_far, wx)
            add_row(window, uint32(uint32(at + page) + columns), upper_far, wx)

    @formula
    def add_window(window, n, where, unit, t, size, k0, j0, i0, rows, columns):
        """Add a window to the image, where it is inside; k0, j0, i0: its first voxel."""
        line, threads = uint32(t // columns), uint32(SCATTER_THREADS)
        lines = uint32(threads // columns)
        k, along_k, along_i = uint32(line // rows), uint32(lines // rows), int32(threads - uint32(lines * columns))
        j, along_j = int32(line - uint32(k * rows)), int32(lines - uint32(along_k * rows))
        j, i, k = int32(j + j0), int32(int32(t - uint32(line * columns)) + i0), int32(int32(k) + k0)
        last_j, last_i, e = int32(j0 + int32(rows)), int32(i0 + int32(columns)), t
        while e < uint32(size):
            if (uint32(k) < n[3]) & (uint32(j) < n[4]) & (uint32(i) < n[5]):
                add_beyond(where, offset(k, j, i, n), float32(window[e]) * unit)
            i, j, k = int32(i + along_i), int32(j + along_j), int32(k + int32(along_k))
            if i >= last_i:
                i, j = int32(i - int32(columns)), int32(j + int32(1))
            if j >= last_j:
                j, k = int32(j - int32(rows)), int32(k + int32(1))
            e = uint32(e + threads)

    def body(n, sz, sy, sx, u, affine, slope, scattered):
        window, box = cuda.shared.array(0, int32), cuda.shared.array(6, int32)
        magnitude = cuda.shared.array(1, float32)
        b, z0, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[6], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(SCATTER_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        t = uint32(cuda.threadIdx.y * uint32(TILE_X) + cuda.threadIdx.x)
        mine = (y < n[1]) & (x < n[2])
        stop = min(uint32(z0 + n[6]), n[0])
        plane, cells = uint32(n[1] * n[2]), OFFSET(n[3]) * OFFSET(n[4]) * OFFSET(n[5])
        volume = OFFSET(n[0]) * OFFSET(plane)
        first, start = OFFSET(b) * OFFSET(3) * volume, (OFFSET(b) * OFFSET(n[7]) + OFFSET(n[8])) * cells
        given, matrix, scale = OFFSET(b) * OFFSET(n[9]) * volume, affine_rows(mode, affine, b), (sz, sy, sx)
        step = n[6]
        while z0 < stop:
            z1 = min(uint32(z0 + step), stop)
            # the window of the planes z0 .. z1 - 1
            kl, jl, il, kh, jh, ih = LARGEST, LARGEST, LARGEST, -LARGEST, -LARGEST, -LARGEST
            z = z0
            while mine and z < z1:
                for s in range(AT_ONCE):
                    there = min(uint32(z + uint32(s)), uint32(z1 - uint32(1)))
                    pz, py, px = point(n, there, y, x, scale, matrix, u, first, volume, voxel(n, there, y, x))
                    pz, py, px = near(pz, n[3], border), near(py, n[4], border), near(px, n[5], border)
                    kl, jl, il, kh, jh, ih = min(kl, pz), min(jl, py), min(il, px), max(kh, pz), max(jh, py), max(ih, px)
                z = uint32(z + uint32(AT_ONCE))
            bound(box, t, mine, (kl, jl, il), (kh, jh, ih))
            k0, j0, i0, k1, j1, i1 = box[0], box[1], box[2], -box[3], -box[4], -box[5]
            if (
                (k0 >= int32(n[3])) | (j0 >= int32(n[4])) | (i0 >= int32(n[5]))
                | (k1 < int32(0)) | (j1 < int32(0)) | (i1 < int32(0))
            ):  # fmt: skip  # all points are outside
                z0 = z1
                continue
            i0 = int32(int32(i0 >> int32(SECTOR)) << int32(SECTOR))
            rows, columns = uint32(int32(1) + j1 - j0), uint32(int32(1) + i1 - i0)
            page = uint32(rows * columns)
            size = OFFSET(uint32(int32(1) + k1 - k0)) * OFFSET(rows) * OFFSET(columns)
            fits = size <= OFFSET(n[10])
            if not fits and step > uint32(1):
                step = uint32(step >> uint32(1))
                continue
            origin = int32(k0 * int32(page) + j0 * int32(columns) + i0) if fits else int32(0)
            c = uint32(0)
            while c < n[9]:
                where, slopes = address(scattered, start + OFFSET(c) * cells), address(slope, given + OFFSET(c) * volume)
                total = total_magnitude(magnitude, t, mine, n, z0, z1, y, x, slopes)
                counted = fits and total <= LARGEST  # not where a slope is infinite or not a number
                units = min(COUNTS / total, LARGEST) if counted and total > ZERO else ONE
                if counted:
                    e = t
                    while e < uint32(size):
                        window[e] = int32(0)
                        e = uint32(e + uint32(SCATTER_THREADS))
                    cuda.syncthreads()
                z = z0
                while mine and z < z1:
                    at = voxel(n, z, y, x)
                    pz, py, px = point(n, z, y, x, scale, matrix, u, first, volume, at)
                    value = load(slopes, at)
                    if counted:
                        add_to_window(window, n, value * units, pz, py, px, origin, columns, page)
                    else:
                        add_directly(where, n, value, pz, py, px)
                    z = uint32(z + uint32(1))
                if counted:
                    cuda.syncthreads()
                    add_window(window, n, where, ONE / units, t, size, k0, j0, i0, rows, columns)
                    cuda.syncthreads()
                c = uint32(c + uint32(1))
            z0 = z1

    return body
