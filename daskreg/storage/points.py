"""Points read from files of any format, and written."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from daskreg.errors import ArrayError, ConfigError, OutputError
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.upload import local_place
from daskreg.storage.point_file import PointFile, require_finite
from daskreg.storage.registry import point_formats

ARRAY = "the array of points"


def read_points(source: str | Path | Any, order: str | None = None) -> PointFile:
    """Points of a table whose header names x, y and z (other columns stay), or of three columns without a header; of an array
    (N, 3) in a .npy file; of a mesh (needs meshio); or an array (N, 3) itself.

    order: of columns without names, xyz or zyx; by default xyz, and zyx of an array.
    Raises NotFound, Unreadable (naming the row), ArrayError and ConfigError.
    """
    if order not in (None, "xyz", "zyx"):
        raise ConfigError(f"order {order!r}: 'xyz' or 'zyx' was expected.")
    if not isinstance(source, str | PathLike):
        return _of_array(source, order)
    return point_formats.read(str(source), lambda format: format.open(str(source), order))


def _of_array(given: Any, order: str | None) -> PointFile:
    """With a header, which a table that they are written to needs for the order of its columns."""
    try:
        values = np.asarray(given)
    except ValueError:  # rows of different lengths
        values = np.asarray(given, object)
    if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "iuf":
        found = f"points are {values.dtype} of shape {values.shape}"
        raise ArrayError(f"{found}; the path of a file, or real numbers of shape (N, 3), were expected.")
    points, order = values.astype(float), order or "zyx"
    return PointFile(require_finite(ARRAY, points[:, ::-1] if order == "xyz" else points), order, tuple(order))


def write_points(path: str | Path, file: PointFile, *, overwrite: bool = False) -> None:
    """Write points by the path's ending, with what else was in the file that they came from.

    Raises OutputExists, OutputError (also where the ending cannot hold what the file was).
    """
    format = point_formats.to_write(str(path))
    if format.meshes != (file.mesh is not None):
        meshes = ", ".join(point_formats.endings(meshes=True))
        raise OutputError(f"{path}: a mesh becomes a mesh ({meshes}), points become points; choose another ending.")
    with atomic_output(str(path), overwrite) as temporary, local_place(temporary, needed=not format.remote) as place:
        format.write(place, file)
