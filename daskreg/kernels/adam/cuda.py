"""Adam's step on a GPU, in one pass over memory with the Gaussian of the gradient.

A block of threads owns a tile of the (y, x) plane and moves along z. Each plane is loaded into shared memory once, with the
border that the filter needs, while the next plane is being loaded into registers. A thread filters four columns of a row along x,
then some rows of a column along y; sums along z are kept in registers. A voxel is computed from its own neighbours in a fixed
order, so results do not depend on tiles or ranks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, uint32, uint64

from daskreg.kernels.adam.moments import first_moment, join_moments, round_first, round_second, second_moment
from daskreg.kernels.adam.step import (
    coherent_directions,
    directions,
    gated_directions,
    gated_rates,
    plain_rates,
    squared_norm_fused,
    update_coherent_moments,
    update_moments,
)
from daskreg.kernels.compiler.configuration import block_size, planes_per_block
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import clamp
from daskreg.kernels.intrinsics.half import from_bfloat16, identity
from daskreg.kernels.intrinsics.memory import (
    address,
    held,
    keep_order,
    load,
    load_uint16,
    load_vector,
    load_word,
    store_if,
    store_vector,
)
from daskreg.kernels.intrinsics.random_bits import component_bits, random_bits
from daskreg.kernels.smoothing.cuda import filter_sum, present_plane, push_plane

ZERO = float32(0)
IN_IMAGE, OWN = 1, 1 << 28  # of the flags of a thread, shifted by the number of a value of g, or of a row
COLUMNS = 4  # that a thread filters along x together
VALUES = 64  # sums along z and moments of a thread that fit into its registers


class AdamTile(NamedTuple):
    """What a block computes: ``lines`` of ``width`` threads, one above the other, with ``rows`` rows of each thread.

    blocks: of a multiprocessor; the more, the fewer registers a thread has
    """

    width: int
    lines: int
    rows: int
    blocks: int

    @property
    def height(self) -> int:
        """Rows of the tile."""
        return self.lines * self.rows


def tile(radius: int, mixed: bool = False, gated: bool = False, coherent: bool = False) -> AdamTile:
    """As many rows of a thread as fit into its registers; in float32, which memory bounds, fewer rows and more threads."""
    if radius == 2 and not mixed and not coherent:
        return AdamTile(block_size(64), block_size(5, least=2), 2, 2)
    of_a_row = (4 if coherent else 3) * 2 * radius + (3 if mixed else 4 if coherent else 6) + gated
    rows = max(1, min(block_size(4, least=2), VALUES // of_a_row))
    return AdamTile(block_size(64), block_size(4, least=2) if rows > 1 else 8, rows, 2 if rows > 1 else 1)


def launch_grid(n: Sequence[Any], *constants: Any) -> tuple[np.int32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes per block, blocks and threads of ``smooth_adam`` with these constants, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    t = tile(*constants)
    across, down = -(-nx // t.width), -(-ny // t.height)
    length = planes_per_block(nz, across * down, t.blocks, constants[0])
    return np.int32(length), (across, down, -(-nz // length)), (t.width, t.lines, 1)


def launch_bounds(*constants: Any) -> tuple[int, int]:
    """Threads of a block, and blocks of a multiprocessor."""
    t = tile(*constants)
    return t.width * t.lines, t.blocks


@formula
def moments_of_floats(stored, e, rows):
    """The moments of row e of a thread; 0 for the components of v that are not stored."""
    m0, m1, m2, v0 = stored[e], stored[rows + e], stored[2 * rows + e], stored[3 * rows + e]
    if len(stored) < 6 * rows:
        return m0, m1, m2, v0, ZERO, ZERO
    return m0, m1, m2, v0, stored[4 * rows + e], stored[5 * rows + e]


@formula
def moments_of_words(stored, e, rows):
    """The moments of row e of a thread in mixed storage."""
    a, b, c = stored[e], stored[rows + e], stored[2 * rows + e]
    return first_moment(a), first_moment(b), first_moment(c), second_moment(a), second_moment(b), second_moment(c)


@formula
def keep_moments(moments, first, z, plane, at, t):
    """Moments that are stored as they are."""
    return moments


@formula
def round_moments(moments, first, z, plane, at, t):
    """Moments as words hold them, of the voxel ``at`` in plane z of the arrays, the first of which is global plane ``first``."""
    m0, m1, m2, v0, v1, v2 = moments
    bits = random_bits(uint32(uint32(uint32(int32(z) + first) * plane) + at), t)
    v0, v1 = round_second(v0, component_bits(bits, 0)), round_second(v1, component_bits(bits, 1))
    return round_first(m0), round_first(m1), round_first(m2), v0, v1, round_second(v2, component_bits(bits, 2))


@formula
def addresses(field, base, size):
    """The addresses of three components."""
    return address(field, base), address(field, base + size), address(field, base + uint64(2) * size)


@formula
def no_addresses(field, base, size):
    """Those of a field that mixed storage does not have."""
    return uint64(0), uint64(0), uint64(0)


@formula
def load_components(load_value, where, at, values, e, stride):
    """Load the components of a voxel, the e-th of a thread."""
    values[e], values[stride + e] = load_value(where[0], at), load_value(where[1], at)
    values[2 * stride + e] = load_value(where[2], at)


@formula
def load_moments(load_value, where_m, where_v, at, stored, e, rows):
    """Load the moments of row e of a thread."""
    load_components(load_value, where_m, at, stored, e, rows)
    if len(stored) >= 4 * rows:
        stored[3 * rows + e] = load_value(where_v[0], at)
    if len(stored) >= 6 * rows:
        stored[4 * rows + e], stored[5 * rows + e] = load_value(where_v[1], at), load_value(where_v[2], at)


@formula
def load_bfloat16(where, at):
    """The bits of a bfloat16, which the compiler would otherwise mask again."""
    return held(load_uint16(where, at))


@formula
def store_components(own, where, at, a, b, c):
    """Store the components of a voxel, if it is the thread's own."""
    store_if(own, where[0], at, a)
    store_if(own, where[1], at, b)
    store_if(own, where[2], at, c)


