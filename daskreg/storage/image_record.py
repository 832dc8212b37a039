"""An image as it is stored, before a channel, a level or a voxel size is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.storage.axes import Axis
from daskreg.storage.grid_metadata import GridMetadata
from daskreg.storage.zarr.nodes import CheckedArray

if TYPE_CHECKING:
    import dask.array as da


@dataclass(frozen=True)
class Resolution:
    """One resolution of a store: its path, and shape and spacing along z, y, x (along all axes when these are not three)."""

    path: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class VoxelSource:
    """Shape and type of stored voxels, all axes, and how to open them as a Dask array: who only describes them does not."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], da.Array]


@dataclass(frozen=True)
class ImageRecord:
    """voxels: all axes as stored, as a Dask array or what opens one;  grid_metadata: the stated grid (z, y, x), None without one;
    chunks: as stored;  channels: labels;  colors: of the channels, RRGGBB, where the format keeps them;
    stored: the array that ``data`` reads, where it is in a Zarr store;  partial_spacing: z, y, x in ``partial_unit``, None where
    not stated, of a format that states voxel sizes along some axes;
    piece: voxels that are decoded at once, all axes, where these are fewer than a chunk.
    """

    name: str
    format: str
    voxels: da.Array | VoxelSource
    axes: tuple[Axis, ...]
    grid_metadata: GridMetadata | None
    chunks: tuple[int, ...]
    levels: tuple[Resolution, ...] = ()
    channels: tuple[str, ...] = ()
    stored: CheckedArray | None = None
    colors: tuple[str, ...] = ()
    partial_spacing: tuple[float | None, ...] = ()
    partial_unit: str = ""
    piece: tuple[int, ...] | None = None

    @cached_property
    def data(self) -> da.Array:
        """All axes as stored, lazily."""
        return self.voxels.open() if isinstance(self.voxels, VoxelSource) else self.voxels

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all axes as stored."""
        return tuple(self.voxels.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored voxels."""
        dtype: np.dtype[Any] = self.voxels.dtype
        return dtype
