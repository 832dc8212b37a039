"""Displacement fields that ITK, ANTs and others keep as NIfTI, read lazily."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np

from daskreg.errors import Unreadable
from daskreg.grid import Grid
from daskreg.storage.formats.nifti import NiftiVoxels, header_grid, read_header
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.errors import read_errors, require_exists

VECTORS = (1006, 1007)  # NIfTI's codes: displacement vector, vector


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
