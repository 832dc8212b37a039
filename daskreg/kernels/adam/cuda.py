"""Adam's step on a GPU, in one pass over memory with the Gaussian of the gradient.

A block of threads owns a tile of the (y, x) plane and moves along z. Each plane is loaded into shared memory once, with the
border that the filter needs, while the next plane is being loaded into registers; sums along z are kept in registers. A voxel is
computed from its own neighbours in a fixed order, so results do not depend on tiles or ranks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import float32, int32, uint32, uint64

from daskreg.kernels.adam.moments import first_moment, pack_word, second_moment
from daskreg.kernels.compiler.configuration import block_size, planes_per_block
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import clamp, divide_normal, fma, lerp, sqrt_fast
from daskreg.kernels.intrinsics.half import from_bfloat16, identity
from daskreg.kernels.intrinsics.memory import held, load_bytes, store_components
from daskreg.kernels.intrinsics.random_bits import component_bits, random_bits
from daskreg.kernels.smoothing.cuda import filter_sum, present_plane, push_plane

ZERO, ONE, TINY, THIRD = float32(0), float32(1), float32(1e-30), float32(1 / 3)
ADAM_TILE = block_size(8), block_size(64)  # threads of a block along y and x


def launch_grid(n: Sequence[Any], radius: int) -> tuple[np.int32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes per block, blocks and threads of ``smooth_adam``, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = ADAM_TILE
    across, down = -(-nx // tx), -(-ny // ty)
    length = planes_per_block(nz, across * down, 2, radius)
    return np.int32(length), (across, down, -(-nz // length)), (tx, ty, 1)


@formula
def direction(m, v, c1, c2, eps):
    """A component of Adam's direction."""
    return -divide_normal(m * c1, sqrt_fast(v * c2) + eps)


@formula
def gated_direction(m, v, c1, c2, eps, chance):
    """``direction`` as far as it is more than chance (``kernels.adam.cpu.significance``)."""
    first, second = m * c1, v * c2
    by_chance = min(ONE, divide_normal(chance * second, max(first * first, TINY)))
    return direction(m, v, c1, c2, eps) * (ONE - by_chance)


def restored_direction(m, v, c1, c2, eps, chance):
    """``kernels.adam.cpu.direction_of_moments``; without a chance level these are the bits of ``direction``."""
    return gated_direction(m, v, c1, c2, eps, chance)


@formula
def packed_direction(word, corrections):
    """``direction`` from packed moments; corrections: both bias corrections and epsilon."""
    return direction(first_moment(word), second_moment(word), corrections[0], corrections[1], corrections[2])


@formula
def packed_gated_direction(word, corrections):
    """``gated_direction`` from packed moments; corrections: both bias corrections, epsilon and the chance level."""
    c1, c2, eps, chance = corrections
    return gated_direction(first_moment(word), second_moment(word), c1, c2, eps, chance)


@formula
def plain_rates(rates, t):
    """Row t of the coefficients, which no chance level concerns."""
    return rates[t, 0], rates[t, 1], rates[t, 2], rates[t, 3], rates[t, 4]


@formula
def gated_rates(rates, t):
    """Row t of the coefficients."""
    return rates[t, 0], rates[t, 1], rates[t, 2], rates[t, 3], rates[t, 4], rates[t, 5]


@formula
def no_second_moment(array, base, byte):
    """In mixed storage v is loaded with m."""
    return uint32(0)


@formula
def update_moments(m, v, d, base, size, byte, voxel, t, stored, s0, s1, s2, chance_now, rates):
    """Update stored moments with the smoothed gradient, store moments and direction; returns |d|^2."""
    m0, m1, m2, v0, v1, v2 = stored
    b1, b2, c1, c2, eps = rates
    m0, m1, m2 = lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1)
    v0, v1, v2 = lerp(s0 * s0, v0, b2), lerp(s1 * s1, v1, b2), lerp(s2 * s2, v2, b2)
    d0, d1, d2 = direction(m0, v0, c1, c2, eps), direction(m1, v1, c1, c2, eps), direction(m2, v2, c1, c2, eps)
    store_components(m, base, size, byte, m0, m1, m2)
    store_components(v, base, size, byte, v0, v1, v2)
    store_components(d, base, size, byte, d0, d1, d2)
    return fma(d2, d2, fma(d1, d1, d0 * d0))


