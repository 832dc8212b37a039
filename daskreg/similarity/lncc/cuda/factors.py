"""Window sums of plane after plane, and from them the loss with the factors of its gradient, or the centre-window gradient."""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import round_int64
from daskreg.kernels.intrinsics.half import as_float32, storage_type
from daskreg.kernels.intrinsics.memory import address, load, load_uint16, store
from daskreg.kernels.weights import FIXED_POINT_SCALE
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
def load_planes(load_fixed, none, base, offsets, valid, masked, fixed, weight, moved, fixed_values, moved_values, weights):
    """Load the voxels of a plane into registers, fixed ones with ``load_fixed``; zero outside the grid."""
    from_f, from_m = address(fixed, base), address(moved, base)
    from_w = address(weight, base) if masked else from_f
    for s in range(len(offsets)):
        fixed_values[s], moved_values[s] = none, ZERO
        if masked:
            weights[s] = ZERO
        if uint32(valid & uint32(1 << s)) != uint32(0):
            fixed_values[s], moved_values[s] = load_fixed(from_f, offsets[s]), load(from_m, offsets[s])
            if masked:
                weights[s] = load(from_w, offsets[s])


@formula
def write_shared(raw, t, threads, size, masked, fixed_values, moved_values, weights):
    """Write fixed, moved and mask to shared memory, zero outside the domain; returns whether a voxel is outside."""
    missing = int32(0)
    for s in range(len(fixed_values)):
        e, defined = uint32(t + uint32(s * threads)), moved_values[s] == moved_values[s]
        raw[e] = as_float32(fixed_values[s]) if defined else ZERO
        raw[uint32(e + uint32(size))] = moved_values[s] if defined else ZERO
        if masked:
            raw[uint32(e + uint32(2 * size))] = weights[s] if defined else ZERO
        missing = missing if defined else int32(1)
    return missing


@formula
def write_shared_weights(raw, t, threads, size, valid, moved_values):
    """Without a mask, write the weights to shared memory: 1 inside the grid and the domain."""
    for s in range(len(moved_values)):
        counts = uint32(valid & uint32(1 << s)) != uint32(0) and moved_values[s] == moved_values[s]
        raw[uint32(t + uint32(2 * size + s * threads))] = ONE if counts else ZERO


@formula
def sum_products_x(raw, size, width, t, radius, lead, height, weighted, masked, a, b, w, p, mid):
    """Sums along x of F, M, FF, MM, FM and, if ``weighted``, w: each thread four neighbours of a row."""
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
        if weighted:
            load_row(raw, at + uint32(2 * size), p)
            sum_x(p, lead, radius, mid, to + uint32(5 * plane))


@formula
def scalar_output(out):
    """The output of a scalar field, for ``store_results``."""
    return out, out, out


@formula
def store_center_gradient(addresses, at, w, fixed_value, moved_value, d, k, c):
    """N times the centre-window gradient."""
    store(
        addresses[0], at, -(w * (fixed_value * (w * d) - moved_value * (w * k) + w * c)) if moved_value == moved_value else ZERO
    )


@formula
def store_factors(addresses, at, w, fixed_value, moved_value, d, k, c):
    """The factors of the exact gradient."""
    store(addresses[0], at, w * d)
    store(addresses[1], at, w * k)
    store(addresses[2], at, w * c)


