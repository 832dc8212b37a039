"""Datasets of HDF5 files that say no more of themselves than ilastik and Fiji do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import NotFound, Unreadable
from daskreg.storage.axes import Axis, guessed_axes, spatial
from daskreg.storage.format import ImageFormat
from daskreg.storage.formats.hdf5 import has_external_data, is_hdf5, own_member
from daskreg.storage.formats.lazy import Box, lazy_voxels
from daskreg.storage.fs.address import Address
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.grid_metadata import GridMetadata, triple
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.zarr.nodes import check_dtype, dask_chunks

if TYPE_CHECKING:
    import h5py
else:
    h5py = DeferredModule("h5py")

SHOWN = 12
SIZE = "element_size_um"  # of Fiji's HDF5 plug-in: z, y, x
TAGS = "axistags"  # of vigra and ilastik


class Hdf5Image(ImageFormat):
    """A dataset of at least three axes. Voxel sizes from ``element_size_um``, axes from ``axistags`` or labels of dimensions."""

    name = "HDF5"
    endings = (".h5", ".hdf5", ".hdf")
    writes = False
    leading_axes = True
    remote = False

    def sniff(self, path: str) -> bool:
        """By the first bytes."""
        return is_hdf5(path)

    def open(self, address: Address) -> ImageRecord:
        """The dataset ``::array=``, or the only one there is. Raises NotFound, Unreadable listing those there are."""
        path = address.path
        if not is_hdf5(path):
            raise Unreadable(f"{path} is no HDF5 file, although its name says so; it may be damaged: copy it again.")
        if address.level is not None:
            raise NotFound(f"{path} has no level {address.level!r}: its datasets are chosen with '::array=PATH'.")
        with h5py.File(path, "r") as file:
            place = _place(file, address)
            data = own_member(path, file, place)
            if not isinstance(data, h5py.Dataset):
                raise NotFound(f"{path} has no dataset {place!r}; it has {_listed(_datasets(file)) or 'none'}.")
            shape, dtype = tuple(data.shape), data.dtype.newbyteorder("=")
            check_dtype(dtype, f"{path}::array={place}")
            stored, piece, axes = data.chunks or data.shape, data.chunks, _axes(data)
            metadata = _grid(data, axes)
        chunks = dask_chunks(shape, stored, None, dtype.itemsize)
        voxels = lazy_voxels(partial(_read, path, place), shape, dtype, chunks, piece)
        return ImageRecord(address.text, self.name, voxels, axes, metadata, tuple(stored))


def _place(file: Any, address: Address) -> str:
    if address.array is not None:
        return address.array
    found = _datasets(file)
    if len(found) == 1:
        return next(iter(found))
    if "t00000" in file:
        raise Unreadable(
            f"{address.path} is a file of BigDataViewer; open its .xml, which says where voxels are, or choose a dataset with "
            f"'::array={min(found, default='t00000/s00/0/cells')},spacing=ZxYxX'."
        )
    if found:
        raise Unreadable(
            f"{address.path} holds {len(found)} datasets; choose one with '::array={min(found)}' (there are {_listed(found)})."
        )
    raise Unreadable(
        f"{address.path} is an HDF5 file with {', '.join(sorted(file)) or 'nothing'} in it, but no dataset of 3 axes."
    )


def _datasets(file: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the datasets of numbers with at least three axes, by their path."""
    found: dict[str, tuple[int, ...]] = {}

    def look(name: str, member: Any) -> None:
        usable = isinstance(member, h5py.Dataset) and not has_external_data(member)
        if usable and member.ndim >= 3 and member.dtype.kind in "biuf":
            found[name] = member.shape

    file.visititems(look)
    return found


def _listed(found: Mapping[str, tuple[int, ...]]) -> str:
    names = [f"{name} ({'x'.join(map(str, shape))})" for name, shape in sorted(found.items())]
    return ", ".join(names[:SHOWN]) + ", .." * (len(names) > SHOWN)


def _axes(data: Any) -> tuple[Axis, ...]:
    names = [d.label or None for d in data.dims]
    if TAGS in data.attrs:
        tree = json.loads(_text(data.attrs[TAGS]))
        found = tree.get("axes") if isinstance(tree, dict) else None
        if isinstance(found, list) and all(isinstance(a, Mapping) for a in found):
            names = [str(a.get("key")) for a in found]
    return guessed_axes(names, data.ndim)


def _grid(data: Any, axes: tuple[Axis, ...]) -> GridMetadata | None:
    if SIZE not in data.attrs or spatial(axes) is None:
        return None
    sizes = np.ravel(np.asarray(data.attrs[SIZE], float))
    if len(sizes) != 3 or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        return None
    return GridMetadata(triple(sizes), unit="micrometer")


def _text(stored: Any) -> str:
    return stored.decode() if isinstance(stored, bytes) else str(stored)


def _read(path: str, place: str, box: Box) -> NDArray[Any]:
    with read_errors(path), h5py.File(path, "r") as file:
        found = np.asarray(own_member(path, file, place)[box])
    return found.astype(found.dtype.newbyteorder("="), copy=False)
