"""The derivative of sampling with respect to the image on a GPU: a block adds in shared memory first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import floor_int32
from daskreg.kernels.intrinsics.memory import add_beyond, address, load
from daskreg.torch.kernels.blocks import TILE_X, block_place
from daskreg.torch.kernels.sampling import ZEROS, around
from daskreg.torch.kernels.sampling_cuda import affine_rows, field_at, offset, sampling_point

ONE, ZERO, HALF = float32(1), float32(0), float32(0.5)
SCATTER_Y = block_size(16, least=2)  # rows of a block
SCATTER_THREADS = TILE_X * SCATTER_Y
BLOCK_MEMORY = 2  # blocks of a multiprocessor that share its memory
MAX_WINDOW = 27648  # voxels of the image that a block keeps in shared memory, at most
FAR = 2**31 - 1
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
def first_of_warp(t):
    """Whether a thread states what ``least_of_warp`` found."""
    return True


@first_of_warp.intrinsic
def _lane_is_zero() -> Callable[..., Any]:
    def lane_is_zero(t):
        return uint32(t & uint32(31)) == uint32(0)

    return lane_is_zero


@formula
def has_weight(at_z, at_y, at_x):
    """Whether a point is inside: whether any of its voxels has a weight."""
    return (
        ((at_z[2] != ZERO) | (at_z[3] != ZERO))
        & ((at_y[2] != ZERO) | (at_y[3] != ZERO))
        & ((at_x[2] != ZERO) | (at_x[3] != ZERO))
    )


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

    A block adds in shared memory, to a window of the image with all voxels that the points of its planes are between, and the
    window to the image, whose voxels are then next to each other. Where the window does not fit, the planes are divided, and in
    the end added to the image at once. n[10]: voxels of a window, 4 bytes each of dynamic shared memory; scattered: flat
    """

    @formula
    def weights(n, z, y, x, scale, matrix, u, first, volume, at):
        """``around`` along the three axes."""
        uz, uy, ux = field_at(mode, u, first, volume, at)
        pz, py, px = sampling_point(mode, z, y, x, uz, uy, ux, n, scale, matrix)
        return around(pz, n[3], border, nearest), around(py, n[4], border, nearest), around(px, n[5], border, nearest)

    @formula
    def bound(box, t, lows, highs):
        """The least box around those of all threads; ``box``: lows, and minus highs."""
        cuda.syncthreads()
        if t < uint32(6):
            box[t] = int32(FAR)
        cuda.syncthreads()
        for axis in range(3):
            low, high = least_of_warp(lows[axis]), least_of_warp(highs[axis])
            if first_of_warp(t):
                cuda.atomic.min(box, axis, low)
                cuda.atomic.min(box, axis + 3, high)
        cuda.syncthreads()

    def body(n, sz, sy, sx, u, affine, slope, scattered):
        window, box = cuda.shared.array(0, float32), cuda.shared.array(6, int32)
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
            kl, jl, il, kh, jh, ih = int32(FAR), int32(FAR), int32(FAR), int32(FAR), int32(FAR), int32(FAR)
            z = z0
            while mine and z < z1:
                at = uint32(uint32(z * n[1] + y) * n[2] + x)
                at_z, at_y, at_x = weights(n, z, y, x, scale, matrix, u, first, volume, at)
                if border != ZEROS or has_weight(at_z, at_y, at_x):
                    kl, jl, il = min(kl, int32(at_z[0])), min(jl, int32(at_y[0])), min(il, int32(at_x[0]))
                    kh, jh, ih = min(kh, -int32(at_z[1])), min(jh, -int32(at_y[1])), min(ih, -int32(at_x[1]))
                z = uint32(z + uint32(1))
            bound(box, t, (kl, jl, il), (kh, jh, ih))
            kl, jl, il, kh, jh, ih = box[0], box[1], box[2], box[3], box[4], box[5]
            if kl == int32(FAR):  # all points are outside
                z0 = z1
                continue
            il = int32(int32(il >> int32(SECTOR)) << int32(SECTOR))
            rows, columns = uint32(int32(1) - jh - jl), uint32(int32(1) - ih - il)
            size = OFFSET(uint32(int32(1) - kh - kl)) * OFFSET(rows) * OFFSET(columns)
            fits = size <= OFFSET(n[10])
            if not fits and step > uint32(1):
                step = uint32(step >> uint32(1))
                continue
            per_column, per_row = ONE / float32(int32(columns)), ONE / float32(int32(rows))
            c = uint32(0)
            while c < n[9]:
                where = address(scattered, start + OFFSET(c) * cells)
                if fits:
                    e = t
                    while e < uint32(size):
                        window[e] = ZERO
                        e = uint32(e + uint32(SCATTER_THREADS))
                    cuda.syncthreads()
                z = z0
                while mine and z < z1:
                    at = uint32(uint32(z * n[1] + y) * n[2] + x)
                    at_z, at_y, at_x = weights(n, z, y, x, scale, matrix, u, first, volume, at)
                    value = load(address(slope, given + OFFSET(c) * volume), at)
                    added = shares(value, at_z, at_y, at_x)
                    k0, k1, j0, j1, i0, i1 = at_z[0], at_z[1], at_y[0], at_y[1], at_x[0], at_x[1]
                    if not fits:
                        add_beyond(where, offset(k0, j0, i0, n), added[0])
                        if not nearest:
                            add_beyond(where, offset(k0, j0, i1, n), added[1])
                            add_beyond(where, offset(k0, j1, i0, n), added[2])
                            add_beyond(where, offset(k0, j1, i1, n), added[3])
                            add_beyond(where, offset(k1, j0, i0, n), added[4])
                            add_beyond(where, offset(k1, j0, i1, n), added[5])
                            add_beyond(where, offset(k1, j1, i0, n), added[6])
                            add_beyond(where, offset(k1, j1, i1, n), added[7])
                    elif border != ZEROS or has_weight(at_z, at_y, at_x):
                        low, high = uint32(uint32(k0) - uint32(kl)), uint32(uint32(k1) - uint32(kl))
                        near, far = uint32(uint32(j0) - uint32(jl)), uint32(uint32(j1) - uint32(jl))
                        i0, i1 = uint32(uint32(i0) - uint32(il)), uint32(uint32(i1) - uint32(il))
                        a, d = uint32(uint32(low * rows + near) * columns), uint32(uint32(low * rows + far) * columns)
                        f, g = uint32(uint32(high * rows + near) * columns), uint32(uint32(high * rows + far) * columns)
                        cuda.atomic.add(window, uint32(a + i0), added[0])
                        if not nearest:
                            cuda.atomic.add(window, uint32(a + i1), added[1])
                            cuda.atomic.add(window, uint32(d + i0), added[2])
                            cuda.atomic.add(window, uint32(d + i1), added[3])
                            cuda.atomic.add(window, uint32(f + i0), added[4])
                            cuda.atomic.add(window, uint32(f + i1), added[5])
                            cuda.atomic.add(window, uint32(g + i0), added[6])
                            cuda.atomic.add(window, uint32(g + i1), added[7])
                    z = uint32(z + uint32(1))
                if fits:
                    cuda.syncthreads()
                    e = t
                    while e < uint32(size):
                        value = window[e]
                        if value != ZERO:
                            row = floor_int32((float32(int32(e)) + HALF) * per_column)
                            k = floor_int32((float32(row) + HALF) * per_row)
                            j, i = row - k * int32(rows), int32(e) - row * int32(columns)
                            add_beyond(where, offset(k + kl, j + jl, i + il, n), value)
                        e = uint32(e + uint32(SCATTER_THREADS))
                    cuda.syncthreads()
                c = uint32(c + uint32(1))
            z0 = z1

    return body
