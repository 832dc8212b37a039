"""A stack larger than the memory, registered in its file: time by phase, peak memory, error, how often it was decoded.

    python benchmarks/stack.py                                     # 40 x 400 x 400, seconds
    python benchmarks/stack.py 160x8000x8000 --memory 4GB          # 20 GB of voxels
    python benchmarks/stack.py 800x8000x8000 --memory 4GB --folder /fast --keep      # 102 GB of voxels, about 1 GB on disk

The stack is the moving image, an OME-TIFF of 16 bits in compressed strips, 2 x 1 x 1 um a voxel; the fixed one has 200 x 250 x
312 voxels, or a quarter of the planes, 1/32 of the rows and 5/128 of the columns where these are fewer, and shows the same
texture through a known rigid map. ``--fixed`` makes the stack the fixed image. The stack is a coarse texture, each of whose
voxels is 4 x 32 x 32 voxels of the stack: planes are compressed once for four, and decoding is fast. ``error_um``: mean distance
between where the map found and the known one bring the corners of the fixed image. ``decoded``: voxels that were decoded, of the
fixed and of the moving image, over their number. ``silence``: seconds between two lines of the log, at most. Keeps a row in
``stack.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import RESULTS, daskreg, machine, save
from daskreg import RunStore, load_transform

BLOCK = (4, 32, 32)  # voxels of the stack that are one of the texture
SPACING = (2.0, 1.0, 1.0)  # um
STRIP = 256  # rows
DEGREES = (2.0, -3.0, 4.0)  # of the known map, about z, y, x
SHIFT = (0.008, -0.02, 0.015)  # of it, in edges of the stack
Shape = tuple[int, int, int]
Matrix = NDArray[np.float64]


def texture(shape: Shape) -> NDArray[np.float32]:
    """Blobs of three sizes that fade towards the ends, 500 to 40000."""
    random = np.random.default_rng(7)
    found = np.zeros(shape, np.float32)
    for sigma in (12, 6, 3):
        wide = gaussian_filter(random.standard_normal(shape).astype(np.float32), sigma)
        found += (wide - wide.mean()) / wide.std()
    inner = [1 - np.abs(np.linspace(-1, 1, n)) ** 6 for n in shape]
    found = np.clip(0.5 + found / 8, 0, 1) * np.einsum("i,j,k->ijk", *inner)
    return np.asarray(500 + 39500 * found, np.float32)


def sizes(spacing: Any, order: str = "ZYX") -> dict[str, Any]:
    """What OME-TIFF says of a voxel."""
    known = {f"PhysicalSize{axis}": float(s) for axis, s in zip(order, spacing, strict=True)}
    return {"axes": order, **known, **{f"PhysicalSize{axis}Unit": "um" for axis in order}}


def write_stack(path: Path, coarse: NDArray[np.float32], shape: Shape) -> None:
    """The texture, each voxel a block, plane by plane."""

    def strips() -> Iterator[bytes]:
        for k in range(-(-shape[0] // BLOCK[0])):
            plane = np.repeat(np.repeat(coarse[k].astype("<u2"), BLOCK[1], axis=0), BLOCK[2], axis=1)[: shape[1], : shape[2]]
            packed = [zlib.compress(plane[y : y + STRIP].tobytes(), 1) for y in range(0, shape[1], STRIP)]
            for _ in range(min(BLOCK[0], shape[0] - BLOCK[0] * k)):
                yield from packed

    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        file.write(strips(), shape=shape, dtype="<u2", compression="zlib", rowsperstrip=STRIP, metadata=sizes(SPACING))


def known_map(extent: NDArray[np.float64]) -> Matrix:
    """(4, 4), z, y, x, um: from fixed to moving points, about the centre."""
    turn = np.eye(3)
    for degrees, (a, b) in zip(DEGREES, ((1, 2), (0, 2), (0, 1)), strict=True):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        one = np.eye(3)
        one[a, a], one[b, b], one[a, b], one[b, a] = c, c, -s, s
        turn = turn @ one
    world, middle = np.eye(4), extent / 2
    world[:3, :3], world[:3, 3] = turn, middle - turn @ middle + np.asarray(SHIFT) * extent
    return world


def index_to_world(spacing: Any) -> Matrix:
    """Of a grid whose first voxel's centre is the origin."""
    return np.diag([*map(float, spacing), 1.0])


