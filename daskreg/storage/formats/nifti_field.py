"""Displacement fields that ITK, ANTs, SPM and NiftyReg keep as NIfTI, read lazily; written slab by slab as ITK's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import InputError, OutputError, Unreadable
from daskreg.grid import Grid
from daskreg.storage.format import TransformFormat
from daskreg.storage.formats.compressed import is_compressed
from daskreg.storage.formats.nifti import NiftiImage, NiftiVoxels, check_length
from daskreg.storage.formats.nifti_header import RAS, header_bytes, header_grid, millimetres, nifti_header, read_header, shears
from daskreg.storage.formats.streaming import open_output, slabs
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.transform_record import StoredLink, TransformRecord

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

VECTORS = DISPLACEMENT, VECTOR = 1006, 1007  # NIfTI's codes: displacement vector, vector
SAMPLES = 12  # voxels along each axis that are looked at to tell places from displacements


class NiftiField(TransformFormat):
    """A field of vectors (X, Y, Z, 1, 3), as ITK and ANTs, SPM and NiftyReg write it; written as ITK does."""

    name = "ITK displacement field, NIfTI"
    endings = NiftiImage.endings
    holds = "field"

    def sniff(self, path: str) -> bool:
        """By the intent of the header."""
        try:
            return is_displacement(path)
        except InputError:
            return False

    def open(self, path: str) -> TransformRecord:
        """The field on its grid, in millimetres."""
        grid, field, kind = read_displacement_nifti(path)
        return TransformRecord((StoredLink(np.eye(4), grid, field),), grid.unit, grid, format=kind.name)

    def write(self, path: str, links: Sequence[StoredLink]) -> None:
        """On disk (X, Y, Z, 1, 3) float32, LPS, components x, y, z, in millimetres, as ``NiftiImage`` writes images."""
        (link,) = links
        assert link.grid is not None
        _write_field(path, link.field, link.grid)


def is_displacement(address: str | Path) -> bool:
    """Whether a NIfTI file holds a field of vectors, and not an image. Raises NotFound and Unreadable."""
    path = parse_address(address).path
    require_exists(path)
    header = read_header(path)
    return int(header["intent_code"]) in VECTORS and NiftiVoxels(path, header).shape[:2] == (3, 1)


@dataclass(frozen=True)
class FieldKind:
    """What the vectors of a field are. ras: along RAS, else LPS;  absolute: places in the moving image, not displacements."""

    name: str
    ras: bool
    absolute: bool


ITK_LPS = FieldKind("ITK displacement field, NIfTI", ras=False, absolute=False)
ITK_RAS = FieldKind("displacement field, NIfTI, RAS", ras=True, absolute=False)
SPM = FieldKind("SPM deformation, NIfTI", ras=True, absolute=True)
NIFTYREG = {
    0: FieldKind("NiftyReg deformation field, NIfTI", ras=True, absolute=True),
    1: FieldKind("NiftyReg displacement field, NIfTI", ras=True, absolute=False),
}  # by intent_p1


def field_kind(header: Any, path: str) -> FieldKind:
    """Which program's field it is: ITK's, SPM's (``y_``) or NiftyReg's, by its intent. Raises Unreadable for any other."""
    intent, name = int(header["intent_code"]), bytes(header["intent_name"]).split(b"\0")[0].decode("latin-1").strip()
    if intent == DISPLACEMENT and name == "":
        return ITK_RAS
    if intent == VECTOR and name == "":
        return ITK_LPS
    if intent == VECTOR and name == "Mapping":
        return SPM
    first = float(header["intent_p1"])
    if intent == VECTOR and name == "NREG_TRANS" and first in NIFTYREG:
        return NIFTYREG[int(first)]
    if name == "NREG_TRANS":
        raise Unreadable(
            f"{path} is a transform of NiftyReg of kind {first:g}, spline or velocity; convert it to a deformation by "
            "reg_transform -def."
        )
    raise Unreadable(
        f"{path} has NIfTI intent {intent} named {name!r}; the intent of fields of ITK and ANTs (1007 without a name), of SPM "
        "(1007, 'Mapping') or of NiftyReg (1007, 'NREG_TRANS') was expected: convert it to one of these."
    )


def read_displacement_nifti(address: str | Path) -> tuple[Grid, da.Array, FieldKind]:
    """Grid (millimetres), displacement (3, Z, Y, X), LPS, components z, y, x, lazily, and the kind of a 5D vector NIfTI.

    On disk (X, Y, Z, 1, 3), components x, y, z, in millimetres. Displacements: of ITK and ANTs LPS, as they stand (intent 1006:
    RAS, as ITK reads it), of NiftyReg RAS. Places in the moving image, RAS, of which the voxel's own is subtracted: of SPM and
    NiftyReg. Raises NotFound, Unreadable.
    """
    path = parse_address(address).path
    require_exists(path)
    header = read_header(path)
    voxels = NiftiVoxels(path, header)
    if voxels.ndim != 5 or voxels.shape[:2] != (3, 1):
        raise Unreadable(
            f"{path} has shape {voxels.shape[::-1]}; a displacement field (X, Y, Z, 1, 3) was expected, not an image."
        )
    check_length(voxels)
    kind = field_kind(header, path)
    with read_errors(path):
        grid = header_grid(header, path).grid(voxels.shape[2:])
    if kind.absolute and grid.unit != "millimeter":
        raise Unreadable(f"{path}: its grid is in {grid.unit}, its vectors are places in millimetres; write both in millimetres.")
    grid = grid.to_unit("millimeter")
    if not kind.absolute:
        _require_displacements(path, voxels, grid)
    return grid, _displacement(voxels, grid, kind), kind


def _displacement(voxels: NiftiVoxels, grid: Grid, kind: FieldKind) -> da.Array:
    whole = is_compressed(voxels.path)  # it is read once from its start
    chunks = voxels.shape if whole else (1, 1, max(1, min(voxels.shape[2], 64)), *voxels.shape[3:])
    stored = da.from_array(voxels, chunks=chunks, name=False, meta=np.empty((0,) * 5, voxels.dtype))[:, 0]
    sign = RAS[:3] if kind.ras else np.ones(3)  # of z, y, x
    parts = [stored[c] * np.float32(s) for c, s in zip((2, 1, 0), sign, strict=True)]
    if kind.absolute:
        parts = [part.astype(np.float64) - place for part, place in zip(parts, _places(grid, parts[0].chunks), strict=True)]
    field: da.Array = da.stack(parts).astype(np.float32).rechunk({0: 3})
    return field


def _places(grid: Grid, chunks: Sequence[tuple[int, ...]]) -> list[da.Array]:
    """World components z, y, x of the voxels, lazily (Z, Y, X)."""
    z, y, x = (da.arange(sum(c), chunks=(c,), dtype=np.float64) for c in chunks)
    index = (z[:, None, None], y[None, :, None], x[None, None, :])
    return [row[3] + row[0] * index[0] + row[1] * index[1] + row[2] * index[2] for row in grid.index_to_world[:3]]


def _require_displacements(path: str, voxels: NiftiVoxels, grid: Grid) -> None:
    """Raises Unreadable where vectors grow by the voxel's own place: they are places, which their header does not say."""
    steps = tuple(slice(None, None, max(1, n // SAMPLES)) for n in grid.shape)
    vectors = np.asarray(voxels[(slice(None), 0, *steps)], np.float64)[::-1].reshape(3, -1)
    index = np.stack(np.meshgrid(*(np.arange(n)[s] for n, s in zip(grid.shape, steps, strict=True)), indexing="ij"), -1)
    places = grid.to_world(index).reshape(-1, 3).T
    if all(_grows(v, p) for v, p in zip(vectors, places, strict=True)):
        raise Unreadable(
            f"{path} says that it holds displacements, but its vectors are like places: they grow by as much as the voxels' "
            "own. A field of SPM or NiftyReg keeps its intent_name ('Mapping', 'NREG_TRANS'); restore it."
        )


def _grows(vector: NDArray[np.float64], place: NDArray[np.float64]) -> bool:
    """Whether a component changes by as much as the place does, up or down, and little else."""
    usable = np.isfinite(vector)
    v, p = vector[usable], place[usable]
    if v.size < SAMPLES or np.ptp(p) == 0:
        return False
    slope = np.polynomial.polynomial.polyfit(p, v, 1)[1]
    return bool(0.7 < abs(slope) < 1.4 and abs(np.corrcoef(p, v)[0, 1]) > 0.95)


def _write_field(path: str, field: NDArray[Any] | da.Array, grid: Grid) -> None:
    """A displacement (3, Z, Y, X), LPS, components z, y, x, in the grid's unit."""
    if shears(grid):
        raise OutputError(
            f"{path}: the grid's axes are not at right angles, which ITK does not read from NIfTI; write the transform as .h5 "
            "or .zarr."
        )
    header = nifti_header(grid, (3, 1, *grid.shape), np.dtype("<f4"), path)
    header["intent_code"] = VECTOR  # ITK leaves its components alone; those of 1006 it rotates from RAS to LPS
    scale = np.float32(millimetres(grid))
    with open_output(path) as file:
        file.write(header_bytes(header))
        for component in (2, 1, 0):  # the file has x first, one component after the other
            for slab in slabs(field[component]):
                file.write((np.ascontiguousarray(slab, "<f4") * scale).tobytes())
