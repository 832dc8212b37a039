"""Displacement fields that ITK, ANTs and others keep as NIfTI, read lazily and written slab by slab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from daskreg.errors import InputError, Unreadable
from daskreg.grid import Grid
from daskreg.storage.format import TransformFormat
from daskreg.storage.formats.nifti import (
    NiftiImage,
    NiftiVoxels,
    header_bytes,
    header_grid,
    millimetres,
    nifti_header,
    read_header,
)
from daskreg.storage.formats.streaming import open_output, slabs
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.transform_record import StoredLink, TransformRecord

VECTORS = (1006, 1007)  # NIfTI's codes: displacement vector, vector


class NiftiField(TransformFormat):
    """A displacement field (X, Y, Z, 1, 3), as ITK and ANTs write it."""

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
        grid, field = read_displacement_nifti(path)
        return TransformRecord((StoredLink(np.eye(4), grid, field),), grid.unit, grid, format=self.name)

    def write(self, path: str, links: Sequence[StoredLink]) -> None:
        """On disk (X, Y, Z, 1, 3) float32, LPS, components x, y, z, in millimetres, as ``NiftiImage`` writes images."""
        (link,) = links
        assert link.grid is not None
        _write_field(path, link.field, link.grid)


def is_displacement(address: str | Path) -> bool:
    """Whether a NIfTI file holds a displacement field, and not an image. Raises NotFound and Unreadable."""
    path = parse_address(address).path
    require_exists(path)
    header = read_header(path)
    return int(header["intent_code"]) in VECTORS and NiftiVoxels(path, header).shape[:2] == (3, 1)


def read_displacement_nifti(address: str | Path) -> tuple[Grid, da.Array]:
    """Grid (millimetres) and displacement (3, Z, Y, X), LPS, components z, y, x, of ITK's 5D vector NIfTI, lazily.

    On disk (X, Y, Z, 1, 3), components x, y, z: LPS with intent 1007 (vector, what ITK and ANTs write), as they stand; with
    intent 1006 ITK turns them from RAS, and so does this. Raises NotFound, Unreadable.
    """
    path = parse_address(address).path
    require_exists(path)
    header = read_header(path)
    voxels = NiftiVoxels(path, header)
    if voxels.ndim != 5 or voxels.shape[:2] != (3, 1):
        raise Unreadable(
            f"{path} has shape {voxels.shape[::-1]}; a displacement field (X, Y, Z, 1, 3) was expected, not an image."
        )
    intent = int(header["intent_code"])
    if intent not in VECTORS:
        raise Unreadable(f"{path} has NIfTI intent {intent}; 1007 (vector), as ITK and ANTs write displacements, was expected.")
    with read_errors(path):
        grid = header_grid(header, path).grid(voxels.shape[2:])
    whole = path.lower().endswith(".gz")  # a compressed file is read once from its start
    chunks = voxels.shape if whole else (1, 1, max(1, min(voxels.shape[2], 64)), *voxels.shape[3:])
    stored = da.from_array(voxels, chunks=chunks, name=False, meta=np.empty((0,) * 5, voxels.dtype))[:, 0]
    sign = [1, 1, 1] if intent == VECTORS[1] else [1, -1, -1]  # of z, y, x
    parts = [stored[c] * np.float32(s) for c, s in zip((2, 1, 0), sign, strict=True)]
    return grid.to_unit("millimeter"), da.stack(parts).astype(np.float32).rechunk({0: 3})


def _write_field(path: str, field: NDArray[Any] | da.Array, grid: Grid) -> None:
    """A displacement (3, Z, Y, X), LPS, components z, y, x, in the grid's unit."""
    header = nifti_header(grid, (3, 1, *grid.shape), np.dtype("<f4"))
    header["intent_code"] = VECTORS[1]  # ITK leaves its components alone; those of 1006 it rotates from RAS to LPS
    scale = np.float32(millimetres(grid))
    with open_output(path) as file:
        file.write(header_bytes(header))
        for component in (2, 1, 0):  # the file has x first, one component after the other
            for slab in slabs(field[component]):
                file.write((np.ascontiguousarray(slab, "<f4") * scale).tobytes())
