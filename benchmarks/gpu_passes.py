"""Each pass of an iteration on a GPU: agreement with the plain kernels of the CPU, and speed relative to a copy.

    python benchmarks/gpu_passes.py 256 512        # edges of the volume; needs a GPU with CuPy and numba-cuda

``bytes``: what a pass must move per voxel;  ``of_copy``: that divided by its time, as a fraction of the bandwidth of a copy.
Prints one JSON line per pass and writes ``gpu_passes.json`` to $OUT, or to ``benchmarks/results/``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu_conditions import conditions

from daskreg.kernels.adam import cpu as adam_cpu
from daskreg.kernels.adam import cuda as adam_cuda
from daskreg.kernels.composition import cpu as composition_cpu
from daskreg.kernels.composition import cuda as composition_cuda
from daskreg.kernels.sampling import cpu as sampling
from daskreg.kernels.sampling import cuda as sampling_cuda
from daskreg.kernels.smoothing import cpu as smoothing
from daskreg.optimizers.adam.update import AdamOnCpu
from daskreg.similarity.mse import cpu as mse_cpu
from daskreg.similarity.mse import cuda as mse_cuda
from daskreg.similarity.mutual_information.cuda.columns import sample_and_differentiate
from daskreg.transforms.linear import linear_part, to_fixed_point

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_passes.json"
NO_MASK = np.empty((0, 0, 0), np.float32)
RATES = AdamOnCpu((0.9, 0.99)).coefficients(3, 1.0)
MATRIX = np.eye(4)
MATRIX[:3, :3] += 0.01 * np.random.default_rng(0).standard_normal((3, 3))
MATRIX[:3, 3] = 0.3
SIGMA, WARP, HALF_STEP, BINS = 1.0, 0.5, 0.25, 32


class Volume:
    """Device arrays of one shape, and every pass as a call."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        import cupy
        from cupyx.scipy.ndimage import gaussian_filter

        self.cupy, self.shape, self.size = cupy, shape, int(np.prod(shape))
        random = cupy.random.RandomState(0)

        def noise(*s: int) -> Any:
            return random.random_sample(s, dtype=cupy.float32)

        self.n = tuple(np.uint32(v) for v in (0, *shape))
        self.image, self.fixed = gaussian_filter(noise(*shape), 1.5), gaussian_filter(noise(*shape), 1.5)
        self.moved = cupy.zeros(shape, cupy.float32)
        self.u = cupy.stack([gaussian_filter(noise(*shape) - 0.5, 4) * 30 for _ in range(3)])
        self.g = self.cupy.stack([gaussian_filter(noise(*shape) - 0.5, 2) for _ in range(3)])
        self.m = (noise(3, *shape) - 0.5) * 0.1
        self.v, self.d = noise(3, *shape) * 0.01, cupy.zeros((3, *shape), cupy.float32)
        self.longest, self.totals, self.clock = cupy.zeros(1, cupy.float32), cupy.zeros(2, cupy.int64), cupy.zeros(1, cupy.int32)
        self.half_g = (self.g.reshape(-1).view(cupy.uint32) >> 16).astype(cupy.uint16)
        self.words = cupy.zeros(self.g.size, cupy.uint32)
        self.table = noise(BINS * BINS)
        self.scaled, self.scaled_fixed = ((a - a.min()) / (a.max() - a.min()) for a in (self.image, self.fixed))
        self.no_mask, self.rates = cupy.empty(0, cupy.float32), cupy.asarray(RATES)[None]
        self.norms = {s: [cupy.asarray(smoothing.gaussian_norms(k, s)) for k in shape] for s in (SIGMA, WARP)}
        self.shares = [cupy.asarray(smoothing.gaussian_shares(k, SIGMA)) for k in shape]

    def flat(self, name: str) -> Any:
        array = getattr(self, name)
        return array.reshape(3, -1) if array.ndim == 4 else array.reshape(-1)

    def _sampler(self) -> tuple[Any, ...]:
        size = tuple(np.int32(v) for v in (self.shape[0], 0, *self.shape, 0))
        place = (
            np.int32(0),
            tuple(np.int64(v) for v in to_fixed_point(MATRIX)),
            tuple(np.float32(v) for v in linear_part(MATRIX)),
        )
        return self.n, *place, self.flat("u"), size, self.flat("image")

    def _columns(self) -> tuple[Any, ...]:
        depth, *grid = sampling_cuda.launch_grid(self.n)
        return *grid, depth

    def sample(self) -> None:
        sampling_cuda.sample_columns((True,), *self._columns(), *self._sampler(), (self.flat("moved"),), self.totals)

    def difference(self) -> None:
        fields = self.flat("fixed"), self.no_mask, self.flat("g")
        mse_cuda.mse_columns((), *self._columns(), *self._sampler(), fields, self.totals)

    def pull_back(self) -> None:
        fields = self.flat("moved"), self.flat("g")
        sampling_cuda.pull_back_columns((True,), *self._columns(), *self._sampler(), fields, self.totals)

    def _filter(self, sigma: float) -> tuple[Any, ...]:
        return self.n, np.uint32(self.shape[0]), smoothing.gaussian_weights(sigma), *self.norms[sigma]

    def adam(self) -> None:
        fields = [getattr(self, a).reshape(-1) for a in ("g", "m", "v", "d")]
        radius = smoothing.gaussian_radius(SIGMA)
        length, *grid = adam_cuda.launch_grid(self.n, radius)
        filter_ = *self._filter(SIGMA), *self.shares
        adam_cuda.smooth_adam((radius,), *grid, length, *filter_, self.rates, self.clock, *fields, self.longest)

    def adam_mixed(self) -> None:
        """In mixed storage: g in 16 bits, both moments in a word, no direction."""
        radius, nothing = smoothing.gaussian_radius(SIGMA), self.no_mask
        length, *grid = adam_cuda.launch_grid(self.n, radius, True)
        filter_, place = (*self._filter(SIGMA), *self.shares), np.int32(0)
        fields = self.half_g, self.words, nothing, place, self.longest
        adam_cuda.smooth_adam((radius, True), *grid, length, *filter_, self.rates, self.clock, *fields)

    def differentiate(self) -> None:
        """The gradient of mutual information from a table of 32 x 32 bins."""
        sampling_ = 0, to_fixed_point(MATRIX), linear_part(MATRIX), self.u, 0, self.shape[0], self.scaled
        sample_and_differentiate(self.shape, sampling_, self.g, BINS, self.table, self.scaled_fixed, self.no_mask)

    def compose(self) -> None:
        fields = [getattr(self, a).reshape(-1) for a in ("d", "u", "g")]
        place = (np.int32(0), np.int32(self.shape[0]), np.float32(HALF_STEP), self.longest)
        radius = smoothing.gaussian_radius(WARP)
        length, *grid = composition_cuda.launch_grid(self.n, radius)
        composition_cuda.compose_smooth((radius,), *grid, length, *self._filter(WARP), *place, *fields)

    def host(self, *names: str) -> list[Any]:
        return [self.cupy.asnumpy(getattr(self, name)).copy() for name in names]


