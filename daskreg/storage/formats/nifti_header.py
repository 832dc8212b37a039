"""Headers of NIfTI files: read, checked, and made; converts RAS to LPS and (i, j, k) to (z, y, x)."""

from __future__ import annotations

import io
import logging
import math
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import GridError, Unreadable
from daskreg.grid import UNITS, Grid
from daskreg.storage.formats.compressed import opened
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.grid_metadata import GridMetadata

if TYPE_CHECKING:
    import nibabel as nib
else:
    nib = DeferredModule("nibabel")

log = logging.getLogger(__name__)

UNIT_CODES = {
    0: "millimeter",
    1: "meter",
    2: "millimeter",
    3: "micrometer",
}  # 0, unknown: taken as mm by all readers
LARGEST_NIFTI1 = 32767  # voxels an axis: its header keeps 16 bits
MILLIMETRES = 2  # NIfTI's code
SAME_PLACE = 0.05  # voxels by which two placements of one image may differ
ROUNDED = 0.01  # voxels by which a header may misplace a voxel without a warning
FLAT = 1e-6  # the determinant of axes of length 1 below which they span no volume
SCANNER = 1  # the code of a form that ITK prefers
RAS = np.array([1.0, -1.0, -1.0, 1.0])  # of world components z, y, x, 1: NIfTI's y and x point the other way
Matrix = NDArray[np.float64]


def read_header(path: str) -> Any:
    """The nibabel header. Raises NotFound, and Unreadable for what no voxel can be read with."""
    with read_errors(path), opened(path, check=False) as file:
        start = file.read(540)
    if not start:
        raise Unreadable(f"{path} is empty; a NIfTI file was expected.")
    kinds: tuple[Any, ...] = (nib.Nifti1Header, nib.Nifti2Header)
    for kind in kinds:
        if len(start) >= kind.sizeof_hdr and kind.may_contain_header(start):
            return _checked_header(path, kind, start[: kind.sizeof_hdr])
    raise Unreadable(f"{path} does not start with a NIfTI header; a NIfTI file (.nii, .nii.gz) was expected.")


def _checked_header(path: str, kind: Any, block: bytes) -> Any:
    with read_errors(path):
        header = kind.from_fileobj(io.BytesIO(block), check=False)
        shape, stored = header.get_data_shape(), header.get_data_dtype()
    if bytes(header["magic"])[:2] != b"n+":
        raise Unreadable(f"{path} keeps its voxels in another file (.hdr and .img); convert it to one .nii file.")
    if not shape or min(shape) < 1:
        raise Unreadable(f"{path} has shape {tuple(shape)}; positive numbers of voxels were expected.")
    if int(header["bitpix"]) not in (0, 8 * stored.itemsize):
        raise Unreadable(
            f"{path}: its header states {int(header['bitpix'])} bits a voxel, and the type {stored}, which has "
            f"{8 * stored.itemsize}; repair the header."
        )
    voxel_offset(header, path)
    scaling(header, path)
    return header


def voxel_offset(header: Any, path: str) -> int:
    """Bytes before the voxels. Raises Unreadable for a place that is none, or in the header."""
    stated, least = float(header["vox_offset"]), int(header.sizeof_hdr) + 4
    if stated == 0:  # unset
        return least
    if not math.isfinite(stated) or stated != int(stated) or stated < least:
        raise Unreadable(f"{path}: its voxels begin at byte {stated:g}; {least}, behind the header, or more was expected.")
    return int(stated)


def scaling(header: Any, path: str) -> tuple[float, float] | None:
    """Slope and intercept of the voxels; None where they are stored as they are. Raises Unreadable for what is no number."""
    slope, inter = (float(header[k]) for k in ("scl_slope", "scl_inter"))
    if slope == 0 or (math.isnan(slope) and math.isnan(inter)):  # NIfTI's and nibabel's way to say none
        return None
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise Unreadable(
            f"{path}: its voxels are to be multiplied by {slope} plus {inter}; numbers were expected: repair the header."
        )
    return None if (slope, inter) == (1.0, 0.0) else (slope, inter)


