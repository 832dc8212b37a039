"""An iteration in few passes over a GPU's memory: the sampler with the loss and its gradient, filter with step, composition with filter.

A block of threads owns a tile of the (y, x) plane and marches along z. Each plane comes into shared memory once, with the rim that
a filter needs, while the next one is on its way into registers; sums along z live in a ring of registers. A voxel is computed from
its own neighbours in one order, whatever block it falls into, so that neither tiles nor ranks show.
"""

from numba import float32, float64, int32, int64, uint32, uint64

from daskreg.kernels.arithmetic import counted, dot3, floor, fused, lerp, product, quotient, root
from daskreg.kernels.launch import CUDA, DISABLED, formula, sweep

ONE, NIL, TWO, HALF, NAN = float32(1), float32(0), float32(2), float32(0.5), float32(float("nan"))
UNIT = float32(2.0**-24)
COUNT = 2**28  # of a squared difference: what sums of integers count in
COLUMNS = (2, 4) if DISABLED else (4, 64)  # threads along y and x of kernels without neighbours
DEPTH = 3 if DISABLED else 16  # planes they march through
TILE = (4, 4) if DISABLED else (16, 32)  # threads along y and x of kernels with neighbours
LENGTH = 5 if DISABLED else 64  # planes they march through: each block reads the filter's reach of planes twice


