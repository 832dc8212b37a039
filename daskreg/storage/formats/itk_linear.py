"""Linear transforms as ITK, ANTs and SimpleITK read and write them: text or .mat."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import OutputError, Unreadable
from daskreg.storage.format import TransformFormat, first_bytes
from daskreg.storage.formats.streaming import open_output
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.transform_record import StoredLink, TransformRecord

if TYPE_CHECKING:
    import fsspec
    import scipy.io as io_of_scipy
    from scipy.spatial import transform
else:
    fsspec = DeferredModule("fsspec")
    io_of_scipy, transform = DeferredModule("scipy.io"), DeferredModule("scipy.spatial.transform")

AFFINE = "AffineTransform_double_3_3"
KEYS = ("Transform", "Parameters", "FixedParameters")
LARGEST = 1 << 16  # bytes: a file of a hundred stages is smaller
UNIT_VERSOR = 1e-6  # by which the square of a versor's vector part may be above 1
TEXT = (".tfm", ".txt")
INSIGHT = "#Insight Transform File"  # first line of a text file
Matrix = NDArray[np.float64]


class ItkLinear(TransformFormat):
    """An affine map as ITK, ANTs and SimpleITK keep it: text or a MATLAB 4 file. Several, and of other kinds, are read."""

    name = "ITK linear transform"
    endings = (".mat", *TEXT)
    holds = "affine"
    unit = "millimeter"

    def sniff(self, path: str) -> bool:
        """By the first line of a text file."""
        return first_bytes(path, len(INSIGHT)) == INSIGHT.encode()

    def open(self, path: str) -> TransformRecord:
        """See ``read_affine``."""
        return TransformRecord((StoredLink(read_affine(path)),), self.unit, format=self.name)

    def write(self, path: str, links: Sequence[StoredLink]) -> None:
        """As AffineTransform, text or .mat by the ending."""
        (link,) = links
        parameters = affine_parameters(np.asarray(link.affine, float))
        with open_output(path) as file:
            file.write(_text(parameters).encode() if path.lower().endswith(TEXT) else _mat(parameters))


def read_affine(address: str | Path) -> Matrix:
    """The (4, 4) world affine, fixed to moving points, LPS, order z, y, x, 1, of an ITK .tfm, .txt or .mat file.

    Affine, rigid, similarity, translation and composites of them. Raises NotFound, and Unreadable for anything else.
    """
    path = parse_address(address).path
    require_exists(path)
    with read_errors(path), fsspec.open(path, "rb") if is_remote(path) else open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise Unreadable(f"{path} has more than {LARGEST} bytes; a linear transform of ITK takes some hundred.")
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
    """ITK's parameters of a (4, 4) in z, y, x, 1: the 3 x 3 part row by row, then the translation. Raises OutputError."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise OutputError(f"an affine of shape {matrix.shape} cannot be written; (4, 4) finite numbers were expected.")
    xyz = _reordered(matrix)
    return np.concatenate([xyz[:3, :3].ravel(), xyz[:3, 3]])


def _text(parameters: Matrix) -> str:
    numbers = " ".join(repr(float(p)) for p in parameters)
    return f"#Insight Transform File V1.0\n#Transform 0\nTransform: {AFFINE}\nParameters: {numbers}\nFixedParameters: 0 0 0\n"


def _mat(parameters: Matrix) -> bytes:
    content = io.BytesIO()
    io_of_scipy.savemat(content, {AFFINE: parameters[:, None], "fixed": np.zeros((3, 1))}, format="4")  # type: ignore[arg-type]  # the stubs know paths only
    return content.getvalue()


Stage = tuple[str, list[float], list[float] | None]  # type, parameters, fixed parameters (None: not stated)


def _mat_stages(path: str, content: bytes) -> list[Stage]:
    with read_errors(path):
        tree = {k: v for k, v in io_of_scipy.loadmat(io.BytesIO(content)).items() if k[:2] != "__"}  # type: ignore[arg-type]  # likewise
    fixed = [float(v) for v in np.ravel(tree.pop("fixed", np.zeros(3)))]
    if len(tree) != 1:
        raise Unreadable(f"{path} holds the matrices {', '.join(tree) or 'none'}; one ITK transform and 'fixed' were expected.")
    kind, values = tree.popitem()
    return [(kind, [float(v) for v in np.ravel(values)], fixed)]


def _text_stages(path: str, content: bytes) -> list[Stage]:
    text = content.decode("ascii", "replace")
    if not text.startswith(INSIGHT):
        raise Unreadable(_not_itk(path, text))
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "Transform":
            found.append({})
        if key in KEYS and found:
            if key in found[-1]:
                raise Unreadable(f"{path} has two lines {key!r} for one transform; one was expected.")
            found[-1][key] = value.strip()
    stages = [s for s in found if not s["Transform"].startswith("CompositeTransform")]
    if not stages:
        raise Unreadable(f"{path} is an ITK transform file without a transform in it.")
    with read_errors(path):
        return [(s["Transform"], _numbers(s.get("Parameters")) or [], _numbers(s.get("FixedParameters"))) for s in stages]


