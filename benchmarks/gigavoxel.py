"""A gigavoxel registration: affine and deformable, two contrasts, a known deformation, from OME-Zarr to OME-Zarr.

    python benchmarks/gigavoxel.py --shape 96x96x70                                     # small, on a CPU
    python benchmarks/gigavoxel.py --shape 1152x1152x1104 --device cuda                 # what one H200 holds
    python benchmarks/gigavoxel.py --shape 1760x1760x1278 --cluster cuda --workers 4    # 11.9 billion displacement parameters
    python benchmarks/gigavoxel.py --shape 1760x1760x1278 --device cuda --storage mixed  # on one GPU and 128 GB of host memory

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
from daskreg import LNCC, MI, Affine, Deformable
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
        """0 outside an ellipsoid, about 0.2 to 1 inside; p: fixed points."""
        f = 2 * np.pi / self.lengths
        total = sum(0.12 * xp.sin(f[k] * sum(WAVES[k][a] * p[a] for a in range(3)) + PHASES[k]) for k in range(len(WAVES)))
        return self._textured(p, total, xp)

    def block(self, axes: list[np.ndarray], moving: bool, xp: Any) -> Any:
        """The texture on a grid, float32, of the points psi(y) for the moving image; axes: coordinates along z, y, x.

        psi is a sum of functions of one coordinate each, so that a wave is a product of three tables: a matrix product in all.
        """
        terms = self._terms(axes, moving)  # [coordinate of the point][axis of the grid]
        p = [sum(xp.asarray(terms[a][b].astype(np.float32)).reshape([-1 if k == b else 1 for k in range(3)]) for b in range(3))
             for a in range(3)]  # fmt: skip
        f = 2 * np.pi / self.lengths
        z, y, x = (np.exp(1j * f[:, None] * sum(WAVES[:, a, None] * terms[a][b] for a in range(3))) for b in range(3))
        z = z * np.exp(1j * PHASES)[:, None]
        zy = xp.asarray(z.astype(np.complex64))[:, :, None] * xp.asarray(y.astype(np.complex64))[:, None, :]
        zy, there = zy.reshape(len(f), -1), xp.asarray(x.astype(np.complex64))
        total = xp.concatenate([zy.real, zy.imag]).T @ xp.concatenate([there.imag, there.real])  # the sine of the sum
        return self._textured(p, np.float32(0.12) * total.reshape([len(axis) for axis in axes]), xp)

    def _textured(self, p: list[Any], total: Any, xp: Any) -> Any:
        r = xp.sqrt(sum(((p[a] - self.center[a]) * (1 / (0.45 * self.extent[a]))) ** 2 for a in range(3)))
        return xp.clip((1 - r) * 20, 0, 1) * xp.clip(total + 0.6, 0.2, 1)

    def _terms(self, axes: list[np.ndarray], moving: bool) -> list[list[np.ndarray]]:
        """Coordinate a of a point as a sum of functions of each axis of the grid."""
        if not moving:
            return [[axes[a] if a == b else np.zeros(len(axes[b])) for b in range(3)] for a in range(3)]
        f, scale = 2 * np.pi / (self.extent.min() / 1.5), self.bend / 3
        return [[self.linear[a][b] * (axes[b] - self.center[b]) + BENDS[0][a][b] * np.sin(f * axes[b] + BENDS[1][a][b]) * scale
                 + (self.center[a] + self.shift[a] if b == 0 else 0.0) for b in range(3)] for a in range(3)]  # fmt: skip

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
        axes = [np.arange(a, b) * grid.spacing[k] + grid.origin[k] for k, (a, b) in enumerate(spans)]
        value = truth.block(axes, moving, xp)
        value = xp.where(value > 0, (np.float32(1.15) - value) ** np.float32(1.7), 0) if moving else value
        found = (value * np.float32(30000)).astype(np.uint16)
        return found.get() if gpu else found

    if not gpu:
        sys.modules.setdefault("cupy", np)  # nothing of it is used
    chunks = min(128, grid.shape[0]), min(256, grid.shape[1]), grid.shape[2]
    return da.map_blocks(
        block, chunks=da.core.normalize_chunks(chunks, grid.shape), dtype=np.uint16, meta=np.empty((0,) * 3, np.uint16)
    )


def stages(shape: tuple[int, ...], given: argparse.Namespace) -> Config:
    """MI, or in the deformable stage LNCC, at every scale, from about 100 voxels along the longest axis."""
    scales = [1]
    while max(shape) / scales[0] > 128:
        scales.insert(0, 2 * scales[0])
    coarse = scales[:2] if len(scales) > 1 else [2]
    times = [ITERATIONS.get(s, 100) if s > 1 else given.iterations for s in scales]
    affine = Affine(similarity=MI(), scales=tuple(coarse), iterations=(60,) * len(coarse))
    loss = MI() if given.loss == "mi" else LNCC(radius=3, gradient="center")
    deformable = Deformable(
        similarity=loss, scales=tuple(scales), iterations=tuple(times), smooth_warp=1.0, storage=given.storage
    )
    return Config(stages=(affine, deformable))


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
    parser.add_argument("--comm", default="auto")
    parser.add_argument("--state", default="auto", help="where displacement and moments are: device, host or disk")
    parser.add_argument("--memory", help="of a worker, such as 20GB; on a GPU its memory")
    parser.add_argument("--storage", default="float32")
    parser.add_argument("--loss", choices=("mi", "center"), default="mi", help="of the deformable stage")
    parser.add_argument("--iterations", type=int, default=ITERATIONS[1], help="at full resolution")
    parser.add_argument("--folder", help="where the result goes, and the volumes (a temporary place by default)")
    parser.add_argument("--volumes", help="a folder for the volumes, which stay there and are used again")
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
        pair = f"{given.volumes or folder}/fixed.ome.zarr", f"{given.volumes or folder}/moving.ome.zarr"
        if not all(map(os.path.exists, pair)):
            with dask.config.set(scheduler="threads", num_workers=8 if gpu else os.cpu_count()):
                write_image(pair[0], volume(truth, fixed, False, gpu), fixed)
                write_image(pair[1], volume(truth, moving, True, gpu), moving)
        made = time.perf_counter() - start
        print(json.dumps({"generated": round(made, 1)}), flush=True)
        start = time.perf_counter()
        options = {"cluster": given.cluster, "workers": given.workers, "device": given.device, "checkpoint": None,
                   "comm": given.comm, "state": given.state, "memory": given.memory, "progress": told}  # fmt: skip
        result = daskreg.register(*pair, stages(shape, given), output=f"{folder}/run.zarr", **options)
        took = time.perf_counter() - start
        report, tre = result.report, errors(truth, result, fixed)
        points = np.random.default_rng(1).uniform(0.3, 0.7, (3, 1000)) * extent[:, None]
        row = {
            "case": given.shape, "voxels": int(np.prod(shape)), "moving": moving.shape, "workers": given.workers or 1,
            "state": given.state, "memory": given.memory, "storage": given.storage, "loss": given.loss, "comm": given.comm,
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