def scaled_dtype(stored: np.dtype[Any], slope: float, inter: float) -> np.dtype[Any]:
    """The type of voxels times slope plus inter: float32 where it holds all of them, and tells neighbours apart."""
    if stored.itemsize > 2 or stored.kind not in "iuf":
        return np.dtype(np.float64)
    limits, single = np.finfo(stored) if stored.kind == "f" else np.iinfo(stored), np.finfo(np.float32)
    largest = abs(slope) * float(max(-limits.min, limits.max)) + abs(inter)
    narrow = largest < float(single.max) and abs(slope) > max(float(single.tiny), float(single.eps) * abs(inter))
    return np.dtype(np.float32 if narrow else np.float64)


def header_grid(header: Any, path: str = "the image") -> GridMetadata:
    """The grid that a header states: sform if coded, else qform, else pixdim without an orientation.

    Warns where two of them disagree. Raises GridError.
    """
    code = int(header["xyzt_units"]) & 7
    unit = UNIT_CODES.get(code, "millimeter")
    if code not in UNIT_CODES:
        _warn(f"{path}: its header has the unknown unit {code}; millimetres are taken.")
    stated = code != 0 and code in UNIT_CODES
    forms = _forms(header, path)
    if forms:
        _compare_forms(header, path, forms, unit)
        grid = Grid.from_matrix((1, 1, 1), lps_from_ras(next(iter(forms.values()))), unit)
        return replace(GridMetadata.of(grid), unit_stated=stated)
    x, y, z = (abs(float(v)) for v in header["pixdim"][1:4])
    return GridMetadata((z, y, x), unit=unit, unit_stated=stated)


def _forms(header: Any, path: str) -> dict[str, Matrix]:
    """The index-to-world matrices that a header states, that which counts first.

    An sform of zeros states none, as some tools write it; nor does a qform without voxel sizes. Raises GridError for one that is
    singular or not finite, whatever the other one is.
    """
    coded = {"sform": header.get_sform, "qform": header.get_qform}
    with np.errstate(all="ignore"):
        forms = {name: np.asarray(get(), float) for name, get in coded.items() if int(header[f"{name}_code"]) > 0}
    sizes = np.abs(header["pixdim"][1:4])
    if not forms.get("sform", np.zeros((3, 3)))[:3, :3].any():
        forms.pop("sform", None)
    if not np.isfinite(sizes).all() or not sizes.all():
        forms.pop("qform", None)
    for name, affine in forms.items():
        if not _regular(affine):
            raise GridError(f"{path}: the {name} {affine[:3].tolist()} is singular or not finite; repair the header.")
    return forms


def _compare_forms(header: Any, path: str, forms: dict[str, Matrix], unit: str) -> None:
    shape = header.get_data_shape()
    spacing = np.linalg.norm(next(iter(forms.values()))[:3, :3], axis=0)
    if len(forms) == 2:
        apart = _distance(forms["sform"], forms["qform"], shape)
        if apart > SAME_PLACE * spacing.min():
            codes = {name: int(header[f"{name}_code"]) for name in forms}
            _warn(
                f"{path}: its sform (code {codes['sform']}) and its qform (code {codes['qform']}) place voxels up to "
                f"{apart:.3g} {unit} "
                f"apart; the sform is used, as nibabel and SPM do. ITK, ANTs and 3D Slicer take the {_itk_form(forms, codes)}. "
                "Copy the right one to the other."
            )
    elif "sform" in forms and (abs(header["pixdim"][1:4] - spacing) > 0.01 * spacing).any():
        stated = ", ".join(f"{v:.6g}" for v in header["pixdim"][1:4])
        _warn(
            f"{path}: its sform has voxels of {np.round(spacing, 6).tolist()}, its pixdim of [{stated}] (x, y, z); the sform is "
            "used."
        )


def _itk_form(forms: dict[str, Matrix], codes: dict[str, int]) -> str:
    """The form that ITK 5.4 takes: the qform, unless the sform alone is that of a scanner and has no shear."""
    return "sform, too" if codes["sform"] == SCANNER and not is_sheared(forms["sform"]) else "qform"


