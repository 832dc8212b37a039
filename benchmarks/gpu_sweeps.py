"""Sweeps: how fast a GPU is when it does in one pass over memory what the plain kernels do in several, and whether it agrees.

    python benchmarks/gpu_sweeps.py 256 512        # edges of the volume; needs a GPU with CuPy and numba-cuda

A block of threads owns a tile of the (y, x) plane and marches along z. Each plane comes into shared memory once, with the rim
that a filter needs; sums along y and x go through shared memory, sums along z through a ring of registers, which is why the
sources are generated for a radius. A voxel is always computed from its own neighbours in one order, so that neither tiles nor
ranks show. ``bytes``: what a sweep must move a voxel; ``of_copy``: that over the time, as a fraction of a copy's bandwidth.
Prints one JSON line a sweep and writes ``benchmarks/results/gpu_sweeps.json``.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import float32, int32, int64

sys.path.insert(0, str(Path(__file__).parents[1]))

from daskreg.kernels import adam as adam_kernel
from daskreg.kernels import compose as compose_kernel
from daskreg.kernels import difference as difference_kernel
from daskreg.kernels import gaussian
from daskreg.kernels import sample as sampling
from daskreg.kernels.launch import CUDA, DISABLED, box, formula
from daskreg.kernels.lncc import factors, march_factors, march_slope
from daskreg.kernels.sample import point, touches, trilinear, trilinear_gradient
from daskreg.optimizers.adam import rates
from daskreg.transforms.linear import fixed_point, linear_part

index = int64  # replaced by the launcher
ONE, NIL = float32(1), float32(0)
OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_sweeps.json"


TILE = (4, 4) if DISABLED else (8, 32)  # threads along y and x
DEPTH = 4 if DISABLED else 64  # planes a block marches through
OPTIONS: dict[str, Any] = {"max_registers": 64}
ROW = 4 if DISABLED else 128  # threads a row, where rows are worked on one by one


@formula
def interior(image, k, j, i):
    """Whether all eight corners are voxels of the image: then nothing has to be silenced, and the sums have the same bits."""
    one = int32(1)
    return (
        (int32(0) <= k < int32(image.shape[0]) - one)
        & (int32(0) <= j < int32(image.shape[1]) - one)
        & (int32(0) <= i < int32(image.shape[2]) - one)
    )


@formula
def value_and_gradient(image, k, j, i, wz, wy, wx):
    """``trilinear`` and ``trilinear_gradient`` in one look, for a device that loses by clamping what needs none."""
    if interior(image, k, j, i):
        k0, j0, i0 = index(k), index(j), index(i)
        k1, j1, i1 = index(k0 + index(1)), index(j0 + index(1)), index(i0 + index(1))
        a, b, c, d = image[k0, j0, i0], image[k0, j0, i1], image[k0, j1, i0], image[k0, j1, i1]
        e, f, g, h = image[k1, j0, i0], image[k1, j0, i1], image[k1, j1, i0], image[k1, j1, i1]
        z0, y0, x0 = ONE - wz, ONE - wy, ONE - wx
        row00, row01, row10, row11 = x0 * a + wx * b, x0 * c + wx * d, x0 * e + wx * f, x0 * g + wx * h
        value = NIL + (z0 * (y0 * row00 + wy * row01) + wz * (y0 * row10 + wy * row11))
        dz = (y0 * row10 + wy * row11) - (y0 * row00 + wy * row01)
        dy = z0 * (row01 - row00) + wz * (row11 - row10)
        dx = z0 * (y0 * (b - a) + wy * (d - c)) + wz * (y0 * (f - e) + wy * (h - g))
        return value, NIL + dz, NIL + dy, NIL + dx
    dz, dy, dx = trilinear_gradient(image, k, j, i, wz, wy, wx)
    return trilinear(image, k, j, i, wz, wy, wx), dz, dy, dx


def _indent(lines: list[str], by: int) -> list[str]:
    return [" " * by + line for line in lines]


def _sum(terms: list[str]) -> str:
    """Left to right: one order for everyone."""
    total = terms[0]
    for term in terms[1:]:
        total = f"({total} + {term})"
    return total


def _spread(radius: int, load: list[str]) -> list[str]:
    """Bring the tile and its rim in: full rows first, then the rim's columns, so that few threads wait for others."""
    (ty, tx), r = TILE, radius
    lines = []
    for k in range(-(-(ty + 2 * r) // ty)):  # rows j, j + ty, ..
        rows = min(ty, ty + 2 * r - k * ty)
        lines += ([f"if j < uint32({rows}):"] if rows < ty else ["if True:"]) + [
            f"    jj, ii = uint32(j + uint32({k * ty})), i",
            f"    row = {_clamped(f'top + int32(jj) - int32({r})', 'ny')}",
            f"    col = {_clamped(f'left + int32(ii) - int32({r})', 'nx')}",
            *_indent(load, 4),
        ]
    columns = 2 * r
    for k in range(-(-(columns * (ty + 2 * r)) // (ty * tx)) if r else 0):
        lines += [
            f"e = uint32(j * uint32({tx}) + i + uint32({k * ty * tx}))",
            f"if e < uint32({columns * (ty + 2 * r)}):",
            f"    jj, ii = uint32(e // uint32({columns})), uint32(uint32({tx}) + e % uint32({columns}))",
            f"    row = {_clamped(f'top + int32(jj) - int32({r})', 'ny')}",
            f"    col = {_clamped(f'left + int32(ii) - int32({r})', 'nx')}",
            *_indent(load, 4),
        ]
    return lines


def _clamped(index: str, n: str) -> str:
    return f"uint32(min(max({index}, int32(0)), {n} - int32(1)))"


def _rows(radius: int, body: list[str]) -> list[str]:
    """Work on every row of the tile and its rim, a thread a column: ``body`` sees row jj and column i."""
    (ty, _), r = TILE, radius
    lines = []
    for k in range(-(-(ty + 2 * r) // ty)):
        rows = min(ty, ty + 2 * r - k * ty)
        lines += ([f"if j < uint32({rows}):"] if rows < ty else ["if True:"]) + [
            f"    jj = uint32(j + uint32({k * ty}))",
            *_indent(body, 4),
        ]
    return lines


def _march(radius: int, fields: int, load: list[str], use: list[str], arrays: str, tail: str, begin: list[str], end: list[str],
           early: list[str] | None = None) -> str:  # fmt: skip
    """A kernel that marches along z with Gaussian sums of ``fields`` values a voxel; ``use`` sees s0, s1, .. at (z, y, x).

    ``early`` is done for the voxel that will be used before anything waits: its loads travel while the sums are made.
    """
    r, taps = radius, range(2 * radius + 1)
    ty, tx = TILE
    lines = [
        f"def sweep(n, tz, ty_, tx_, {arrays}{tail}):",
        f"    raw = cuda.shared.array(({fields}, {ty + 2 * r}, {tx + 2 * r}), float32)",
        f"    mid = cuda.shared.array(({fields}, {ty + 2 * r}, {tx}), float32)",
        "    i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)",
        f"    left, top = int32(cuda.blockIdx.x) * int32({tx}), int32(cuda.blockIdx.y) * int32({ty})",
        "    x, y = uint32(left + int32(i)), uint32(top + int32(j))",
        f"    low = int32(n[0]) + int32(cuda.blockIdx.z) * int32({DEPTH})",
        f"    high = min(low + int32({DEPTH}), int32(n[0]) + int32(n[1]))",
        "    ny, nx = int32(n[2]), int32(n[3])",
        "    here = y < n[2] and x < n[3]",
        "    at_y, at_x = min(y, uint32(ny - int32(1))), min(x, uint32(nx - int32(1)))",
        *(f"    wy{t} = ty_[at_y, {t}]" for t in taps),
        *(f"    wx{t} = tx_[at_x, {t}]" for t in taps),
        *(f"    r{c}_{t} = float32(0)" for c in range(fields) for t in taps),
        *_indent(begin, 4),
        f"    k = low - int32({r})",
        f"    while k < high + int32({r}):",
        "        plane = uint32(min(max(k, int32(0)), planes - int32(1)))",
        f"        z = uint32(k - int32({r}))",
        f"        done = k - int32({r}) >= low and here",
        *_indent(early or [], 8),
        *_indent(_spread(r, load), 8),
        "        cuda.syncthreads()",
        *_indent(
            _rows(
                r, [f"mid[{c}, jj, i] = " + _sum([f"wx{t} * raw[{c}, jj, i + uint32({t})]" for t in taps]) for c in range(fields)]
            ),
            8,
        ),
        "        cuda.syncthreads()",
    ]
    for c in range(fields):
        lines += [f"        r{c}_{t} = r{c}_{t + 1}" for t in range(2 * r)]
        lines.append(f"        r{c}_{2 * r} = " + _sum([f"wy{t} * mid[{c}, j + uint32({t}), i]" for t in taps]))
    lines += [
        "        if done:",
        *(f"            s{c} = " + _sum([f"tz[z, {t}] * r{c}_{t}" for t in taps]) for c in range(fields)),
        *_indent(use, 12),
        "        k += int32(1)",
        *_indent(end, 4),
    ]
    return "\n".join(lines) + "\n"


def _compile(source: str, name: str, **names: Any) -> Any:
    from numba import cuda, float32, int32, int64, uint32

    scope = {"cuda": cuda, "float32": float32, "int32": int32, "int64": int64, "uint32": uint32, "np": np, **names}
    exec(compile(source, f"<sweep {name}>", "exec"), scope)
    return cuda.jit(scope["sweep"], **OPTIONS)


@cache
def smooth_adam(radius: int) -> Any:
    """Gaussian of g, Adam's moments in place, direction d, and the longest |d|^2: 72 bytes a voxel.

    Arguments: n, tables z, y, x, rates, g, m, v, d, longest (1,) float32 that starts at 0.
    """
    import math

    load = [f"raw[{c}, jj, ii] = g[{c}, plane, row, col]" for c in range(3)]
    use = ["length = float32(0)"]
    for c in range(3):
        use += [
            f"first = rates[0] * m{c} + (float32(1) - rates[0]) * s{c}",
            f"second = rates[1] * v{c} + (float32(1) - rates[1]) * (s{c} * s{c})",
            f"m[{c}, z, y, x], v[{c}, z, y, x] = first, second",
            "step = -(first * rates[2]) / (math.sqrt(second * rates[3]) + rates[4])",
            f"d[{c}, z, y, x] = step",
            "length += step * step",
        ]
    use.append("most = max(most, length)")
    early = [f"{a}{c} = float32(0)" for a in "mv" for c in range(3)] + ["if done:"]
    early += [f"    {a}{c} = {a}[{c}, z, y, x]" for a in "mv" for c in range(3)]
    begin, end = ["planes = int32(g.shape[1])", "most = float32(0)"], ["cuda.atomic.max(longest, 0, most)"]
    source = _march(radius, 3, load, use, "rates, g, m, v, d, ", "longest", begin, end, early)
    return _compile(source, f"smooth_adam {radius}", math=math)


@cache
def compose_smooth(radius: int) -> Any:
    """``u <- G (s d + u o (Id + s d))``, s from the longest |d|^2: 36 bytes a voxel.

    Arguments: n, tables z, y, x, first, whole (planes of the global grid), half_step, longest, d, u, composed.
    """
    import math

    load = [
        "dz, dy, dx = scale * d[0, plane, row, col], scale * d[1, plane, row, col], scale * d[2, plane, row, col]",
        "fz, fy, fx = math.floor(dz), math.floor(dy), math.floor(dx)",
        "wz, wy, wx = dz - float32(fz), dy - float32(fy), dx - float32(fx)",
        "vz, vy, vx = float32(1) - wz, float32(1) - wy, float32(1) - wx",
        "kz, ky, kx = int32(plane) + first + int32(fz), int32(row) + int32(fy), int32(col) + int32(fx)",
        "k0 = uint32(min(max(kz, int32(0)), whole - int32(1)) - first)",
        "k1 = uint32(min(max(kz + int32(1), int32(0)), whole - int32(1)) - first)",
        "j0, j1 = uint32(min(max(ky, int32(0)), ny - int32(1))), uint32(min(max(ky + int32(1), int32(0)), ny - int32(1)))",
        "i0, i1 = uint32(min(max(kx, int32(0)), nx - int32(1))), uint32(min(max(kx + int32(1), int32(0)), nx - int32(1)))",
    ]
    for c in range(3):
        load += [
            f"p0 = vy * (vx * u[{c}, k0, j0, i0] + wx * u[{c}, k0, j0, i1]) + wy * (vx * u[{c}, k0, j1, i0] + wx * u[{c}, k0, j1, i1])",  # noqa: E501
            f"p1 = vy * (vx * u[{c}, k1, j0, i0] + wx * u[{c}, k1, j0, i1]) + wy * (vx * u[{c}, k1, j1, i0] + wx * u[{c}, k1, j1, i1])",  # noqa: E501
            f"raw[{c}, jj, ii] = d{'zyx'[c]} + (vz * p0 + wz * p1)",
        ]
    use = [f"composed[{c}, z, y, x] = s{c}" for c in range(3)]
    begin = [
        "planes = int32(d.shape[1])",
        "scale = half_step / max(float32(1), math.sqrt(longest[0]))",
    ]
    source = _march(radius, 3, load, use, "first, whole, half_step, longest, d, u, ", "composed", begin, [])
    return _compile(source, f"compose_smooth {radius}", math=math)


_FUSED = """
def sweep(n, rows, first, affine, linear, u, origin, planes, image, fixed, weight, g):
    sums = cuda.shared.array(({threads}, 2), float32)
    t = uint32(cuda.threadIdx.x)
    y, line = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
    z = uint32(line + n[0])
    a, b = float32(0), float32(0)
    x = t
    while x < n[3]:
        k, j, i, wz, wy, wx = point(z, y, x, first, affine, linear, u)
        error, w = float32(0), float32(0)
        dz, dy, dx = float32(0), float32(0), float32(0)
        if touches(image, planes, k, j, i):
            w = weight[z, y, x] if weight.shape[0] > 0 else float32(1)
            value, dz, dy, dx = value_and_gradient(image, k - int32(origin), j, i, wz, wy, wx)
            error = value - fixed[z, y, x]
        r = float32(2) * w * error
        g[0, z, y, x] = r * (linear[0] * dz + linear[3] * dy + linear[6] * dx)
        g[1, z, y, x] = r * (linear[1] * dz + linear[4] * dy + linear[7] * dx)
        g[2, z, y, x] = r * (linear[2] * dz + linear[5] * dy + linear[8] * dx)
        a += w * error * error
        b += w
        x = uint32(x + uint32({threads}))
    sums[t, 0], sums[t, 1] = a, b
    cuda.syncthreads()
    half = uint32({threads} // 2)
    while half > uint32(0):
        if t < half:
            sums[t, 0] += sums[t + half, 0]
            sums[t, 1] += sums[t + half, 1]
        cuda.syncthreads()
        half = uint32(half >> uint32(1))
    if t == uint32(0):
        rows[0, line, y], rows[1, line, y] = sums[0, 0], sums[0, 1]
"""


@cache
def sample_difference() -> Any:
    """Mean squared difference: moved, its gradient and g in one look, row sums of (w e^2, w): 32 bytes a voxel."""
    forms = {f.name: f.form(CUDA) for f in (point, touches, value_and_gradient)}
    return _compile(_FUSED.format(threads=ROW), "sample_difference", **forms)


def tiles(n: tuple[int, int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Blocks and threads of a marching sweep."""
    _, nz, ny, nx = n
    ty, tx = TILE
    return (-(-nx // tx), -(-ny // ty), max(1, -(-nz // DEPTH))), (tx, ty, 1)


_LNCC = """
def sweep(n, rows, epsilon, flat, fixed, weight, moved, out):
    fm = cuda.shared.array((3, {H}, {W}), float32)
    mid = cuda.shared.array((6, {H}, {tx}), float32)
    red = cuda.shared.array((2, {ty}, {tx}), float32)
    i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
    left, top = int32(cuda.blockIdx.x) * int32({tx}), int32(cuda.blockIdx.y) * int32({ty})
    x, y = uint32(left + int32(i)), uint32(top + int32(j))
    low = int32(n[0]) + int32(cuda.blockIdx.z) * int32({depth})
    high = min(low + int32({depth}), int32(n[0]) + int32(n[1]))
    ny, nx, planes = int32(n[2]), int32(n[3]), int32(fixed.shape[0])
    here = y < n[2] and x < n[3]
    masked = weight.shape[0] > 0
{zero}
    k = low - int32({r})
    while k < high + int32({r}):
        plane = uint32(min(max(k, int32(0)), planes - int32(1)))
        inside = int32(0) <= k < planes
        z = uint32(k - int32({r}))
        done = k - int32({r}) >= low and here
        value, still = float32(0), float32(0)
        if done:
            value, still = moved[z, y, x], fixed[z, y, x]
{load}
        cuda.syncthreads()
{across}
        cuda.syncthreads()
{shift}
        if k - int32({r}) >= low:
            red[0, j, i], red[1, j, i] = float32(0), float32(0)
            if done:
                w, cc, d, q, c = float32(0), float32(0), float32(0), float32(0), float32(0)
                if value == value:
                    w = weight[z, y, x] if masked else float32(1)
                    cc, d, q, c = factors({sums}, epsilon, flat)
{write}
                red[0, j, i], red[1, j, i] = w * cc, w
            cuda.syncwarp()
            half = uint32({tx} // 2)
            while half > uint32(0):
                if i < half:
                    red[0, j, i] += red[0, j, i + half]
                    red[1, j, i] += red[1, j, i + half]
                cuda.syncwarp()
                half = uint32(half >> uint32(1))
            if i == uint32(0) and y < n[2]:
                rows[0, uint32(z - n[0]), y, uint32(cuda.blockIdx.x)] = red[0, j, 0]
                rows[1, uint32(z - n[0]), y, uint32(cuda.blockIdx.x)] = red[1, j, 0]
        k += int32(1)
"""


@cache
def correlate(radius: int, exact: bool) -> Any:
    """Window sums of local correlation; ``out`` (3, ...) receives the factors, or out[0] the centre-window slope.

    Arguments: n, rows (2, planes, Y, tiles), epsilon, flat, fixed, weight, moved, out.
    """
    r, taps, (ty, tx) = radius, range(2 * radius + 1), TILE
    load = [
        "there = moved[plane, row, col]",
        f"real = inside and there == there and int32(row) == top + int32(jj) - int32({r}) and int32(col) == left + int32(ii) - int32({r})",  # noqa: E501
        "w = (weight[plane, row, col] if masked else float32(1)) if real else float32(0)",
        "fm[0, jj, ii], fm[1, jj, ii], fm[2, jj, ii] = fixed[plane, row, col], there if real else float32(0), w",
    ]
    across = ["a, b, c, d, e, f = float32(0), float32(0), float32(0), float32(0), float32(0), float32(0)"]
    for t in taps:
        at = f"jj, i + uint32({t})"
        across += [
            f"s, m, w = fm[0, {at}], fm[1, {at}], fm[2, {at}]",
            "ws, wm = w * s, w * m",
            "a, b, c, d, e, f = a + w, b + ws, c + wm, d + ws * s, e + wm * m, f + ws * m",
        ]
    across += ["mid[0, jj, i], mid[1, jj, i], mid[2, jj, i] = a, b, c", "mid[3, jj, i], mid[4, jj, i], mid[5, jj, i] = d, e, f"]
    zero = [f"    r{c}_{t} = float32(0)" for c in range(6) for t in taps]
    shift = []
    for c in range(6):
        shift += [f"        r{c}_{t} = r{c}_{t + 1}" for t in range(2 * r)]
        shift.append(f"        r{c}_{2 * r} = " + _sum([f"mid[{c}, j + uint32({t}), i]" for t in taps]))
    sums = ", ".join(_sum([f"r{c}_{t}" for t in taps]) for c in range(6))
    factors_out = "                out[0, z, y, x], out[1, z, y, x], out[2, z, y, x] = w * d, w * q, w * c"
    slope_out = "                out[0, z, y, x] = -(w * (still * d - value * q + c)) if value == value else float32(0)"
    source = _LNCC.format(
        H=ty + 2 * r, W=tx + 2 * r, ty=ty, tx=tx, r=r, depth=DEPTH, zero="\n".join(zero), shift="\n".join(shift), sums=sums,
        load="\n".join(_indent(_spread(r, load), 8)), across="\n".join(_indent(_rows(r, across), 8)),
        write=factors_out if exact else slope_out,
    )  # fmt: skip
    if DISABLED:
        source = source.replace("cuda.syncwarp()", "cuda.syncthreads()")
    return _compile(source, f"correlate {radius}", factors=factors.form(CUDA))


# ---------------------------------------------------------------- checks and times

NOWHERE = np.empty((0, 0, 0), np.float32)
MATRIX = np.eye(4)
MATRIX[:3, :3] += 0.01 * np.random.default_rng(0).standard_normal((3, 3))
MATRIX[:3, 3] = 0.3
PLACE = (0, fixed_point(MATRIX), linear_part(MATRIX))
RADIUS, SIGMA, WARP = 3, 1.0, 0.5
EPSILON, FLAT = np.float32(1e-12), np.float32(4e-6)


class Volume:
    """Device arrays of one edge, and every sweep as a call."""

    def __init__(self, edge: int) -> None:
        import cupy
        from cupyx.scipy.ndimage import gaussian_filter
        from numba import cuda

        self.cupy, self.edge, self.n = cupy, edge, tuple(np.uint32(v) for v in box((edge, edge, edge)))
        random, shape = cupy.random.RandomState(0), (edge, edge, edge)

        def noise(*s: int) -> Any:
            return random.random_sample(s, dtype=cupy.float32)

        self.image, self.fixed, self.moved = noise(*shape), noise(*shape), cupy.zeros(shape, cupy.float32)
        self.u = cupy.stack([gaussian_filter(noise(*shape) - 0.5, 4) * 30 for _ in range(3)])
        self.g, self.m, self.v = noise(3, *shape) - 0.5, (noise(3, *shape) - 0.5) * 0.1, noise(3, *shape) * 0.01
        self.d, self.longest = cupy.zeros((3, *shape), cupy.float32), cupy.zeros(1, cupy.float32)
        self.rows = cupy.zeros((2, edge, edge), cupy.float32)
        self.tiles = cupy.zeros((2, edge, edge, -(-edge // TILE[1])), cupy.float32)
        self.tables = [[cuda.to_device(gaussian.gaussian_table(edge, s))] * 3 for s in (SIGMA, WARP)]
        self.rates, self.on = cuda.to_device(rates((0.9, 0.99), 3, 0.1)), cuda.as_cuda_array

    def difference(self) -> None:
        on = self.on
        rest = (0, self.edge, on(self.image), on(self.fixed), on(self.cupy.asarray(NOWHERE)), on(self.g))
        sample_difference()[(self.edge, self.edge), ROW](self.n, on(self.rows), *PLACE, on(self.u), *rest)

    def adam(self) -> None:
        fields = [self.on(a) for a in (self.g, self.m, self.v, self.d, self.longest)]
        smooth_adam(gaussian.radius_of(SIGMA))[tiles(box((self.edge,) * 3))](self.n, *self.tables[0], self.rates, *fields)

    def compose(self) -> None:
        fields = [self.on(a) for a in (self.longest, self.d, self.u, self.g)]
        place = (np.int32(0), np.int32(self.edge), np.float32(0.25))
        compose_smooth(gaussian.radius_of(WARP))[tiles(box((self.edge,) * 3))](self.n, *self.tables[1], *place, *fields)

    def correlate(self, exact: bool) -> None:
        fields = [self.on(a) for a in (self.fixed, self.cupy.asarray(NOWHERE), self.moved, self.d)]
        correlate(RADIUS, exact)[tiles(box((self.edge,) * 3))](self.n, self.on(self.tiles), EPSILON, FLAT, *fields)

    def sample(self) -> None:
        edge, on = self.edge, self.on
        sampling.sample.on_cuda((edge,) * 3, *PLACE, on(self.u), 0, edge, on(self.image), on(self.moved))

    def host(self, *names: str) -> list[Any]:
        return [self.cupy.asnumpy(getattr(self, name)).copy() for name in names]


def check(edge: int = 48) -> dict[str, float]:
    """Largest difference from the plain kernels on the CPU, over the largest value."""
    found, volume, shape = {}, Volume(edge), (edge,) * 3
    image, fixed, u, g, m, v = volume.host("image", "fixed", "u", "g", "m", "v")
    moved, scratch, d = np.empty(shape, np.float32), np.zeros_like(u), np.zeros_like(u)
    weights, table = gaussian.gaussian_weights(SIGMA), gaussian.gaussian_table(edge, SIGMA)
    gaussian.smooth_z(shape, table, weights, g, scratch)
    gaussian.smooth_y(shape, table, weights, scratch, g)
    longest = adam_kernel.adam(shape, len(weights) // 2, table, weights, rates((0.9, 0.99), 3, 0.1), g, m, v, d)
    volume.adam()
    found["smooth_adam"] = max(_apart(a, b) for a, b in zip(volume.host("m", "v", "d"), (m, v, d), strict=True))
    found["longest"] = abs(float(volume.longest[0]) / float(longest.max()) - 1)
    scale = np.array([0.25 / max(1.0, float(np.sqrt(longest.max())))], np.float32)
    compose_kernel.compose(shape, 0, edge, scale, d, u, g)
    weights, table = gaussian.gaussian_weights(WARP), gaussian.gaussian_table(edge, WARP)
    gaussian.smooth_z(shape, table, weights, g, scratch)
    gaussian.smooth_y(shape, table, weights, scratch, g)
    gaussian.smooth_x(shape, len(weights) // 2, table, weights, g, scratch)
    volume.compose()
    found["compose_smooth"] = _apart(volume.host("g")[0], scratch)
    sampling.sample(shape, *PLACE, u, 0, edge, image, moved)
    volume.sample()
    ones, fields, rows = (np.float32(1),) * (2 * RADIUS + 1), np.zeros_like(u), np.zeros((2, edge, edge), np.float32)
    march_factors(box(shape), rows, ones, EPSILON, FLAT, fixed, NOWHERE, moved, fields)
    volume.correlate(True)
    found["correlate exact"] = _apart(volume.host("d")[0], fields)
    found["correlation"] = abs(float(volume.tiles[0].sum()) / float(rows[0].sum()) - 1)
    slope = moved.copy()
    march_slope(box(shape), ones[:1], fields, fixed, NOWHERE, slope)
    volume.correlate(False)
    found["correlate center"] = _apart(volume.host("d")[0][0], slope)
    difference_kernel.difference(shape, fixed, NOWHERE, moved)
    sampling.pull_back(shape, *PLACE, u, 0, image, moved, g)
    volume.difference()
    found["sample_difference"] = _apart(volume.host("g")[0], g)
    return found


def _apart(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def milliseconds(call: Any, repeats: int = 10) -> float:
    import cupy

    for _ in range(2):
        call()
    found = []
    for _ in range(repeats):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        found.append(cupy.cuda.get_elapsed_time(start, stop))
    return float(np.median(found))


def times(edge: int) -> list[dict[str, Any]]:
    volume = Volume(edge)
    calls: dict[str, tuple[Any, int]] = {
        "copy": (lambda: volume.cupy.copyto(volume.d, volume.g), 24),
        "sample": (volume.sample, 20),
        "sample_difference": (volume.difference, 32),
        "smooth_adam": (volume.adam, 72),
        "compose_smooth": (volume.compose, 36),
        "correlate center": (lambda: volume.correlate(False), 12),
        "correlate exact": (lambda: volume.correlate(True), 20),
    }
    copy, rows = 1.0, []
    for name, (call, count) in calls.items():
        took = milliseconds(call)
        rate = count * edge**3 / took / 1e9
        copy = rate if name == "copy" else copy
        rows.append({"case": name, "edge": edge, "bytes": count, "ms": round(took, 3), "TB/s": round(rate, 2),
                     "of_copy": round(rate / copy, 3)})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    apart = check()
    print(json.dumps({"largest relative difference": apart}))
    if max(apart.values()) > 1e-4:
        raise SystemExit("a sweep disagrees with the plain kernels")
    rows = [row for edge in map(int, sys.argv[1:] or ["256"]) for row in times(edge)]
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    told = {"device": device, "tile": TILE, "depth": DEPTH, "options": OPTIONS, "apart": apart, "rows": rows}
    OUT.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