def make_pair(folder: Path, shape: Shape, fixed_is_stack: bool) -> tuple[Path, Path, Shape, Matrix]:
    """Paths of the fixed and the moving image, the fixed shape, and the known map in um."""
    coarse = texture((-(-shape[0] // BLOCK[0]), -(-shape[1] // BLOCK[1]), -(-shape[2] // BLOCK[2])))
    small = (min(200, shape[0] // 4), min(250, shape[1] // 32), min(312, shape[2] * 5 // 128))
    spacing = np.asarray(SPACING) * shape / small
    extent = np.asarray(SPACING) * shape
    known: Matrix = known_map(extent)  # from points of the small image to those of the stack
    stack, other = folder / "stack.ome.tif", folder / "small.ome.tif"
    if not stack.exists():
        write_stack(stack, coarse, shape)
    block = np.asarray(BLOCK) * SPACING  # its first centre lies half a block, less half a voxel, in
    to_texture = (
        np.linalg.inv(index_to_world(block)) @ _shift(np.asarray(SPACING) / 2 - block / 2) @ known @ index_to_world(spacing)
    )
    seen = affine_transform(coarse, to_texture[:3, :3], to_texture[:3, 3], small, order=1, mode="nearest")
    tifffile.imwrite(other, seen.astype("<u2"), ome=True, metadata=sizes(spacing))
    if fixed_is_stack:
        return stack, other, shape, np.linalg.inv(known).astype(np.float64)
    return other, stack, small, known


def _shift(by: NDArray[np.float64]) -> Matrix:
    found = np.eye(4)
    found[:3, 3] = by
    return found


RECIPE = """stages:
- stage: rigid
  similarity: {kind: mse}
  scales: [4, 2]
  iterations: [100, 50]
"""


def corner_error(run: Path, known: Matrix, shape: Shape, spacing: Any) -> float:
    """Mean over the corners of the fixed image, um."""
    corners = np.array(list(product(*((0.0, (n - 1) * s) for n, s in zip(shape, spacing, strict=True)))))
    ends = [corners @ m[:3, :3].T + m[:3, 3] for m in (load_transform(str(run)).affine, known)]
    return float(np.linalg.norm(ends[0] - ends[1], axis=1).mean())


def longest_silence(log: Path) -> float | None:
    """Seconds between two lines of a log."""
    times = re.findall(r"^\S+ (\d\d):(\d\d):(\d\d) ", log.read_text(), re.MULTILINE)
    seconds = [3600 * int(h) + 60 * int(m) + int(s) for h, m, s in times]
    return max(((b - a) % 86400 for a, b in pairwise(seconds)), default=None)


def main() -> None:
    """Make the pair, register it, print and keep a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="40x400x400", help="planes x rows x columns of the stack")
    parser.add_argument("--memory", default="1GB", help="as of daskreg register")
    parser.add_argument("--images", default="source", help="as of daskreg register")
    parser.add_argument("--fixed", action="store_true", help="the stack is the fixed image")
    parser.add_argument("--folder", type=Path, help="where the images are made")
    parser.add_argument("--keep", action="store_true", help="keep the images and the result")
    parser.add_argument("--make", action="store_true", help="make the images alone")
    parser.add_argument("--note", help="of the row")
    args = parser.parse_args()
    shape: Any = tuple(map(int, args.shape.split("x")))
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = row(folder, shape, args)
        print(json.dumps(found))
        if not args.make:
            save([found], RESULTS / "stack.json")
    finally:
        if not args.keep:
            shutil.rmtree(folder)


def row(folder: Path, shape: Shape, args: Any) -> dict[str, Any]:
    """Of the table."""
    fixed, moving, small, known = make_pair(folder, shape, args.fixed)
    if args.make:
        return {"bytes": (folder / "stack.ome.tif").stat().st_size}
    (folder / "recipe.yaml").write_text(RECIPE)
    run, given = folder / "run.zarr", ("--config", folder / "recipe.yaml", "--memory", args.memory, "--images", args.images)
    done = daskreg("register", fixed, moving, "-o", run, *given, "--overwrite", log=folder / "register.log")
    print((folder / "register.log").read_text(), file=sys.stderr)
    report: Any = RunStore.open(run).provenance
    spacing = np.asarray(SPACING) if args.fixed else np.asarray(SPACING) * shape / small
    return {
        "case": f"{args.shape} {'fixed' * args.fixed or 'moving'}",
        "program": "daskreg",
        "gigabytes": round(2e-9 * float(np.prod(shape)), 1),
        "memory": args.memory,
        "seconds": {name: round(value, 1) for name, value in report["seconds"].items()},
        "wall": round(done.seconds, 1),
        "peak_rss": done.peak_rss,
        "projected": report["projected_bytes"],
        "decoded": [round(n, 3) for n in report["decoded"]],
        "error_um": round(corner_error(run, known, small, spacing), 2),
        "silence": longest_silence(folder / "register.log"),
        "note": args.note,
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
