"""Local correlation on a GPU: window sums of plane after plane, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.memory import address, load, store
from daskreg.similarity.lncc.cuda.windows import GROUP, TILE_X, load_row, tile_offsets
from daskreg.torch.kernels.blocks import block_total
from daskreg.torch.kernels.correlation import DOUBLE, SINGLE, window_factors
from daskreg.torch.kernels.window_sums import (
    ZERO,
    Weights,
    along_x,
    along_y,
    along_z,
    gradient_tiles,
    inside_weight,
    place,
    rounded,
    summing_tiles,
)

ONE = float32(1)


def _summing_bounds(wz: Weights, wy: Weights, *others: object) -> tuple[int, int]:
    tiles = summing_tiles(wz, wy)
    return tiles.threads, tiles.resident


def _gradient_bounds(wz: Weights, wy: Weights, *others: object) -> tuple[int, int]:
    tiles = gradient_tiles(wz, wy)
    return tiles.threads, tiles.resident


@cooperative_kernel(launch_bounds=_summing_bounds)
def correlation_tiled(wz: Weights, wy: Weights, wx: Weights, kinds: int, counted: bool, mapped: bool) -> Callable[..., None]:
    """``correlation_rows``. kinds: factors per window, 0, 3 or 5;  mapped: write the correlation of each window.

    Launch with ``summing_tiles``. nz, ny, nx, depth: int32;  floor ... limit: float32;  squared: int32;  voxels: uint64, N Z Y X;
    fixed, moved: (N Z Y X,) float32;  partials: (blocks,), a sum per block, blocks of a volume one after the other;
    correlation: (N Z Y X,) or (1,);  factors: (kinds N Z Y X,) or (1,)
    """
    (sum_along_x, of_x), (sum_along_y, of_y), (push, of_z) = along_x(wx), along_y(wy), along_z(wz)
    tiles, whole = summing_tiles(wz, wy), float(sum(wz) * sum(wy) * sum(wx))
    weights_z, weights_y, weights_x = rounded(wz), rounded(wy), rounded(wx)
    k, rz, ry, rx = len(wz), len(wz) // 2, len(wy) // 2, len(wx) // 2
    rows, count, tile = tiles.rows, tiles.threads, tiles.height
    pad = -(-rx // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile + 2 * ry, GROUP + 2 * pad, pad - rx
    loads = -(-width * height // count)
    size, plane = loads * count, height * TILE_X
    raw_size, mid_size, sums_size, ring_size = 2 * size, 5 * plane, 5 * rows, 5 * rows * k
    add_terms = block_total(count)

    @formula
    def load_planes(arrays, base, offsets, valid, references, f_values, m_values):
        """Load the voxels of a plane into registers, relative to the references; beyond the faces what the border says."""
        f0, m0, outside_f, outside_m = references
        from_f, from_m = address(arrays[0], base), address(arrays[1], base)
        for s in range(loads):
            f_values[s], m_values[s] = outside_f, outside_m
            if uint32(valid & uint32(1 << s)) != uint32(0):
                f_values[s], m_values[s] = load(from_f, offsets[s]) - f0, load(from_m, offsets[s]) - m0

    @formula
    def sum_products_x(raw, t, a, b, p, mid):
        """Sums along x of F, M, FF, MM, FM: each thread four neighbours of a row."""
        row, group = uint32(t >> uint32(3)), uint32(t & uint32(7))
        if row < uint32(height):
            at = uint32(row * uint32(width) + group * uint32(GROUP))
            to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
            load_row(raw, at, a)
            sum_along_x(a, lead, of_x, mid, to)
            for q in range(reach):
                p[q] = a[q] * a[q]
            sum_along_x(p, lead, of_x, mid, to + uint32(2 * plane))
            load_row(raw, at + uint32(size), b)
            for q in range(reach):
                p[q] = a[q] * b[q]
            sum_along_x(p, lead, of_x, mid, to + uint32(4 * plane))
            sum_along_x(b, lead, of_x, mid, to + uint32(plane))
            for q in range(reach):
                p[q] = b[q] * b[q]
            sum_along_x(p, lead, of_x, mid, to + uint32(3 * plane))

    @formula
    def finish(sums, z, y, x, grid, base, own, constants, outputs, area):
        """Write what follows from complete windows; returns the sum of their correlations."""
        nz, ny, nx, voxels = grid
        floor, additive, epsilon, numerator, limit, squared = constants
        along, total = (inside_weight(z, nz, weights_z) if counted else ONE), ZERO
        for q in range(rows):
            if x < nx and int32(y + int32(q)) < ny:
                w = along * area[q] if counted else float32(whole)
                value, d, c, e, g, h = window_factors(
                    w, sums[q], sums[rows + q], sums[2 * rows + q], sums[3 * rows + q], sums[4 * rows + q],
                    floor, additive, epsilon, numerator, limit, squared)  # fmt: skip
                total += value
                if mapped:
                    store(address(outputs[0], base), own[q], value)
                if kinds >= SINGLE:
                    store(address(outputs[1], base), own[q], d)
                    store(address(outputs[1], base + voxels), own[q], c)
                    store(address(outputs[1], base + OFFSET(2) * voxels), own[q], e)
                if kinds == DOUBLE:
                    store(address(outputs[1], base + OFFSET(3) * voxels), own[q], g)
                    store(address(outputs[1], base + OFFSET(4) * voxels), own[q], h)
        return total

    def body(
        nz,
        ny,
        nx,
        depth,
        floor,
        additive,
        epsilon,
        numerator,
        limit,
        squared,
        voxels,
        fixed,
        moved,
        partials,
        correlation,
        factors,
    ):
        raw = cuda.shared.array(raw_size, float32, 16)
        mid = cuda.shared.array(mid_size, float32, 16)
        terms = cuda.shared.array(count, float32)
        offsets = cuda.local.array(loads, uint32)
        own = cuda.local.array(rows, uint32)
        f_values = cuda.local.array(loads, float32)
        m_values = cuda.local.array(loads, float32)
        a = cuda.local.array(reach, float32)
        b = cuda.local.array(reach, float32)
        p = cuda.local.array(reach, float32)
        ring = cuda.local.array(ring_size, float32)
        prefix = cuda.local.array(sums_size, float32)
        sums = cuda.local.array(sums_size, float32)
        area = cuda.local.array(rows, float32)
        t = uint32(cuda.threadIdx.x)
        volume, start, left = place(uint32(cuda.blockIdx.x), nx, nz, depth)
        top, stop = int32(cuda.blockIdx.y * uint32(tile)), min(int32(start + depth), nz)
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, column = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        plane_size = OFFSET(ny) * OFFSET(nx)
        origin = OFFSET(volume) * OFFSET(nz) * plane_size
        center = OFFSET(origin + OFFSET(nz // int32(2)) * plane_size + OFFSET((ny // int32(2)) * nx + nx // int32(2)))
        f0, m0 = fixed[center], moved[center]
        references = (f0, m0, ZERO, ZERO) if counted else (f0, m0, -f0, -m0)
        constants, arrays, outputs = (floor, additive, epsilon, numerator, limit, squared), (fixed, moved), (correlation, factors)
        grid = nz, ny, nx, voxels
        valid = tile_offsets(offsets, t, count, height, width, int32(top - int32(ry)), int32(left - int32(pad)), ny, nx)
        for q in range(ring_size):
            ring[q] = ZERO
        for q in range(sums_size):
            prefix[q] = ZERO
        for q in range(rows):
            own[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
            area[q] = inside_weight(int32(y + int32(q)), ny, weights_y) * inside_weight(x, nx, weights_x) if counted else ONE
        total = ZERO
        z, end = int32(start - int32(rz)), int32(stop + int32(rz))
        slot = uint32(int32(z + int32(k)) % int32(k))
        load_planes(
            arrays, OFFSET(origin + OFFSET(max(z, int32(0))) * plane_size), offsets, valid if z >= int32(0) else uint32(0),
            references, f_values, m_values)  # fmt: skip
        while z < end:
            for s in range(loads):
                e = uint32(t + uint32(s * count))
                raw[e], raw[uint32(e + uint32(size))] = f_values[s], m_values[s]
            cuda.syncthreads()
            sum_products_x(raw, t, a, b, p, mid)
            following = int32(z + int32(1))
            held = int32(0) <= following < nz and following < end
            load_planes(
                arrays, OFFSET(origin + OFFSET(following if held else int32(0)) * plane_size), offsets,
                valid if held else uint32(0), references, f_values, m_values)  # fmt: skip
            cuda.syncthreads()
            for field in range(5):
                sum_along_y(mid, column, field, height, of_y, rows, sums)
            push(ring, prefix, sums, slot, of_z)
            done = int32(z - int32(rz))
            if done >= start:
                base = OFFSET(origin + OFFSET(done) * plane_size)
                total += finish(sums, done, y, x, grid, base, own, constants, outputs, area)
            slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
            z = following
        terms[t] = total
        add_terms(terms, t)
        if t == uint32(0):
            parts = uint32(uint32(nz + depth - int32(1)) // uint32(depth))
            across = uint32(uint32(nx + int32(TILE_X - 1)) // uint32(TILE_X))
            of_volume, rest = uint32(parts * across), uint32(cuda.blockIdx.x)
            at = uint32((volume * uint32(cuda.gridDim.y) + uint32(cuda.blockIdx.y)) * of_volume + uint32(rest % of_volume))
            partials[at] = terms[0]

    return body


@cooperative_kernel(launch_bounds=_gradient_bounds)
def correlation_gradient_tiled(wz: Weights, wy: Weights, wx: Weights, mapped: bool) -> Callable[..., None]:
    """``correlation_gradient_rows``.

    Launch with ``gradient_tiles``. nz, ny, nx, depth: int32;  first, second, third: uint64, where D, K and E begin in
    ``factors``;  scale: float32;  each: uint32, 0 for one value of ``given`` for all volumes, else 1;  given: (1,) or (N,);
    weight: (N Z Y X,) or (1,);  other arguments as in ``correlation_tiled``
    """
    (sum_along_x, of_x), (sum_along_y, of_y), (push, of_z) = along_x(wx), along_y(wy), along_z(wz)
    tiles = gradient_tiles(wz, wy)
    k, rz, ry, rx = len(wz), len(wz) // 2, len(wy) // 2, len(wx) // 2
    rows, count, tile = tiles.rows, tiles.threads, tiles.height
    pad = -(-rx // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile + 2 * ry, GROUP + 2 * pad, pad - rx
    loads = -(-width * height // count)
    size, plane = loads * count, height * TILE_X
    raw_size, mid_size, sums_size, ring_size, values_size = 3 * size, 3 * plane, 3 * rows, 3 * rows * k, 3 * loads

    @formula
    def load_planes(factors, weight, starts, base, offsets, valid, values):
        """Load the factors of a plane into registers, zero beyond the faces."""
        from_d, from_k = address(factors, starts[0] + base), address(factors, starts[1] + base)
        from_e, from_w = address(factors, starts[2] + base), address(weight, base if mapped else OFFSET(0))
        for s in range(loads):
            values[s], values[loads + s], values[2 * loads + s] = ZERO, ZERO, ZERO
            if uint32(valid & uint32(1 << s)) != uint32(0):
                w = load(from_w, offsets[s]) if mapped else ONE
                values[s], values[loads + s], values[2 * loads + s] = (
                    w * load(from_d, offsets[s]),
                    w * load(from_k, offsets[s]),
                    w * load(from_e, offsets[s]),
                )

    @formula
    def sum_factors_x(raw, t, a, mid):
        """Sums along x of the factors: each thread four neighbours of a row."""
        row, group = uint32(t >> uint32(3)), uint32(t & uint32(7))
        if row < uint32(height):
            at = uint32(row * uint32(width) + group * uint32(GROUP))
            to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
            for field in range(3):
                load_row(raw, uint32(at + uint32(field * size)), a)
                sum_along_x(a, lead, of_x, mid, uint32(to + uint32(field * plane)))

    def body(nz, ny, nx, depth, first, second, third, scale, each, given, weight, factors, fixed, moved, out):
        raw = cuda.shared.array(raw_size, float32, 16)
        mid = cuda.shared.array(mid_size, float32, 16)
        offsets = cuda.local.array(loads, uint32)
        own = cuda.local.array(rows, uint32)
        own_f = cuda.local.array(rows, float32)
        own_m = cuda.local.array(rows, float32)
        values = cuda.local.array(values_size, float32)
        a = cuda.local.array(reach, float32)
        ring = cuda.local.array(ring_size, float32)
        prefix = cuda.local.array(sums_size, float32)
        sums = cuda.local.array(sums_size, float32)
        t = uint32(cuda.threadIdx.x)
        volume, start, left = place(uint32(cuda.blockIdx.x), nx, nz, depth)
        top, stop = int32(cuda.blockIdx.y * uint32(tile)), min(int32(start + depth), nz)
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, column = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        plane_size = OFFSET(ny) * OFFSET(nx)
        origin = OFFSET(volume) * OFFSET(nz) * plane_size
        center = OFFSET(origin + OFFSET(nz // int32(2)) * plane_size + OFFSET((ny // int32(2)) * nx + nx // int32(2)))
        f0, m0, g = fixed[center], moved[center], scale * given[uint32(volume * each)]
        starts = first, second, third
        valid = tile_offsets(offsets, t, count, height, width, int32(top - int32(ry)), int32(left - int32(pad)), ny, nx)
        for q in range(ring_size):
            ring[q] = ZERO
        for q in range(sums_size):
            prefix[q] = ZERO
        for q in range(rows):
            own[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
        z, end = int32(start - int32(rz)), int32(stop + int32(rz))
        slot = uint32(int32(z + int32(k)) % int32(k))
        load_planes(
            factors, weight, starts, OFFSET(origin + OFFSET(max(z, int32(0))) * plane_size), offsets,
            valid if z >= int32(0) else uint32(0), values)  # fmt: skip
        while z < end:
            for field in range(3):
                for s in range(loads):
                    raw[uint32(t + uint32(field * size + s * count))] = values[field * loads + s]
            cuda.syncthreads()
            sum_factors_x(raw, t, a, mid)
            done, following = int32(z - int32(rz)), int32(z + int32(1))
            base = OFFSET(origin + OFFSET(max(done, int32(0))) * plane_size)
            from_f, from_m = address(fixed, base), address(moved, base)
            for q in range(rows):
                own_f[q], own_m[q] = f0, m0
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    own_f[q], own_m[q] = load(from_f, own[q]), load(from_m, own[q])
            held = int32(0) <= following < nz and following < end
            load_planes(
                factors, weight, starts, OFFSET(origin + OFFSET(following if held else int32(0)) * plane_size), offsets,
                valid if held else uint32(0), values)  # fmt: skip
            cuda.syncthreads()
            for field in range(3):
                sum_along_y(mid, column, field, height, of_y, rows, sums)
            push(ring, prefix, sums, slot, of_z)
            to = address(out, base)
            for q in range(rows):
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    store(to, own[q], g * ((own_f[q] - f0) * sums[q] + (own_m[q] - m0) * sums[rows + q] + sums[2 * rows + q]))
            slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
            z = following

    return body