@formula
def store_floats(own, m, v, d, at, moments, d_values):
    """Store moments and direction of a voxel."""
    store_components(own, m, at, moments[0], moments[1], moments[2])
    store_components(own, v, at, moments[3], moments[4], moments[5])
    store_components(own, d, at, d_values[0], d_values[1], d_values[2])


@formula
def store_coherent_floats(own, m, v, d, at, moments, d_values):
    """``store_floats`` where v has one component."""
    store_components(own, m, at, moments[0], moments[1], moments[2])
    store_if(own, v[0], at, moments[3])
    store_components(own, d, at, d_values[0], d_values[1], d_values[2])


@formula
def store_words(own, m, v, d, at, moments, d_values):
    """Store rounded moments of a voxel."""
    a, b, c = join_moments(moments[0], moments[3]), join_moments(moments[1], moments[4]), join_moments(moments[2], moments[5])
    store_components(own, m, at, a, b, c)


@formula
def filter_columns(raw, at, near, weights, taps):
    """The filter along x of four columns; near: registers for the values that they depend on."""
    for q in range(0, len(near), COLUMNS):
        near[q], near[q + 1], near[q + 2], near[q + 3] = load_vector(raw, at + uint64(q))
    a, b = filter_sum(near, 0, 1, weights, taps), filter_sum(near, 1, 1, weights, taps)
    return a, b, filter_sum(near, 2, 1, weights, taps), filter_sum(near, 3, 1, weights, taps)