def is_sheared(affine: NDArray[Any]) -> bool:
    """Whether the axes of a (4, 4) are not at right angles, within what a quaternion and float32 can express."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(abs(axes.T @ axes - np.eye(3)).max() > 1e-4)


def _distance(a: NDArray[Any], b: NDArray[Any], shape: tuple[int, ...]) -> float:
    """The largest distance between the places of a voxel, which is at a corner."""
    far = np.array([*shape[:3], 1, 1, 1])[:3] - 1
    corners = np.array([[*(far * [(k >> i) & 1 for i in range(3)]), 1.0] for k in range(8)])
    return float(np.linalg.norm(corners @ (a - b).T[:, :3], axis=1).max())


@cache  # once a file
def _warn(message: str) -> None:
    log.warning("%s", message)


def nifti_header(grid: Grid, shape: tuple[int, ...], dtype: np.dtype[Any], path: str) -> Any:
    """A nibabel header for an array whose reversed axes begin with the grid's x, y, z; ``shape`` is (.., Z, Y, X).

    Sheared axes are stated by the sform alone: a qform has none, and ITK would follow it. Warns of these, and where the header's
    single precision misplaces voxels.
    """
    kind = nib.Nifti2Header if max(shape) > LARGEST_NIFTI1 else nib.Nifti1Header
    header = kind()  # type: ignore[no-untyped-call]  # nibabel is partly typed
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    metric = grid if grid.unit is None else grid.to_unit("millimeter")
    affine = ras_from_lps(metric.index_to_world)
    header.set_qform(affine, 0 if shears(grid) else 1, strip_shears=True)
    header.set_sform(affine, 1)
    header["xyzt_units"] = 0 if grid.unit is None else MILLIMETRES
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = header.single_magic
    _tell_of_limits(header, affine, grid, path)
    return header


def shears(grid: Grid) -> bool:
    """Whether a qform, which has right angles, misplaces a voxel of the grid."""
    affine = ras_from_lps(grid.index_to_world)
    header = nib.Nifti2Header()
    header.set_qform(affine, 1, strip_shears=True)
    return _distance(header.get_qform(), affine, grid.shape[::-1]) > SAME_PLACE * min(grid.spacing)


def _tell_of_limits(header: Any, affine: Matrix, grid: Grid, path: str) -> None:
    off = _distance(header.get_sform(), affine, grid.shape[::-1]) / np.linalg.norm(affine[:3, :3], axis=0).min()
    if off > ROUNDED:
        log.warning(
            "%s: a NIfTI header keeps positions in single precision, which is up to %.2g voxels off this far from the origin; "
            "write .zarr, an image also as .mha, a transform as .h5.",
            path,
            off,
        )
    if int(header["qform_code"]) == 0:
        log.warning(
            "%s: its axes are not at right angles; ITK and ANTs refuse such a NIfTI file: write .mha, .nrrd or .zarr.", path
        )


def header_bytes(header: Any) -> bytes:
    """The header and the empty extension behind it."""
    return bytes(header.binaryblock).ljust(int(header.single_vox_offset), b"\0")


def millimetres(grid: Grid) -> float:
    """Millimetres in the grid's unit; 1 where it has none."""
    return 1.0 if grid.unit is None else UNITS[grid.unit] / UNITS["millimeter"]


def ras_from_lps(matrix: NDArray[Any]) -> Matrix:
    """(k, j, i) -> LPS z, y, x, (4, 4), as NIfTI's (i, j, k) -> RAS x, y, z."""
    return _reversed(RAS[:, None] * np.asarray(matrix, float))


def lps_from_ras(affine: NDArray[Any]) -> Matrix:
    """The inverse of ``ras_from_lps``."""
    return RAS[:, None] * _reversed(np.asarray(affine, float))


def _reversed(matrix: Matrix) -> Matrix:
    order = [2, 1, 0, 3]
    return matrix[np.ix_(order, order)]


def _regular(affine: NDArray[Any]) -> bool:
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(lengths.all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > FLAT)