@formula
def reduce_terms(terms, parts, plane, t, threads):
    """The last 64 threads reduce the terms of all threads for a plane, two sums of ``threads`` terms, to 32 parts each."""
    if t >= uint32(threads - 64):
        e = uint32(t - uint32(threads - 64))
        start = uint32((e >> uint32(5)) * uint32(threads) + (e & uint32(31)))
        total = terms[start]
        for q in range(1, threads // 32):
            total += terms[uint32(start + uint32(32 * q))]
        parts[uint32(e + uint32((uint32(plane) & uint32(1)) * uint32(64)))] = total


@formula
def add_totals(parts, totals, own, plane, t, threads):
    """The last two threads add up the parts in four chains, and add them to the totals if the plane is one of ``own``."""
    if t >= uint32(threads - 2) and own[0] <= plane < own[1]:
        q = uint32(t - uint32(threads - 2))
        at = uint32((uint32(plane) & uint32(1)) * uint32(64) + q * uint32(32))
        a, b, c, d = parts[at], parts[uint32(at + uint32(1))], parts[uint32(at + uint32(2))], parts[uint32(at + uint32(3))]
        for e in range(4, 32, 4):
            a += parts[uint32(at + uint32(e))]
            b += parts[uint32(at + uint32(e + 1))]
            c += parts[uint32(at + uint32(e + 2))]
            d += parts[uint32(at + uint32(e + 3))]
        cuda.atomic.add(totals, q, round_int64(((a + b) + (c + d)) * float32(FIXED_POINT_SCALE)))


@formula
def window_extent(i, radius, n):
    """How many voxels of a window around i are in 0 .. n - 1."""
    last, low = min(int32(i + int32(radius)), int32(n - int32(1))), max(int32(i - int32(radius)), int32(0))
    return int32(last - low + int32(1))


def window_body(radius: int, masked: bool, unrolled: bool, exact: bool, half: bool) -> Callable[..., None]:
    """The body of a kernel that computes the window sums of every voxel and stores what follows from them."""
    (kind, none), load_fixed = storage_type(half), load_uint16 if half else load  # of the stored fixed image
    k, rows, threads, tile_height = 2 * radius + 1, rows_per_thread(radius), window_threads(radius), tile_rows(radius)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile_height + 2 * radius, GROUP + 2 * pad, pad - radius
    loads = -(-width * height // threads)
    size = loads * threads
    raw_size, mid_size, terms_size = 3 * size, 6 * height * TILE_X, 2 * threads
    shared_counts = rows > 1  # where registers are scarce, the ring of w is in shared memory
    counts_size = k * rows * threads if shared_counts else 1
    prefix_size = 5 * rows if shared_counts else 6 * rows
    ring_size, sums_size, all_flags = prefix_size * k, 6 * rows, 2**k - 1
    mask_size, reach_w = (loads, reach) if masked else (1, 1)
    push = push_plane if unrolled else push_plane_any
    store_results, output_fields = (store_factors, vector_output) if exact else (store_center_gradient, scalar_output)

    @formula
    def step(slot, z, flags, grid, thread, arrays, tiles, registers, epsilon, variances):
        """Add a plane; the voxels ``radius`` planes earlier are complete."""
        start, end, ny, nx, held, plane_size = grid
        t, x, y, column, valid = thread
        fixed, weight, moved, fields, totals, own = arrays
        raw, mid, terms, parts, counts = tiles
        offsets, own_offsets, fixed_values, moved_values, mask, a, b, w, p, ring, prefix, sums, own_f, own_m, own_w, area = (
            registers
        )
        if z >= end or z < int32(start - int32(radius)):
            return flags
        inside, done = int32(0) <= z < held, int32(z - int32(radius))
        missing = cuda.syncthreads_or(write_shared(raw, t, threads, size, masked, fixed_values, moved_values, mask)) != int32(0)
        flags = uint32(uint32(uint32(flags << uint32(1)) & uint32(all_flags)) | uint32(1 if missing else 0))
        if missing and not masked:
            write_shared_weights(raw, t, threads, size, valid if inside else uint32(0), moved_values)
            cuda.syncthreads()
        # done by threads without windows: sums of the last plane, and of the one before
        reduce_terms(terms, parts, done - int32(1), t, threads)
        if done > start + int32(1):
            add_totals(parts, totals, own, done - int32(2), t, threads)
        sum_products_x(raw, size, width, t, radius, lead, height, masked or missing, masked, a, b, w, p, mid)
        base = OFFSET(max(done, int32(0))) * plane_size
        from_f, from_m = address(fixed, base), address(moved, base)
        from_w = address(weight, base) if masked else from_f
        for q in range(rows):
            own_f[q], own_m[q], own_w[q] = none, ZERO, ZERO
            if done >= start and x < nx and int32(y + int32(q)) < ny:
                own_f[q], own_m[q] = load_fixed(from_f, own_offsets[q]), load(from_m, own_offsets[q])
                own_w[q] = load(from_w, own_offsets[q]) if masked else ONE
        next_plane = int32(z + int32(1))
        next_valid = valid if int32(0) <= next_plane < min(held, end) else uint32(0)
        load_planes(
            load_fixed,
            none,
            OFFSET(max(next_plane, int32(0))) * plane_size,
            offsets,
            next_valid,
            masked,
            fixed,
            weight,
            moved,
            fixed_values,
            moved_values,
            mask,
        )
        cuda.syncthreads()
        for field in range(5):
            sum_y(mid, column, field, height, radius, rows, sums)
        if masked or missing:
            sum_y(mid, column, 5, height, radius, rows, sums)
        else:
            for q in range(rows):
                sums[5 * rows + q] = area[q] if inside else ZERO
        if shared_counts:
            for q in range(rows):
                counts[uint32(t + uint32(uint32(uint32(slot * uint32(rows)) + uint32(q)) * uint32(threads)))] = sums[5 * rows + q]
        push(ring, prefix, sums, slot, k)
        if done >= start:
            correlation, weights, planes_in_window = ZERO, ZERO, float32(window_extent(done, radius, held))
            addresses = address(fields[0], base), address(fields[1], base), address(fields[2], base)
            for q in range(rows):
                n = planes_in_window * area[q]
                if masked or flags != uint32(0):
                    n = sums[5 * rows + q]
                    if shared_counts:
                        n = counts[uint32(t + uint32(q * threads))]
                        for s in range(1, k):
                            n += counts[uint32(t + uint32((s * rows + q) * threads))]
                v = own_w[q] if own_m[q] == own_m[q] else ZERO
                cc, d, g, c = factors(n, sums[q], sums[rows + q], sums[2 * rows + q], sums[3 * rows + q], sums[4 * rows + q],
                                      epsilon, variances)  # fmt: skip
                if x < nx and int32(y + int32(q)) < ny:
                    store_results(addresses, own_offsets[q], v, as_float32(own_f[q]), own_m[q], d, g, c)
                correlation += v * cc
                weights += v
            terms[t], terms[uint32(t + uint32(threads))] = correlation, weights
        return flags

    @formula
    def steps(slot, z, flags, *block):
        """Four planes, as far as the ring has slots for them."""
        flags = step(slot, int32(z + int32(slot)), flags, *block)
        if k > slot + 1:
            flags = step(slot + 1, int32(z + int32(slot + 1)), flags, *block)
        if k > slot + 2:
            flags = step(slot + 2, int32(z + int32(slot + 2)), flags, *block)
        if k > slot + 3:
            flags = step(slot + 3, int32(z + int32(slot + 3)), flags, *block)
        return flags

    def body(first, planes, ny, nx, held, origin, depth, own, epsilon, variances, fixed, weight, moved, out, totals):
        raw = cuda.shared.array(raw_size, float32, 16)
        mid = cuda.shared.array(mid_size, float32, 16)
        terms = cuda.shared.array(terms_size, float32)
        parts = cuda.shared.array(128, float32)
        counts = cuda.shared.array(counts_size, float32)
        offsets = cuda.local.array(loads, uint32)
        own_offsets = cuda.local.array(rows, uint32)
        fixed_values = cuda.local.array(loads, kind)
        moved_values = cuda.local.array(loads, float32)
        mask = cuda.local.array(mask_size, float32)
        a = cuda.local.array(reach, float32)
        b = cuda.local.array(reach, float32)
        w = cuda.local.array(reach_w, float32)
        p = cuda.local.array(reach, float32)
        ring = cuda.local.array(ring_size, float32)
        prefix = cuda.local.array(prefix_size, float32)
        sums = cuda.local.array(sums_size, float32)
        own_f = cuda.local.array(rows, kind)
        own_m = cuda.local.array(rows, float32)
        own_w = cuda.local.array(rows, float32)
        area = cuda.local.array(rows, float32)
        t = uint32(cuda.threadIdx.x)
        left, top = int32(cuda.blockIdx.x * TILE_X), int32(cuda.blockIdx.y * tile_height)
        start = int32(first + int32(cuda.blockIdx.z) * depth)
        stop = int32(min(int32(start + depth), int32(first + planes)))
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, column = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        plane_size, end = OFFSET(ny) * OFFSET(nx), int32(stop + int32(radius))
        valid = tile_offsets(offsets, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            own_offsets[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
            area[q] = float32(int32(window_extent(int32(y + int32(q)), radius, ny) * window_extent(x, radius, nx)))
        for q in range(ring_size):
            ring[q] = ZERO
        for q in range(prefix_size):
            prefix[q] = ZERO
        if shared_counts:
            for q in range(k * rows):
                counts[uint32(t + uint32(q * threads))] = ZERO
        z, flags = int32(start - int32(radius)), uint32(0)  # the plane to add
        first_valid = valid if int32(0) <= z < held else uint32(0)
        load_planes(
            load_fixed,
            none,
            OFFSET(max(z, int32(0))) * plane_size,
            offsets,
            first_valid,
            masked,
            fixed,
            weight,
            moved,
            fixed_values,
            moved_values,
            mask,
        )
        slot = uint32(int32(origin + z + int32(k)) % int32(k))
        grid = start, end, ny, nx, held, plane_size
        thread = t, x, y, column, valid
        arrays = fixed, weight, moved, output_fields(out), totals, own
        tiles = raw, mid, terms, parts, counts
        registers = (offsets, own_offsets, fixed_values, moved_values, mask, a, b, w, p, ring, prefix, sums,
                     own_f, own_m, own_w, area)  # fmt: skip
        if unrolled:
            z = int32(z - int32(slot))  # where this round of the ring began
            while z < end:
                flags = steps(0, z, flags, grid, thread, arrays, tiles, registers, epsilon, variances)
                if k > 4:
                    flags = steps(4, z, flags, grid, thread, arrays, tiles, registers, epsilon, variances)
                if k > 8:
                    flags = steps(8, z, flags, grid, thread, arrays, tiles, registers, epsilon, variances)
                if k > 12:
                    flags = steps(12, z, flags, grid, thread, arrays, tiles, registers, epsilon, variances)
                if k > 16:
                    flags = steps(16, z, flags, grid, thread, arrays, tiles, registers, epsilon, variances)
                z = int32(z + int32(k))
        else:
            while z < end:
                flags = step(slot, z, flags, grid, thread, arrays, tiles, registers, epsilon, variances)
                slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
                z = int32(z + int32(1))
        last = int32(stop - int32(1))
        cuda.syncthreads()
        reduce_terms(terms, parts, last, t, threads)
        if last > start:
            add_totals(parts, totals, own, last - int32(1), t, threads)
        cuda.syncthreads()
        add_totals(parts, totals, own, last, t, threads)

    return body


@cooperative_kernel(launch_bounds=window_bounds)
def lncc_center_tiled(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """N times the centre-window gradient, and sums: ``lncc_factors``, then ``lncc_gradient`` with radius 0.

    Launch with ``window_blocks`` and ``window_threads``. ``unrolled``: code for each slot of the ring, which saves a branch per
    plane and does not change results. first, planes, ny, nx: int32, the box within the ``held`` planes of the arrays, the first
    of which is global plane ``origin``;  depth: int32, planes per block;  epsilon: float32;  variances: (2,) float32, see
    ``factors``;  fixed, moved: (N,) float32, moved NaN outside the domain;  weight: (N,) if ``masked``, else (0,);  slope: (N,),
    another array than moved;  own: (2,) int32, first and last plus one of the planes that count;  totals: (2,) int64, to which
    w cc and w are added in units of 2^-28.
    """
    return window_body(radius, masked, unrolled, False, half)


@cooperative_kernel(launch_bounds=window_bounds)
def lncc_factors_tiled(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """``lncc_factors``: w D, w K and w (K mu_M - D mu_F) of each window into dkc (3, N), and sums.

    Launch and other arguments as in ``lncc_center_tiled``.
    """
    return window_body(radius, masked, unrolled, True, half)
