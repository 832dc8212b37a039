"""Points in files: tables (.csv, .tsv, .txt), NumPy arrays (.npy) and meshes, and the same files with the points elsewhere."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError, OutputError, Unreadable
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.errors import read_errors, require_exists

TABLES = (".csv", ".tsv", ".txt")
MESHES = (".ply", ".vtk", ".vtu", ".obj", ".off", ".stl")
SEPARATORS = "\t;,"  # the first of them that the first row has is the table's; without one blanks are
Points = NDArray[np.float64]


@dataclass(frozen=True)
class PointFile:
    """Points (N, 3), z, y, x, and what else was in their file.

    order: of the components in the file;  header, rows: of a table, columns: where its x, y and z are;  mesh: of a mesh file
    """

    points: Points
    order: str = "xyz"
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    columns: tuple[int, int, int] = (0, 1, 2)
    mesh: Any = None

    def moved(self, points: Points) -> PointFile:
        """The same file with other points."""
        return replace(self, points=points)


def read_points(path: str | Path, order: str | None = None) -> PointFile:
    """Points of a table whose header names x, y and z (other columns stay), or of three columns without a header; of an array
    (N, 3) in a .npy file; of a mesh (needs meshio).

    order: of columns without names, xyz or zyx; by default xyz, and zyx in a .npy file.
    Raises NotFound, Unreadable (naming the row) and ConfigError.
    """
    if order not in (None, "xyz", "zyx"):
        raise ConfigError(f"order {order!r}: 'xyz' or 'zyx' was expected.")
    name = str(path).lower()
    require_exists(str(path))
    if name.endswith(".npy"):
        return _of_array(str(path), order or "zyx")
    if name.endswith(MESHES):
        return _of_mesh(str(path))
    if name.endswith(TABLES):
        return _of_table(str(path), order or "xyz")
    raise Unreadable(f"{path}: points are read from {', '.join((*TABLES, '.npy', *MESHES))}; choose one of these endings.")


def write_points(path: str | Path, file: PointFile, *, overwrite: bool = False) -> None:
    """Write points by the path's ending, with what else was in the file that they came from.

    Raises OutputExists, OutputError (also where the ending cannot hold what the file was).
    """
    name = str(path).lower()
    values = file.points[:, ::-1] if file.order == "xyz" else file.points
    if not name.endswith((*TABLES, ".npy", *MESHES)):
        raise OutputError(f"{path}: points are written as {', '.join((*TABLES, '.npy', *MESHES))}; choose one of these endings.")
    if name.endswith(MESHES) != (file.mesh is not None):
        raise OutputError(f"{path}: a mesh becomes a mesh ({', '.join(MESHES)}), points become points; choose another ending.")
    with atomic_output(str(path), overwrite) as temporary:
        if name.endswith(".npy"):
            with open(temporary, "wb") as raw:
                np.save(raw, values)
        elif file.mesh is not None:
            _write_mesh(temporary, str(path), file)
        else:
            _write_table(temporary, file, "\t" if name.endswith(".tsv") else ",")


def _of_array(path: str, order: str) -> PointFile:
    with read_errors(path):
        values = np.load(path, allow_pickle=False)
    if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "iuf":
        raise Unreadable(f"{path} holds {values.dtype} of shape {values.shape}; real numbers of shape (N, 3) were expected.")
    points = np.asarray(values, float)
    return PointFile(_finite(path, points[:, ::-1] if order == "xyz" else points), order)


def _of_mesh(path: str) -> PointFile:
    meshio = _meshio()
    with read_errors(path):
        mesh = meshio.read(path)
    points = np.asarray(mesh.points, float)
    if points.ndim != 2 or points.shape[1] != 3:
        raise Unreadable(f"{path} has points of shape {points.shape}; (N, 3) was expected.")
    return PointFile(_finite(path, points[:, ::-1].copy()), "xyz", mesh=mesh)


def _write_mesh(temporary: str, path: str, file: PointFile) -> None:
    meshio = _meshio()
    mesh = file.mesh
    moved = meshio.Mesh(file.points[:, ::-1].copy(), mesh.cells, mesh.point_data, mesh.cell_data, mesh.field_data)
    ending = meshio.extension_to_filetypes[Path(path).suffix.lower()][0]
    meshio.write(temporary, moved, file_format=ending)


def _meshio() -> Any:
    try:
        import meshio
    except ImportError as error:
        raise ConfigError("meshes are read and written by meshio, which is not installed; pip install meshio.") from error
    return meshio


def _of_table(path: str, order: str) -> PointFile:
    with read_errors(path):
        text = Path(path).read_text(encoding="utf-8-sig")
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line and line[0] != "#"]
    separator = next((s for s in SEPARATORS if lines and s in lines[0][1]), " ")
    rows = [(n, _cells(line, separator)) for n, line in lines]
    header: tuple[str, ...] = ()
    columns = (0, 1, 2) if order == "xyz" else (2, 1, 0)
    if rows and not any(_is_number(c) for c in rows[0][1]):
        header, columns, rows = rows[0][1], _columns(path, rows[0][1]), rows[1:]
    if not rows and not header:
        raise Unreadable(f"{path} is empty; a header with the columns x, y, z was expected, or three numbers a row.")
    xyz = np.array([_numbers(path, n, cells, columns, not header) for n, cells in rows]).reshape(-1, 3)
    return PointFile(xyz[:, ::-1].copy(), order, header, tuple(cells for _, cells in rows), columns)


def _cells(line: str, separator: str) -> tuple[str, ...]:
    """Of one row; a quoted cell keeps the separators that are in it."""
    plain = " ".join(line.split()) if separator == " " else line
    return tuple(c.strip().strip("'") for c in next(csv.reader([plain], delimiter=separator, skipinitialspace=True)))


def _columns(path: str, header: tuple[str, ...]) -> tuple[int, int, int]:
    names = [c.lower() for c in header]
    if not {"x", "y", "z"} <= set(names):
        raise Unreadable(f"{path} has the columns {', '.join(header)}; x, y and z were expected among them: rename them.")
    return names.index("x"), names.index("y"), names.index("z")


def _numbers(path: str, row: int, cells: tuple[str, ...], columns: tuple[int, int, int], bare: bool) -> list[float]:
    try:
        values = [float(cells[k]) for k in columns]
    except (ValueError, IndexError):
        values = [float("nan")]
    if not np.isfinite(values).all() or (bare and len(cells) != 3):
        raise Unreadable(f"{path}, row {row}: found {', '.join(cells)!r}; three finite numbers x, y, z were expected.")
    return values


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _finite(path: str, points: Points) -> Points:
    wrong = ~np.isfinite(points).all(axis=1)
    if wrong.any():
        raise Unreadable(f"{path}: point {int(np.flatnonzero(wrong)[0])} is not finite; remove it.")
    return np.ascontiguousarray(points)


def _write_table(temporary: str, file: PointFile, separator: str) -> None:
    with open(temporary, "w", encoding="utf-8", newline="") as raw:
        table = csv.writer(raw, delimiter=separator, lineterminator="\n")
        if file.header:
            table.writerow(file.header)
        for k, (z, y, x) in enumerate(file.points):
            cells = list(file.rows[k]) if file.rows else [""] * 3
            for column, value in zip(file.columns if file.rows else _order(file.order), (x, y, z), strict=True):
                cells[column] = repr(float(value))
            table.writerow(cells)


def _order(order: str) -> tuple[int, int, int]:
    return (0, 1, 2) if order == "xyz" else (2, 1, 0)
