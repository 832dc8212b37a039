"""Images in NumPy's files, which have voxels alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import NotFound, Unreadable
from daskreg.storage.axes import guessed_axes
from daskreg.storage.format import ImageFormat, first_bytes
from daskreg.storage.formats.lazy import Box, lazy_voxels, slab_chunks
from daskreg.storage.formats.point_array import MAGIC, array_header
from daskreg.storage.fs.address import Address
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.zarr.nodes import check_dtype


class NpyImage(ImageFormat):
    """An array of at least three axes in a .npy file, read by planes. It names no axes and states no voxel size."""

    name = "NumPy array"
    endings = (".npy",)
    writes = False
    leading_axes = True
    remote = False

    def sniff(self, path: str) -> bool:
        """By the number of axes: points have two."""
        return first_bytes(path, len(MAGIC)) == MAGIC and len(array_header(path, "an image")[0]) > 2

    def open(self, address: Address) -> ImageRecord:
        """All of the array."""
        path = address.path
        if address.level is not None or address.array is not None:
            raise NotFound(f"{address.text}: a .npy file has one array, without levels; leave the key out.")
        shape, dtype = array_header(path, "an image")
        if len(shape) < 3:
            raise Unreadable(f"{path} holds an array of shape {shape}; three axes (z, y, x) were expected.")
        check_dtype(dtype, path)
        chunks = slab_chunks(shape, dtype.itemsize)
        voxels = lazy_voxels(partial(_read, path), shape, dtype.newbyteorder("="), chunks)
        return ImageRecord(address.text, self.name, voxels, guessed_axes(None, len(shape)), None, chunks)


def _read(path: str, box: Box) -> NDArray[Any]:
    with read_errors(path):
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        found = np.asarray(stored[box])
    return np.ascontiguousarray(found, found.dtype.newbyteorder("="))
