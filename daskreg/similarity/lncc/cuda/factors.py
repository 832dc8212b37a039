"""Window sums of a plane after another, and what the loss and its gradient need of them."""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import round_int64
from daskreg.kernels.intrinsics.half import as_float32, storage_type
from daskreg.kernels.intrinsics.memory import address, load, load_uint16, store
from daskreg.kernels.weights import COUNT
from daskreg.similarity.lncc.cpu import factors
from daskreg.similarity.lncc.cuda.gradient import vector_output
from daskreg.similarity.lncc.cuda.windows import (
    GROUP,
    TILE_X,
    load_row,
    push_plane,
    push_plane_any,
    rows_per_thread,
    sum_x,
    sum_y,
    tile_offsets,
    tile_rows,
    window_bounds,
    window_threads,
)

ONE, ZERO = float32(1), float32(0)


@formula
def load_planes(load_fixed, none, base, at, bits, masked, fixed, weight, moved, still, value, w):
    """Load a plane's voxels into registers, F as ``load`` finds it; zeros out of the grid."""
    from_f, from_m = address(fixed, base), address(moved, base)
    from_w = address(weight, base) if masked else from_f
    for s in range(len(at)):
        still[s], value[s] = none, ZERO
        if masked:
            w[s] = ZERO
        if uint32(bits & uint32(1 << s)) != uint32(0):
            still[s], value[s] = load_fixed(from_f, at[s]), load(from_m, at[s])
            if masked:
                w[s] = load(from_w, at[s])


@formula
def write_shared(raw, t, threads, size, masked, still, value, w):
    """Put F, M and a mask into shared memory, zeros out of the domain; whether a voxel is out of it."""
    lacks = int32(0)
    for s in range(len(still)):
        e, real = uint32(t + uint32(s * threads)), value[s] == value[s]
        raw[e] = as_float32(still[s]) if real else ZERO
        raw[uint32(e + uint32(size))] = value[s] if real else ZERO
        if masked:
            raw[uint32(e + uint32(2 * size))] = w[s] if real else ZERO
        lacks = lacks if real else int32(1)
    return lacks


@formula
def write_shared_weights(raw, t, threads, size, bits, value):
    """Put w into shared memory, where there is no mask: 1 in the grid and the domain."""
    for s in range(len(value)):
        there = uint32(bits & uint32(1 << s)) != uint32(0) and value[s] == value[s]
        raw[uint32(t + uint32(2 * size + s * threads))] = ONE if there else ZERO


@formula
def sum_products_x(raw, size, width, t, radius, lead, height, counted, masked, a, b, w, p, mid):
    """Windows along x of F, M, FF, MM, FM and, where ``counted``, w: a thread four neighbours of a row."""
    row, group, plane = uint32(t >> uint32(3)), uint32(t & uint32(7)), height * TILE_X
    if row < uint32(height):
        at = uint32(row * uint32(width) + group * uint32(GROUP))
        to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
        load_row(raw, at, a)
        if masked:
            load_row(raw, at + uint32(size), b)
            load_row(raw, at + uint32(2 * size), w)
            for q in range(len(a)):
                p[q] = w[q] * a[q] * a[q]
            sum_x(p, lead, radius, mid, to + uint32(2 * plane))
            for q in range(len(a)):
                p[q] = w[q] * b[q] * b[q]
            sum_x(p, lead, radius, mid, to + uint32(3 * plane))
            for q in range(len(a)):
                a[q] = w[q] * a[q]
                p[q] = a[q] * b[q]
            sum_x(p, lead, radius, mid, to + uint32(4 * plane))
            for q in range(len(a)):
                b[q] = w[q] * b[q]
            sum_x(a, lead, radius, mid, to)
            sum_x(b, lead, radius, mid, to + uint32(plane))
        else:
            sum_x(a, lead, radius, mid, to)
            for q in range(len(a)):
                p[q] = a[q] * a[q]
            sum_x(p, lead, radius, mid, to + uint32(2 * plane))
            load_row(raw, at + uint32(size), b)
            for q in range(len(a)):
                p[q] = a[q] * b[q]
            sum_x(p, lead, radius, mid, to + uint32(4 * plane))
            sum_x(b, lead, radius, mid, to + uint32(plane))
            for q in range(len(a)):
                p[q] = b[q] * b[q]
            sum_x(p, lead, radius, mid, to + uint32(3 * plane))
        if counted:
            load_row(raw, at + uint32(2 * size), p)
            sum_x(p, lead, radius, mid, to + uint32(5 * plane))


