"""Points of meshes, through meshio."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from daskreg.errors import ConfigError, Unreadable
from daskreg.storage.format import PointFormat
from daskreg.storage.fs.claims import DEFLATE_RATIO, require_held
from daskreg.storage.point_file import PointFile, require_finite

PATHS = ("stl", "vtk", "vtu")  # of which meshio reads paths only
TEXT = ("obj", "off")
MOST_ENDS = 100  # reads at the end of a file
START = 1 << 16  # bytes at the start of a file that state how many points and cells it has
COUNTS = re.compile(  # of PLY, VTK, VTU and OFF
    rb"^element\s+\w+\s+(\d+)|^(?:POINTS|CELLS|POLYGONS|CELL_TYPES|POINT_DATA|CELL_DATA)\s+(\d+)(?:\s+(\d+))?"
    rb"|NumberOf(?:Points|Cells)\s*=\s*\"(\d+)\"|^OFF\s+(\d+)\s+(\d+)",
    re.M,
)


class Mesh(PointFormat):
    """A mesh; its cells and data stay with it."""

    name = "mesh"
    endings = (".ply", ".vtk", ".vtu", ".obj", ".off", ".stl")
    library = "meshio"
    remote = False
    meshes = True

    def open(self, path: str, order: str | None) -> PointFile:
        """The mesh's points; their components are x, y, z."""
        _require_counts(path)
        mesh = _read(path)
        points = np.asarray(mesh.points, float)
        if not points.size:
            raise Unreadable(f"{path} has no points; a mesh was expected.")
        if points.ndim != 2 or points.shape[1] != 3:
            raise Unreadable(f"{path} has points of shape {points.shape}; (N, 3) was expected.")
        return PointFile(require_finite(path, points[:, ::-1].copy()), "xyz", mesh=mesh)

    def write(self, path: str, file: PointFile) -> None:
        """By the ending."""
        meshio = _meshio()
        mesh = file.mesh
        moved = meshio.Mesh(file.points[:, ::-1].copy(), mesh.cells, mesh.point_data, mesh.cell_data, mesh.field_data)
        meshio.write(path, moved, file_format=meshio.extension_to_filetypes[Path(path).suffix.lower()][0])


class BoundedReader(io.BufferedReader):
    """A file that raises EOFError where a reader goes on at its end: some of meshio's would for ever."""

    _ends = 0

    def readline(self, size: int | None = -1) -> bytes:
        """As of any file."""
        return self._counted(super().readline(-1 if size is None else size))

    def read(self, size: int | None = -1) -> bytes:
        """As of any file."""
        return self._counted(super().read(-1 if size is None else size))

    def read1(self, size: int = -1) -> bytes:
        """As of any file."""
        return self._counted(super().read1(size))

    def _counted(self, content: bytes) -> bytes:
        self._ends += not content
        if self._ends > MOST_ENDS:
            raise EOFError("the file ends too early")
        return content


def _read(path: str) -> Any:
    """By the reader of the ending: ``meshio.read`` ends the process where it cannot read a file."""
    kind = Path(path).suffix.lower()[1:]
    reader = getattr(_meshio(), kind)
    if kind in PATHS:
        with np.errstate(over="ignore"):  # meshio tries whether text is binary
            return reader.read(path)
    file = BoundedReader(io.FileIO(path))
    with io.TextIOWrapper(file, encoding="utf-8") if kind in TEXT else file as opened:
        return reader.read(opened)


def _require_counts(path: str) -> None:
    """Raises Unreadable where the start of a mesh states more points or cells than the file can hold."""
    size = os.path.getsize(path)
    if size == 0:
        raise Unreadable(f"{path} is empty; a mesh was expected.")
    with open(path, "rb") as file:
        start = file.read(START)
    compressed = DEFLATE_RATIO if b"compressor=" in start else 1
    counts = [int(n) for found in COUNTS.findall(start) for n in found if n]
    if path.lower().endswith(".stl") and not start.lstrip().startswith(b"solid"):
        counts.append(int.from_bytes(start[80:84], "little"))
    require_held(path, max(counts, default=0), size, compressed)  # each of them takes a byte at least


def _meshio() -> Any:
    try:
        import meshio
    except ImportError as error:
        raise ConfigError(
            "meshes are read and written by meshio, which is not installed; pip install 'daskreg[mesh]'."
        ) from error
    return meshio
