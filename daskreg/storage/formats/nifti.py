"""NIfTI images, read by regions and written plane by plane."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, InputError, Unreadable
from daskreg.grid import Grid
from daskreg.storage.axes import Axis
from daskreg.storage.format import Array, ImageFormat
from daskreg.storage.formats.compressed import is_compressed, opened
from daskreg.storage.formats.nifti_header import (
    header_bytes,
    header_grid,
    nifti_header,
    read_header,
    scaled_dtype,
    scaling,
    voxel_offset,
)
from daskreg.storage.formats.streaming import SLAB_BYTES, open_output, slabs
from daskreg.storage.fs.address import Address, is_remote
from daskreg.storage.fs.claims import DEFLATE_RATIO, require_held, require_memory
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.image_record import ImageRecord, VoxelSource
from daskreg.storage.zarr.nodes import check_dtype

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

log = logging.getLogger(__name__)

TIME_UNITS = {"sec": "second", "msec": "millisecond", "usec": "microsecond"}  # NIfTI's and NGFF's names
SECONDS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0, "nanosecond": 1e-9}  # of other units of NGFF
NIFTI_AXES = tuple(Axis(n, k) for n, k in (("c", "channel"), ("t", "time"), ("z", "space"), ("y", "space"), ("x", "space")))


class NiftiImage(ImageFormat):
    """NIfTI-1 and NIfTI-2 in one file, compressed or not."""

    name = "NIfTI"
    endings = (".nii.gz", ".nii")
    streams_planes = True

    def sniff(self, path: str) -> bool:
        """By the header, compressed or not."""
        try:
            read_header(path)
        except InputError:
            return False
        return True

    def open(self, address: Address) -> ImageRecord:
        """See ``open_nifti``."""
        return open_nifti(address)

    def write(self, path: str, data: Array, grid: Grid, *, labels: bool = False, axes: tuple[Axis, ...] = ()) -> None:
        """RAS, sform and qform, millimetres where the grid has a unit; time in its unit."""
        dtype = _stored_dtype(np.dtype(data.dtype))
        header = nifti_header(grid, tuple(data.shape), dtype, path)
        for axis in axes:
            _state_time(header, axis)
        with open_output(path) as file:
            file.write(header_bytes(header))
            for volume in data if axes else (data,):
                for slab in slabs(volume):
                    file.write(np.ascontiguousarray(slab, dtype).tobytes())

    def holds(self, axes: tuple[Axis, ...]) -> bool:
        """One axis of time."""
        return [a.kind for a in axes] in ([], ["time"])


class NiftiVoxels:
    """The voxels of a file as an array (.., Z, Y, X), read when it is indexed.

    An uncompressed file is read plane by plane; a compressed one is decompressed from its start, keeping only the planes asked
    for in memory, and once to its end, where its length and checksum are.
    """

    goes_on: ClassVar[bool] = False  # whether a file may have more behind its voxels

    def __init__(self, path: str, header: Any) -> None:
        """``header`` is a nibabel header of ``path``."""
        self.path = path if is_remote(path) else os.path.abspath(path)  # workers may have another working directory
        self.stored = np.dtype(header.get_data_dtype())
        self.shape = tuple(int(n) for n in reversed(header.get_data_shape()))
        self.ndim = len(self.shape)
        self.offset = voxel_offset(header, path)
        scale = scaling(header, path)
        self.scaled = scale is not None
        self.slope, self.inter = scale or (1.0, 0.0)
        wide = scaled_dtype(self.stored, self.slope, self.inter)
        self.dtype = (wide if self.scaled else self.stored).newbyteorder("=")

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of basic slices. Raises Unreadable."""
        parts = _slices(index, self.shape)
        shape = [len(range(*p.indices(n))) for p, n in zip(parts, self.shape, strict=True)]
        require_memory(self.path, math.prod(shape) * self.dtype.itemsize)
        with read_errors(self.path), opened(self.path) as file:
            whole = np.empty(shape, self.dtype)
            self._fill(file, parts, whole)
        return whole[tuple(0 if isinstance(i, int | np.integer) else slice(None) for i in _padded(index, self.ndim))]

    def _fill(self, file: BinaryIO, parts: Sequence[slice], whole: NDArray[Any]) -> None:
        rows, columns = parts[-2:] if self.ndim > 1 else (slice(None), parts[-1])
        lead = [range(*p.indices(n)) for p, n in zip(parts[:-2], self.shape[:-2], strict=True)]
        plane = int(np.prod(self.shape[-2:]))
        for index in np.ndindex(*(len(r) for r in lead)):
            number = int(np.ravel_multi_index([r[i] for r, i in zip(lead, index, strict=True)], self.shape[:-2])) if lead else 0
            file.seek(self.offset + number * plane * self.stored.itemsize)
            voxels = self._plane(file, plane).reshape(self.shape[-2:])[rows, columns]
            whole[index] = voxels * self.slope + self.inter if self.scaled else voxels

    def _plane(self, file: BinaryIO, count: int) -> NDArray[Any]:
        wanted = count * self.stored.itemsize
        data = file.read(wanted)
        if len(data) != wanted:
            raise Unreadable(f"{self.path} is cut short: a plane has {len(data)} of its {wanted} bytes; copy it again.")
        voxels = np.frombuffer(data, self.stored)
        return voxels.astype(np.float64) if self.scaled else voxels


