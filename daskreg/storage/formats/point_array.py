"""Points in NumPy arrays."""

from __future__ import annotations

import numpy as np

from daskreg.errors import Unreadable
from daskreg.storage.format import PointFormat
from daskreg.storage.point_file import PointFile, require_finite


class PointArray(PointFormat):
    """An array (N, 3) in a .npy file."""

    name = "NumPy array of points"
    endings = (".npy",)

    def open(self, path: str, order: str | None) -> PointFile:
        """Components are z, y, x by default."""
        values = np.load(path, allow_pickle=False)
        if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "iuf":
            raise Unreadable(f"{path} holds {values.dtype} of shape {values.shape}; real numbers of shape (N, 3) were expected.")
        points = np.asarray(values, float)
        return PointFile(require_finite(path, points[:, ::-1] if order == "xyz" else points), order or "zyx")

    def write(self, path: str, file: PointFile) -> None:
        """In the order that they were read in."""
        with open(path, "wb") as raw:
            np.save(raw, file.points[:, ::-1] if file.order == "xyz" else file.points)
