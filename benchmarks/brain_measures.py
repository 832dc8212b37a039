"""What is measured of a map from the fixed to the moving image, the same for all programs. This is not a benchmark by itself.

A map is a displacement field as ITK stores it: (X, Y, Z, 3), mm, LPS, on the fixed grid, the whole map, linear part included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from brain_heads import inside
from measure import RAS_TO_LPS
from numpy.typing import NDArray

Array = NDArray[Any]


def read_field(path: Path | str) -> tuple[Array, Array]:
    """The field and its axes: (X, Y, Z, 3) and (4, 4), voxel to LPS."""
    image = nib.load(path)
    to_lps = np.eye(4)
    to_lps[:3, :3] = RAS_TO_LPS
    return np.asarray(image.dataobj, np.float32).reshape(*image.shape[:3], 3), to_lps @ image.affine


def head_mask(fixed: Path | str) -> Array:
    """Voxels of the fixed image's head."""
    return inside(np.asarray(nib.load(fixed).dataobj, np.float32))


def jacobians(field: Array, axes: Array, mask: Array) -> dict[str, float]:
    """Of the map x -> x + d(x) by central differences, over the mask's voxels that are not at the border.

    folded_percent: determinant <= 0;  plain_percent: determinant from 0.1 to 10.
    """
    inner = (slice(1, -1),) * 3
    along = [(np.roll(field, -1, k)[inner] - np.roll(field, 1, k)[inner])[mask[inner]] / 2 for k in range(3)]
    det = np.linalg.det(np.eye(3) + np.stack(along, -1) @ np.linalg.inv(axes[:3, :3]))
    return {
        "folded_percent": round(100 * float((det <= 0).mean()), 5),
        "plain_percent": round(100 * float(((det >= 0.1) & (det <= 10)).mean()), 4),
    }


def positions(axes: Array, mask: Array) -> Array:
    """World position of the mask's voxels, (N, 3)."""
    return np.argwhere(mask) @ axes[:3, :3].T + axes[:3, 3]


def beyond_rigid(field: Array, axes: Array, mask: Array) -> float:
    """Mean distance, mm, of the map from the rigid map that is nearest to it (least squares; Kabsch 1976)."""
    x = positions(axes, mask)
    y = x + field[mask]
    a, b = x - x.mean(0), y - y.mean(0)
    u, _, v = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v
    return round(float(np.linalg.norm(b - a @ turn, axis=1).mean()), 4)


def error(field: Array, truth: Array, mask: Array) -> dict[str, float]:
    """Distance, mm, from the true map: mean and 95th percentile."""
    distance = np.linalg.norm(field[mask] - truth[mask], axis=1)
    return {"error": round(float(distance.mean()), 4), "error_95": round(float(np.percentile(distance, 95)), 4)}


def measured(kind: str, place: Path, field: Array, axes: Array) -> dict[str, float]:
    """All that the kind of a case has (``brain_heads.Case``)."""
    mask = head_mask(place / "fixed.nii.gz")
    row = jacobians(field, axes, mask)
    if kind != "pair":
        row.update(error(field, read_field(place / "truth.nii.gz")[0], mask))
    if kind == "retest":
        row["beyond_rigid"] = beyond_rigid(field, axes, mask)
    return row
