"""Apply a transform to a volume much larger than memory: seconds, and the peak memory of the process.

    python benchmarks/stream.py --gigabytes 64

Makes a uint16 Zarr array in which a texture fills one chunk in eight (the others are zero and take no disk), warps it with a
displacement of up to 20 voxels on a grid 16 times coarser in each axis, and compares pieces with the formula of the texture:
trilinear interpolation is off by up to 4 in 1800.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from daskreg import Grid, Transform, apply, open_volume
from daskreg.machine import peak_bytes, resident_bytes

CHUNK = 256
VOXEL = 0.5  # micrometres
COARSER = 16  # voxels of the image in one of the displacement


def main() -> None:
    """One JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    edge = round((given.gigabytes * 1e9 / 2) ** (1 / 3) / CHUNK) * CHUNK
    shape = (edge, edge, round(given.gigabytes * 1e9 / 2 / edge**2 / CHUNK) * CHUNK)
    work = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        make_image(work / "image.zarr", shape)
        start, began = resident_bytes(), time.perf_counter()
        transform = warp(shape)
        image = open_volume(f"{work / 'image.zarr'}::spacing={VOXEL},unit=um,missing=fill")
        apply(transform, image, work / "moved.ome.zarr", like=image.grid)
        seconds = time.perf_counter() - began
        told = {"case": "apply, streaming", "shape": shape, "input_gigabytes": np.prod(shape, dtype=float) * 2 / 1e9}
        told |= {"seconds": seconds, "start_megabytes": start / 1e6, "peak_megabytes": peak_bytes() / 1e6}
        print(json.dumps(told | {"largest_difference": compare(work / "moved.ome.zarr", transform, shape)}))
    finally:
        shutil.rmtree(work)


def texture(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A smooth image at any voxel of a filled chunk."""
    return 1000 + 500 * np.sin(z / 9) * np.cos(y / 7) + 300 * np.sin(x / 11)


def filled(z: int, y: int, x: int) -> bool:
    """Whether the chunk has texture."""
    return (z + 2 * y + 3 * x) % 8 == 0


def make_image(path: Path, shape: tuple[int, int, int]) -> None:
    """Texture repeats from chunk to chunk, so that one is computed."""
    array = zarr.create_array(path, shape=shape, chunks=(CHUNK,) * 3, dtype=np.uint16, fill_value=0)
    k = np.arange(CHUNK)
    voxels = np.stack([texture(z, k[:, None], k).astype(np.uint16) for z in k])
    for place in np.ndindex(*(n // CHUNK for n in shape)):
        if filled(*place):
            array[tuple(slice(p * CHUNK, (p + 1) * CHUNK) for p in place)] = voxels


def warp(shape: tuple[int, int, int]) -> Transform:
    """Waves of up to 20 voxels."""
    coarse = tuple(-(-n // COARSER) + 1 for n in shape)
    grid = Grid(coarse, (VOXEL * COARSER,) * 3, unit="um", oriented=True)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) / 8 for n in coarse), indexing="ij", sparse=True)
    d = np.stack([np.sin(y) * np.cos(x) + 0 * z, np.sin(z) * np.cos(x) + 0 * y, np.sin(z + y) + 0 * x])
    return Transform.of(None, grid, (d * 20 * VOXEL).astype(np.float32))


def compare(path: Path, transform: Transform, shape: tuple[int, int, int]) -> float:
    """The largest difference from the texture's own formula at 20,000 random voxels that land well inside filled chunks."""
    moved, rng = zarr.open_array(path / "0", mode="r"), np.random.default_rng(0)
    worst = 0.0
    for corner in rng.integers(0, np.array(shape) - 32, (20, 3)):
        box = tuple(slice(c, c + 32) for c in corner)
        got = moved[box].reshape(-1)
        at = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), axis=-1).reshape(-1, 3)
        p = transform.points(at * VOXEL) / VOXEL
        cell, local = np.divmod(p, CHUNK)
        inside = ((local > 1) & (local < CHUNK - 2)).all(axis=1) & ((p > 0) & (p < np.array(shape) - 1)).all(axis=1)
        full = np.array([filled(*c) for c in cell.astype(int)])
        wanted = np.where(full, texture(*local.T), 0)
        worst = max(worst, float(np.abs(got - wanted)[inside].max(initial=0)))
    return worst


if __name__ == "__main__":
    sys.exit(main())
