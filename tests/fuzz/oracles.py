"""Where voxels and points are by another reading of the same file; None where that does not know."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

POINTS = np.array([[0.0, 0, 0], [3, -2, 5], [-7, 4, 1]])  # LPS, x, y, z
METRES = {"nanometer": 1e-9, "nm": 1e-9, "micrometer": 1e-6, "um": 1e-6, "\u03bcm": 1e-6, "millimeter": 1e-3, "meter": 1.0}


def nifti(path: str):
    """Index to world (z, y, x, 1; LPS) and voxels, as nibabel reads them."""
    try:
        image = nib.load(path)
        header = image.header
        codes = int(header["sform_code"]), int(header["qform_code"])
        if max(codes) <= 0 or abs(np.linalg.det(image.affine)) == 0:
            return None
        voxels = np.asarray(image.dataobj, np.float32).T
        voxels = voxels.reshape(voxels.shape[-3:])  # further axes have one entry
    except Exception:  # noqa: BLE001  # nibabel does not read it, or not so
        return None
    order = [2, 1, 0, 3]
    return (np.diag([1.0, -1, -1, 1]) @ image.affine[np.ix_(order, order)], voxels)


def itk_points(path: str):
    """Where ITK's transform takes POINTS, z, y, x."""
    try:
        transform = sitk.ReadTransform(path)
    except RuntimeError:
        return None
    return np.array([transform.TransformPoint(p.tolist()) for p in POINTS])[:, ::-1]


def ome_zarr(path: str):
    """Spacing and origin (z, y, x; metres) of the first level, by the words of the specification."""
    try:
        return _ome_zarr(path)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # not as the specification says
        return None


def _ome_zarr(path: str):
    folder = Path(path)
    v3 = folder / "zarr.json"
    attrs = json.loads(v3.read_text())["attributes"] if v3.is_file() else json.loads((folder / ".zattrs").read_text())
    image = attrs.get("ome", attrs)["multiscales"][0]
    axes = image["axes"] if "axes" in image else image["coordinateSystems"][0]["axes"]
    scale, shift = np.ones(len(axes)), np.zeros(len(axes))
    for step in _steps(image["datasets"][0]) + _steps(image):
        match step["type"]:
            case "scale":
                scale, shift = scale * step["scale"], shift * step["scale"]
            case "translation":
                shift = shift + step["translation"]
    order = [[a["name"] for a in axes].index(n) for n in "zyx"]
    units = [axes[i].get("unit") for i in order]
    if len({not u for u in units}) > 1 or any(u not in METRES for u in units if u):
        return None
    metres = np.array([METRES[u] if u else 1.0 for u in units])
    return scale[order] * metres, shift[order] * metres


def _steps(tree):
    steps = tree.get("coordinateTransformations") or []
    return [inner for s in steps for inner in (s["transformations"] if s["type"] == "sequence" else [s])]
