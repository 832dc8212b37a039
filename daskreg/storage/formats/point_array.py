"""Points in NumPy arrays."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable
from daskreg.storage.format import PointFormat, first_bytes
from daskreg.storage.fs.claims import require_held
from daskreg.storage.point_file import PointFile, require_finite

MAGIC = b"\x93NUMPY"


class PointArray(PointFormat):
    """An array (N, 3) in a .npy file."""

    name = "NumPy array of points"
    endings = (".npy",)
    remote = False

    def sniff(self, path: str) -> bool:
        """By the number of axes: images have three or more."""
        return first_bytes(path, len(MAGIC)) == MAGIC and len(array_header(path, "points")[0]) <= 2

    def open(self, path: str, order: str | None) -> PointFile:
        """Components are z, y, x by default; a table that they are written to has a header, which says their order."""
        values = _load(path)
        if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "iuf":
            raise Unreadable(
                f"{path} holds {values.dtype} of shape {values.shape}; points are real numbers of shape (N, 3), and an image has "
                "three axes (z, y, x)."
            )
        points = np.asarray(values, float)
        return PointFile(
            require_finite(path, points[:, ::-1] if order == "xyz" else points), order or "zyx", tuple(order or "zyx")
        )

    def write(self, path: str, file: PointFile) -> None:
        """In the order that they were read in."""
        with open(path, "wb") as raw:
            np.save(raw, file.points[:, ::-1] if file.order == "xyz" else file.points)


def _load(path: str) -> NDArray[Any]:
    """The array, of which the header says no more than the file holds. Raises Unreadable."""
    array_header(path, "points of shape (N, 3)")
    values: NDArray[Any] = np.load(path, allow_pickle=False)
    return values


def array_header(path: str, expected: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in a .npy file. Raises Unreadable where it is none, or says more than the file holds."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise Unreadable(f"{path} is no NumPy array (.npy); {expected} was expected.")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        begin = file.tell()
    require_held(path, math.prod(shape) * dtype.itemsize, os.path.getsize(path) - begin)
    return shape, dtype