@formula
def scalar_output(out):
    """Where a scalar goes."""
    return out, out, out


@formula
def store_center_gradient(spots, at, w, still, value, d, k, c):
    """The centre window's share of the gradient times N."""
    store(spots[0], at, -(w * (still * (w * d) - value * (w * k) + w * c)) if value == value else ZERO)


@formula
def store_factors(spots, at, w, still, value, d, k, c):
    """What the exact gradient needs of a window."""
    store(spots[0], at, w * d)
    store(spots[1], at, w * k)
    store(spots[2], at, w * c)


@formula
def reduce_terms(terms, parts, plane, t, threads):
    """The last 64 threads add up what all threads left for a plane, two sums of ``threads`` terms, to 32 parts each."""
    if t >= uint32(threads - 64):
        e = uint32(t - uint32(threads - 64))
        start = uint32((e >> uint32(5)) * uint32(threads) + (e & uint32(31)))
        total = terms[start]
        for q in range(1, threads // 32):
            total += terms[uint32(start + uint32(32 * q))]
        parts[uint32(e + uint32((uint32(plane) & uint32(1)) * uint32(64)))] = total


@formula
def add_totals(parts, totals, own, plane, t, threads):
    """The last two threads add up the parts, in four chains, and count them where the plane is one of ``own``."""
    if t >= uint32(threads - 2) and own[0] <= plane < own[1]:
        q = uint32(t - uint32(threads - 2))
        at = uint32((uint32(plane) & uint32(1)) * uint32(64) + q * uint32(32))
        a, b, c, d = parts[at], parts[uint32(at + uint32(1))], parts[uint32(at + uint32(2))], parts[uint32(at + uint32(3))]
        for e in range(4, 32, 4):
            a += parts[uint32(at + uint32(e))]
            b += parts[uint32(at + uint32(e + 1))]
            c += parts[uint32(at + uint32(e + 2))]
            d += parts[uint32(at + uint32(e + 3))]
        cuda.atomic.add(totals, q, round_int64(((a + b) + (c + d)) * float32(COUNT)))  # noqa: F821


@formula
def window_extent(i, radius, n):
    """How many of a window's voxels around i lie in 0 .. n - 1."""
    last, low = min(int32(i + int32(radius)), int32(n - int32(1))), max(int32(i - int32(radius)), int32(0))
    return int32(last - low + int32(1))


def window_body(radius: int, masked: bool, unrolled: bool, exact: bool, half: bool) -> Callable[..., None]:
    """A body that finds the window sums of every voxel and stores what follows from them."""
    (kind, none), load_fixed = storage_type(half), load_uint16 if half else load  # F as it is stored
    k, rows, threads, tall = 2 * radius + 1, rows_per_thread(radius), window_threads(radius), tile_rows(radius)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tall + 2 * radius, GROUP + 2 * pad, pad - radius
    slots = -(-width * height // threads)
    size = slots * threads
    raws, mids, twice = 3 * size, 6 * height * TILE_X, 2 * threads
    shared_counts = rows > 1  # where registers are short, the ring of w is in shared memory
    spare = k * rows * threads if shared_counts else 1
    kept = 5 * rows if shared_counts else 6 * rows
    places, news, full = kept * k, 6 * rows, 2**k - 1
    masks, reach_w = (slots, reach) if masked else (1, 1)
    put_in = push_plane if unrolled else push_plane_any
    store_results, output_fields = (store_factors, vector_output) if exact else (store_center_gradient, scalar_output)

    @formula
    def step(slot, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat):
        """A plane comes in; the voxels ``radius`` planes behind are done."""
        start, end, ny, nx, held, floor = grid
        t, x, y, below, bits = thread
        fixed, weight, moved, fields, totals, own = arrays
        raw, mid, terms, parts, counts = tiles
        at, own_at, still, value, mask, a, b, w, p, ring, prefix, now, own_f, own_m, own_w, area = registers
        if z >= end or z < int32(start - int32(radius)):
            return flags
        inside, done = int32(0) <= z < held, int32(z - int32(radius))
        lacking = cuda.syncthreads_or(write_shared(raw, t, threads, size, masked, still, value, mask)) != int32(0)  # noqa: F821
        flags = uint32(uint32(uint32(flags << uint32(1)) & uint32(full)) | uint32(1 if lacking else 0))
        if lacking and not masked:
            write_shared_weights(raw, t, threads, size, bits if inside else uint32(0), value)
            cuda.syncthreads()  # noqa: F821
        # threads that have no windows to add up: the sums of the last plane, and of that before
        reduce_terms(terms, parts, done - int32(1), t, threads)
        if done > start + int32(1):
            add_totals(parts, totals, own, done - int32(2), t, threads)
        sum_products_x(raw, size, width, t, radius, lead, height, masked or lacking, masked, a, b, w, p, mid)
        back = OFFSET(max(done, int32(0))) * floor
        from_f, from_m = address(fixed, back), address(moved, back)
        from_w = address(weight, back) if masked else from_f
        for q in range(rows):
            own_f[q], own_m[q], own_w[q] = none, ZERO, ZERO
            if done >= start and x < nx and int32(y + int32(q)) < ny:
                own_f[q], own_m[q] = load_fixed(from_f, own_at[q]), load(from_m, own_at[q])
                own_w[q] = load(from_w, own_at[q]) if masked else ONE
        coming = int32(z + int32(1))
        there = bits if int32(0) <= coming < min(held, end) else uint32(0)
        load_planes(
            load_fixed, none, OFFSET(max(coming, int32(0))) * floor, at, there, masked, fixed, weight, moved, still, value, mask
        )
        cuda.syncthreads()  # noqa: F821
        for field in range(5):
            sum_y(mid, below, field, height, radius, rows, now)
        if masked or lacking:
            sum_y(mid, below, 5, height, radius, rows, now)
        else:
            for q in range(rows):
                now[5 * rows + q] = area[q] if inside else ZERO
        if shared_counts:
            for q in range(rows):
                counts[uint32(t + uint32(uint32(uint32(slot * uint32(rows)) + uint32(q)) * uint32(threads)))] = now[5 * rows + q]
        put_in(ring, prefix, now, slot, k)
        if done >= start:
            correlation, weights, deep = ZERO, ZERO, float32(window_extent(done, radius, held))
            spots = address(fields[0], back), address(fields[1], back), address(fields[2], back)
            for q in range(rows):
                n = deep * area[q]
                if masked or flags != uint32(0):
                    n = now[5 * rows + q]
                    if shared_counts:
                        n = counts[uint32(t + uint32(q * threads))]
                        for s in range(1, k):
                            n += counts[uint32(t + uint32((s * rows + q) * threads))]
                v = own_w[q] if own_m[q] == own_m[q] else ZERO
                cc, d, g, c = factors(n, now[q], now[rows + q], now[2 * rows + q], now[3 * rows + q], now[4 * rows + q],
                                      epsilon, flat)  # fmt: skip
                if x < nx and int32(y + int32(q)) < ny:
                    store_results(spots, own_at[q], v, as_float32(own_f[q]), own_m[q], d, g, c)
                correlation += v * cc
                weights += v
            terms[t], terms[uint32(t + uint32(threads))] = correlation, weights
        return flags

    @formula
    def steps(slot, z, flags, *block):
        """Four planes, as far as the ring has places for them."""
        flags = step(slot, int32(z + int32(slot)), flags, *block)
        if k > slot + 1:
            flags = step(slot + 1, int32(z + int32(slot + 1)), flags, *block)
        if k > slot + 2:
            flags = step(slot + 2, int32(z + int32(slot + 2)), flags, *block)
        if k > slot + 3:
            flags = step(slot + 3, int32(z + int32(slot + 3)), flags, *block)
        return flags

    def body(first, planes, ny, nx, held, origin, depth, own, epsilon, flat, fixed, weight, moved, out, totals):
        raw = cuda.shared.array(raws, float32, 16)  # noqa: F821
        mid = cuda.shared.array(mids, float32, 16)  # noqa: F821
        terms = cuda.shared.array(twice, float32)  # noqa: F821
        parts = cuda.shared.array(128, float32)  # noqa: F821
        counts = cuda.shared.array(spare, float32)  # noqa: F821
        at = cuda.local.array(slots, uint32)  # noqa: F821
        own_at = cuda.local.array(rows, uint32)  # noqa: F821
        still = cuda.local.array(slots, kind)  # noqa: F821
        value = cuda.local.array(slots, float32)  # noqa: F821
        mask = cuda.local.array(masks, float32)  # noqa: F821
        a = cuda.local.array(reach, float32)  # noqa: F821
        b = cuda.local.array(reach, float32)  # noqa: F821
        w = cuda.local.array(reach_w, float32)  # noqa: F821
        p = cuda.local.array(reach, float32)  # noqa: F821
        ring = cuda.local.array(places, float32)  # noqa: F821
        prefix = cuda.local.array(kept, float32)  # noqa: F821
        now = cuda.local.array(news, float32)  # noqa: F821
        own_f = cuda.local.array(rows, kind)  # noqa: F821
        own_m = cuda.local.array(rows, float32)  # noqa: F821
        own_w = cuda.local.array(rows, float32)  # noqa: F821
        area = cuda.local.array(rows, float32)  # noqa: F821
        t = uint32(cuda.threadIdx.x)  # noqa: F821
        left, top = int32(cuda.blockIdx.x * TILE_X), int32(cuda.blockIdx.y * tall)  # noqa: F821
        start = int32(first + int32(cuda.blockIdx.z) * depth)  # noqa: F821
        stop = int32(min(int32(start + depth), int32(first + planes)))
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, below = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        floor, end = OFFSET(ny) * OFFSET(nx), int32(stop + int32(radius))
        bits = tile_offsets(at, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            own_at[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
            area[q] = float32(int32(window_extent(int32(y + int32(q)), radius, ny) * window_extent(x, radius, nx)))
        for q in range(places):
            ring[q] = ZERO
        for q in range(kept):
            prefix[q] = ZERO
        if shared_counts:
            for q in range(k * rows):
                counts[uint32(t + uint32(q * threads))] = ZERO
        z, flags = int32(start - int32(radius)), uint32(0)  # the plane that comes in
        there = bits if int32(0) <= z < held else uint32(0)
        load_planes(
            load_fixed, none, OFFSET(max(z, int32(0))) * floor, at, there, masked, fixed, weight, moved, still, value, mask
        )
        slot = uint32(int32(origin + z + int32(k)) % int32(k))
        grid = start, end, ny, nx, held, floor
        thread = t, x, y, below, bits
        arrays = fixed, weight, moved, output_fields(out), totals, own
        tiles = raw, mid, terms, parts, counts
        registers = at, own_at, still, value, mask, a, b, w, p, ring, prefix, now, own_f, own_m, own_w, area
        if unrolled:
            z = int32(z - int32(slot))  # where this round of the ring began
            while z < end:
                flags = steps(0, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 4:
                    flags = steps(4, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 8:
                    flags = steps(8, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 12:
                    flags = steps(12, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 16:
                    flags = steps(16, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                z = int32(z + int32(k))
        else:
            while z < end:
                flags = step(slot, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
                z = int32(z + int32(1))
        last = int32(stop - int32(1))
        cuda.syncthreads()  # noqa: F821
        reduce_terms(terms, parts, last, t, threads)
        if last > start:
            add_totals(parts, totals, own, last - int32(1), t, threads)
        cuda.syncthreads()  # noqa: F821
        add_totals(parts, totals, own, last, t, threads)

    return body


@cooperative_kernel(launch_bounds=window_bounds)
def lncc_center_tiled(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """The centre-window gradient times N, and sums: ``lncc_factors``, then ``lncc_slope`` with radius 0.

    Launch with blocks ``window_blocks`` and threads ``window_threads``; ``unrolled``: a copy of the code for each place of the
    ring, which spares a branch a plane, not another result. first, planes, ny, nx: int32, the box among the arrays'
    ``held`` planes, of which the first is plane ``origin`` of the grid;  depth: int32, planes a block marches through;  epsilon,
    flat: float32;  fixed, moved: (N,) float32, moved NaN out of domain;  weight: (N,) where ``masked``, else (0,);  slope: (N,),
    another array than moved;
    own: (2,) int32, first and last but one plane that count;  totals: (2,) int64, to which w cc and w are added in units of
    2^-28.
    """
    return window_body(radius, masked, unrolled, False, half)


@cooperative_kernel(launch_bounds=window_bounds)
def lncc_factors_tiled(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """``lncc_factors``: w D, w K and w (K mu_M - D mu_F) of each window, and sums.

    Launch with blocks ``window_blocks`` and threads ``window_threads``; ``unrolled``: a copy of the code for each place of the
    ring, which spares a branch a plane, not another result. first, planes, ny, nx: int32, the box among the arrays'
    ``held`` planes, of which the first is plane ``origin`` of the grid;  depth: int32, planes a block marches through;  epsilon,
    flat: float32;  fixed, moved: (N,) float32, moved NaN out of domain;  weight: (N,) where ``masked``, else (0,);  dkc: (3, N);
    own: (2,) int32, first and last but one plane that count;  totals: (2,) int64, to which w cc and w are added in units of
    2^-28.
    """
    return window_body(radius, masked, unrolled, True, half)
