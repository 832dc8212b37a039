"""An image as it is stored, before a channel, a level or a voxel size is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da

from daskreg.storage.axes import Axis
from daskreg.storage.grid_metadata import GridMetadata
from daskreg.storage.zarr.nodes import CheckedArray


@dataclass(frozen=True)
class Resolution:
    """One resolution of a store: its path, and shape and spacing along z, y, x (along all axes when these are not three)."""

    path: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class ImageRecord:
    """data: all axes as stored, lazily;  grid_metadata: the stated grid (z, y, x), None without one;
    chunks: as stored;  channels: labels;  stored: the array that ``data`` reads, where it is in a Zarr store.
    """

    name: str
    format: str
    data: da.Array
    axes: tuple[Axis, ...]
    grid_metadata: GridMetadata | None
    chunks: tuple[int, ...]
    levels: tuple[Resolution, ...] = ()
    channels: tuple[str, ...] = ()
    stored: CheckedArray | None = None
