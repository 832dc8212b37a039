"""Images of Imaris (.ims): HDF5 with a group for each resolution, time and channel."""

from __future__ import annotations

import itertools
import logging
import math
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, UnitsError, Unreadable
from daskreg.grid import unit_name
from daskreg.storage.axes import Axis
from daskreg.storage.format import ImageFormat
from daskreg.storage.formats.hdf5 import is_hdf5, own_member
from daskreg.storage.formats.lazy import Box, lazy_voxels
from daskreg.storage.formats.levels import chosen_level
from daskreg.storage.fs.address import Address
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.grid_metadata import GridMetadata, triple
from daskreg.storage.image_record import ImageRecord, Resolution
from daskreg.storage.zarr.nodes import check_dtype, dask_chunks

if TYPE_CHECKING:
    import h5py
else:
    h5py = DeferredModule("h5py")

log = logging.getLogger(__name__)

IMAGE, LEVELS = "DataSetInfo/Image", "DataSet"
LEVEL, TIME, CHANNEL = "ResolutionLevel", "TimePoint", "Channel"
AXES = ("X", "Y", "Z")  # in the order of Imaris


class ImarisImage(ImageFormat):
    """Imaris 5.5 and later. Voxel sizes and origin from the extents that the file states, in micrometres by default."""

    name = "Imaris"
    endings = (".ims",)
    writes = False
    leading_axes = True
    remote = False

    def sniff(self, path: str) -> bool:
        """By its groups."""
        if not is_hdf5(path):
            return False
        with h5py.File(path, "r") as file:
            return all(file.get(name, getlink=True) is not None for name in ("DataSetInfo", LEVELS))

    def open(self, address: Address) -> ImageRecord:
        """All times and channels of the level ``::level=``."""
        path = address.path
        if not is_hdf5(path):
            raise Unreadable(
                f"{path} is no HDF5 file, as Imaris writes them since version 5.5; it may be damaged: copy it again."
            )
        if address.array is not None:
            raise ConfigError(f"{address.text}: an Imaris file has no arrays to choose; leave '::array=' out.")
        with h5py.File(path, "r") as file:
            image, stored_levels = own_member(path, file, IMAGE), own_member(path, file, LEVELS)
            if image is None or stored_levels is None:
                raise Unreadable(f"{path} is an HDF5 file, but none of Imaris: it has no {IMAGE!r} or no {LEVELS!r}.")
            levels = _numbered(stored_levels, LEVEL)
            if not levels:
                raise Unreadable(f"{path} has no {LEVEL!r}; it may be damaged: copy it again.")
            level = chosen_level(address, levels)
            first = own_member(path, stored_levels, f"{LEVEL} {level}")
            times, channels = _numbered(first, TIME), _numbered(own_member(path, first, f"{TIME} 0"), CHANNEL)
            shapes = [_shape(path, file, k) for k in range(levels)]
            data = _dataset(path, file, level, 0, 0)
            shape, dtype, stored = (times, channels, *shapes[level]), data.dtype.newbyteorder("="), data.chunks or data.shape
            check_dtype(dtype, path)
            _warn_of_holes(path, [_dataset(path, file, level, t, c) for t in range(times) for c in range(channels)])
            grids = [_grid(path, image.attrs, k) for k in shapes]
            names = tuple(_channel_name(path, file, c) for c in range(channels))
            colors, interval = _colors(path, file, channels), _interval(path, file, times)
        blocks = 1, 1, *dask_chunks(shape[2:], stored, None, dtype.itemsize)
        voxels = lazy_voxels(partial(_read, path, level), shape, dtype, blocks)
        resolutions = tuple(Resolution(str(k), s, g.spacing) for k, (s, g) in enumerate(zip(shapes, grids, strict=True)))
        space = (Axis(name, "space", grids[level].unit) for name in "zyx")
        time = Axis("t", "time") if interval is None else Axis("t", "time", "second", scale=interval)
        axes = (time, Axis("c", "channel"), *space)
        chunks = (1, 1, *stored)
        return ImageRecord(address.text, self.name, voxels, axes, grids[level], chunks, resolutions, names, colors=colors)


def _numbered(group: Any, name: str) -> int:
    """How many members of a group are called ``name 0``, ``name 1``, ..; 0 without a group."""
    return next(k for k in itertools.count() if group is None or group.get(f"{name} {k}", getlink=True) is None)


def _dataset(path: str, file: Any, level: int, time: int, channel: int) -> Any:
    """The voxels of a time and a channel. Raises Unreadable where they are missing, or in another file."""
    place = f"{LEVELS}/{LEVEL} {level}/{TIME} {time}/{CHANNEL} {channel}/Data"
    data = own_member(path, file, place)
    if not isinstance(data, h5py.Dataset) or data.ndim != 3:
        raise Unreadable(f"{path} has no voxels at {place!r}; it may be damaged: copy it again.")
    return data


def _warn_of_holes(path: str, stored: list[Any]) -> None:
    """Chunks that were never written are the fill value, which an interrupted acquisition leaves."""
    holes = 0
    for data in stored:
        if data.chunks is not None:
            holes += math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True)) - data.id.get_num_chunks()
        if data.shape != stored[0].shape or data.dtype != stored[0].dtype:
            raise Unreadable(f"{path}: {data.name} has another shape or type than {stored[0].name}; such images are not read.")
    if holes:
        log.warning("%s: %d chunks were never written; their voxels are read as the fill value, usually 0.", path, holes)


def _shape(path: str, file: Any, level: int) -> tuple[int, int, int]:
    """(z, y, x) of a level: what is stored is padded to whole chunks."""
    data = _dataset(path, file, level, 0, 0)
    sizes = tuple(int(_text(data.parent.attrs.get(f"ImageSize{axis}"), n)) for axis, n in zip("ZYX", data.shape, strict=True))
    if any(not 0 < size <= n for size, n in zip(sizes, data.shape, strict=True)):
        raise Unreadable(f"{path}: level {level} is said to have {sizes} voxels, {data.shape} are stored; it may be damaged.")
    z, y, x = sizes
    return z, y, x


def _grid(path: str, image: Any, shape: tuple[int, int, int]) -> GridMetadata:
    """From the edges of the image, which all levels share."""
    try:
        low, high = ([float(_text(image.get(f"Ext{end}{k}"), "")) for k in (2, 1, 0)] for end in ("Min", "Max"))
    except ValueError:
        raise Unreadable(f"{path} does not say where its edges are (ExtMin0 to ExtMax2); it may be damaged.") from None
    spacing = triple((b - a) / n for a, b, n in zip(low, high, shape, strict=True))
    if not all(0 < s < float("inf") for s in spacing):
        raise Unreadable(f"{path}: its edges are at {low} and {high} (z, y, x); each end has to be beyond the beginning.")
    word = _text(image.get("Unit"), "")
    try:
        unit = unit_name("micrometer" if word in ("um", "") else word)
    except UnitsError as error:
        raise Unreadable(f"{path}: {error}") from None
    middle = triple(a + s / 2 for a, s in zip(low, spacing, strict=True))
    return GridMetadata(spacing, middle, unit=unit, unit_stated=word != "")


def _channel_name(path: str, file: Any, channel: int) -> str:
    found = own_member(path, file, f"DataSetInfo/{CHANNEL} {channel}")
    return _text(None if found is None else found.attrs.get("Name"), str(channel))


def _colors(path: str, file: Any, channels: int) -> tuple[str, ...]:
    """RRGGBB of each channel, empty where one of them has none."""
    found = [own_member(path, file, f"DataSetInfo/{CHANNEL} {c}") for c in range(channels)]
    words = [_text(None if f is None else f.attrs.get("Color"), "").split() for f in found]
    try:
        shares = [[min(1.0, max(0.0, float(v))) for v in w] for w in words]
    except ValueError:
        return ()
    known = all(len(s) == 3 for s in shares)
    return tuple("".join(f"{round(255 * v):02X}" for v in s) for s in shares) if known else ()


def _interval(path: str, file: Any, times: int) -> float | None:
    """Mean seconds between two times, None where the file does not say."""
    found = own_member(path, file, "DataSetInfo/TimeInfo")
    ends = [_text(None if found is None else found.attrs.get(f"TimePoint{k}"), "") for k in (1, times)]
    try:
        first, last = (datetime.fromisoformat(text) for text in ends)
    except ValueError:
        return None
    return (last - first).total_seconds() / (times - 1) if last > first else None


def _text(stored: Any, otherwise: Any) -> str:
    """An attribute, which Imaris keeps as an array of characters."""
    if stored is None:
        return str(otherwise)
    if isinstance(stored, bytes | str):
        return stored.decode() if isinstance(stored, bytes) else stored
    return b"".join(np.asarray(stored).astype("S1").ravel().tolist()).decode("latin-1").strip("\0 ")


def _read(path: str, level: int, box: Box) -> NDArray[Any]:
    t, c, *inner = box
    with read_errors(path), h5py.File(path, "r") as file:
        found = np.stack(
            [
                np.stack([_dataset(path, file, level, time, channel)[tuple(inner)] for channel in range(c.start, c.stop)])
                for time in range(t.start, t.stop)
            ]
        )
    return found.astype(found.dtype.newbyteorder("="), copy=False)
