"""Measurements that all benchmarks share: one clock, one Dice, one count of folds, for daskreg and the other programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from daskreg.workflows.programs.process import WatchedProcess, watched

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's world is RAS


def daskreg(*arguments: object, log: Path, threads: int = 2) -> WatchedProcess:
    """Run one daskreg command line with this interpreter. Raises RuntimeError when it fails."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"NUMBA_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    return watched([sys.executable, "-m", "daskreg.cli", *map(str, arguments)], log, env)


Groups = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def group_dice(fixed: Path | str, warped: Path | str, groups: Groups) -> dict[str, float]:
    """Dice overlap by structure on the grid of ``warped``, ``2 |A & B| / (|A| + |B|)``; 0 where both are empty.

    groups: structure name -> (its ids in ``fixed``, its ids in ``warped``); several ids are one structure.
    """
    # by the headers: label images are often stored mirrored against their own T1
    a, b = labels_on(fixed, warped), labels(warped)
    return {name: _overlap(np.isin(a, ours), np.isin(b, theirs)) for name, (ours, theirs) in groups.items()}


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    size = int(a.sum() + b.sum())
    return round(2 * int((a & b).sum()) / size, 4) if size else 0.0


def labels(path: Path | str) -> NDArray[np.int32]:
    """A label image, (X, Y, Z), rounded to whole numbers."""
    return np.rint(np.asarray(nib.load(path).dataobj)).astype(np.int32)


def labels_on(path: Path | str, grid: Path | str) -> NDArray[np.int32]:
    """A label image on the grid of another image, nearest neighbour, 0 outside, positioned by the headers alone."""
    image, like = nib.load(path), nib.load(grid)
    m = np.linalg.inv(image.affine) @ like.affine
    if image.shape[:3] == like.shape[:3] and np.allclose(m, np.eye(4), atol=1e-4):
        return labels(path)
    return affine_transform(labels(path), m[:3, :3], m[:3, 3], like.shape[:3], order=0, mode="constant")


def resampled_by_header(moving_labels: Path | str, fixed: Path | str, out: Path | str) -> Path:
    """Moving labels on the fixed grid as the headers place them, written to ``out``: the state before registration."""
    nib.save(nib.Nifti1Image(labels_on(moving_labels, fixed), nib.load(fixed).affine), out)
    return Path(out)


def folded_percent(warp: Path | str) -> float:
    """Percent of the inner voxels whose total map x -> x + d(x) has a Jacobian determinant <= 0, by central differences.

    warp: displacement field as ITK writes it, (X, Y, Z, 1, 3) or (X, Y, Z, 3), mm, LPS, components x, y, z, on the fixed grid.
    The first and last voxel along each axis have no central difference and are left out.
    """
    image = nib.load(warp)
    d = np.asarray(image.dataobj, np.float32).reshape(*image.shape[:3], 3)
    world = RAS_TO_LPS @ image.affine[:3, :3]
    return round(100 * float(_folds(d, world)), 5)


def _folds(d: NDArray[np.float32], world: NDArray[np.float64]) -> float:
    """Slab by slab, since nine derivatives of a whole volume would dominate the peak memory."""
    to_world, inner, folds = np.linalg.inv(world), (slice(1, -1), slice(1, -1)), 0
    for i in range(1, d.shape[0] - 1):
        along = (d[i + 1][inner] - d[i - 1][inner], d[i, 2:, 1:-1] - d[i, :-2, 1:-1], d[i, 1:-1, 2:] - d[i, 1:-1, :-2])
        gradient = np.stack(along, -1) / 2  # component, index axis
        folds += int((np.linalg.det(np.eye(3) + gradient @ to_world) <= 0).sum())
    return folds / np.prod([n - 2 for n in d.shape[:3]])


def machine() -> str:
    """The processor, the cores available to this process and the system, in one line."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def commit() -> str:
    """The one that is checked out, or ``DASKREG_COMMIT`` where there is no repository."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return os.environ.get("DASKREG_COMMIT", found.stdout.strip()[:12])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def emit(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print one JSON line and keep it."""
    row = {**row, "machine": machine()}
    print(json.dumps(row), flush=True)
    rows.append(row)


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows of this run, replacing those of the same case and program in the file and keeping the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = {(r["case"], r["program"]) for r in rows}
    old = json.loads(path.read_text()) if path.exists() else []
    kept = [r for r in old if (r["case"], r["program"]) not in fresh]
    path.write_text(json.dumps([*kept, *rows], indent=1) + "\n")
