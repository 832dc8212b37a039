"""Points in tables: text with a row a point."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from daskreg.errors import Unreadable
from daskreg.storage.format import PointFormat
from daskreg.storage.point_file import PointFile, commented_header

NAPARI = ("axis-0", "axis-1", "axis-2")
SEPARATORS = "\t;,"  # the first of them that the first row has is the table's; without one blanks are


class PointTable(PointFormat):
    """A table whose header, which may stand behind '#', names x, y and z among other columns, or three columns without one."""

    name = "table of points"
    endings = (".csv", ".tsv", ".txt")
    remote = False

    def open(self, path: str, order: str | None) -> PointFile:
        """Columns without names are x, y, z by default."""
        return _read(path, order)

    def write(self, path: str, file: PointFile) -> None:
        """Separated as the table that it comes from, else by commas; in .tsv by tabs, in .csv never by blanks."""
        blank = file.separator == " " and path.lower().endswith(".csv")
        _write(path, file, "\t" if _by_tabs(path) else "," if blank else file.separator)


def _read(path: str, order: str | None) -> PointFile:
    text = _text(path)
    written = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in written if line and line[0] != "#"]
    separator = next((s for s in SEPARATORS if lines and s in lines[0][1]), " ")
    rows = [(n, _cells(line, separator)) for n, line in lines]
    if rows and any(map(_is_number, rows[0][1])):
        split = partial(_cells, separator=separator)
        rows = commented_header(written, rows, split, lambda line: _names_axes(split(line))) + rows
    header: tuple[str, ...] = ()
    columns = _order(order or "xyz")
    if rows and not any(_is_number(c) for c in rows[0][1]):
        header, columns, rows = rows[0][1], _columns(path, rows[0][1], order), rows[1:]
    if not rows and not header:
        raise Unreadable(f"{path} is empty; a header with the columns x, y, z was expected, or three numbers a row.")
    xyz = np.array([_numbers(path, n, cells, columns, not header) for n, cells in rows]).reshape(-1, 3)
    cells, kept = tuple(cells for _, cells in rows), "," if _by_tabs(path) else separator
    return PointFile(xyz[:, ::-1].copy(), order or "xyz", header, cells, columns, kept, lines=tuple(n for n, _ in rows))


def _names_axes(cells: Sequence[str]) -> bool:
    return {"x", "y", "z"} <= {c.lower() for c in cells}


def _by_tabs(path: str) -> bool:
    return path.lower().endswith(".tsv")


def _text(path: str) -> str:
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} is no text in UTF-8 (byte {error.start}); save the table as that.") from None
    if "\0" in text:
        raise Unreadable(f"{path} is no text, it has bytes of 0; a table of points was expected.")
    return text


def _cells(line: str, separator: str) -> tuple[str, ...]:
    """Of one row; a quoted cell keeps the separators that are in it."""
    plain = " ".join(line.split()) if separator == " " else line
    return tuple(c.strip().strip("'") for c in next(csv.reader([plain], delimiter=separator, skipinitialspace=True)))


def _columns(path: str, header: tuple[str, ...], order: str | None) -> tuple[int, int, int]:
    """Those named x, y and z or, where these are not all there, X, Y and Z; of napari by ``order``.

    Raises Unreadable where none are, or several.
    """
    if tuple(cell for cell in header if cell.startswith("axis-")) == NAPARI:
        return _columns_of_napari(path, header, order)
    names = next((names for names in ("xyz", "XYZ") if set(names) <= set(header)), None)
    if names is None and any({name, name.upper()} <= set(header) for name in "xyz"):
        raise Unreadable(f"{path} has the columns {', '.join(header)}: neither x, y, z nor X, Y, Z are all there; rename them.")
    x, y, z = (_column(path, header, name) for name in names or "xyz")
    return x, y, z


def _columns_of_napari(path: str, header: tuple[str, ...], order: str | None) -> tuple[int, int, int]:
    """Its points have the axes of the image, whichever these are."""
    if order is None:
        raise Unreadable(
            f"{path} has the columns {', '.join(header)}, as napari writes them, which do not say which axis is x: for an image "
            "z, y, x add --order zyx, and --space index where they are voxels."
        )
    x, y, z = (header.index(NAPARI[k]) for k in _order(order))
    return x, y, z


def _column(path: str, header: tuple[str, ...], name: str) -> int:
    """The column of this name, or else of this name in upper case. Raises Unreadable where there is none, or several."""
    for named in (name, name.upper()):
        found = [k for k, cell in enumerate(header) if cell == named]
        if len(found) == 1:
            return found[0]
        if found:
            raise Unreadable(f"{path} has {len(found)} columns named {named!r} among {', '.join(header)}; rename all but one.")
    some = any({n, n.upper()} & set(header) for n in "xyz")
    mend = f"none is {name}: add it, or rename the one that holds it" if some else "rename them"
    raise Unreadable(f"{path} has the columns {', '.join(header)}; x, y and z were expected among them: {mend}.")


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


def _write(path: str, file: PointFile, separator: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as raw:
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
