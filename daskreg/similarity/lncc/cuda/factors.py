"""Window sums of plane after plane, and from them the loss with the factors of its gradient, or the centre-window gradient."""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32, uint64

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import divide_fast, divide_normal, round_int64
from daskreg.kernels.intrinsics.half import as_float32, storage_type
from daskreg.kernels.intrinsics.memory import address, held, load, load_uint16, load_vector, store
from daskreg.kernels.weights import FIXED_POINT_SCALE
from daskreg.similarity.lncc.cpu import factors
from daskreg.similarity.lncc.cuda.gradient import vector_output
from daskreg.similarity.lncc.cuda.windows import (
    GROUP,
    TILE_X,
    clamped_offset,
    clear_shared,
    group_offsets,
    has_bit,
    load_own,
    load_row,
    push_any,
    rows_per_thread,
    sum_and_push_plane,
    sum_x,
    sum_y,
    tile_offsets,
    tile_rows,
    window_bounds,
    window_threads,
)

ONE, ZERO = float32(1), float32(0)


@formula
def load_planes(
    load_fixed, none, z, stop, plane_size, offsets, masked, fixed, weight, moved, fixed_values, moved_values, weights
):
    """Load the voxels of a plane into registers, fixed ones with ``load_fixed``, zeros unless z is in 0 .. stop - 1."""
    for s in range(len(offsets)):
        fixed_values[s], moved_values[s] = none, ZERO
        if masked:
            weights[s] = ZERO
    if uint32(z) < uint32(stop):
        base = OFFSET(uint32(z)) * plane_size
        from_f, from_m = address(fixed, base), address(moved, base)
        from_w = address(weight, base) if masked else from_f
        for s in range(len(offsets)):
            fixed_values[s], moved_values[s] = load_fixed(from_f, offsets[s]), load(from_m, offsets[s])
            if masked:
                weights[s] = load(from_w, offsets[s])


@formula
def write_shared(raw, t, threads, size, valid, masked, fixed_values, moved_values, weights):
    """Write fixed, moved and mask to shared memory; returns whether a voxel is outside the domain."""
    missing = int32(0)
    for s in range(len(fixed_values)):
        at = uint64(t) + uint64(s * threads)
        if has_bit(valid, s):
            raw[at] = as_float32(fixed_values[s])
            raw[at + uint64(size)] = moved_values[s]
            if masked:
                raw[at + uint64(2 * size)] = weights[s]
        missing = missing if moved_values[s] == moved_values[s] else int32(1)
    return missing


@formula
def clear_missing(raw, t, threads, size, valid, masked, moved_values):
    """Zero what is outside the domain in shared memory, and without a mask, write 1 there, 0 inside."""
    for s in range(len(moved_values)):
        at, defined = uint64(t) + uint64(s * threads), moved_values[s] == moved_values[s]
        if has_bit(valid, s):
            if not defined:
                raw[at], raw[at + uint64(size)] = ZERO, ZERO
                if masked:
                    raw[at + uint64(2 * size)] = ZERO
            if not masked:
                raw[at + uint64(2 * size)] = ZERO if defined else ONE


@formula
def sum_products_x(raw, size, at, to, radius, lead, plane, missing, masked, a, b, w, p):
    """Sums along x of F, M, FF, MM, FM, and of the mask or what is ``missing``, for four neighbours of a row."""
    load_row(raw, at, a)
    if masked:
        load_row(raw, at + uint64(2 * size), w)
        for q in range(len(a)):
            p[q] = w[q] * a[q]
            a[q] = p[q] * a[q]
        sum_x(a, lead, radius, raw, to + uint64(2 * plane))
        sum_x(p, lead, radius, raw, to)
        load_row(raw, at + uint64(size), b)
        for q in range(len(a)):
            p[q] = p[q] * b[q]
        sum_x(p, lead, radius, raw, to + uint64(4 * plane))
        for q in range(len(a)):
            p[q] = w[q] * b[q]
            b[q] = p[q] * b[q]
        sum_x(b, lead, radius, raw, to + uint64(3 * plane))
        sum_x(p, lead, radius, raw, to + uint64(plane))
    else:
        sum_x(a, lead, radius, raw, to)
        for q in range(len(a)):
            p[q] = a[q] * a[q]
        sum_x(p, lead, radius, raw, to + uint64(2 * plane))
        load_row(raw, at + uint64(size), b)
        for q in range(len(a)):
            p[q] = a[q] * b[q]
        sum_x(p, lead, radius, raw, to + uint64(4 * plane))
        sum_x(b, lead, radius, raw, to + uint64(plane))
        for q in range(len(a)):
            p[q] = b[q] * b[q]
        sum_x(p, lead, radius, raw, to + uint64(3 * plane))
    if masked:
        sum_x(w, lead, radius, raw, to + uint64(5 * plane))
    elif missing:
        load_row(raw, at + uint64(2 * size), p)
        sum_x(p, lead, radius, raw, to + uint64(5 * plane))


