"""Where BigDataViewer keeps the voxels of a time, a view and a level: in HDF5 or in N5."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import Unreadable
from daskreg.storage.formats.hdf5 import own_member
from daskreg.storage.formats.lazy import Box
from daskreg.storage.formats.n5 import levels_below
from daskreg.storage.formats.n5_blocks import dataset_at
from daskreg.storage.fs.address import join
from daskreg.storage.fs.errors import read_errors

if TYPE_CHECKING:
    import h5py
else:
    h5py = DeferredModule("h5py")


@dataclass(frozen=True)
class StoredLevel:
    """Voxels of a view at a time. shape, block: z, y, x;  factors: voxels of the finest level in one, along z, y, x."""

    shape: tuple[int, int, int]
    block: tuple[int, int, int]
    dtype: np.dtype[Any]
    factors: tuple[int, int, int]


class Loader(ABC):
    """The voxels of all views. where: a file or a folder;  fill: whether what is missing is read as 0."""

    name: ClassVar[str]

    def __init__(self, where: str, fill: bool) -> None:
        self.where, self.fill = where, fill

    @abstractmethod
    def levels(self, time: int, setup: int) -> list[StoredLevel]:
        """Those there are. Raises Unreadable where there are none."""

    @abstractmethod
    def read(self, time: int, setup: int, level: int, box: Box) -> NDArray[Any] | None:
        """The voxels of a box, z, y, x, None where they are missing and read as 0. Raises Unreadable."""

    def _require_fill(self, place: str) -> None:
        if not self.fill:
            raise self._missing(place)

    def _missing(self, place: str) -> Unreadable:
        return Unreadable(
            f"{self.where} has no voxels at {place!r}; copy all of it, or read them as 0 with '::missing=fill' behind the .xml."
        )


class Hdf5Loader(Loader):
    """``t00000/s00/0/cells``; 16 bits are unsigned, although they are stored as signed."""

    name = "HDF5"

    def levels(self, time: int, setup: int) -> list[StoredLevel]:
        """See ``Loader``."""
        found: list[StoredLevel] = []
        with read_errors(self.where), h5py.File(self.where, "r") as file:
            stated = own_member(self.where, file, f"s{setup:02}/resolutions")
            factors = np.ones((1, 3)) if stated is None else np.asarray(stated, float)
            for level, (x, y, z) in enumerate(np.round(factors).astype(int).tolist()):
                data = self._data(file, time, setup, level)
                if data is None:
                    raise self._missing(_cells(time, setup, level))
                block = data.chunks or data.shape
                found.append(StoredLevel(tuple(data.shape), tuple(block), _unsigned(data.dtype), (z, y, x)))
        return found

    def read(self, time: int, setup: int, level: int, box: Box) -> NDArray[Any] | None:
        """See ``Loader``."""
        with read_errors(self.where), h5py.File(self.where, "r") as file:
            data = self._data(file, time, setup, level)
            if data is not None:
                found = np.asarray(data[box])
                return found.astype(found.dtype.newbyteorder("="), copy=False).view(_unsigned(data.dtype))
        self._require_fill(_cells(time, setup, level))
        return None

    def _data(self, file: Any, time: int, setup: int, level: int) -> Any:
        found = own_member(self.where, file, _cells(time, setup, level))
        return found if isinstance(found, h5py.Dataset) and found.ndim == 3 else None


class N5Loader(Loader):
    """``setup0/timepoint0/s0``."""

    name = "N5"

    def levels(self, time: int, setup: int) -> list[StoredLevel]:
        """See ``Loader``."""
        place = f"setup{setup}/timepoint{time}"
        found = levels_below(join(self.where, place))
        if not found or any(len(level.shape) != 3 for level in found):
            raise self._missing(place)
        first = found[0].shape
        levels = []
        for one in found:
            z, y, x = (max(1, round(n / m)) for n, m in zip(first, one.shape, strict=True))
            (a, b, c), (d, e, f) = one.shape, one.block
            levels.append(StoredLevel((a, b, c), (d, e, f), one.dtype, (z, y, x)))
        return levels

    def read(self, time: int, setup: int, level: int, box: Box) -> NDArray[Any] | None:
        """See ``Loader``."""
        place = f"setup{setup}/timepoint{time}/s{level}"
        found = dataset_at(join(self.where, place), fill=self.fill)
        if found is not None:
            return found.read(box)
        self._require_fill(place)
        return None


def _cells(time: int, setup: int, level: int) -> str:
    return f"t{time:05}/s{setup:02}/{level}/cells"


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint16) if dtype.kind == "i" and dtype.itemsize == 2 else dtype.newbyteorder("=")


# by the name in the XML: the element that holds the path, and what reads it
LOADERS: dict[str, tuple[str, type[Loader]]] = {"bdv.hdf5": ("hdf5", Hdf5Loader), "bdv.n5": ("n5", N5Loader)}
