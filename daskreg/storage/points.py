"""Points read from files of any format, and written."""

from __future__ import annotations

from pathlib import Path

from daskreg.errors import ConfigError, OutputError
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.upload import local_place
from daskreg.storage.point_file import PointFile
from daskreg.storage.registry import point_formats


def read_points(path: str | Path, order: str | None = None) -> PointFile:
    """Points of a table whose header names x, y and z (other columns stay), or of three columns without a header; of an array
    (N, 3) in a .npy file; of a mesh (needs meshio).

    order: of columns without names, xyz or zyx; by default xyz, and zyx in a .npy file.
    Raises NotFound, Unreadable (naming the row) and ConfigError.
    """
    if order not in (None, "xyz", "zyx"):
        raise ConfigError(f"order {order!r}: 'xyz' or 'zyx' was expected.")
    return point_formats.read(str(path), lambda format: format.open(str(path), order))


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
