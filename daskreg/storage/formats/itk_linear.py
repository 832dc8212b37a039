"""Transforms as ITK, ANTs and SimpleITK read and write them: affines as text or .mat, displacements as NIfTI."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import fsspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.io import loadmat, savemat
from scipy.spatial.transform import Rotation

from daskreg.errors import GridError, OutputError, Unreadable
from daskreg.grid import Grid
from daskreg.storage.formats.nifti import is_nifti
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.write import header_bytes, millimetres, nifti_header, opened, slabs

AFFINE = "AffineTransform_double_3_3"
TEXT = (".tfm", ".txt")
INSIGHT = "#Insight Transform File"  # with which its text files begin
LINEAR_ENDINGS = (".mat", *TEXT)
VECTOR = 1007  # NIFTI_INTENT_VECTOR: ITK leaves the components alone (with DISPVECT, 1006, it turns them from RAS to LPS)
Matrix = NDArray[np.float64]


def write_displacement_nifti(address: str | Path, field: NDArray[Any] | da.Array, grid: Grid, *, overwrite: bool = False) -> None:
    """Write a displacement (3, Z, Y, X), LPS, components z, y, x, in the grid's unit, as ITK's 5D vector NIfTI.

    On disk (X, Y, Z, 1, 3) float32, LPS, components x, y, z, in millimetres, as ``write_image`` writes images.
    Raises OutputExists, OutputError, OutOfSpace, GridError.
    """
    path = parse_address(address).path
    if not is_nifti(path):
        raise OutputError(f"{path}: a displacement field is written as .nii or .nii.gz; choose one of these endings.")
    if tuple(field.shape) != (3, *grid.shape):
        raise GridError(f"{path}: a displacement of shape {tuple(field.shape)} was given; {(3, *grid.shape)} was expected.")
    header = nifti_header(grid, (3, 1, *grid.shape), np.dtype("<f4"))
    header["intent_code"] = VECTOR
    scale = np.float32(millimetres(grid))
    with atomic_output(path, overwrite) as temporary, opened(temporary, path) as file:
        file.write(header_bytes(header))
        for component in (2, 1, 0):  # the file has x first, one component after the other
            for slab in slabs(field[component]):
                file.write((np.ascontiguousarray(slab, "<f4") * scale).tobytes())


def write_affine(address: str | Path, matrix: ArrayLike, *, overwrite: bool = False) -> None:
    """Write a (4, 4) world affine, fixed to moving points, LPS, order z, y, x, 1, as ITK's .tfm or .txt text, or .mat.

    ITK thinks in millimetres: give the translation so. Raises OutputExists, OutputError, OutOfSpace.
    """
    path = parse_address(address).path
    parameters = affine_parameters(np.asarray(matrix, float))
    if path.lower().endswith(TEXT):
        content = _text(parameters).encode()
    elif path.lower().endswith(".mat"):
        content = _mat(parameters)
    else:
        raise OutputError(f"{path}: an affine is written as .tfm, .txt or .mat; choose one of these endings.")
    with atomic_output(path, overwrite) as temporary, opened(temporary, path) as file:
        file.write(content)


def read_affine(address: str | Path) -> Matrix:
    """The (4, 4) world affine, fixed to moving points, LPS, order z, y, x, 1, of an ITK .tfm, .txt or .mat file.

    Affine, rigid, similarity, translation and composites of them. Raises NotFound, and Unreadable for anything else.
    """
    path = parse_address(address).path
    require_exists(path)
    with read_errors(path), fsspec.open(path, "rb") if is_remote(path) else open(path, "rb") as file:
        content = file.read()
    stages = _mat_stages(path, content) if path.lower().endswith(".mat") else _text_stages(path, content)
    total = np.eye(4)
    for stage in stages:  # ITK applies the last one in the list first
        total = total @ linear_matrix(path, *stage)
    return total


def _reordered(matrix: Matrix) -> Matrix:
    """x, y, z, 1 <-> z, y, x, 1."""
    order = [2, 1, 0, 3]
    return np.asarray(matrix[np.ix_(order, order)])


def affine_parameters(matrix: Matrix) -> Matrix:
    """ITK's twelve, of a (4, 4) in z, y, x, 1: the 3 x 3 part row by row, then the translation. Raises OutputError."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise OutputError(f"an affine of shape {matrix.shape} cannot be written; (4, 4) finite numbers were expected.")
    xyz = _reordered(matrix)
    return np.concatenate([xyz[:3, :3].ravel(), xyz[:3, 3]])


def _text(parameters: Matrix) -> str:
    numbers = " ".join(repr(float(p)) for p in parameters)
    return f"#Insight Transform File V1.0\n#Transform 0\nTransform: {AFFINE}\nParameters: {numbers}\nFixedParameters: 0 0 0\n"


