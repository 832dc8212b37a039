"""Points of meshes, through meshio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from daskreg.errors import ConfigError, Unreadable
from daskreg.storage.format import PointFormat
from daskreg.storage.point_file import PointFile, require_finite


class Mesh(PointFormat):
    """A mesh; its cells and data stay with it."""

    name = "mesh"
    endings = (".ply", ".vtk", ".vtu", ".obj", ".off", ".stl")
    meshes = True

    def open(self, path: str, order: str | None) -> PointFile:
        """The mesh's points; their components are x, y, z."""
        mesh = _meshio().read(path)
        points = np.asarray(mesh.points, float)
        if points.ndim != 2 or points.shape[1] != 3:
            raise Unreadable(f"{path} has points of shape {points.shape}; (N, 3) was expected.")
        return PointFile(require_finite(path, points[:, ::-1].copy()), "xyz", mesh=mesh)

    def write(self, path: str, file: PointFile) -> None:
        """By the ending."""
        meshio = _meshio()
        mesh = file.mesh
        moved = meshio.Mesh(file.points[:, ::-1].copy(), mesh.cells, mesh.point_data, mesh.cell_data, mesh.field_data)
        meshio.write(path, moved, file_format=meshio.extension_to_filetypes[Path(path).suffix.lower()][0])


def _meshio() -> Any:
    try:
        import meshio
    except ImportError as error:
        raise ConfigError("meshes are read and written by meshio, which is not installed; pip install meshio.") from error
    return meshio