@formula
def update_gated_moments(m, v, d, base, size, byte, voxel, t, stored, s0, s1, s2, chance_now, rates):
    """``update_moments`` with ``gated_direction``."""
    m0, m1, m2, v0, v1, v2 = stored
    b1, b2, c1, c2, eps, chance = rates
    m0, m1, m2 = lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1)
    v0, v1, v2 = lerp(s0 * s0, v0, b2), lerp(s1 * s1, v1, b2), lerp(s2 * s2, v2, b2)
    d0 = gated_direction(m0, v0, c1, c2, eps, chance)
    d1 = gated_direction(m1, v1, c1, c2, eps, chance)
    d2 = gated_direction(m2, v2, c1, c2, eps, chance)
    store_components(m, base, size, byte, m0, m1, m2)
    store_components(v, base, size, byte, v0, v1, v2)
    store_components(d, base, size, byte, d0, d1, d2)
    return fma(d2, d2, fma(d1, d1, d0 * d0))


@formula
def update_packed_moments(words, nothing, first, base, size, byte, voxel, t, stored, s0, s1, s2, chance_now, rates):
    """``update_moments`` in mixed storage: the direction follows from the rounded moments."""
    b1, b2, c1, c2, eps = rates
    corrections, bits = (c1, c2, eps), random_bits(voxel, t)
    m, v = lerp(s0, first_moment(stored[0]), b1), lerp(s0 * s0, second_moment(stored[0]), b2)
    w0 = pack_word(m, v, component_bits(bits, 0))
    m, v = lerp(s1, first_moment(stored[1]), b1), lerp(s1 * s1, second_moment(stored[1]), b2)
    w1 = pack_word(m, v, component_bits(bits, 1))
    m, v = lerp(s2, first_moment(stored[2]), b1), lerp(s2 * s2, second_moment(stored[2]), b2)
    w2 = pack_word(m, v, component_bits(bits, 2))
    store_components(words, base, size, byte, w0, w1, w2)
    d0, d1, d2 = packed_direction(w0, corrections), packed_direction(w1, corrections), packed_direction(w2, corrections)
    return fma(d2, d2, fma(d1, d1, d0 * d0))


@formula
def update_packed_gated_moments(words, nothing, first, base, size, byte, voxel, t, stored, s0, s1, s2, chance_now, rates):
    """``update_packed_moments`` with ``gated_direction``."""
    b1, b2, c1, c2, eps, chance = rates
    corrections, bits = (c1, c2, eps, chance), random_bits(voxel, t)
    m, v = lerp(s0, first_moment(stored[0]), b1), lerp(s0 * s0, second_moment(stored[0]), b2)
    w0 = pack_word(m, v, component_bits(bits, 0))
    m, v = lerp(s1, first_moment(stored[1]), b1), lerp(s1 * s1, second_moment(stored[1]), b2)
    w1 = pack_word(m, v, component_bits(bits, 1))
    m, v = lerp(s2, first_moment(stored[2]), b1), lerp(s2 * s2, second_moment(stored[2]), b2)
    w2 = pack_word(m, v, component_bits(bits, 2))
    store_components(words, base, size, byte, w0, w1, w2)
    d0 = packed_gated_direction(w0, corrections)
    d1 = packed_gated_direction(w1, corrections)
    d2 = packed_gated_direction(w2, corrections)
    return fma(d2, d2, fma(d1, d1, d0 * d0))


def fused_norm(a, b, c):
    """``kernels.adam.coherent.squared_norm``."""
    return fma(c, c, fma(b, b, a * a))


def fast_factor(square, chance, eps, coherence):
    """``kernels.adam.coherent.coherent_factor``."""
    by_chance = min(ONE, divide_normal(coherence * chance, max(square, TINY)))
    return divide_normal(by_chance - ONE, sqrt_fast(square * THIRD) + eps)


squared_norm_fused, coherent_factor_fast = formula(fused_norm), formula(fast_factor)


@formula
def coherent_direction_of(a, b, c, chance, corrections):
    """Adam's direction from m and v where v is of chance; corrections: both bias corrections, epsilon and coherence."""
    c1, c2, eps, coherence = corrections
    a, b, c = a * c1, b * c1, c * c1
    factor = coherent_factor_fast(squared_norm_fused(a, b, c), chance * c2, eps, coherence)
    return a * factor, b * factor, c * factor


@formula
def packed_coherent_direction_of(w0, w1, w2, corrections):
    """``coherent_direction_of`` from packed moments."""
    return coherent_direction_of(first_moment(w0), first_moment(w1), first_moment(w2), second_moment(w0), corrections)


@formula
def update_coherent_moments(m, v, d, base, size, byte, voxel, t, stored, s0, s1, s2, chance_now, rates):
    """``update_moments`` with ``coherent_direction_of``; v is in the first component."""
    m0, m1, m2, chance, v1, v2 = stored
    b1, b2, c1, c2, eps, coherence = rates
    m0, m1, m2, chance = lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1), lerp(chance_now, chance, b2)
    d0, d1, d2 = coherent_direction_of(m0, m1, m2, chance, (c1, c2, eps, coherence))
    store_components(m, base, size, byte, m0, m1, m2)
    store_components(v, base, size, byte, chance, v1, v2)
    store_components(d, base, size, byte, d0, d1, d2)
    return squared_norm_fused(d0, d1, d2)


