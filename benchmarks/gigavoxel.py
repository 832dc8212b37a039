"""A gigavoxel registration: affine and deformable, two contrasts, a known deformation, from OME-Zarr to OME-Zarr.

    python benchmarks/gigavoxel.py --shape 96x96x70                                     # small, on a CPU
    python benchmarks/gigavoxel.py --shape 1152x1152x1104 --device cuda                 # what one H200 holds
    python benchmarks/gigavoxel.py --shape 1760x1760x1278 --cluster cuda --workers 4    # 11.9 billion displacement parameters

The fixed image has a spacing of 0.1 mm, the moving one of 0.25 mm (a cube around it, 800^3 for the largest). Both are one
analytic texture, evaluated block by block (on the GPU where there is one) and written as OME-Zarr. The moving image has
another contrast, and is deformed by psi, which maps moving to fixed points: a rotation, a scale and waves. The true map from
fixed to moving points is its inverse, by fixed-point iteration to 1e-6 mm. ``tre``: distance of the found and the true map at
voxel centres inside the body, mm. ``optimise``: seconds of the stages. ``seconds``: phases of the whole run. Prints one JSON
line and appends it to ``gigavoxel.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import daskreg
from daskreg import MI, Affine, Deformable
from daskreg.config import Config
from daskreg.grid import Grid
from daskreg.storage import write_image

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gigavoxel.json"
FINE, COARSE = 0.1, 0.25  # mm
ITERATIONS = {1: 20, 2: 50}  # of the finest scales; 100 at all others
RNG = np.random.default_rng(5)
WAVES = RNG.standard_normal((24, 3))
WAVES /= np.linalg.norm(WAVES, axis=1, keepdims=True)
PHASES = RNG.uniform(0, 2 * np.pi, 24)
BENDS = RNG.uniform(-1, 1, (3, 3)), RNG.uniform(0, 2 * np.pi, (3, 3))


class Truth:
    """The texture and psi of a fixed image of a given extent (mm; z, y, x)."""

    def __init__(self, extent: np.ndarray) -> None:
        self.extent, self.center = extent, extent / 2
        angle = np.radians(4)
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        self.linear = 1.03 * turn
        self.shift, self.bend = 0.01 * extent, 0.02 * extent.min()
        self.lengths = np.geomspace(extent.min() / 3, 10 * FINE, len(WAVES))  # of waves, from a third of the image to ten voxels

    def texture(self, p: list[Any], xp: Any) -> Any:
        """0 outside an ellipsoid, about 0.2 to 1 inside."""
        r = xp.sqrt(sum(((p[a] - self.center[a]) / (0.45 * self.extent[a])) ** 2 for a in range(3)))
        inside = xp.clip((1 - r) / 0.05, 0, 1)
        total = 0
        for k, (wave, phase) in enumerate(zip(WAVES, PHASES, strict=True)):
            f = 2 * np.pi / self.lengths[k]
            total = total + 0.12 * xp.sin(f * (wave[0] * p[0] + wave[1] * p[1] + wave[2] * p[2]) + phase)
        return inside * xp.clip(0.6 + total, 0.2, 1)

    def psi(self, y: list[Any], xp: Any) -> list[Any]:
        """Moving points to fixed points."""
        q = [y[a] - self.center[a] for a in range(3)]
        f = 2 * np.pi / (self.extent.min() / 1.5)
        waves = [sum(BENDS[0][a][b] * xp.sin(f * y[b] + BENDS[1][a][b]) for b in range(3)) * self.bend / 3 for a in range(3)]
        return [sum(self.linear[a][b] * q[b] for b in range(3)) + self.center[a] + self.shift[a] + waves[a] for a in range(3)]

    def phi(self, x: np.ndarray) -> np.ndarray:
        """Fixed points (3, n) to moving points, to 1e-6 mm."""
        y, back = x.copy(), np.linalg.inv(self.linear)
        for _ in range(200):
            rest = x - np.stack(self.psi(list(y), np))
            y = y + back @ rest
            if np.abs(rest).max() < 1e-6:
                return y
        raise AssertionError(f"psi could not be inverted: {np.abs(rest).max()} mm are left")


def volume(truth: Truth, grid: Grid, moving: bool, gpu: bool) -> da.Array:
    """uint16, one task per block."""

    def block(block_info: Any = None) -> np.ndarray:
        import cupy

        xp = cupy if gpu else np
        spans = block_info[None]["array-location"]
        axes = [xp.arange(a, b, dtype=np.float32) * np.float32(grid.spacing[k]) + np.float32(grid.origin[k])
                for k, (a, b) in enumerate(spans)]  # fmt: skip
        p = list(xp.meshgrid(*axes, indexing="ij", sparse=True))
        value = truth.texture(truth.psi(p, xp) if moving else p, xp)
        value = xp.where(value > 0, (1.15 - value) ** 1.7, 0) if moving else value
        found = (value * 30000).astype(np.uint16)
        return found.get() if gpu else found

    if not gpu:
        sys.modules.setdefault("cupy", np)  # nothing of it is used
    chunks = tuple(min(128, n) for n in grid.shape)
    return da.map_blocks(
        block, chunks=da.core.normalize_chunks(chunks, grid.shape), dtype=np.uint16, meta=np.empty((0,) * 3, np.uint16)
    )


def stages(shape: tuple[int, ...]) -> Config:
    """MI at every scale, from about 100 voxels along the longest axis."""
    scales = [1]
    while max(shape) / scales[0] > 128:
        scales.insert(0, 2 * scales[0])
    coarse = scales[:2] if len(scales) > 1 else [2]
    times = [ITERATIONS.get(s, 100) for s in scales]
    affine = Affine(similarity=MI(), scales=tuple(coarse), iterations=(60,) * len(coarse))
    return Config(stages=(affine, Deformable(similarity=MI(), scales=tuple(scales), iterations=tuple(times), smooth_warp=1.0)))


def errors(truth: Truth, result: Any, grid: Grid) -> np.ndarray:
    """Errors in mm, at voxel centres of random chunks."""
    field, rng, found = result.displacement, np.random.default_rng(0), []
    for _ in range(60):
        corner = [int(rng.integers(0, max(1, n - 8))) for n in grid.shape]
        index = np.stack([c + rng.integers(0, min(8, n), 20) for c, n in zip(corner, grid.shape, strict=True)])
        x = index * np.asarray(grid.spacing)[:, None] + np.asarray(grid.origin)[:, None]
        if truth.texture(list(x), np).min() <= 0:
            continue
        box = np.asarray(field[:, corner[0] : corner[0] + 8, corner[1] : corner[1] + 8, corner[2] : corner[2] + 8])
        u = box[:, index[0] - corner[0], index[1] - corner[1], index[2] - corner[2]]
        moved = result.affine[:3, :3] @ (x + u) + result.affine[:3, 3:]
        found.append(np.linalg.norm(moved - truth.phi(x), axis=0))
    return np.concatenate(found)


def told(progress: Any) -> None:
    """Print a line at the end of a level."""
    if progress.iteration == progress.iterations:
        print(f"{time.strftime('%X')} {progress.stage} {progress.scale}: {progress.loss:.4f}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="96x96x70")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cluster")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", help="where the volumes go (a temporary place by default)")
    given = parser.parse_args()
    shape = tuple(int(v) for v in given.shape.split("x"))
    extent = np.array(shape) * FINE
    truth = Truth(extent)
    fixed = Grid(shape, (FINE,) * 3, unit="millimeter")
    edge = round(float(extent.max()) * 200 / 176 / COARSE)
    origin = tuple(float(c - (edge - 1) / 2 * COARSE) for c in truth.center)
    moving = Grid((edge,) * 3, (COARSE,) * 3, origin, unit="millimeter")
    gpu = given.device == "cuda" or given.cluster == "cuda"
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        start = time.perf_counter()
        with dask.config.set(scheduler="threads"):
            write_image(f"{folder}/fixed.ome.zarr", volume(truth, fixed, False, gpu), fixed)
            write_image(f"{folder}/moving.ome.zarr", volume(truth, moving, True, gpu), moving)
        made = time.perf_counter() - start
        print(json.dumps({"generated": round(made, 1)}), flush=True)
        start = time.perf_counter()
        options = {"cluster": given.cluster, "workers": given.workers, "device": given.device, "checkpoint": None,
                   "progress": told}  # fmt: skip
        result = daskreg.register(f"{folder}/fixed.ome.zarr", f"{folder}/moving.ome.zarr", stages(shape),
                                  output=f"{folder}/run.zarr", **options)  # fmt: skip
        took = time.perf_counter() - start
        report, tre = result.report, errors(truth, result, fixed)
        points = np.random.default_rng(1).uniform(0.3, 0.7, (3, 1000)) * extent[:, None]
        row = {
            "case": given.shape, "voxels": int(np.prod(shape)), "moving": moving.shape, "workers": given.workers or 1,
            "generate": round(made, 1), "total": round(took, 1),
            "seconds": {k: round(v, 2) for k, v in report["seconds"].items()},
            "optimise": round(sum(level["seconds"] for level in report["levels"]), 2),
            "levels": [[lv["stage"], lv["scale"], len(lv["losses"]), round(lv["seconds"], 3), lv["losses"][-1]]
                       for lv in report["levels"]],
            "tre_before": round(float(np.linalg.norm(points - truth.phi(points), axis=0).mean()), 3),
            "tre_mean": round(float(tre.mean()), 4), "tre_p95": round(float(np.quantile(tre, 0.95)), 4),
            "points": len(tre), "metrics": report["metrics"],
            "ranks": [{k: m.get(k) for k in ("host", "gpu", "gpu_peak_bytes", "peak_bytes")} for m in report["ranks"]],
        }  # fmt: skip
    print(json.dumps(row), flush=True)
    past = json.loads(OUT.read_text()) if OUT.exists() else []
    OUT.write_text(json.dumps([*past, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
