"""Read pairs of landmarks from a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError, Unreadable, require_known
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.point_file import commented_header

COLUMNS = ("fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z")
SEPARATOR = re.compile(r"\s*[,;\t]\s*|\s+")
MARK, AXIS = re.compile(r"[,;\t]"), re.compile(r"[xyz]", re.IGNORECASE)
Points = NDArray[np.float64]


def read_landmarks(path: str | Path, space: str = "lps") -> tuple[Points, Points]:
    """Fixed and moving points, (N, 3) each, LPS, order z, y, x, in the unit of the file.

    A CSV table whose header names fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z in any order, among other columns,
    or six columns in that order without a header; empty lines and those that begin with '#' are skipped, but for a header before
    the first pair. space: lps or ras.
    Raises NotFound, Unreadable (naming the row), ConfigError.
    """
    if not isinstance(space, str):
        raise ConfigError(f"landmarks space {space!r}: 'lps' or 'ras' was expected.")
    require_known("landmarks space", space.lower(), ("lps", "ras"))
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
    if space.lower() == "ras":
        xyz *= np.array([-1.0, -1.0, 1.0] * 2)
    return xyz[:, 2::-1].copy(), xyz[:, :2:-1].copy()


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