@formula
def scalar_output(out):
    """The output of a scalar field, for ``store_results``."""
    return out, out, out


@formula
def store_center_gradient(addresses, at, masked, w, fixed_value, moved_value, d, k, c):
    """N times the centre-window gradient; without a mask the weight is 1 inside the domain."""
    v = w if masked else ONE
    gradient = -(v * (fixed_value * (v * d) - moved_value * (v * k) + w * c))
    store(addresses[0], at, gradient if moved_value == moved_value else ZERO)


@formula
def store_factors(addresses, at, masked, w, fixed_value, moved_value, d, k, c):
    """The factors of the exact gradient."""
    store(addresses[0], at, w * d)
    store(addresses[1], at, w * k)
    store(addresses[2], at, w * c)


@formula
def reduce_terms(shared, terms, parts, plane, t, threads):
    """For the last 64 threads: reduce the terms of all threads for a plane, two sums of ``threads`` terms, to 32 parts each."""
    e = uint32(t - uint32(threads - 64))
    at = uint64(held(uint32(uint32(e >> uint32(5)) * uint32(threads) + uint32(e & uint32(31))))) + uint64(terms)
    total = shared[at]
    for q in range(1, threads // 32):
        total += shared[at + uint64(32 * q)]
    shared[uint64(uint32(e + uint32(uint32(uint32(plane) & uint32(1)) * uint32(64)))) + uint64(parts)] = total


@formula
def add_totals(shared, parts, totals, own, plane, t, threads):
    """The last two threads add up the parts in four chains, and add them to the totals if the plane is one of ``own``."""
    if t >= uint32(threads - 2) and own[0] <= plane < own[1]:
        q = uint32(t - uint32(threads - 2))
        at = uint64(held(uint32(uint32(uint32(uint32(plane) & uint32(1)) * uint32(64)) + uint32(q * uint32(32))))) + uint64(parts)
        a, b, c, d = load_vector(shared, at)
        for e in range(4, 32, 4):
            next_a, next_b, next_c, next_d = load_vector(shared, at + uint64(e))
            a, b, c, d = a + next_a, b + next_b, c + next_c, d + next_d
        cuda.atomic.add(totals, q, round_int64(((a + b) + (c + d)) * float32(FIXED_POINT_SCALE)))


@formula
def sum_planes(counts, at, step, k):
    """The sum of k values in shared memory, ``step`` apart."""
    total = counts[at]
    for s in range(1, k):
        total += counts[at + uint64(s * step)]
    return total


@formula
def window_extent(i, radius, n):
    """How many voxels of a window around i are in 0 .. n - 1."""
    last, low = min(int32(i + int32(radius)), int32(n - int32(1))), max(int32(i - int32(radius)), int32(0))
    return int32(last - low + int32(1))


def window_body(radius: int, masked: bool, exact: bool, half: bool) -> Callable[..., None]:
    """The body of a kernel that computes the window sums of every voxel and stores what follows from them."""
    (kind, none), load_fixed = storage_type(half), load_uint16 if half else load  # of the stored fixed image
    k, rows, threads, tile_height = 2 * radius + 1, rows_per_thread(radius), window_threads(radius), tile_rows(radius)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile_height + 2 * radius, GROUP + 2 * pad, pad - radius
    size = width * height
    loads = -(-size // threads)
    shared_counts = rows > 1  # where registers are scarce, the ring of w, or of numbers of missing voxels, is in shared memory
    mid = 3 * size  # where parts of shared memory begin, after the tile: its sums along x, terms, their sums, and that ring
    terms = mid + 6 * height * TILE_X
    parts = terms + 2 * threads
    counts = parts + 128
    shared_size = counts + (k * rows * threads if shared_counts else 0)
    assert 8 * height <= threads - 64  # threads that sum along x, and those that add up terms beside them
    prefix_size = 5 * rows if shared_counts else 6 * rows
    ring_size, sums_size, all_flags = prefix_size * k, 6 * rows, 2 ** (k + 1) - 1
    mask_size, reach_w = (loads, reach) if masked else (1, 1)
    store_results, output_fields = (store_factors, vector_output) if exact else (store_center_gradient, scalar_output)
    divide = divide_fast if masked else divide_normal  # by a sum of weights, or by a number of voxels

    @formula
    def step(slot, z, flags, grid, thread, arrays, shared, registers, epsilon, variances):
        """Add a plane; the voxels ``radius`` planes earlier are complete.

        flags: bit q is set if a voxel is missing in the q-th plane before this one;  returns those of the next plane
        """
        start, end, nz, plane_size = grid
        t, at, to, column, valid = thread
        fixed, weight, moved, fields, totals, own = arrays
        offsets, own_offsets, fixed_values, moved_values, mask, a, b, w, p, ring, prefix, sums, own_f, own_m, own_w, area = (
            registers
        )
        done = int32(z - int32(radius))
        outside = write_shared(shared, t, threads, size, valid, masked, fixed_values, moved_values, mask)
        missing = cuda.syncthreads_or(outside) != int32(0)
        flags = uint32(uint32(uint32(flags << uint32(1)) & uint32(all_flags)) | uint32(1 if missing else 0))
        if missing:
            clear_missing(shared, t, threads, size, valid, masked, moved_values)
            cuda.syncthreads()
        if t < uint32(8 * height):
            sum_products_x(shared, size, at, to, radius, lead, height * TILE_X, missing, masked, a, b, w, p)
        elif t >= uint32(threads - 64):  # sums of the last plane, and of the one before
            reduce_terms(shared, terms, parts, int32(done - int32(1)), t, threads)
            if done > int32(start + int32(1)):
                add_totals(shared, parts, totals, own, int32(done - int32(2)), t, threads)
        own_base = OFFSET(uint32(max(done, start))) * plane_size
        load_own(load_fixed, own_base, own_offsets, masked, fixed, weight, moved, own_f, own_m, own_w)
        load_planes(load_fixed, none, int32(z + int32(1)), min(nz, end), plane_size, offsets, masked,
                    fixed, weight, moved, fixed_values, moved_values, mask)  # fmt: skip
        cuda.syncthreads()
        for q in range(rows):
            sums[5 * rows + q] = ZERO
        if masked or flags != uint32(0):
            if masked or missing:
                sum_y(shared, column, 5, height, radius, rows, sums)
            if shared_counts:
                place = uint64(uint32(t + uint32(uint32(slot) * uint32(rows * threads)))) + uint64(counts)
                for q in range(rows):
                    shared[place + uint64(q * threads)] = sums[5 * rows + q]
        push_any(sum_and_push_plane, ring, prefix, sums, slot, k, (shared, column, 5, height, radius, rows))
        if done >= start:
            correlation, weights, planes_in_window = ZERO, ZERO, float32(window_extent(done, radius, nz))
            addresses = address(fields[0], own_base), address(fields[1], own_base), address(fields[2], own_base)
            if shared_counts and (masked or flags != uint32(0)):
                for q in range(rows):
                    sums[5 * rows + q] = sum_planes(shared, uint64(t) + uint64(counts + q * threads), rows * threads, k)
            for q in range(rows):
                n = sums[5 * rows + q] if masked else planes_in_window * area[q] - sums[5 * rows + q]
                w = own_w[q] if has_bit(valid, loads + q) and own_m[q] == own_m[q] else ZERO
                cc, sums[q], sums[rows + q], sums[2 * rows + q] = factors(
                    n, sums[q], sums[rows + q], sums[2 * rows + q], sums[3 * rows + q], sums[4 * rows + q], epsilon, variances,
                    divide)  # fmt: skip
                correlation += w * cc
                weights += w
                own_w[q] = w
            for q in range(rows):  # after the factors of all rows, whose computations then overlap
                if has_bit(valid, loads + q):
                    store_results(addresses, own_offsets[q], masked, own_w[q], as_float32(own_f[q]), own_m[q],
                                  sums[q], sums[rows + q], sums[2 * rows + q])  # fmt: skip
            shared[uint64(t) + uint64(terms)], shared[uint64(t) + uint64(terms + threads)] = correlation, weights
        return flags

    def body(first, planes, ny, nx, nz, origin, depth, own, epsilon, variances, fixed, weight, moved, out, totals):
        shared = cuda.shared.array(shared_size, float32, 16)
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
        x, y = int32(left + int32(lane)), int32(top + int32(line))
        column = uint64(held(uint32(uint32(line * uint32(TILE_X)) + lane))) + uint64(mid)
        plane_size, end = OFFSET(ny) * OFFSET(nx), int32(stop + int32(radius))
        valid = tile_offsets(offsets, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            row = int32(y + int32(q))
            own_offsets[q] = clamped_offset(row, x, ny, nx)
            area[q] = float32(int32(window_extent(row, radius, ny) * window_extent(x, radius, nx)))
            if x < nx and row < ny:
                valid |= uint32(1 << (loads + q))
        valid = held(valid)
        clear_shared(shared, t, threads, 3 * size)
        cuda.syncthreads()
        for q in range(ring_size):
            ring[q] = ZERO
        for q in range(prefix_size):
            prefix[q] = ZERO
        if shared_counts:
            for q in range(k * rows):
                shared[uint64(t) + uint64(counts + q * threads)] = ZERO
        z = int32(start - int32(radius))  # the plane to add
        load_planes(load_fixed, none, z, min(nz, end), plane_size, offsets, masked,
                    fixed, weight, moved, fixed_values, moved_values, mask)  # fmt: skip
        slot = uint32(int32(origin + z + int32(k)) % int32(k))
        grid = start, end, nz, plane_size
        at, to = group_offsets(t, width)
        to += uint64(mid)
        thread = t, at, to, column, valid
        arrays = fixed, weight, moved, output_fields(out), totals, own
        registers = (offsets, own_offsets, fixed_values, moved_values, mask, a, b, w, p, ring, prefix, sums,
                     own_f, own_m, own_w, area)  # fmt: skip
        flags = uint32(0)
        while z < end:
            flags = step(slot, z, flags, grid, thread, arrays, shared, registers, epsilon, variances)
            slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
            z = int32(z + int32(1))
        last = int32(stop - int32(1))
        cuda.syncthreads()
        if t >= uint32(threads - 64):
            reduce_terms(shared, terms, parts, last, t, threads)
        if last > start:
            add_totals(shared, parts, totals, own, int32(last - int32(1)), t, threads)
        cuda.syncthreads()
        add_totals(shared, parts, totals, own, last, t, threads)

    return body


@cooperative_kernel(launch_bounds=window_bounds)
def lncc_center_tiled(radius: int, masked: bool, half: bool = False) -> Callable[..., None]:
    """N times the centre-window gradient, and sums: ``lncc_factors``, then ``lncc_gradient`` with radius 0.

    Launch with ``window_blocks`` and ``window_threads``. first, planes, ny, nx: int32, the box within the ``nz`` planes of the
    arrays, the first of which is global plane ``origin``;  depth: int32, planes per block;  epsilon: float32;  variances: (2,)
    float32, see ``factors``;  fixed, moved: (N,) float32, moved NaN outside the domain;  weight: (N,) if ``masked``, else (0,);
    slope: (N,), another array than moved;  own: (2,) int32, first and last plus one of the planes that count;  totals: (2,)
    int64, to which w cc and w are added in units of 2^-28.
    """
    return window_body(radius, masked, False, half)


@cooperative_kernel(launch_bounds=window_bounds)
def lncc_factors_tiled(radius: int, masked: bool, half: bool = False) -> Callable[..., None]:
    """``lncc_factors``: w D, w K and w (K mu_M - D mu_F) of each window into dkc (3, N), and sums.

    Launch and other arguments as in ``lncc_center_tiled``.
    """
    return window_body(radius, masked, True, half)