def open_nifti(address: Address) -> ImageRecord:
    """The image in a NIfTI file. Raises NotFound, Unreadable, and ConfigError for keys that do not apply."""
    if address.level is not None or address.array is not None:
        raise ConfigError(f"{address.text}: a NIfTI file has no levels and no arrays inside; leave the key out.")
    require_exists(address.path)
    header = read_header(address.path)
    voxels = NiftiVoxels(address.path, header)
    check_dtype(voxels.stored, address.path)
    check_length(voxels)
    chunks = slab_chunks_of(voxels)
    form = "NIfTI-2" if header.sizeof_hdr == 540 else "NIfTI-1"
    with read_errors(address.path):  # nibabel raises its own exceptions for some headers
        frame, axes = header_grid(header, address.path), _axes(voxels.shape, header)
    data = VoxelSource(voxels.shape, voxels.dtype, partial(_lazy, voxels, chunks))
    return ImageRecord(address.text, form, data, axes, frame, chunks)


def _lazy(voxels: NiftiVoxels, chunks: tuple[int, ...]) -> da.Array:
    data: da.Array = da.from_array(voxels, chunks=chunks, name=False, meta=np.empty((0,) * voxels.ndim, voxels.dtype))
    return data


def check_length(voxels: NiftiVoxels) -> None:
    """Raises Unreadable for a local file that is shorter than its header states, and warns of one that is longer."""
    if is_remote(voxels.path):
        return
    wanted = voxels.offset + math.prod(voxels.shape) * voxels.stored.itemsize
    found = os.path.getsize(voxels.path)
    compressed = is_compressed(voxels.path)
    require_held(voxels.path, wanted, found, DEFLATE_RATIO if compressed else 1)
    if found > wanted and not compressed and not voxels.goes_on:
        _warn_of_length(voxels.path, found, found - wanted)


@cache  # once a file
def _warn_of_length(path: str, found: int, more: int) -> None:
    log.warning("%s has %d bytes, %d more than its header states; is the header right?", path, found, more)


def _axes(shape: Sequence[int], header: Any) -> tuple[Axis, ...]:
    """The fourth axis is time, the fifth holds components; further axes have no name. header: nibabel's."""
    extra = tuple(Axis(f"axis{i}", "other") for i in range(len(shape) - len(NIFTI_AXES)))
    axes = extra + NIFTI_AXES[-len(shape) :]
    return tuple(_timed(a, header) if a.kind == "time" else a for a in axes)


def _timed(axis: Axis, header: Any) -> Axis:
    """The axis with the time of a frame, where the header states one."""
    unit, step, first = TIME_UNITS.get(header.get_xyzt_units()[1]), float(header["pixdim"][4]), float(header["toffset"])
    stated = math.isfinite(step) and step > 0
    return replace(axis, unit=unit, scale=step, origin=first if math.isfinite(first) else 0.0) if stated else axis


def _state_time(header: Any, axis: Axis) -> None:
    """The time of a frame; in seconds where its unit is none that NIfTI has, without a unit where it is none of time."""
    words = {unit: word for word, unit in TIME_UNITS.items()}
    factor = 1.0 if axis.unit in words else SECONDS.get(axis.unit or "", 1.0)
    if axis.unit in words or axis.unit in SECONDS:
        header.set_xyzt_units(header.get_xyzt_units()[0], words.get(axis.unit, "sec"))
    header["pixdim"][4], header["toffset"] = factor * axis.scale, factor * axis.origin


def slab_chunks_of(voxels: NiftiVoxels) -> tuple[int, ...]:
    """Slabs of planes; one chunk for a compressed file, which can only be read from its start."""
    if is_compressed(voxels.path) or voxels.ndim < 3:
        return voxels.shape
    plane = math.prod(voxels.shape[-2:]) * voxels.dtype.itemsize
    slab = max(1, min(voxels.shape[-3], SLAB_BYTES // max(plane, 1)))
    return (*(1 for _ in voxels.shape[:-3]), slab, *voxels.shape[-2:])


def _padded(index: Any, ndim: int) -> tuple[Any, ...]:
    parts = index if isinstance(index, tuple) else (index,)
    return parts + (slice(None),) * (ndim - len(parts))


def _slices(index: Any, shape: Sequence[int]) -> list[slice]:
    parts = _padded(index, len(shape))
    return [p if isinstance(p, slice) else slice(int(p), int(p) + 1) for p in parts]


def _stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type on disk: NIfTI has neither booleans nor half floats."""
    small = {"bool": np.uint8, "float16": np.float32}
    return np.dtype(small.get(dtype.name, dtype)).newbyteorder("<")
