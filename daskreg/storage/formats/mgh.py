"""Images of FreeSurfer (.mgz, .mgh), read by planes; a compressed one from its start."""

from __future__ import annotations

import io
import math
import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, Unreadable
from daskreg.grid import Grid
from daskreg.storage.axes import Axis
from daskreg.storage.format import ImageFormat
from daskreg.storage.formats.compressed import opened
from daskreg.storage.formats.nifti import NiftiVoxels, check_length, slab_chunks_of
from daskreg.storage.formats.nifti_header import lps_from_ras
from daskreg.storage.fs.address import Address, is_remote
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.grid_metadata import GridMetadata
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.zarr.nodes import check_dtype

if TYPE_CHECKING:
    import dask.array as da
    import nibabel as nib
else:
    da, nib = DeferredModule("dask.array"), DeferredModule("nibabel")

HEADER_BYTES = 284  # before the voxels
SPACE = (Axis("z", "space"), Axis("y", "space"), Axis("x", "space"))
MILLISECONDS = "millisecond"  # of the repetition time


class MghImage(ImageFormat):
    """FreeSurfer's format: scanner coordinates, RAS, millimetres; several frames are times."""

    name = "MGH"
    endings = (".mgz", ".mgh", ".mgh.gz")
    writes = False
    leading_axes = True

    def open(self, address: Address) -> ImageRecord:
        """All frames. Raises NotFound, Unreadable, and ConfigError for keys that do not apply."""
        path = address.path
        if address.level is not None or address.array is not None:
            raise ConfigError(f"{address.text}: an MGH file has no levels and no arrays inside; leave the key out.")
        header = _header(path)
        voxels = MghVoxels(path, header)
        check_dtype(voxels.stored, path)
        check_length(voxels)
        chunks = slab_chunks_of(voxels)
        data = da.from_array(voxels, chunks=chunks, name=False, meta=np.empty((0,) * voxels.ndim, voxels.dtype))
        with read_errors(path):
            grid = Grid.from_matrix((1, 1, 1), lps_from_ras(header.get_affine()), "millimeter")
        step = _repetition_time(voxels) if voxels.ndim == 4 else 0.0
        time = Axis("t", "time", MILLISECONDS, scale=step) if step > 0 else Axis("t", "time")
        axes = (time, *SPACE) if voxels.ndim == 4 else SPACE
        return ImageRecord(address.text, self.name, data, axes, GridMetadata.of(grid), chunks)


class MghVoxels(NiftiVoxels):
    """The voxels of a file as an array (.., Z, Y, X); they are big-endian, and never scaled."""

    goes_on = True

    def __init__(self, path: str, header: Any) -> None:
        """``header`` is nibabel's header of ``path``."""
        self.path = path if is_remote(path) else os.path.abspath(path)
        self.stored = np.dtype(header.get_data_dtype()).newbyteorder(">")
        self.shape = tuple(int(n) for n in reversed(header.get_data_shape()))
        self.ndim, self.offset = len(self.shape), HEADER_BYTES
        self.scaled, self.slope, self.inter = False, 1.0, 0.0
        self.dtype = self.stored.newbyteorder("=")


def _repetition_time(voxels: NiftiVoxels) -> float:
    """Milliseconds, which stand behind the voxels; 0 where nothing does."""
    with read_errors(voxels.path), opened(voxels.path, check=False) as file:
        file.seek(voxels.offset + math.prod(voxels.shape) * voxels.stored.itemsize)
        found = file.read(4)
    return float(struct.unpack(">f", found)[0]) if len(found) == 4 else 0.0


def _header(path: str) -> Any:
    """Nibabel's. Raises NotFound, Unreadable."""
    with read_errors(path), opened(path, check=False) as file:
        start = file.read(HEADER_BYTES)
    if len(start) < HEADER_BYTES or start[:4] != b"\0\0\0\1":
        raise Unreadable(f"{path} does not start with an MGH header; a file of FreeSurfer (.mgz, .mgh) was expected.")
    with read_errors(path):
        header = nib.freesurfer.mghformat.MGHHeader.from_fileobj(io.BytesIO(start), check=False)
        shape = header.get_data_shape()
    if len(shape) < 3 or min(shape) < 1:
        raise Unreadable(f"{path} has shape {tuple(shape)}; three positive numbers of voxels, or four, were expected.")
    return header
