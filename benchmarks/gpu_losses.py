"""Speed of the GPU kernels of losses and gradients, and their agreement with the plain kernels.

    python benchmarks/gpu_losses.py 256 512        # edges of the volume; needs a GPU with CuPy and numba-cuda

Every kernel is first compared with the plain one on the CPU: on an odd shape, with and without a mask, with voxels out of the
domain, and with slabs of planes, which must have the same bits wherever they begin. ``bytes``: what a kernel must move per
voxel; ``of_copy``: that divided by the time, as a fraction of the bandwidth of a copy. Prints one JSON line per case and
writes ``gpu_losses.json`` to $OUT, or to ``benchmarks/results/``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from daskreg.kernels.weights import FIXED_POINT_SCALE
from daskreg.similarity.lncc import cpu as lncc
from daskreg.similarity.lncc.cuda import factors, gradient
from daskreg.similarity.lncc.cuda import windows as tiles
from daskreg.similarity.mutual_information import cpu as histogram
from daskreg.similarity.mutual_information.cuda import gradient as slope_kernels
from daskreg.similarity.mutual_information.cuda import histogram as mi

Array = NDArray[Any]
SHAPE = (41, 45, 67)
ORIGIN = 30_011  # of the arrays in the grid
EPSILON, VARIANCES = np.float32(1e-12), (np.float32(4e-6), np.float32(9e-4))
TOLERANCE = 5e-5  # the plain kernel's own sums of 343 terms are no better
BEGAN = time.perf_counter()
OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_losses.json"
ROWS: list[dict[str, Any]] = []


def device(array: Array) -> Any:
    from numba import cuda

    return cuda.to_device(np.ascontiguousarray(array))


def ints(*values: int) -> list[np.int32]:
    return [np.int32(v) for v in values]


@cache
def processors() -> int:
    import cupy

    return int(cupy.cuda.Device().attributes["MultiProcessorCount"])


# ---------------------------------------------------------------- launches


def windows(name: str, radius: int, masked: bool, held: tuple[int, int, int], planes: range, origin: int, depth: int, fixed: Any,
            weight: Any, moved: Any, out: Any, totals: Any) -> None:  # fmt: skip
    """``lncc_center_tiled`` or ``lncc_factors_tiled``."""
    nz, ny, nx = held
    blocks = tiles.window_blocks(radius, len(planes), ny, nx, depth)
    sizes = ints(planes.start, len(planes), ny, nx, nz, origin, depth)
    kernel = getattr(factors, name)
    own, threads = (np.int32(planes.start), np.int32(planes.stop)), (tiles.window_threads(radius), 1, 1)
    constants, fields = (radius, masked), (fixed, weight, moved, out, totals)
    kernel(constants, blocks, threads, *sizes, own, EPSILON, VARIANCES, *fields)


def slopes(radius: int, masked: bool, held: tuple[int, int, int], planes: range, origin: int, depth: int, dkc: Any, fixed: Any,
           weight: Any, moved: Any) -> None:  # fmt: skip
    """``lncc_gradient_tiled``."""
    nz, ny, nx = held
    blocks = gradient.gradient_blocks(len(planes), ny, nx, depth)
    sizes = ints(planes.start, len(planes), ny, nx, nz, origin, depth)
    gradient.lncc_gradient_tiled((radius, masked), blocks, (gradient.GRADIENT_THREADS, 1, 1), *sizes, dkc, fixed, weight, moved)


def count(bins: int, masked: bool, begin: int, end: int, blocks: int, fixed: Any, weight: Any, moved: Any, totals: Any) -> None:
    mi.joint_histogram_shared((bins, masked), (blocks, 1, 1), (mi.THREADS, 1, 1), np.uint64(begin), np.uint64(end), fixed, weight,
                             moved, totals, shared=mi.histogram_bytes(bins))  # fmt: skip


def look_up(bins: int, masked: bool, copies: int, begin: int, end: int, blocks: int, table: Any, fixed: Any, weight: Any,
            moved: Any, out: Any) -> None:  # fmt: skip
    grid, fields = ((blocks, 1, 1), (slope_kernels.GRADIENT_THREADS, 1, 1)), (table, fixed, weight, moved, out)
    shared = slope_kernels.table_bytes(bins, copies)
    slope_kernels.information_gradient_shared(
        (bins, masked, copies), *grid, np.uint64(begin), np.uint64(end), *fields, shared=shared
    )


def make_table(bins: int, totals: Any, table: Any, value: Any) -> None:
    mi.information_table((bins,), (1, 1, 1), (mi.TABLE_THREADS, 1, 1), totals, table, value)


# ---------------------------------------------------------------- checks


class Small:
    """Host arrays of an odd shape, with voxels out of the domain in a corner, a band and scattered."""

    def __init__(self, masked: bool) -> None:
        random = np.random.default_rng(0)
        self.fixed, self.moved = random.random(SHAPE, np.float32), random.random(SHAPE, np.float32)
        self.moved += self.fixed * np.float32(0.3)
        self.moved *= np.float32(0.8)
        self.moved[:9, :20, 30:] = np.nan
        self.moved[random.random(SHAPE) < 0.002] = np.nan
        self.moved[25:] = np.nan_to_num(self.moved[25:], nan=0.5)
        self.weight = random.random(SHAPE, np.float32) if masked else np.empty((0, 0, 0), np.float32)
        self.weight[self.weight < 0.2] = 0

    def cut(self, planes: range, *fields: Array) -> list[Any]:
        """Some planes, on the device."""
        return [device(f[planes.start : planes.stop].reshape(-1)) for f in (self.fixed, self.weight, self.moved, *fields)]


def apart(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def check_windows(name: str, radius: int, masked: bool) -> dict[str, Any]:
    """Largest relative difference, and whether slabs have the bits of the whole."""
    small = Small(masked)
    dkc, want = np.zeros((3, *SHAPE), np.float32), small.moved.copy()
    rows = lncc.lncc_factors(SHAPE, radius, EPSILON, VARIANCES, small.fixed, small.weight, small.moved, dkc)
    lncc.lncc_gradient(SHAPE, 0, dkc, small.fixed, small.weight, want)
    exact = name == "lncc_factors_tiled"

    def run(held: range, inner: range, depth: int) -> tuple[Array, Array]:
        size = (3, len(held), *SHAPE[1:]) if exact else (len(held), *SHAPE[1:])
        out = device(np.zeros((3, size[1] * SHAPE[1] * SHAPE[2]) if exact else (int(np.prod(size)),), np.float32))
        totals = device(np.zeros(2, np.int64))
        place = range(inner.start - held.start, inner.stop - held.start)
        windows(name, radius, masked, (len(held), *SHAPE[1:]), place, ORIGIN + held.start, depth, *small.cut(held), out, totals)
        return out.copy_to_host().reshape(size)[..., place.start : place.stop, :, :], totals.copy_to_host()

    whole, totals = run(range(SHAPE[0]), range(SHAPE[0]), 17)
    same, left = True, totals.copy()
    for a, b, depth in ((0, 13, 5), (13, 30, 64), (30, SHAPE[0], 3)):
        held = range(max(0, a - radius), min(SHAPE[0], b + radius))
        part, part_totals = run(held, range(a, b), depth)
        same &= np.array_equal(part, whole[..., a:b, :, :])
        left -= part_totals
    sums = rows.sum(axis=(1, 2), dtype=np.float64)
    return {"apart": apart(whole, dkc if exact else want), "slabs": bool(same) and not left.any(),
            "sums": apart(totals / FIXED_POINT_SCALE, sums)}  # fmt: skip


def check_slopes(radius: int, masked: bool) -> dict[str, Any]:
    small = Small(masked)
    dkc, want = np.random.default_rng(5).random((3, *SHAPE), np.float32), small.moved.copy()
    lncc.lncc_gradient(SHAPE, radius, dkc, small.fixed, small.weight, want)

    def run(held: range, inner: range, depth: int) -> Array:
        fixed, weight, moved = small.cut(held)
        fields = device(dkc[:, held.start : held.stop].reshape(3, -1))
        place = range(inner.start - held.start, inner.stop - held.start)
        slopes(radius, masked, (len(held), *SHAPE[1:]), place, ORIGIN + held.start, depth, fields, fixed, weight, moved)
        return np.asarray(moved.copy_to_host().reshape(-1, *SHAPE[1:])[place.start : place.stop])

    whole, same = run(range(SHAPE[0]), range(SHAPE[0]), 17), True
    for a, b, depth in ((0, 13, 5), (13, 30, 64), (30, SHAPE[0], 3)):
        held = range(max(0, a - radius), min(SHAPE[0], b + radius))
        same &= np.array_equal(run(held, range(a, b), depth), whole[a:b])
    return {"apart": apart(whole, want), "slabs": bool(same)}


def check_information(bins: int, masked: bool, copies: int) -> dict[str, Any]:
    """The histogram within a unit a voxel, the table and the value, the look-up."""
    small = Small(masked)
    want, slope = np.zeros((1, bins, bins), np.int64), small.moved.copy()
    histogram.joint_histogram(SHAPE, want, small.fixed, small.weight, small.moved)
    fields, n = small.cut(range(SHAPE[0])), small.fixed.size
    totals = device(np.zeros(bins * bins, np.int64))
    for begin, end in ((0, n // 3), (n // 3, n)):
        count(bins, masked, begin, end, 7, *fields, totals)
    table, value = device(np.zeros(bins * bins, np.float32)), device(np.zeros(2))
    make_table(bins, totals, table, value)
    found = totals.copy_to_host().reshape(bins, bins)
    p = found / found.sum()
    ratio = np.log(np.where(p > 0, p, 1) / np.where(p > 0, p.sum(1, keepdims=True) * p.sum(0, keepdims=True), 1))
    histogram.information_gradient(SHAPE, ratio.astype(np.float32), small.fixed, small.weight, slope)
    look_up(bins, masked, copies, 0, n, 5, table, *fields, fields[2])
    return {"units": int(np.abs(found - want[0]).max()), "of": int(want.max()),
            "units a voxel": float(np.abs(found - want[0]).sum() / n),
            "table": apart(table.copy_to_host().reshape(bins, bins), ratio),
            "value": abs(float(value.copy_to_host()[0]) / float(-(p * ratio).sum()) - 1),
            "apart": apart(fields[2].copy_to_host().reshape(SHAPE), slope)}  # fmt: skip


# ---------------------------------------------------------------- times


class Large:
    """Device arrays of one edge: a smooth head in a large constant background, or noise."""

    def __init__(self, edge: int) -> None:
        import cupy
        from cupyx.scipy.ndimage import gaussian_filter
        from numba import cuda

        random, shape, self.edge, self.n, self.on = cupy.random.RandomState(0), (edge,) * 3, edge, edge**3, cuda.as_cuda_array
        axis = cupy.linspace(-1, 1, edge, dtype=cupy.float32)
        head = (axis[:, None, None] / 0.7) ** 2 + (axis[None, :, None] / 0.8) ** 2 + (axis[None, None, :] / 0.65) ** 2 < 1
        tissue = gaussian_filter(random.random_sample(shape, dtype=cupy.float32), edge / 64)
        tissue = 0.2 + 0.8 * (tissue - tissue.min()) / (tissue.max() - tissue.min())
        noise = random.random_sample(shape, dtype=cupy.float32)
        self.noise = noise.reshape(-1)
        self.head = cupy.where(head, cupy.clip(tissue + 0.02 * noise, 0, 1), 0).astype(cupy.float32).reshape(-1)
        self.moved = cupy.roll(self.head, 2 * edge * edge + 3 * edge + 1)
        self.partly = self.moved.copy().reshape(shape)
        self.partly[: edge // 16] = cupy.nan
        self.partly[:, :, -edge // 16 :] = cupy.nan
        self.partly = self.partly.reshape(-1)
        self.out, self.out3, self.in3 = (cupy.zeros(s, cupy.float32) for s in (self.n, (3, self.n), (3, self.n)))
        self.nothing = cupy.zeros(0, cupy.float32)
        self.in3 += 0.5
        self.cupy = cupy

    def windows(self, name: str, radius: int, depth: int, masked: bool = False, partly: bool = False) -> Callable[[], None]:
        totals = self.cupy.zeros(2, self.cupy.int64)
        out = self.out3 if name == "lncc_factors_tiled" else self.out
        moved, weight = self.partly if partly else self.moved, self.noise if masked else self.nothing
        fields = [self.on(a) for a in (self.head, weight, moved, out, totals)]
        return lambda: windows(name, radius, masked, (self.edge,) * 3, range(self.edge), 0, depth, *fields)

    def slopes(self, radius: int, depth: int) -> Callable[[], None]:
        fields = [self.on(a) for a in (self.in3, self.head, self.nothing, self.out)]
        return lambda: slopes(radius, False, (self.edge,) * 3, range(self.edge), 0, depth, *fields)

    def count(self, bins: int, smooth: bool, blocks: int) -> Callable[[], None]:
        fixed, moved = (self.head, self.moved) if smooth else (self.noise, self.noise[::-1].copy())
        fields = [self.on(a) for a in (fixed, self.nothing, moved, self.cupy.zeros(bins * bins, self.cupy.int64))]
        return lambda: count(bins, False, 0, self.n, blocks, *fields)

    def look_up(self, bins: int, smooth: bool, copies: int, blocks: int) -> Callable[[], None]:
        fixed, moved = (self.head, self.moved) if smooth else (self.noise, self.noise[::-1].copy())
        fields = [self.on(a) for a in (self.noise[: bins * bins].copy(), fixed, self.nothing, moved, self.out)]
        return lambda: look_up(bins, False, copies, 0, self.n, blocks, *fields)

    def table(self, bins: int) -> Callable[[], None]:
        counts = (self.noise[: bins * bins] * 1e6).astype(self.cupy.int64)
        fields = [self.on(a) for a in (counts, self.out, self.cupy.zeros(2))]
        return lambda: make_table(bins, *fields)


def milliseconds(call: Callable[[], None], repeats: int = 10, launches: int = 4) -> float:
    """Median over ``repeats`` of the mean of several launches, which hides the cost on the host."""
    import cupy

    for _ in range(2):
        call()
    found = []
    for _ in range(repeats):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(launches):
            call()
        stop.record()
        stop.synchronize()
        found.append(cupy.cuda.get_elapsed_time(start, stop) / launches)
    return float(np.median(found))


# name, check (or None), bytes a voxel, and what to time given a volume
Case = tuple[str, Callable[[], dict[str, Any]] | None, int, Callable[[Large], Callable[[], None]]]


def cases() -> list[Case]:
    found: list[Case] = []
    for name, size in (("lncc_center_tiled", 12), ("lncc_factors_tiled", 20)):
        check = lambda n=name: check_windows(n, 3, False)  # noqa: E731
        found.append((f"{name} 3 depth 64", check, size, lambda v, n=name: v.windows(n, 3, 64)))
        if name == "lncc_center_tiled":
            found.append((f"{name} 3 depth 32", None, size, lambda v, n=name: v.windows(n, 3, 32)))
        found.append((f"{name} 3 depth 128", None, size, lambda v, n=name: v.windows(n, 3, 128)))
        found.append((f"{name} 3 partly out of domain", None, size, lambda v, n=name: v.windows(n, 3, 64, partly=True)))
    found.append(("lncc_gradient_tiled 3 depth 64", lambda: check_slopes(3, False), 24, lambda v: v.slopes(3, 64)))
    found.append(("lncc_gradient_tiled 3 depth 128", None, 24, lambda v: v.slopes(3, 128)))
    m = processors()
    for smooth in (True, False):
        kind = "head" if smooth else "noise"
        test = (lambda: check_information(32, False, 1)) if smooth else None
        found.append((f"joint_histogram_shared 32 {kind}", test, 8, lambda v, s=smooth: v.count(32, s, m)))
        for copies, each in ((1, 4), (1, 3), (8, 4), (32, 1)):
            found.append((f"information_gradient_shared 32 {kind} copies {copies} blocks {each} a multiprocessor", None, 12,
                          lambda v, s=smooth, c=copies, b=each: v.look_up(32, s, c, b * m)))  # fmt: skip
    found.append(("information_table 32", None, 0, lambda v: v.table(32)))
    found.append(("lncc_center_tiled 2 depth 64", lambda: check_windows("lncc_center_tiled", 2, False), 12,
                  lambda v: v.windows("lncc_center_tiled", 2, 64)))  # fmt: skip
    found.append(("lncc_center_tiled 3 masked", lambda: check_windows("lncc_center_tiled", 3, True), 16,
                  lambda v: v.windows("lncc_center_tiled", 3, 64, masked=True)))  # fmt: skip
    found.append(("joint_histogram_shared 64 head", lambda: check_information(64, True, 2), 8, lambda v: v.count(64, True, m)))
    found.append(("lncc_center_tiled 4 depth 64", None, 12, lambda v: v.windows("lncc_center_tiled", 4, 64)))
    return found


def main() -> None:
    import cupy

    volumes = [Large(edge) for edge in map(int, sys.argv[1:] or ["256"])]
    copies = {v.edge: milliseconds(lambda v=v: cupy.copyto(v.out3, v.in3)) for v in volumes}
    for v in volumes:
        rate = 24 * v.n / copies[v.edge] / 1e9
        say({"case": "copy", "edge": v.edge, "bytes": 24, "ms": round(copies[v.edge], 3), "TB/s": round(rate, 2)})
    for name, check, size, launch in cases():
        if check:
            attempt(name, lambda n=name, c=check: judge(n, c()))
        for v in volumes:
            attempt(name, lambda n=name, s=size, f=launch, v=v: report(n, s, v, milliseconds(f(v)), copies[v.edge]))


def attempt(name: str, call: Callable[[], None]) -> None:
    """Continue after an error: the other kernels are still measured."""
    try:
        call()
    except Exception:  # noqa: BLE001
        print("FAILED", name, traceback.format_exc(), sep="\n", flush=True)


def judge(name: str, told: dict[str, Any]) -> None:
    right = told.get("slabs", True) and told["apart"] <= TOLERANCE and told.get("units a voxel", 0) <= 1
    say({"check": name, "right": right, **told, "s": round(time.perf_counter() - BEGAN, 1)})


def report(name: str, size: int, volume: Large, took: float, copy: float) -> None:
    rate = size * volume.n / took / 1e9
    of_copy = round(rate * copy * 1e9 / (24 * volume.n), 3)
    say({"case": name, "edge": volume.edge, "bytes": size, "ms": round(took, 3), "TB/s": round(rate, 2), "of_copy": of_copy})


def say(row: dict[str, Any]) -> None:
    """Print a row and keep it."""
    ROWS.append(row)
    print(json.dumps(row), flush=True)
    OUT.write_text(json.dumps(ROWS, indent=1) + "\n")


if __name__ == "__main__":
    main()