def _mat(parameters: Matrix) -> bytes:
    content = io.BytesIO()
    savemat(content, {AFFINE: parameters[:, None], "fixed": np.zeros((3, 1))}, format="4")  # type: ignore[arg-type]
    return content.getvalue()


Stage = tuple[str, list[float], list[float]]  # type, parameters, fixed parameters


def _mat_stages(path: str, content: bytes) -> list[Stage]:
    with read_errors(path):
        tree = {k: v for k, v in loadmat(io.BytesIO(content)).items() if k[:2] != "__"}  # type: ignore[arg-type]
    fixed = [float(v) for v in np.ravel(tree.pop("fixed", np.zeros(3)))]
    if len(tree) != 1:
        raise Unreadable(f"{path} holds the matrices {', '.join(tree) or 'none'}; one ITK transform and 'fixed' were expected.")
    kind, values = tree.popitem()
    return [(kind, [float(v) for v in np.ravel(values)], fixed)]


def _text_stages(path: str, content: bytes) -> list[Stage]:
    text = content.decode("ascii", "replace")
    if not text.startswith(INSIGHT):
        raise Unreadable(_not_itk(path, text))
    stages: list[Stage] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "Transform":
            stages.append((value.strip(), [], []))
        elif key in ("Parameters", "FixedParameters") and stages:
            numbers = stages[-1][1] if key == "Parameters" else stages[-1][2]
            with read_errors(path):
                numbers.extend(float(v) for v in value.split())
    stages = [s for s in stages if not s[0].startswith("CompositeTransform")]
    if not stages:
        raise Unreadable(f"{path} is an ITK transform file without a transform in it.")
    return stages


def _not_itk(path: str, text: str) -> str:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if len(rows) in (3, 4) and all(len(r) == 4 for r in rows):
        return (
            f"{path} is a plain matrix, and does not say between which coordinates it maps (FSL, NiftyReg, FreeSurfer "
            "differ); convert it to an ITK transform (.tfm), for instance with c3d_affine_tool."
        )
    return f"{path} is not an ITK transform file; text that starts with '{INSIGHT}' or an ITK .mat was expected."


def linear_matrix(path: str, kind: str, parameters: Sequence[float], fixed: Sequence[float]) -> Matrix:
    """(4, 4) in z, y, x, 1 of one linear ITK transform: y = M (x - c) + c + t. Raises Unreadable."""
    base = kind.split("_")[0]
    if base not in LINEAR:
        raise Unreadable(f"{path} holds a {kind}; only linear ones are read: {', '.join(sorted(LINEAR))}.")
    count, build = LINEAR[base]
    if len(parameters) != count or not np.isfinite([*parameters, *fixed]).all():
        raise Unreadable(f"{path}: {kind} has {len(parameters)} parameters; {count} finite numbers were expected.")
    linear, shift = build(np.asarray(parameters), fixed)
    center = np.asarray(fixed[:3] if len(fixed) >= 3 else (0, 0, 0), float)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = shift + center - linear @ center
    return _reordered(matrix)


def _affine(p: Matrix, _: Sequence[float]) -> tuple[Matrix, Matrix]:
    return p[:9].reshape(3, 3), p[9:]


def _translation(p: Matrix, _: Sequence[float]) -> tuple[Matrix, Matrix]:
    return np.eye(3), p


def _euler(p: Matrix, fixed: Sequence[float]) -> tuple[Matrix, Matrix]:
    """Angles about x, y, z; ITK multiplies Z X Y, or Z Y X where the fourth fixed parameter says so."""
    order, angles = ("ZYX", p[[2, 1, 0]]) if len(fixed) > 3 and fixed[3] else ("ZXY", p[[2, 0, 1]])
    return Rotation.from_euler(order, angles).as_matrix(), p[3:]


def _versor(p: Matrix, _: Sequence[float]) -> tuple[Matrix, Matrix]:
    w = math.sqrt(max(0.0, 1.0 - float(p[:3] @ p[:3])))
    return Rotation.from_quat([*p[:3], w]).as_matrix(), p[3:6]


def _similarity(p: Matrix, fixed: Sequence[float]) -> tuple[Matrix, Matrix]:
    rotation, shift = _versor(p, fixed)
    return rotation * p[6], shift


LINEAR: dict[str, tuple[int, Callable[[Matrix, Sequence[float]], tuple[Matrix, Matrix]]]] = {
    "AffineTransform": (12, _affine),
    "MatrixOffsetTransformBase": (12, _affine),
    "TranslationTransform": (3, _translation),
    "Euler3DTransform": (6, _euler),
    "VersorRigid3DTransform": (6, _versor),
    "Similarity3DTransform": (7, _similarity),
}