@formula
def update_packed_coherent_moments(words, nothing, first, base, size, byte, voxel, t, stored, s0, s1, s2, chance_now, rates):
    """``update_coherent_moments`` in mixed storage: v is in the word of the first component."""
    b1, b2, c1, c2, eps, coherence = rates
    m, chance = lerp(s0, first_moment(stored[0]), b1), lerp(chance_now, second_moment(stored[0]), b2)
    w0 = pack_word(m, chance, component_bits(random_bits(voxel, t), 0))
    w1 = pack_word(lerp(s1, first_moment(stored[1]), b1), ZERO, uint32(0))
    w2 = pack_word(lerp(s2, first_moment(stored[2]), b1), ZERO, uint32(0))
    store_components(words, base, size, byte, w0, w1, w2)
    d0, d1, d2 = packed_coherent_direction_of(w0, w1, w2, (c1, c2, eps, coherence))
    return squared_norm_fused(d0, d1, d2)


@formula
def store_square(raw, element, area):
    """Behind the three components of a plane in shared memory: the squared length."""
    at, step = uint64(element), uint64(area)
    raw[at + uint64(3) * step] = squared_norm_fused(raw[at], raw[at + step], raw[at + uint64(2) * step])


@formula
def store_nothing(raw, element, area):
    """Where v is not of chance."""


@formula
def square_of_plane(sums, mid, at, stride, weights, taps):
    """The filtered squared length, after a plane."""
    return push_plane(sums, 3 * taps - 3, filter_sum(mid, at, stride, weights, taps), weights, taps)


@formula
def no_square(sums, mid, at, stride, weights, taps):
    """Where v is not of chance."""
    return ZERO


@formula
def voxel_number(first, z, plane, byte):
    """The number of a voxel in the grid, modulo 2^32; z: plane of the arrays, the first of which is global plane ``first``."""
    return uint32(uint32(uint32(int32(z) + first) * uint32(plane)) + uint32(byte >> uint32(2)))


@formula
def no_voxel_number(first, z, plane, byte):
    """Where rounding needs none."""
    return uint32(0)


@formula
def load_values(g, base, size, byte_offsets, values):
    """Three components of some voxels."""
    for e in range(len(byte_offsets)):
        for c in range(3):
            values[3 * e + c] = load_bytes(g, base + uint64(c) * size, byte_offsets[e])


