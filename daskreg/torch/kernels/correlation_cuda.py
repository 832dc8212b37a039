"""Local correlation on a GPU: a block of threads owns a tile of the (y, x) plane and moves along z.

Each plane is loaded into shared memory with the border that a window needs, summed along x (four neighbours per thread), then
along y. Along z a thread keeps the partial sums of the windows that are not complete: adding a plane moves each by one place, so
windows of any weights cost one multiplication per plane of a window, and all places are registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, int32, uint32, uint64

from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import Formula, formula
from daskreg.kernels.intrinsics.memory import load_vector, store_vector
from daskreg.similarity.lncc.cuda.windows import tile_offsets
from daskreg.torch.kernels.correlation import DOUBLE, SINGLE, window_factors

ONE, ZERO = float32(1), float32(0)
TILE_X, GROUP = 32, 4  # voxels of a tile along x; neighbours along x per thread
MAX_RADIUS = 12  # shared memory holds the planes of wider windows no more
OFFSET: Any = int if SIMULATED else uint64
Weights = tuple[float, ...]


def rows_per_thread(wz: Weights) -> int:
    """Rows of a tile per thread: the sums of incomplete windows must fit into registers."""
    return 2 if len(wz) <= 7 else 1


def tile_rows(wz: Weights) -> int:
    """Rows of a tile; few for wide windows, whose threads need twice the registers."""
    return 16 if len(wz) <= 11 else 8


def threads(wz: Weights) -> int:
    """Threads per block."""
    return TILE_X * tile_rows(wz) // rows_per_thread(wz)


def blocks(wz: Weights, batches: int, nz: int, ny: int, nx: int, depth: int) -> tuple[int, int, int]:
    """Blocks, x first; those of ``depth`` planes each of all volumes are along x."""
    return batches * -(-nz // depth) * -(-nx // TILE_X), -(-ny // tile_rows(wz)), 1


def planes_per_block(wz: Weights, batches: int, nz: int, ny: int, nx: int, processors: int) -> int:
    """Planes of a block: about eight blocks per multiprocessor, and few planes that two blocks load."""
    tiles = batches * -(-ny // tile_rows(wz)) * -(-nx // TILE_X)
    parts = max(1, min(-(-8 * processors // tiles), -(-nz // max(8, 2 * len(wz)))))
    return -(-nz // parts)


def _bounds(wz: Weights, *others: Any) -> tuple[int, int]:
    return threads(wz), 2 if len(wz) <= 7 else 1


@formula
def place(block, nx, nz, depth):
    """Volume, first plane and first column of a block."""
    tiles = uint32(uint32(nx + int32(TILE_X - 1)) // uint32(TILE_X))
    parts = uint32(uint32(nz + depth - int32(1)) // uint32(depth))
    column, rest = uint32(block % tiles), uint32(block // tiles)
    return uint32(rest // parts), int32(uint32(rest % parts)) * depth, int32(column) * int32(TILE_X)


@formula
def add_to_windows(a, b, c, d, v, q, weights):
    """Add a value to those of four neighbouring windows that it is in, q places after the first place of the first."""
    k = len(weights)
    if 0 <= q < k:
        a += weights[q] * v
    if 1 <= q < k + 1:
        b += weights[q - 1] * v
    if 2 <= q < k + 2:
        c += weights[q - 2] * v
    if 3 <= q < k + 3:
        d += weights[q - 3] * v
    return a, b, c, d


@formula
def sum_x(raw, at, reach, lead, weights, mid, to):
    """Weighted sums along x of a row from ``at + lead`` on, for four neighbouring windows."""
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    for q in range(0, reach, GROUP):
        values = load_vector(raw, uint32(at + uint32(q)))
        for r in range(GROUP):
            a, b, c, d = add_to_windows(a, b, c, d, values[r], q + r - lead, weights)
    store_vector(mid, to, a, b, c, d)


@formula
def sum_products_x(raw, first, second, reach, lead, weights, mid, to):
    """``sum_x`` of the products of two rows."""
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    for q in range(0, reach, GROUP):
        v, w = load_vector(raw, uint32(first + uint32(q))), load_vector(raw, uint32(second + uint32(q)))
        for r in range(GROUP):
            a, b, c, d = add_to_windows(a, b, c, d, v[r] * w[r], q + r - lead, weights)
    store_vector(mid, to, a, b, c, d)


@formula
def sum_y(mid, at, start, weights, rows, sums, to):
    """Weighted sums along y for the rows of a thread, into ``sums[to ..]``."""
    v = mid[uint32(at + uint32(start))]
    first, second = weights[0] * v, ZERO
    for t in range(1, len(weights)):
        v = mid[uint32(at + uint32(start + t * TILE_X))]
        first += weights[t] * v
        if rows == 2:
            second += weights[t - 1] * v
    sums[to] = first
    if rows == 2:
        sums[to + 1] = second + weights[len(weights) - 1] * mid[uint32(at + uint32(start + len(weights) * TILE_X))]


@formula
def push(pending, sums, weights, count):
    """Add a plane to the windows that it is in; ``sums`` becomes those of the window that is complete."""
    k = len(weights)
    for q in range(count):
        s = sums[q]
        if k > 1:
            sums[q] = pending[q * (k - 1)] + weights[k - 1] * s
            for j in range(k - 2):
                pending[q * (k - 1) + j] = pending[q * (k - 1) + j + 1] + weights[k - 2 - j] * s
            pending[q * (k - 1) + k - 2] = weights[0] * s
        else:
            sums[q] = weights[0] * s


@formula
def inside_weight(at, n, weights):
    """The sum of the weights of a window around ``at`` that are on the axis."""
    total = ZERO
    for t in range(len(weights)):
        q = int32(at + int32(t - len(weights) // 2))
        total += weights[t] if int32(0) <= q < n else ZERO
    return total


def block_total(count: int) -> Formula:
    """Part of a body: the sum of all threads' terms, in a fixed order, in ``terms[0]``; count: a power of two."""

    @formula
    def add_terms(terms, t):
        half = uint32(count // 2)
        while half > uint32(0):
            cuda.syncthreads()
            if t < half:
                terms[t] += terms[uint32(t + half)]
            half = uint32(half >> uint32(1))

    return add_terms


@cooperative_kernel(launch_bounds=_bounds)
def correlation_tiled(wz: Weights, wy: Weights, wx: Weights, kinds: int, counted: bool, mapped: bool) -> Callable[..., None]:
    """``correlation_rows``. kinds: factors per window, 0, 3 or 5;  mapped: write the correlation of each window.

    nz, ny, nx, depth: int32;  floor ... limit: float32;  squared: int32;  fixed, moved: (N Z Y X,) float32;  partials:
    (blocks,), a sum per block, blocks of a volume one after the other;  correlation: (N Z Y X,) or (1,);  factors:
    (kinds N Z Y X,) or (1,);  voxels: uint64, N Z Y X
    """
    wz, wy, wx = _rounded(wz), _rounded(wy), _rounded(wx)
    rz, ry, rx, rows, count, tile = len(wz) // 2, len(wy) // 2, len(wx) // 2, rows_per_thread(wz), threads(wz), tile_rows(wz)
    pad = -(-rx // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile + 2 * ry, GROUP + 2 * pad, pad - rx
    loads = -(-width * height // count)
    size, plane, sums_size = loads * count, height * TILE_X, 5 * rows
    raw_size, mid_size = 2 * size, 5 * plane
    places, groups = 5 * rows * max(1, len(wz) - 1), -(-height * (TILE_X // GROUP) // count)
    whole, add_terms = float(sum(wz) * sum(wy) * sum(wx)), block_total(count)

    @formula
    def load_planes(arrays, base, offsets, valid, references, f_values, m_values):
        """Load the voxels of a plane into registers, relative to the references; beyond the faces what the border says."""
        f0, m0, outside_f, outside_m = references
        for s in range(loads):
            f_values[s], m_values[s] = outside_f, outside_m
            if uint32(valid & uint32(1 << s)) != uint32(0):
                at = OFFSET(base + OFFSET(offsets[s]))
                f_values[s], m_values[s] = arrays[0][at] - f0, arrays[1][at] - m0

    @formula
    def sum_fields(raw, mid, t):
        """Sums along x of F, M, FF, MM, FM."""
        for turn in range(groups):
            e = uint32(t + uint32(turn * count))
            row, group = uint32(e >> uint32(3)), uint32(e & uint32(7))
            if row < uint32(height):
                at = uint32(row * uint32(width) + group * uint32(GROUP))
                to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
                other = uint32(at + uint32(size))
                sum_x(raw, at, reach, lead, wx, mid, to)
                sum_products_x(raw, at, at, reach, lead, wx, mid, to + uint32(2 * plane))
                sum_x(raw, other, reach, lead, wx, mid, to + uint32(plane))
                sum_products_x(raw, other, other, reach, lead, wx, mid, to + uint32(3 * plane))
                sum_products_x(raw, at, other, reach, lead, wx, mid, to + uint32(4 * plane))

    @formula
    def finish(sums, z, y, x, grid, base, constants, outputs, area):
        """Write what follows from complete windows; returns the sum of their correlations."""
        nz, ny, nx, voxels = grid
        floor, additive, epsilon, numerator, limit, squared = constants
        along_z, total = (inside_weight(z, nz, wz) if counted else ONE), ZERO
        for q in range(rows):
            if x < nx and int32(y + int32(q)) < ny:
                w = along_z * area[q] if counted else float32(whole)
                value, d, k, e, g, h = window_factors(
                    w, sums[q], sums[rows + q], sums[2 * rows + q], sums[3 * rows + q], sums[4 * rows + q],
                    floor, additive, epsilon, numerator, limit, squared)  # fmt: skip
                at = OFFSET(base + OFFSET(uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))))
                total += value
                if mapped:
                    outputs[0][at] = value
                if kinds >= SINGLE:
                    outputs[1][at], outputs[1][at + voxels], outputs[1][at + OFFSET(2) * voxels] = d, k, e
                if kinds == DOUBLE:
                    outputs[1][at + OFFSET(3) * voxels], outputs[1][at + OFFSET(4) * voxels] = g, h
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
        f_values = cuda.local.array(loads, float32)
        m_values = cuda.local.array(loads, float32)
        pending = cuda.local.array(places, float32)
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
        for q in range(places):
            pending[q] = ZERO
        for q in range(rows):
            area[q] = inside_weight(int32(y + int32(q)), ny, wy) * inside_weight(x, nx, wx) if counted else ONE
        total = ZERO
        z, end = int32(start - int32(rz)), int32(stop + int32(rz))
        load_planes(
            arrays, OFFSET(origin + OFFSET(max(z, int32(0))) * plane_size), offsets, valid if z >= int32(0) else uint32(0),
            references, f_values, m_values)  # fmt: skip
        while z < end:
            for s in range(loads):
                e = uint32(t + uint32(s * count))
                raw[e], raw[uint32(e + uint32(size))] = f_values[s], m_values[s]
            cuda.syncthreads()
            following = int32(z + int32(1))
            held = int32(0) <= following < nz and following < end
            load_planes(
                arrays, OFFSET(origin + OFFSET(following if held else int32(0)) * plane_size), offsets,
                valid if held else uint32(0), references, f_values, m_values)  # fmt: skip
            sum_fields(raw, mid, t)
            cuda.syncthreads()
            for field in range(5):
                sum_y(mid, column, field * plane, wy, rows, sums, field * rows)
            push(pending, sums, wz, 5 * rows)
            done = int32(z - int32(rz))
            if done >= start:
                base = OFFSET(origin + OFFSET(done) * plane_size)
                total += finish(sums, done, y, x, grid, base, constants, outputs, area)
            z = following
        terms[t] = total
        add_terms(terms, t)
        if t == uint32(0):
            parts = uint32(uint32(nz + depth - int32(1)) // uint32(depth))
            tiles = uint32(uint32(nx + int32(TILE_X - 1)) // uint32(TILE_X))
            of_volume, rest = uint32(parts * tiles), uint32(cuda.blockIdx.x)
            at = uint32((volume * uint32(cuda.gridDim.y) + uint32(cuda.blockIdx.y)) * of_volume + uint32(rest % of_volume))
            partials[at] = terms[0]

    return body


@cooperative_kernel(launch_bounds=_bounds)
def correlation_gradient_tiled(wz: Weights, wy: Weights, wx: Weights, mapped: bool) -> Callable[..., None]:
    """``correlation_gradient_rows``.

    nz, ny, nx, depth: int32;  first, second, third: uint64, where D, K and E begin in ``factors``;  scale: float32;  each:
    uint32, 0 for one value of ``given`` for all volumes, else 1;  given: (1,) or (N,);  weight: (N Z Y X,) or (1,);  other
    arguments as in ``correlation_tiled``
    """
    wz, wy, wx = _rounded(wz), _rounded(wy), _rounded(wx)
    rz, ry, rx, rows, count, tile = len(wz) // 2, len(wy) // 2, len(wx) // 2, rows_per_thread(wz), threads(wz), tile_rows(wz)
    pad = -(-rx // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile + 2 * ry, GROUP + 2 * pad, pad - rx
    loads = -(-width * height // count)
    size, plane, sums_size = loads * count, height * TILE_X, 3 * rows
    raw_size, mid_size = 3 * size, 3 * plane
    places, groups = 3 * rows * max(1, len(wz) - 1), -(-height * (TILE_X // GROUP) // count)

    @formula
    def load_planes(factors, weight, starts, base, offsets, valid, d_values, k_values, e_values):
        """Load the factors of a plane into registers, zero beyond the faces."""
        for s in range(loads):
            d_values[s], k_values[s], e_values[s] = ZERO, ZERO, ZERO
            if uint32(valid & uint32(1 << s)) != uint32(0):
                at = OFFSET(base + OFFSET(offsets[s]))
                w = weight[at] if mapped else ONE
                d_values[s], k_values[s], e_values[s] = (
                    w * factors[starts[0] + at],
                    w * factors[starts[1] + at],
                    w * factors[starts[2] + at],
                )

    @formula
    def sum_fields(raw, mid, t):
        """Sums along x of the factors."""
        for turn in range(groups):
            e = uint32(t + uint32(turn * count))
            row, group = uint32(e >> uint32(3)), uint32(e & uint32(7))
            if row < uint32(height):
                at = uint32(row * uint32(width) + group * uint32(GROUP))
                to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
                for field in range(3):
                    sum_x(raw, at + uint32(field * size), reach, lead, wx, mid, to + uint32(field * plane))

    def body(nz, ny, nx, depth, first, second, third, scale, each, given, weight, factors, fixed, moved, out):
        raw = cuda.shared.array(raw_size, float32, 16)
        mid = cuda.shared.array(mid_size, float32, 16)
        offsets = cuda.local.array(loads, uint32)
        d_values = cuda.local.array(loads, float32)
        k_values = cuda.local.array(loads, float32)
        e_values = cuda.local.array(loads, float32)
        pending = cuda.local.array(places, float32)
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
        for q in range(places):
            pending[q] = ZERO
        z, end = int32(start - int32(rz)), int32(stop + int32(rz))
        load_planes(
            factors, weight, starts, OFFSET(origin + OFFSET(max(z, int32(0))) * plane_size), offsets,
            valid if z >= int32(0) else uint32(0), d_values, k_values, e_values)  # fmt: skip
        while z < end:
            for s in range(loads):
                e = uint32(t + uint32(s * count))
                raw[e], raw[uint32(e + uint32(size))], raw[uint32(e + uint32(2 * size))] = d_values[s], k_values[s], e_values[s]
            cuda.syncthreads()
            following = int32(z + int32(1))
            held = int32(0) <= following < nz and following < end
            load_planes(
                factors, weight, starts, OFFSET(origin + OFFSET(following if held else int32(0)) * plane_size), offsets,
                valid if held else uint32(0), d_values, k_values, e_values)  # fmt: skip
            sum_fields(raw, mid, t)
            cuda.syncthreads()
            for field in range(3):
                sum_y(mid, column, field * plane, wy, rows, sums, field * rows)
            push(pending, sums, wz, 3 * rows)
            done = int32(z - int32(rz))
            if done >= start:
                base = OFFSET(origin + OFFSET(done) * plane_size)
                for q in range(rows):
                    if x < nx and int32(y + int32(q)) < ny:
                        at = OFFSET(base + OFFSET(uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))))
                        out[at] = g * ((fixed[at] - f0) * sums[q] + (moved[at] - m0) * sums[rows + q] + sums[2 * rows + q])
            z = following

    return body


def _rounded(weights: Weights) -> tuple[Any, ...]:
    return tuple(float32(w) for w in weights)