def columns(n: tuple[int, ...]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Blocks and threads of a kernel without neighbours, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = COLUMNS
    return (-(-nx // tx), -(-ny // ty), max(1, -(-nz // DEPTH))), (tx, ty, 1)


def tiles(n: tuple[int, ...]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Blocks and threads of a kernel with neighbours, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = TILE
    return (-(-nx // tx), -(-ny // ty), max(1, -(-nz // LENGTH))), (tx, ty, 1)


# ---------------------------------------------------------------- the sampler


@formula
def located(fixed, sz, sy, sx, uz, uy, ux):
    """A component of A x + t (64-bit fixed point) + S u as whole and fraction."""
    rest = float32(uint32(fixed) >> uint32(8)) * UNIT + dot3(sz, sy, sx, uz, uy, ux)
    more = floor(rest)
    return int32(fixed >> int64(32)) + more, rest - float32(more)


@formula
def touching(whole, rows, cols, k, j, i):
    """Whether any of the eight corners is a voxel of the whole image."""
    one = int32(1)
    return (
        (uint32(k + one) <= uint32(whole)) & (uint32(j + one) <= uint32(rows)) & (uint32(i + one) <= uint32(cols))
    )


@formula
def voxel(image, planes, rows, cols, k, j, i):
    """A voxel of a flat image, 0 beyond it."""
    if uint32(k) < uint32(planes) and uint32(j) < uint32(rows) and uint32(i) < uint32(cols):
        return image[uint64(uint32(k)) * uint64(uint32(rows * cols)) + uint64(uint32(j * cols + i))]
    return NIL


@formula
def around(image, planes, rows, cols, k, j, i):
    """The eight voxels around a point, x fastest, 0 beyond the image."""
    one = int32(1)
    k1, j1, i1 = k + one, j + one, i + one
    if uint32(k) < uint32(planes - one) and uint32(j) < uint32(rows - one) and uint32(i) < uint32(cols - one):
        a = uint64(uint32(k)) * uint64(uint32(rows * cols)) + uint64(uint32(j * cols + i))
        c = a + uint64(uint32(cols))
        e = a + uint64(uint32(rows * cols))
        g = c + uint64(uint32(rows * cols))
        return (image[a], image[a + uint64(1)], image[c], image[c + uint64(1)],
                image[e], image[e + uint64(1)], image[g], image[g + uint64(1)])  # fmt: skip
    return (voxel(image, planes, rows, cols, k, j, i), voxel(image, planes, rows, cols, k, j, i1),
            voxel(image, planes, rows, cols, k, j1, i), voxel(image, planes, rows, cols, k, j1, i1),
            voxel(image, planes, rows, cols, k1, j, i), voxel(image, planes, rows, cols, k1, j, i1),
            voxel(image, planes, rows, cols, k1, j1, i), voxel(image, planes, rows, cols, k1, j1, i1))  # fmt: skip


@formula
def mixed(corners, wz, wy, wx):
    """Trilinear value: what the two planes along z give, each rounded before they are added."""
    a, b, c, d, e, f, g, h = corners
    plane0, plane1 = lerp(lerp(a, b, wx), lerp(c, d, wx), wy), lerp(lerp(e, f, wx), lerp(g, h, wx), wy)
    return product(ONE - wz, plane0) + product(wz, plane1)


@formula
def inclined(corners, wz, wy, wx):
    """Trilinear value and its derivatives along z, y, x."""
    a, b, c, d, e, f, g, h = corners
    row00, row01, row10, row11 = lerp(a, b, wx), lerp(c, d, wx), lerp(e, f, wx), lerp(g, h, wx)
    plane0, plane1, vz = lerp(row00, row01, wy), lerp(row10, row11, wy), ONE - wz
    value = product(vz, plane0) + product(wz, plane1)
    dy = product(vz, row01 - row00) + product(wz, row11 - row10)
    dx = product(vz, lerp(b - a, d - c, wy)) + product(wz, lerp(f - e, h - g, wy))
    return value, plane1 - plane0, dy, dx


@formula
def value_at(at, point, linear, size, image, fields, a, b):
    """``moved = image(p)``, NaN out of domain."""
    k, j, i, wz, wy, wx = point
    value = NAN
    if touching(size[0], size[3], size[4], k, j, i):
        value = mixed(around(image, size[2], size[3], size[4], k - size[1], j, i), wz, wy, wx)
    fields[0][at] = value
    return a, b


@formula
def turn_into(g, at, linear, r, dz, dy, dx):
    """``g = r S^T (dz, dy, dx)``."""
    g[0, at] = r * dot3(linear[0], linear[3], linear[6], dz, dy, dx)
    g[1, at] = r * dot3(linear[1], linear[4], linear[7], dz, dy, dx)
    g[2, at] = r * dot3(linear[2], linear[5], linear[8], dz, dy, dx)


@formula
def difference_at(at, point, linear, size, image, fields, a, b):
    """Squared difference and weight, counted; g in the same look."""
    k, j, i, wz, wy, wx = point
    fixed, weight, g = fields
    r, dz, dy, dx = NIL, NIL, NIL, NIL
    if touching(size[0], size[3], size[4], k, j, i):
        value, dz, dy, dx = inclined(around(image, size[2], size[3], size[4], k - size[1], j, i), wz, wy, wx)
        w = weight[at] if weight.shape[0] > 0 else ONE
        error = value - fixed[at]
        r = w * error
        a += counted(r * error * float32(COUNT))
        b += counted(w * float32(COUNT))
    turn_into(g, at, linear, TWO * r, dz, dy, dx)
    return a, b


@formula
def pulled_at(at, point, linear, size, image, fields, a, b):
    """``g = S^T (slope grad image(p))``; slope and g[0] may be the same memory."""
    k, j, i, wz, wy, wx = point
    slope, g = fields
    r, dz, dy, dx = slope[at], NIL, NIL, NIL
    if r != NIL:
        _, dz, dy, dx = inclined(around(image, size[2], size[3], size[4], k - size[1], j, i), wz, wy, wx)
    turn_into(g, at, linear, r, dz, dy, dx)
    return a, b


def _march(visit, displaced, summed):
    """A kernel that marches along z over sampling points and calls ``visit`` at each.

    Arguments: n (first plane within the arrays, planes, rows, columns; uint32), first (global plane of the arrays' plane 0, int32),
    affine (12 int64), linear (9 float32), u (3, N) in voxels (not read where not ``displaced``), size (planes of the whole image, the one
    that comes first here, planes here, rows, columns; int32), image (flat), fields (of ``visit``), totals (2,) int64.
    """
    use, depth, count = visit.form(CUDA), DEPTH, COLUMNS[0] * COLUMNS[1]

    def body(n, first, affine, linear, u, size, image, fields, totals):
        x = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        y = uint32(cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y)
        a, b = int64(0), int64(0)
        if x < n[3] and y < n[2]:
            step = uint32(uint32(cuda.blockIdx.z) * uint32(depth))
            stop = min(uint32(step + uint32(depth)), n[1])
            z = int64(n[0]) + int64(step) + int64(first)
            fz = affine[0] * z + affine[1] * int64(y) + affine[2] * int64(x) + affine[3]
            fy = affine[4] * z + affine[5] * int64(y) + affine[6] * int64(x) + affine[7]
            fx = affine[8] * z + affine[9] * int64(y) + affine[10] * int64(x) + affine[11]
            plane = uint64(n[2]) * uint64(n[3])
            at = plane * (uint64(n[0]) + uint64(step)) + uint64(y) * uint64(n[3]) + uint64(x)
            while step < stop:
                uz, uy, ux = NIL, NIL, NIL
                if displaced:
                    uz, uy, ux = u[0, at], u[1, at], u[2, at]
                k, wz = located(fz, linear[0], linear[1], linear[2], uz, uy, ux)
                j, wy = located(fy, linear[3], linear[4], linear[5], uz, uy, ux)
                i, wx = located(fx, linear[6], linear[7], linear[8], uz, uy, ux)
                a, b = use(at, (k, j, i, wz, wy, wx), linear, size, image, fields, a, b)
                fz, fy, fx = fz + affine[0], fy + affine[4], fx + affine[8]
                at += plane
                step = uint32(step + uint32(1))
        if summed:
            shared = cuda.shared.array((2, count), int64)
            t = uint32(cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x)
            shared[0, t], shared[1, t] = a, b
            cuda.syncthreads()
            half = uint32(count // 2)
            while half > uint32(0):
                if t < half:
                    shared[0, t] += shared[0, t + half]
                    shared[1, t] += shared[1, t + half]
                cuda.syncthreads()
                half = uint32(half >> uint32(1))
            if t == uint32(0):
                cuda.atomic.add(totals, 0, shared[0, 0])
                cuda.atomic.add(totals, 1, shared[1, 0])

    return body


@sweep(launch_bounds=(256, 4))
def sample_march(displaced):
    """``moved(x) = image(A x + t + S u(x))``, NaN out of domain; fields (moved,); 20 bytes a voxel."""
    return _march(value_at, displaced, False)


@sweep(launch_bounds=(256, 4))
def sample_difference():
    """Mean squared difference with its gradient g; fields (fixed, weight or empty, g); totals in units of 2^-28; 32 bytes a voxel."""
    return _march(difference_at, True, True)


@sweep(launch_bounds=(256, 4))
def pull_back_march():
    """g from dC/dmoved; fields (slope, g); 32 bytes a voxel."""
    return _march(pulled_at, True, False)


# ---------------------------------------------------------------- filters


@formula
def axis_sum(line, at, stride, weights, taps):
    """Left to right: one order for everyone. Offsets have 64 bits, so that those known to the compiler go into the instruction."""
    total = weights[0] * line[at]
    for t in range(1, taps):
        total = fused(weights[t], line[at + uint64(t) * uint64(stride)], total)
    return total


@sweep(launch_bounds=(512, 2))
def smooth_adam(radius):
    """Gaussian of g, Adam's moments in place, direction d, the longest |d|^2: 72 bytes a voxel.

    Arguments: n (first plane within the arrays, planes, rows, columns; uint32), edge (planes of the arrays), weights (taps), norms
    along z (planes of the arrays), y, x: 1 / the weights' sum within the global grid; rates (T, 5), clock (1,) int32: which row counts;
    g, m, v, d (3, N); longest (1,) float32, raised to the largest |d|^2.
    """
    (ty, tx), r, taps, length = TILE, radius, 2 * radius + 1, LENGTH
    threads, wide, high = ty * tx, tx + 2 * r, ty + 2 * r
    loads, rows = -(-(wide * high) // threads), -(-(3 * high) // ty)
    tile, middle, rings, fetched = 3 * high * wide, 3 * high * tx, 3 * taps, 3 * loads

    def body(n, edge, weights, norm_z, norm_y, norm_x, rates, clock, g, m, v, d, longest):
        raw = cuda.shared.array(tile, float32)
        mid = cuda.shared.array(middle, float32)
        ring, ahead = cuda.local.array(rings, float32), cuda.local.array(fetched, float32)
        place, inside = cuda.local.array(loads, uint32), cuda.local.array(loads, int32)
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        thread = uint32(j * uint32(tx) + i)
        left, top = int32(cuda.blockIdx.x) * int32(tx), int32(cuda.blockIdx.y) * int32(ty)
        x, y = uint32(left + int32(i)), uint32(top + int32(j))
        here = y < n[2] and x < n[3]
        for e in range(loads):
            spot = thread + uint32(e * threads)
            row, col = top + int32(spot // uint32(wide)) - int32(r), left + int32(spot % uint32(wide)) - int32(r)
            real = spot < uint32(wide * high) and uint32(row) < n[2] and uint32(col) < n[3]
            inside[e] = int32(real)
            place[e] = uint32(row) * n[3] + uint32(col) if real else uint32(0)
        plane = uint64(n[2]) * uint64(n[3])
        mine = uint64(min(y, n[2] - uint32(1))) * uint64(n[3]) + uint64(min(x, n[3] - uint32(1)))
        norm = norm_y[min(y, n[2] - uint32(1))] * norm_x[min(x, n[3] - uint32(1))]
        t = clock[0]
        b1, b2, c1, c2, eps = rates[t, 0], rates[t, 1], rates[t, 2], rates[t, 3], rates[t, 4]
        low = int32(n[0]) + int32(cuda.blockIdx.z) * int32(length)
        stop = min(low + int32(length), int32(n[0] + n[1]))
        most = NIL
        for q in range(3 * taps):
            ring[q] = NIL
        k = low - int32(r)
        for e in range(loads):
            for c in range(3):
                ahead[3 * e + c] = NIL
                if inside[e] and uint32(k) < edge:
                    ahead[3 * e + c] = g[c, plane * uint64(uint32(k)) + uint64(place[e])]
        while k < stop + int32(r):
            for e in range(loads):
                spot = thread + uint32(e * threads)
                if spot < uint32(wide * high):
                    for c in range(3):
                        raw[uint64(spot) + uint64(c * wide * high)] = ahead[3 * e + c]
            cuda.syncthreads()
            z = k - int32(r)
            done = z >= low and here
            at = plane * uint64(uint32(z)) + mine
            m0, m1, m2, v0, v1, v2 = NIL, NIL, NIL, NIL, NIL, NIL
            if done:
                m0, m1, m2, v0, v1, v2 = m[0, at], m[1, at], m[2, at], v[0, at], v[1, at], v[2, at]
            k += int32(1)
            more = k < stop + int32(r) and uint32(k) < edge
            for e in range(loads):
                for c in range(3):
                    ahead[3 * e + c] = NIL
                    if more and inside[e]:
                        ahead[3 * e + c] = g[c, plane * uint64(uint32(k)) + uint64(place[e])]
            for s in range(rows):
                line = uint32(j + uint32(s * ty))
                if line < uint32(3 * high):
                    mid[line * uint32(tx) + i] = axis_sum(raw, uint64(uint32(line * uint32(wide) + i)), 1, weights, taps)
            cuda.syncthreads()
            for c in range(3):
                for q in range(taps - 1):
                    ring[c * taps + q] = ring[c * taps + q + 1]
                ring[c * taps + taps - 1] = axis_sum(mid, uint64(thread) + uint64(c * high * tx), tx, weights, taps)
            if done:
                scale = norm * norm_z[z]
                s0, s1, s2 = ring[0], ring[taps], ring[2 * taps]
                s0, s1, s2 = weights[0] * s0, weights[0] * s1, weights[0] * s2
                for q in range(1, taps):
                    s0 = fused(weights[q], ring[q], s0)
                    s1 = fused(weights[q], ring[taps + q], s1)
                    s2 = fused(weights[q], ring[2 * taps + q], s2)
                s0, s1, s2 = s0 * scale, s1 * scale, s2 * scale
                m0, m1, m2 = lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1)
                v0, v1, v2 = lerp(s0 * s0, v0, b2), lerp(s1 * s1, v1, b2), lerp(s2 * s2, v2, b2)
                m[0, at], m[1, at], m[2, at], v[0, at], v[1, at], v[2, at] = m0, m1, m2, v0, v1, v2
                d0 = -quotient(m0 * c1, root(v0 * c2) + eps)
                d1 = -quotient(m1 * c1, root(v1 * c2) + eps)
                d2 = -quotient(m2 * c1, root(v2 * c2) + eps)
                d[0, at], d[1, at], d[2, at] = d0, d1, d2
                most = max(most, fused(d2, d2, fused(d1, d1, d0 * d0)))
        cuda.syncthreads()
        raw[thread] = most
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


@formula
def beside(d):
    """Whether a point d away, |d| < 1, lies before its voxel, and the weight of the second of the two voxels around it."""
    back = d < NIL
    return uint32(back), d + ONE if back else d


@formula
def looked_up(near, a, b, wide, wz, wy, wx):
    """Trilinear value in shared memory between the voxels from a on in one plane and from b on in the next."""
    one, row = uint64(1), uint64(wide)
    plane0 = lerp(lerp(near[a], near[a + one], wx), lerp(near[a + row], near[a + row + one], wx), wy)
    plane1 = lerp(lerp(near[b], near[b + one], wx), lerp(near[b + row], near[b + row + one], wx), wy)
    return lerp(plane0, plane1, wz)


@formula
def held(k, first, whole, edge):
    """The plane of the arrays that is k, clamped to the global grid (and to what is there, where nobody looks)."""
    return uint64(uint32(min(max(min(max(k + first, int32(0)), whole - int32(1)) - first, int32(0)), int32(edge) - int32(1))))


@sweep(launch_bounds=(512, 2))
def compose_smooth(radius):
    """``u <- G (s d + u o (Id + s d))``, s d at most half a voxel: 36 bytes a voxel.

    Three planes of u are in shared memory, clamped to the global grid: a step is less than a voxel.
    Arguments: n, edge, weights, norm_z, norm_y, norm_x as in ``smooth_adam``; first (global plane of the arrays' plane 0), whole (planes of
    the global grid; int32), half_step (float32), longest (1,) float32, d, u, composed (3, N).
    """
    (ty, tx), r, taps, length = TILE, radius, 2 * radius + 1, LENGTH
    threads, wide, high = ty * tx, tx + 2 * r, ty + 2 * r
    loads, rows = -(-(wide * high) // threads), -(-(3 * high) // ty)
    tile, middle, rings, fetched = 3 * high * wide, 3 * high * tx, 3 * taps, 3 * loads
    wider, area = wide + 2, (wide + 2) * (high + 2)
    parts = -(-area // threads)
    stored, brought = 9 * area, 3 * parts

    def body(n, edge, weights, norm_z, norm_y, norm_x, first, whole, half_step, longest, d, u, composed):
        raw = cuda.shared.array(tile, float32)
        mid = cuda.shared.array(middle, float32)
        near = cuda.shared.array(stored, float32)
        ring, ahead = cuda.local.array(rings, float32), cuda.local.array(fetched, float32)
        coming = cuda.local.array(brought, float32)
        place, source = cuda.local.array(loads, uint32), cuda.local.array(parts, uint32)
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        thread = uint32(j * uint32(tx) + i)
        left, top = int32(cuda.blockIdx.x) * int32(tx), int32(cuda.blockIdx.y) * int32(ty)
        x, y = uint32(left + int32(i)), uint32(top + int32(j))
        here = y < n[2] and x < n[3]
        ny, nx = int32(n[2]), int32(n[3])
        plane = uint64(n[2]) * uint64(n[3])
        mine = uint64(min(y, n[2] - uint32(1))) * uint64(n[3]) + uint64(min(x, n[3] - uint32(1)))
        norm = norm_y[min(y, n[2] - uint32(1))] * norm_x[min(x, n[3] - uint32(1))]
        scale = half_step / max(ONE, root(longest[0]))
        low = int32(n[0]) + int32(cuda.blockIdx.z) * int32(length)
        stop = min(low + int32(length), int32(n[0] + n[1]))
        k = low - int32(r)
        for q in range(rings):
            ring[q] = NIL
        for e in range(loads):
            spot = uint32(thread + uint32(e * threads))
            row, col = top + int32(spot // uint32(wide)) - int32(r), left + int32(spot % uint32(wide)) - int32(r)
            real = spot < uint32(wide * high) and uint32(row) < n[2] and uint32(col) < n[3]
            place[e] = uint32(row * nx + col) if real else uint32(0xFFFFFFFF)
            for c in range(3):
                ahead[3 * e + c] = NIL
                if real and uint32(k) < edge:
                    ahead[3 * e + c] = d[c, plane * uint64(uint32(k)) + uint64(place[e])]
        for e in range(parts):
            spot = uint32(thread + uint32(e * threads))
            row, col = top + int32(spot // uint32(wider)) - int32(r + 1), left + int32(spot % uint32(wider)) - int32(r + 1)
            source[e] = uint32(min(max(row, int32(0)), ny - int32(1)) * nx + min(max(col, int32(0)), nx - int32(1)))
            for c in range(3):
                if spot < uint32(area):
                    near[uint64(spot) + uint64(c * area)] = u[c, plane * held(k - int32(1), first, whole, edge) + uint64(source[e])]
                    near[uint64(spot) + uint64((3 + c) * area)] = u[c, plane * held(k, first, whole, edge) + uint64(source[e])]
                    coming[3 * e + c] = u[c, plane * held(k + int32(1), first, whole, edge) + uint64(source[e])]
        below, middle_plane, above = uint32(0), uint32(3 * area), uint32(6 * area)
        while k < stop + int32(r):
            z = k - int32(r)
            for e in range(parts):
                spot = uint32(thread + uint32(e * threads))
                if spot < uint32(area):
                    for c in range(3):
                        near[uint64(uint32(above + spot)) + uint64(c * area)] = coming[3 * e + c]
            cuda.syncthreads()
            next_plane = plane * held(k + int32(2), first, whole, edge)
            for e in range(parts):
                spot = uint32(thread + uint32(e * threads))
                if spot < uint32(area):
                    for c in range(3):
                        coming[3 * e + c] = u[c, next_plane + uint64(source[e])]
            for e in range(loads):
                spot = uint32(thread + uint32(e * threads))
                if spot < uint32(wide * high):
                    at = uint32(spot // uint32(wide) * uint32(wider) + spot % uint32(wide)) + uint32(wider + 1)
                    dz, dy, dx = scale * ahead[3 * e], scale * ahead[3 * e + 1], scale * ahead[3 * e + 2]
                    bz, wz = beside(dz)
                    by, wy = beside(dy)
                    bx, wx = beside(dx)
                    at = uint32(at - by * uint32(wider) - bx)
                    p0 = uint64(uint32(at + (below if bz else middle_plane)))
                    p1 = uint64(uint32(at + (middle_plane if bz else above)))
                    real = place[e] != uint32(0xFFFFFFFF) and uint32(k) < edge
                    c0 = dz + looked_up(near, p0, p1, wider, wz, wy, wx)
                    c1 = dy + looked_up(near, p0 + uint64(area), p1 + uint64(area), wider, wz, wy, wx)
                    c2 = dx + looked_up(near, p0 + uint64(2 * area), p1 + uint64(2 * area), wider, wz, wy, wx)
                    raw[spot] = c0 if real else NIL
                    raw[uint64(spot) + uint64(high * wide)] = c1 if real else NIL
                    raw[uint64(spot) + uint64(2 * high * wide)] = c2 if real else NIL
            cuda.syncthreads()
            k += int32(1)
            for e in range(loads):
                for c in range(3):
                    ahead[3 * e + c] = NIL
                    if place[e] != uint32(0xFFFFFFFF) and uint32(k) < edge and k < stop + int32(r):
                        ahead[3 * e + c] = d[c, plane * uint64(uint32(k)) + uint64(place[e])]
            for s in range(rows):
                line = uint32(j + uint32(s * ty))
                if line < uint32(3 * high):
                    mid[line * uint32(tx) + i] = axis_sum(raw, uint64(uint32(line * uint32(wide) + i)), 1, weights, taps)
            cuda.syncthreads()
            below, middle_plane, above = middle_plane, above, below
            for c in range(3):
                for q in range(taps - 1):
                    ring[c * taps + q] = ring[c * taps + q + 1]
                ring[c * taps + taps - 1] = axis_sum(mid, uint64(thread) + uint64(c * high * tx), tx, weights, taps)
            if z >= low and here:
                at = plane * uint64(uint32(z)) + mine
                total = norm * norm_z[z]
                for c in range(3):
                    value = weights[0] * ring[c * taps]
                    for q in range(1, taps):
                        value = fused(weights[q], ring[c * taps + q], value)
                    composed[c, at] = value * total

    return body


@sweep()
def settle(kind):
    """End an iteration: loss and longest step are noted, totals and clock made ready for the next. One thread.

    kind 0: a sum over weights (MSE), -1: minus that (LNCC).  Arguments: clock (1,) int32, totals (2,) int64, longest (1,) float32,
    losses (T,) float64, steps (T,) float32.
    """

    def body(clock, totals, longest, losses, steps):
        t = clock[0]
        losses[t] = float64(totals[0]) / max(float64(totals[1]), float64(1))
        if kind < 0:
            losses[t] = -losses[t]
        steps[t] = longest[0]
        totals[0], totals[1], longest[0], clock[0] = int64(0), int64(0), NIL, t + int32(1)

    return body