@cooperative_kernel(launch_bounds=lambda radius, mixed=False, gated=False, coherent=False: (512, 2))
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
    (ty, tx), r, taps = ADAM_TILE, radius, 2 * radius + 1
    threads, width, height = ty * tx, tx + 2 * r, ty + 2 * r
    filtered = 4 if coherent else 3  # components
    loads, rows = -(-(width * height) // threads), -(-(filtered * height) // ty)
    full = width * height // threads  # loads that every thread has
    tile, middle, rings, fetched = filtered * height * width, filtered * height * tx, max(1, filtered * (taps - 1)), 3 * loads
    kind, none, value_bytes = (uint32, uint32(0), 2) if mixed else (float32, ZERO, 4)  # of g as it is stored
    opened, beside_m = (from_bfloat16, no_second_moment) if mixed else (identity, load_bytes)
    plain, by_chance = (update_packed_moments, update_packed_gated_moments) if mixed else (update_moments, update_gated_moments)
    coherently = update_packed_coherent_moments if mixed else update_coherent_moments
    step, load_rates = (coherently if coherent else by_chance, gated_rates) if gated or coherent else (plain, plain_rates)
    beside_g, square_of = (store_square, square_of_plane) if coherent else (store_nothing, no_square)
    number = voxel_number if mixed else no_voxel_number

    def body(length, n, edge, weights, norm_z, norm_y, norm_x, share_z, share_y, share_x, rates, clock, g, m, v, d, longest):
        raw = cuda.shared.array(tile, float32)
        mid = cuda.shared.array(middle, float32)
        sums, prefetched = cuda.local.array(rings, float32), cuda.local.array(fetched, kind)
        byte_offsets = cuda.local.array(loads, uint32)
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        thread = uint32(j * uint32(tx) + i)
        left, top = int32(cuda.blockIdx.x) * int32(tx), int32(cuda.blockIdx.y) * int32(ty)
        x, y = uint32(left + int32(i)), uint32(top + int32(j))
        flags = uint32(0)  # bit e: the value that is loaded e-th is in the image;  bit ``loads``: the thread's voxel is
        for e in range(loads):
            element = uint32(thread + uint32(e * threads))
            row = int32(top + int32(element // uint32(width)) - int32(r))
            col = int32(left + int32(element % uint32(width)) - int32(r))
            if element < uint32(width * height) and uint32(row) < n[2] and uint32(col) < n[3]:
                flags |= uint32(1 << e)
            at_y, at_x = clamp(row, int32(n[2])), clamp(col, int32(n[3]))
            byte_offsets[e] = held(uint32(uint32(value_bytes) * uint32(at_y * int32(n[3]) + at_x)))
        if y < n[2] and x < n[3]:
            flags |= uint32(1 << loads)
        flags = held(flags)
        plane = uint64(n[2]) * uint64(n[3])
        size = plane * uint64(edge)
        y, x = uint32(clamp(int32(y), int32(n[2]))), uint32(clamp(int32(x), int32(n[3])))
        own_byte = held(uint32(uint32(4) * uint32(y * n[3] + x)))
        norm = norm_y[y] * norm_x[x]
        share = share_y[y] * share_x[x]
        t = clock[0]
        step_rates = load_rates(rates, t)
        low = int32(int32(n[0]) + int32(cuda.blockIdx.z) * length)
        stop = int32(min(int32(low + length), int32(n[0] + n[1])))
        longest_here = ZERO
        for q in range(rings):
            sums[q] = ZERO
        k = int32(low - int32(r))
        load_values(g, plane * present_plane(k, edge), size, byte_offsets, prefetched)
        while k < int32(stop + int32(r)):
            here = flags if uint32(k) < edge else uint32(0)
            for e in range(loads):
                element = uint32(thread + uint32(e * threads))
                if e < full or element < uint32(width * height):
                    inside = uint32(here & uint32(1 << e)) != uint32(0)
                    for c in range(3):
                        raw[uint64(element) + uint64(c * width * height)] = opened(prefetched[3 * e + c]) if inside else ZERO
                    beside_g(raw, element, width * height)
            cuda.syncthreads()
            z = int32(k - int32(r))
            done = z >= low and uint32(flags & uint32(1 << loads)) != uint32(0)
            base_z = plane * uint64(uint32(max(z, int32(0))))
            m0, m1, m2, v0, v1, v2 = none, none, none, none, none, none
            if done:
                m0, m1, m2 = (
                    load_bytes(m, base_z, own_byte),
                    load_bytes(m, base_z + size, own_byte),
                    load_bytes(m, base_z + uint64(2) * size, own_byte),
                )
                v0, v1, v2 = (
                    beside_m(v, base_z, own_byte),
                    beside_m(v, base_z + size, own_byte),
                    beside_m(v, base_z + uint64(2) * size, own_byte),
                )
            k = int32(k + int32(1))
            load_values(g, plane * present_plane(k, edge), size, byte_offsets, prefetched)
            for s in range(rows):
                line = uint32(j + uint32(s * ty))
                if (s + 1) * ty <= filtered * height or line < uint32(filtered * height):
                    total = filter_sum(raw, uint64(uint32(j * uint32(width) + i)) + uint64(s * ty * width), 1, weights, taps)
                    mid[uint64(thread) + uint64(s * ty * tx)] = total
            cuda.syncthreads()
            s0 = push_plane(sums, 0, filter_sum(mid, uint64(thread), tx, weights, taps), weights, taps)
            s1 = push_plane(
                sums, taps - 1, filter_sum(mid, uint64(thread) + uint64(height * tx), tx, weights, taps), weights, taps
            )
            s2 = push_plane(
                sums, 2 * taps - 2, filter_sum(mid, uint64(thread) + uint64(2 * height * tx), tx, weights, taps), weights, taps
            )
            s3 = square_of(sums, mid, uint64(thread) + uint64(3 * height * tx), tx, weights, taps)
            if done:
                scale = norm * norm_z[z]
                s0, s1, s2, s3 = s0 * scale, s1 * scale, s2 * scale, s3 * scale * (share * share_z[z])
                voxel = number(d, z, n[2] * n[3], own_byte)
                longest_here = max(
                    longest_here,
                    step(m, v, d, base_z, size, own_byte, voxel, t, (m0, m1, m2, v0, v1, v2), s0, s1, s2, s3, step_rates),
                )
        cuda.syncthreads()
        raw[thread] = longest_here
        cuda.syncthreads()
        half = uint32(threads // 2)
        while half > uint32(0):
            if thread < half:
                raw[thread] = max(raw[thread], raw[thread + half])
            cuda.syncthreads()
            half = uint32(half >> uint32(1))
        if thread == uint32(0):
            cuda.atomic.max(longest, 0, raw[0])

    return body
