"""Two rounds of one tissue under a light-sheet microscope, OME-Zarr 0.4 and 0.5: daskreg's preset against greedy.

    python benchmarks/microscopy.py --data DIR --opponents greedy

NCC: Pearson correlation of the raw intensities over the voxels where moved is defined, that is above zero: no voxel of the
moving image is below 196, so zero means that no interpolation neighbour lies inside it. LNCC: mean over the same voxels of
``cov(F, M)^2 / (var F var M)`` in 7x7x7 windows weighted by that mask (mirrored borders; windows without variance count 0).
Without registration, voxel on voxel, these are .059 / .077. Moved voxels at the border are mixed with zeros; a mask of whole
voxels would raise greedy's NCC by about .02. greedy fails from the identity, so it starts from the correct shift; daskreg has
to find it.
Writes ``benchmarks/results/microscopy.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import measure
import nibabel as nib
import numpy as np
import opponents
import zarr
from labelled import Pair, options, run_programs
from numpy.typing import NDArray
from scipy.ndimage import find_objects, uniform_filter

Array = NDArray[np.float64]

CASE = Pair("easi-fish", "easi_fish_fixed.ome.zarr", "easi_fish_moving.ome.zarr")
SPACING = (1.68, 1.84, 1.84)  # um, z, y, x
SHIFT = (-3, -12, -42)  # voxels, z, y, x: moving index = fixed index + SHIFT, read off by eye, for greedy only
WINDOW = 7


def scores(fixed: Array, moved: Array) -> dict[str, float]:
    """NCC and mean squared LNCC of two images (Z, Y, X), and the fraction of the fixed grid on which moved is defined."""
    defined = moved > 0
    box = find_objects(defined.astype(np.uint8))[0]
    f, m, w = fixed[box].astype(float), moved[box].astype(float), defined[box].astype(float)
    return {"ncc": _ncc(f, m, w), "lncc": _lncc(f, m, w), "defined_percent": round(100 * float(defined.mean()), 2)}


def _ncc(f: Array, m: Array, w: Array) -> float:
    return round(float(np.corrcoef(f[w > 0], m[w > 0])[0, 1]), 4)


def _lncc(f: Array, m: Array, w: Array) -> float:
    # the mean is taken off first: 12-bit squares lose the variance of a flat window even in double precision
    f, m = f - f[w > 0].mean(), m - m[w > 0].mean()
    total = np.maximum(uniform_filter(w, WINDOW), 1e-9)

    def average(a: Array) -> Array:
        return uniform_filter(a * w, WINDOW) / total

    mf, mm = average(f), average(m)
    covariance = average(f * m) - mf * mm
    product = (average(f * f) - mf**2).clip(0) * (average(m * m) - mm**2).clip(0)
    squared = np.where(product > 1e-6, covariance**2 / np.maximum(product, 1e-6), 0)
    return round(float(squared[w > 0].mean()), 4)


def read(path: Path) -> Array:
    """The full-resolution level of an OME-Zarr, (Z, Y, X)."""
    group = zarr.open_group(path, mode="r")
    attributes = dict(group.attrs)
    tree: Any = attributes.get("ome", attributes)
    return np.asarray(group[tree["multiscales"][0]["datasets"][0]["path"]], np.float32)


def to_nifti(volume: Array, path: Path) -> str:
    """Write with micrometres as mm, LPS, so that index and world axes agree with those of the store."""
    z, y, x = SPACING
    nib.save(nib.Nifti1Image(volume.T.astype(np.float32), np.diag([-x, -y, z, 1.0])), path)
    return str(path)


def from_nifti(path: str) -> Array:
    """(Z, Y, X)."""
    return np.asarray(nib.load(path).dataobj, np.float32).T


def shift_matrix(path: Path) -> str:
    """SHIFT in greedy's format: RAS, x, y, z, fixed to moving."""
    z, y, x = (s * v for s, v in zip(SHIFT, SPACING, strict=True))
    m = np.eye(4)
    m[:3, 3] = (-x, -y, z)
    np.savetxt(path, m)
    return str(path)


def before(pair: Pair, data: Path) -> dict[str, Any]:
    """Voxel on voxel: both stores have their origin at zero and the same spacing."""
    fixed, moving = read(data / pair.fixed), read(data / pair.moving)
    moved = np.zeros_like(fixed)
    both = tuple(slice(0, min(a, b)) for a, b in zip(fixed.shape, moving.shape, strict=True))
    moved[both] = moving[both]
    return scores(fixed, moved)


def _opponent(name: str, pair: Pair, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """From the correct shift, which is only prepared for greedy."""
    if name != "greedy":
        raise RuntimeError(f"{name} is not set up for this case; only greedy is.")
    fixed = read(args.data / pair.fixed)
    images = to_nifti(fixed, work / "fixed.nii.gz"), to_nifti(read(args.data / pair.moving), work / "moving.nii.gz")
    extra = {"metric": args.greedy_affine_metric}
    start = shift_matrix(work / "shift.mat")
    job = opponents.Job(*images, str(work), threads=args.threads, start=start, extra=extra)
    found = opponents.greedy(job, args.opponents_home)
    row = {"device": "cpu", **{k: found[k] for k in ("version", "seconds", "wall", "peak_rss")}}
    for phase, path in found["moved"].items():
        row[phase] = scores(fixed, from_nifti(path))
    return {**row, "folded_percent": measure.folded_percent(found["warp"])}


def _daskreg(pair: Pair, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    store, log, fixed, moving = work / "run.zarr", work / "log.txt", args.data / pair.fixed, args.data / pair.moving
    more = ["--preset", "lightsheet", "--overwrite", *args.daskreg_args.split()]
    found = measure.daskreg("register", fixed, moving, "-o", store, *more, log=log, threads=args.threads)
    moved = work / "moved.nii.gz"
    applied = measure.daskreg("apply", store, moving, "-o", moved, "--overwrite", log=log, threads=args.threads)
    row = {"device": args.device, "settings": " ".join(more), "peak_rss": found.peak_rss}
    row.update(seconds={"register": found.seconds, "apply": applied.seconds}, wall=round(found.seconds + applied.seconds, 2))
    return {**row, "deformable": scores(read(fixed), from_nifti(str(moved)))}


def main() -> None:
    """Measure the start, daskreg, and greedy where selected."""
    parser = options(__doc__, "microscopy.json", "greedy")
    parser.add_argument("--greedy-affine-metric", default="NMI", help="of greedy's affine stage")
    args = parser.parse_args()
    run_programs([CASE], args, lambda p, w: before(p, args.data), _daskreg, _opponent)


if __name__ == "__main__":
    main()
