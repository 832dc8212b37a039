"""Read pairs of landmarks from a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.errors import ArrayError, ConfigError, Unreadable, require_known
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.point_file import commented_header

COLUMNS = ("fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z")
SEPARATOR = re.compile(r"\s*[,;\t]\s*|\s+")
MARK, AXIS = re.compile(r"[,;\t]"), re.compile(r"[xyz]", re.IGNORECASE)
Points = NDArray[np.float64]


Landmarks = str | Path | Sequence[ArrayLike]  # a table, or points of fixed and moving (N, 3), z, y, x


class LandmarkPairs(NamedTuple):
    """Points of the fixed and of the moving image, (N, 3) each, and in which lines of a table each pair is."""

    fixed: Points
    moving: Points
    lines: tuple[int, ...] = ()


def read_landmarks(source: Landmarks, space: str = "lps") -> LandmarkPairs:
    """Fixed and moving points, (N, 3) each, LPS, order z, y, x, in the unit of the file, or as a pair of arrays has them.

    A CSV table whose header names fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z in any order, among other columns,
    or six columns in that order without a header; empty lines and those that begin with '#' are skipped, but for a header before
    the first pair. space: lps or ras.
    Raises NotFound, Unreadable (naming the row), ConfigError, ArrayError.
    """
    if not isinstance(space, str):
        raise ConfigError(f"landmarks space {space!r}: 'lps' or 'ras' was expected.")
    require_known("landmarks space", space.lower(), ("lps", "ras"))
    pairs = _of_table(source) if isinstance(source, str | Path) else _of_arrays(source)
    turn = np.array([1.0, -1.0, -1.0] if space.lower() == "ras" else [1.0, 1.0, 1.0])
    return pairs._replace(fixed=pairs.fixed * turn, moving=pairs.moving * turn)


def _of_arrays(source: Any) -> LandmarkPairs:
    """Of a pair of arrays. Raises ArrayError."""
    expected = "the path of a CSV table, or a pair (fixed, moving) of arrays (N, 3), z, y, x"
    try:
        pair = [np.asarray(points, float) for points in source]
    except (TypeError, ValueError):
        raise ArrayError(f"landmarks are a {type(source).__name__}; {expected}, was expected.") from None
    if len(pair) != 2 or pair[0].shape != pair[1].shape or pair[0].ndim != 2 or pair[0].shape[1] != 3 or not len(pair[0]):
        found = f"of shape {shape}" if (shape := getattr(source, "shape", None)) else f"of shapes {[p.shape for p in pair[:3]]}"
        raise ArrayError(f"landmarks {found} were given; {expected}, was expected.")
    if not np.isfinite(pair).all():
        raise ArrayError("landmarks hold NaN or infinite numbers; finite ones were expected.")
    return LandmarkPairs(pair[0], pair[1])


def _of_table(path: str | Path) -> LandmarkPairs:
    require_exists(str(path))
    with read_errors(str(path)):
        text = Path(path).read_text(encoding="utf-8-sig")
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    rows = [(n, SEPARATOR.split(line)) for n, line in lines if line and line[0] != "#"]
    if rows and _are_numbers(rows[0][1]):
        rows = commented_header(lines, rows, SEPARATOR.split, _are_names) + rows
    order, rows = _columns(str(path), rows)
    if not rows:
        raise Unreadable(f"{path} holds no landmarks; a pair a row was expected, with the columns {', '.join(COLUMNS)}.")
    xyz = np.array([_numbers(str(path), n, cells, order) for n, cells in rows])
    return LandmarkPairs(xyz[:, 2::-1].copy(), xyz[:, :2:-1].copy(), tuple(n for n, _ in rows))


Row = tuple[int, list[str]]


def _are_names(line: str) -> bool:
    """Whether a comment has names of columns, as a sentence has not: a separator between all, or an axis in each."""
    cells = SEPARATOR.split(line)
    separated = len(MARK.findall(line)) == len(cells) - 1
    return (separated or all(AXIS.search(c) for c in cells)) and not _are_numbers(cells)


def _columns(path: str, rows: list[Row]) -> tuple[list[int], list[Row]]:
    """Where each of COLUMNS is, and the rows that are not the header."""
    if not rows or _are_numbers(rows[0][1]):
        found = len(rows[0][1]) if rows else len(COLUMNS)
        if found != len(COLUMNS):
            raise Unreadable(f"{path} has {found} columns and no header; six were expected: {', '.join(COLUMNS)}.")
        return list(range(6)), rows
    names = [c.strip("\"'").lower() for c in rows[0][1]]
    lacking = [c for c in COLUMNS if c not in names]
    if lacking:
        raise Unreadable(f"{path} lacks the columns {', '.join(lacking)}; its header is {', '.join(names)}: rename its columns.")
    return [names.index(c) for c in COLUMNS], rows[1:]


def _are_numbers(cells: Sequence[str]) -> bool:
    """A header is a row without a single number: a typing error in the first pair is no header."""
    return any(_is_number(c) for c in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(path: str, row: int, cells: list[str], order: list[int]) -> list[float]:
    try:
        values = [float(cells[k]) for k in order]
    except (ValueError, IndexError):
        raise Unreadable(f"{path}, row {row}: found {', '.join(cells)!r}; six numbers were expected.") from None
    if not np.isfinite(values).all():
        raise Unreadable(f"{path}, row {row}: found {', '.join(cells)!r}; finite numbers were expected.")
    return values