def check(shape: tuple[int, int, int] = (45, 50, 71)) -> dict[str, float]:
    """Largest difference from the plain kernels on the CPU, relative to the largest value."""
    found, volume = {}, Volume(shape)
    image, fixed, u, g, m, v = volume.host("image", "fixed", "u", "g", "m", "v")
    moved, scratch, d = np.empty(shape, np.float32), np.zeros_like(u), np.zeros_like(u)
    place = (0, to_fixed_point(MATRIX), linear_part(MATRIX))

    def smooth(sigma: float, field: Any) -> None:
        weights, tables = smoothing.gaussian_weights(sigma), [smoothing.gaussian_table(k, sigma) for k in shape]
        smoothing.smooth_z(shape, tables[0], weights, field, scratch)
        smoothing.smooth_y(shape, tables[1], weights, scratch, field)

    smooth(SIGMA, g)
    weights, table = smoothing.gaussian_weights(SIGMA), smoothing.gaussian_table(shape[2], SIGMA)
    longest = adam_cpu.adam(shape, len(weights) // 2, table, weights, RATES, g, m, v, d)
    volume.adam()
    for name, array in zip("mvd", (m, v, d), strict=True):
        found[f"smooth_adam {name}"] = _apart(volume.host(name)[0], array)
    found["longest"] = abs(float(volume.longest[0]) / float(longest.max()) - 1)
    scale = np.array([HALF_STEP / max(1.0, float(np.sqrt(longest.max())))], np.float32)
    composition_cpu.compose(shape, 0, shape[0], scale, d, u, g)
    smooth(WARP, g)
    weights, table = smoothing.gaussian_weights(WARP), smoothing.gaussian_table(shape[2], WARP)
    smoothing.smooth_x(shape, len(weights) // 2, table, weights, g, scratch)
    volume.compose()
    found["compose_smooth"] = _apart(volume.host("g")[0], scratch)
    sampling.sample(shape, *place, u, 0, shape[0], 0, image, moved)
    volume.sample()
    found["sample"] = _apart(volume.host("moved")[0], moved)
    rows = mse_cpu.squared_difference(shape, np.float32(1), np.float32(0), fixed, NO_MASK, moved)
    sampling.pull_back(shape, *place, u, 0, image.shape[0], image, moved, g)
    volume.difference()
    found["mse_columns"] = _apart(volume.host("g")[0], g)
    found["loss"] = abs(float(volume.totals[0]) / float(volume.totals[1]) / float(rows[0].sum() / rows[1].sum()) - 1)
    volume.moved = volume.cupy.asarray(moved)
    volume.pull_back()
    found["pull_back"] = _apart(volume.host("g")[0], g)
    return found


def _apart(a: Any, b: Any) -> float:
    assert np.array_equal(np.isnan(a), np.isnan(b))
    return float(np.nanmax(np.abs(a - b)) / np.nanmax(np.abs(b)))


def milliseconds(call: Any, repeats: int = 10) -> float:
    """Median by the device's clock."""
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
    volume = Volume((edge, edge, edge))
    calls: dict[str, tuple[Any, int]] = {
        "copy": (lambda: volume.cupy.copyto(volume.d, volume.g), 24),
        "sample": (volume.sample, 20),
        "mse_columns": (volume.difference, 32),
        "pull_back": (volume.pull_back, 32),
        "smooth_adam": (volume.adam, 72),
        "smooth_adam mixed": (volume.adam_mixed, 30),
        "compose_smooth": (volume.compose, 36),
        "information_gradient_columns": (volume.differentiate, 32),
    }
    copy, rows = 1.0, []
    for name, (call, count) in calls.items():
        took = milliseconds(call if name == "copy" else captured(call))  # as a graph's node a large copy takes half as long again
        rate = count * edge**3 / took / 1e9
        copy = rate if name == "copy" else copy
        rows.append({"case": name, "edge": edge, "bytes": count, "ms": round(took, 3), "TB/s": round(rate, 2),
                     "of_copy": round(rate / copy, 3)})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def captured(call: Any) -> Any:
    """The call as a graph, which hides the cost of launches on the host."""
    import cupy

    call()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        call()
        graph = stream.end_capture()
    stream.synchronize()
    return lambda: graph.launch(cupy.cuda.get_current_stream())


def main() -> None:
    apart = check()
    print(json.dumps({"largest relative difference": apart}))
    rows = [row for edge in map(int, sys.argv[1:] or ["256"]) for row in times(edge)]
    OUT.write_text(json.dumps({**conditions(), "apart": apart, "rows": rows}, indent=1) + "\n")
    if max(apart.values()) > 1e-4:
        raise SystemExit("a pass disagrees with the plain kernels")


if __name__ == "__main__":
    main()