def _numbers(text: str | None) -> list[float] | None:
    return None if text is None else [float(v) for v in text.split()]


def _not_itk(path: str, text: str) -> str:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if len(rows) in (3, 4) and all(len(r) == 4 for r in rows):
        return (
            f"{path} is a plain matrix, and does not say between which coordinates it maps (FSL, NiftyReg, FreeSurfer "
            "differ); convert it to an ITK transform (.tfm), for instance with c3d_affine_tool."
        )
    return f"{path} is not an ITK transform file; text that starts with '{INSIGHT}' or an ITK .mat was expected."


def require_linear(path: str, kind: str) -> None:
    """Raises Unreadable for a type that is not read, or is of other than three axes."""
    base, _, sizes = kind.partition("_")
    if base not in LINEAR or (sizes and not sizes.endswith("3_3")):
        raise Unreadable(
            f"{path} holds a {kind}; of three axes {', '.join(sorted(LINEAR))} are read. Write a linear map as an "
            "AffineTransform, another as a displacement field (TransformToDisplacementField of SimpleITK, in an image)."
        )


def linear_matrix(path: str, kind: str, parameters: Sequence[float], fixed: Sequence[float] | None) -> Matrix:
    """(4, 4) in z, y, x, 1 of one linear ITK transform: y = M (x - c) + c + t. Raises Unreadable."""
    require_linear(path, kind)
    count, build = LINEAR[kind.split("_")[0]]
    if len(parameters) != count or not np.isfinite([*parameters, *(fixed or ())]).all():
        raise Unreadable(f"{path}: {kind} has {len(parameters)} parameters; {count} finite numbers were expected.")
    if fixed is None:
        raise Unreadable(f"{path}: {kind} has no FixedParameters, without which ITK ignores its parameters; write it anew.")
    try:
        linear, shift = build(np.asarray(parameters), fixed)
    except ValueError as error:
        raise Unreadable(f"{path}: {kind} is none: {error}; write it anew.") from None
    center = np.asarray(fixed[:3] if len(fixed) >= 3 else (0, 0, 0), float)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = shift + center - linear @ center
    return _reordered(matrix)


def _affine(p: Matrix, _: Sequence[float]) -> tuple[Matrix, Matrix]:
    return p[:9].reshape(3, 3), p[9:]


def _translation(p: Matrix, _: Sequence[float]) -> tuple[Matrix, Matrix]:
    return np.eye(3), p


def _scale(p: Matrix, _: Sequence[float]) -> tuple[Matrix, Matrix]:
    if not (p > 0).all():
        raise ValueError(f"its scales are {p.tolist()}, which mirrors or flattens space")
    return np.diag(p), np.zeros(3)


def _euler(p: Matrix, fixed: Sequence[float]) -> tuple[Matrix, Matrix]:
    """Angles about x, y, z; ITK multiplies Z X Y, or Z Y X where the fourth fixed parameter says so."""
    order, angles = ("ZYX", p[[2, 1, 0]]) if len(fixed) > 3 and fixed[3] else ("ZXY", p[[2, 0, 1]])
    return transform.Rotation.from_euler(order, angles).as_matrix(), p[3:]


def _versor(p: Matrix, _: Sequence[float]) -> tuple[Matrix, Matrix]:
    square = float(p[:3] @ p[:3])
    if square > 1 + UNIT_VERSOR:
        raise ValueError(f"the vector part {p[:3].tolist()} of its versor is longer than 1, so that it is no rotation")
    w = math.sqrt(max(0.0, 1.0 - square))
    return transform.Rotation.from_quat([*p[:3], w]).as_matrix(), p[3:6]


def _similarity(p: Matrix, fixed: Sequence[float]) -> tuple[Matrix, Matrix]:
    rotation, shift = _versor(p, fixed)
    if not p[6] > 0:
        raise ValueError(f"its scale is {p[6]:g}, which mirrors or flattens space")
    return rotation * p[6], shift


LINEAR: dict[str, tuple[int, Callable[[Matrix, Sequence[float]], tuple[Matrix, Matrix]]]] = {
    "AffineTransform": (12, _affine),
    "MatrixOffsetTransformBase": (12, _affine),
    "TranslationTransform": (3, _translation),
    "ScaleTransform": (3, _scale),
    "Euler3DTransform": (6, _euler),
    "VersorRigid3DTransform": (6, _versor),
    "Similarity3DTransform": (7, _similarity),
}