@cooperative_kernel(launch_bounds=launch_bounds)
def smooth_adam(radius, mixed=False, gated=False, coherent=False):
    """Gaussian of g, Adam's moments in place, direction d, maximum of |d|^2: 72 bytes per voxel, 30 in mixed storage.

        Arguments: length (planes per block; int32), n (first plane within the arrays, planes, rows, columns; uint32), edge
    (planes of the arrays), weights (taps), norms along z (planes of the arrays), y, x: 1 / the sum of the weights inside the
    global grid; shares along z, y, x: ``gaussian_shares``, read with ``coherent`` alone; rates (T, 6), clock (1,) int32: the row
    that counts; g, m, v, d (3 N,); longest (1,) float32, raised to the maximum of |d|^2. ``gated``: with ``gated_direction``.
    ``coherent``: with ``coherent_direction_of``, for which the squared length of g is filtered as a fourth component.
    ``mixed``: g is uint16, the bits of bfloat16; m: both moments, uint32 as in ``moments.pack_word``; v: not read;  d: not an
    array but the global plane at plane 0 of the arrays (int32), on which stochastic rounding depends.
    """
    r, taps, t = radius, 2 * radius + 1, tile(radius, mixed, gated, coherent)
    width, height, rows, threads = t.width, t.height, t.rows, t.width * t.lines
    tall, pitch = height + 2 * r, -(-(width + 2 * r) // COLUMNS) * COLUMNS
    area, area_mid, components = tall * pitch, tall * width, 4 if coherent else 3
    loads = -(-area // threads)  # values of a component of g that a thread loads
    across, groups = width // COLUMNS, components * area_mid // COLUMNS  # groups of columns in a row, and in all rows
    turns, half_threads = -(-groups // threads), 1 << ((threads - 1).bit_length() - 1)
    size_raw, size_mid, size_loaded = max(components * area, threads), components * area_mid, 3 * loads
    size_near, size_line = -(-(COLUMNS + 2 * r) // COLUMNS) * COLUMNS, rows + 2 * r
    size_sums = max(1, components * rows * (taps - 1))
    size_values, size_stored = components * rows, (3 if mixed else 4 if coherent else 6) * rows
    kind = uint32 if mixed else float32  # of g and m in registers
    load_g, load_m, opened = (load_bfloat16, load_word, from_bfloat16) if mixed else (load, load, identity)
    moments_of, rounded = (moments_of_words, round_moments) if mixed else (moments_of_floats, keep_moments)
    addresses_beside = no_addresses if mixed else addresses
    update, direct = (update_coherent_moments, coherent_directions) if coherent else (update_moments, directions)
    direct = gated_directions if gated else direct
    store_step = store_words if mixed else store_coherent_floats if coherent else store_floats
    load_rates = gated_rates if gated or coherent else plain_rates

    @formula
    def load_plane(where, flags, offsets, loaded):
        """Load the values of g that are in the image."""
        for e in range(loads):
            if uint32(flags & uint32(IN_IMAGE << e)) != uint32(0):
                load_components(load_g, where, offsets[e], loaded, e, loads)

    @formula
    def store_plane(raw, thread, flags, loaded):
        """Write them to shared memory; with ``coherent``, their squared lengths behind them."""
        for e in range(loads):
            if uint32(flags & uint32(IN_IMAGE << e)) != uint32(0):
                a, b, c = opened(loaded[e]), opened(loaded[loads + e]), opened(loaded[2 * loads + e])
                at = uint64(thread) + uint64(e * threads)
                raw[at], raw[at + uint64(area)], raw[at + uint64(2 * area)] = a, b, c
                if coherent:
                    raw[at + uint64(3 * area)] = squared_norm_fused(a, b, c)

    @formula
    def filter_x(raw, mid, thread, start, near, weights):
        """The filter along x."""
        for s in range(turns):
            if (s + 1) * threads <= groups or uint32(thread + uint32(s * threads)) < uint32(groups):
                a, b, c, d = filter_columns(raw, start + uint64(s * threads // across * pitch), near, weights, taps)
                store_vector(mid, uint64(COLUMNS) * uint64(thread) + uint64(COLUMNS * s * threads), a, b, c, d)

    @formula
    def clear(mid, thread):
        """Zero in place of a plane that the arrays do not have."""
        for s in range(turns):
            if (s + 1) * threads <= groups or uint32(thread + uint32(s * threads)) < uint32(groups):
                store_vector(mid, uint64(COLUMNS) * uint64(thread) + uint64(COLUMNS * s * threads), ZERO, ZERO, ZERO, ZERO)

    @formula
    def filter_yz(mid, start, line, sums, weights, values):
        """The filters along y and z: ``values`` becomes those that are ``radius`` planes before, component after component."""
        for c in range(components):
            for q in range(size_line):
                line[q] = mid[start + uint64(c * area_mid + q * width)]
            for e in range(rows):
                total = filter_sum(line, uint64(e), 1, weights, taps)
                values[c * rows + e] = push_plane(sums, (components * e + c) * (taps - 1), total, weights, taps)

    def body(length, n, edge, weights, norm_z, norm_y, norm_x, share_z, share_y, share_x, rates, clock, g, m, v, d, longest):
        raw = cuda.shared.array(size_raw, float32, 16)
        mid = cuda.shared.array(size_mid, float32, 16)
        sums, loaded = cuda.local.array(size_sums, float32), cuda.local.array(size_loaded, kind)
        stored, values = cuda.local.array(size_stored, kind), cuda.local.array(size_values, float32)
        near, line = cuda.local.array(size_near, float32), cuda.local.array(size_line, float32)
        norms, shares = cuda.local.array(rows, float32), cuda.local.array(rows, float32)
        offsets_g, offsets = cuda.local.array(loads, uint32), cuda.local.array(rows, uint32)
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        thread = held(uint32(j * uint32(width) + i))
        ny, nx = int32(n[2]), int32(n[3])
        left, top = int32(cuda.blockIdx.x) * int32(width), int32(cuda.blockIdx.y) * int32(height)
        flags = uint32(0)  # IN_IMAGE << e: the value of g that is loaded e-th is in the image;  OWN << e: row e is
        for e in range(loads):
            element = uint32(thread + uint32(e * threads))
            row = int32(top + int32(element // uint32(pitch)) - int32(r))
            col = int32(left + int32(element % uint32(pitch)) - int32(r))
            if element < uint32(area):
                if uint32(row) < n[2] and uint32(col) < n[3]:
                    flags |= uint32(IN_IMAGE << e)
                for c in range(components):  # where nothing is stored later
                    raw[uint64(thread) + uint64(c * area + e * threads)] = ZERO
            offsets_g[e] = held(uint32(row * nx + col))
        col = int32(left + int32(i))
        for e in range(rows):
            row = int32(top + int32(j) * int32(rows) + int32(e))
            if uint32(row) < n[2] and uint32(col) < n[3]:
                flags |= uint32(OWN << e)
            at_y, at_x = clamp(row, ny), clamp(col, nx)
            offsets[e] = held(uint32(at_y * nx + at_x))
            norms[e], shares[e] = norm_y[at_y] * norm_x[at_x], share_y[at_y] * share_x[at_x]
        flags = held(flags)
        plane = uint64(n[2]) * uint64(n[3])
        size = plane * uint64(edge)
        iteration = clock[0]
        step_rates = load_rates(rates, iteration)
        low = int32(int32(n[0]) + int32(cuda.blockIdx.z) * length)
        stop = int32(min(int32(low + length), int32(n[0] + n[1])))
        group = uint32(uint32(thread // uint32(across)) * uint32(pitch) + uint32(thread % uint32(across)) * uint32(COLUMNS))
        start_raw, start_mid = uint64(held(group)), uint64(held(uint32(j * uint32(rows * width) + i)))
        longest_here = ZERO
        for q in range(size_sums):
            sums[q] = ZERO
        k = int32(low - int32(r))
        load_plane(addresses(g, plane * present_plane(k, edge), size), flags, offsets_g, loaded)
        # of the plane that is stored; were it computed from z, the compiler would keep the addresses of loads for the stores
        base = plane * uint64(uint32(low))
        while k < int32(stop + int32(r)):
            z = int32(k - int32(r))
            own = flags if z >= low else uint32(0)
            at_z = uint64(uint32(max(z, low)))
            norm = norm_z[at_z]
            where_m, where_v = addresses(m, plane * at_z, size), addresses_beside(v, plane * at_z, size)
            for e in range(rows):
                load_moments(load_m, where_m, where_v, offsets[e], stored, e, rows)
            keep_order()
            present = uint32(k) < edge
            k = int32(k + int32(1))
            where_g = addresses(g, plane * present_plane(k, edge), size)
            store_plane(raw, thread, flags, loaded)
            if mixed:  # measured: before the barrier here, behind it in float32
                keep_order()
                load_plane(where_g, flags, offsets_g, loaded)
            cuda.syncthreads()
            if not mixed:
                load_plane(where_g, flags, offsets_g, loaded)
            if present:
                filter_x(raw, mid, thread, start_raw, near, weights)
            else:
                clear(mid, thread)
            cuda.syncthreads()
            filter_yz(mid, start_mid, line, sums, weights, values)
            into_m, into_v, into_d = addresses(m, base, size), addresses_beside(v, base, size), addresses_beside(d, base, size)
            if z >= low:
                base += plane
            for e in range(rows):
                scale = norms[e] * norm
                s0, s1, s2 = values[e] * scale, values[rows + e] * scale, values[2 * rows + e] * scale
                chance = values[3 * rows + e] * scale * (shares[e] * share_z[at_z]) if coherent else ZERO
                moments = update(moments_of(stored, e, rows), s0, s1, s2, chance, step_rates)
                moments = rounded(moments, d, z, uint32(plane), offsets[e], iteration)
                d_values, mine = direct(moments, step_rates), uint32(own & uint32(OWN << e))
                store_step(mine, into_m, into_v, into_d, offsets[e], moments, d_values)
                longest_here = max(
                    longest_here, squared_norm_fused(d_values[0], d_values[1], d_values[2]) if mine != uint32(0) else ZERO
                )
        cuda.syncthreads()
        raw[thread] = longest_here
        cuda.syncthreads()
        half = uint32(half_threads)
        while half > uint32(0):
            if thread < half and uint32(thread + half) < uint32(threads):
                raw[thread] = max(raw[thread], raw[thread + half])
            cuda.syncthreads()
            half = uint32(half >> uint32(1))
        if thread == uint32(0):
            cuda.atomic.max(longest, 0, raw[0])

    return body
