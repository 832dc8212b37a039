"""An image, or several on one grid: lazy voxels and where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import InputError, Unreadable
from daskreg.grid import Grid, Region, Span
from daskreg.html import table
from daskreg.storage.axes import Axis
from daskreg.storage.fs.claims import require_memory
from daskreg.storage.fs.errors import reason
from daskreg.storage.image_record import Resolution
from daskreg.storage.zarr.stored import StoredVoxels

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")


@dataclass(frozen=True)
class Volume:
    """An image: lazy voxels ``data`` (Z, Y, X) of any real type, and their grid.

    name: the address as given;  format: how it is stored;  levels: resolutions in the store;  channels: their labels;
    stored: where ``data`` is voxels of a Zarr store as they are;  decoded: voxels that are decoded at once, where known;
    unpermuted: name of ``data``, of what array it has the axes in another order, and that order: boxes of that are read alone.
    """

    data: da.Array
    grid: Grid
    name: str = "array"
    format: str = "array"
    levels: tuple[Resolution, ...] = ()
    channels: tuple[str, ...] = ()
    stored: StoredVoxels | None = None
    decoded: tuple[int, int, int] | None = None
    unpermuted: tuple[str, da.Array, tuple[int, int, int]] | None = None

    @property
    def piece(self) -> tuple[int, int, int]:
        """Voxels that are decoded at once: of a chunk, a strip or a tile."""
        if self.stored is not None and self.stored.name == self.data.name:
            return self.stored.chunk
        z, y, x = (int(n) for n in self.data.chunksize)
        return self.decoded or (z, y, x)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored voxels."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        return self.grid.shape

    def __repr__(self) -> str:
        return f"Volume({self.name!r}, {self.dtype}, {self.grid.summary()})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All voxels (Z, Y, X), in their own type, for ``np.asarray``. copy: a new array is always made, so False is refused."""
        if copy is False:
            raise ValueError(f"{self.name} is read when it is computed; an array of it is a copy.")
        return np.asarray(self.data, dtype)

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [("name", self.name), ("format", self.format), ("voxels", self.dtype),
                                          ("grid", self.grid.summary())]  # fmt: skip
        rows += [("levels", len(self.levels))] if self.levels else []
        rows += [("channels", ", ".join(self.channels))] if self.channels else []
        return table("Volume (z, y, x), read when it is computed", rows)

    def permute(self, order: tuple[int, int, int]) -> Volume:
        """The same image with axis ``order[0]`` first."""
        if order == (0, 1, 2):
            return self
        data = self.data.transpose(order)
        known = self.stored is not None and self.stored.name == self.data.name
        stored = self.stored.permute(order, data.name) if self.stored is not None and known else None
        z, y, x = order
        decoded = self.decoded and (self.decoded[z], self.decoded[y], self.decoded[x])
        before, source = self._unpermuted()
        unpermuted = data.name, source, (before[z], before[y], before[x])
        made = replace(self, data=data, grid=self.grid.permute(order), stored=stored)
        return replace(made, decoded=decoded, unpermuted=unpermuted)

    def _unpermuted(self) -> tuple[tuple[int, int, int], da.Array]:
        """The array whose axes ``data`` has in another order, and that order."""
        if self.unpermuted is None or self.unpermuted[0] != self.data.name:
            return (0, 1, 2), self.data
        _, source, order = self.unpermuted
        return order, source

    def read(self, region: Region | None = None) -> NDArray[np.float32]:
        """The voxels of a region, (Z, Y, X) float32 in C order; the whole image by default.

        Chunks are decoded by threads straight into the result: little more memory than the result.
        Raises Unreadable naming the chunk that cannot be decoded, ValueError for a region outside the image.
        """
        box = region or self.grid.region
        if box & self.grid.region != box:
            raise ValueError(f"{self.name}: region {box.start} to {box.stop} reaches outside the image {self.shape}.")
        require_memory(self.name, 4 * math.prod(box.shape))
        voxels = np.empty(box.shape, np.float32)
        try:
            if self.stored is not None and self.stored.name == self.data.name:
                self.stored.read(box, voxels)
            else:
                order, source = self._unpermuted()
                back = [order.index(axis) for axis in range(3)]
                slices = tuple(box.slices[axis] for axis in back)
                da.store(source[slices], voxels.transpose(back), lock=False, scheduler="threads")
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise Unreadable(f"{self.name}: voxels {box.start} to {box.stop} cannot be read: {reason(error)}.") from error
        return voxels

    def reads_stored(self) -> bool:
        """Whether ``read_stored`` can be used: numbers of up to four bytes in a Zarr store, along the same axes."""
        direct = self.stored is not None and self.stored.name == self.data.name and self.stored.order == (0, 1, 2)
        return direct and (self.dtype.kind in "iu" or self.dtype == np.float32) and self.dtype.itemsize <= 4

    def read_stored(self, region: Region, into: NDArray[Any]) -> None:
        """Decode a region into a C-contiguous array of its shape and of the stored type. Raises Unreadable."""
        assert self.stored is not None
        self.stored.read(region, into)

    def planes(self, planes: Span) -> NDArray[np.float32]:
        """The voxels of some planes, as ``read`` gives them."""
        return self.read(Region((planes.start, 0, 0), (max(planes.start, planes.stop), *self.grid.shape[1:])))


@dataclass(frozen=True)
class Stack:
    """Images on one grid, such as the channels of one: lazy voxels ``data`` (.., Z, Y, X).

    lead: the leading axes, none for a single image.
    """

    data: da.Array
    grid: Grid
    name: str = "array"
    lead: tuple[Axis, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the leading axes."""
        return tuple(a.name for a in self.lead)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored voxels."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype
