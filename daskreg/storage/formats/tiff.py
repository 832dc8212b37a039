"""TIFF stacks, OME-TIFF and ImageJ's hyperstacks, through tifffile: one series of a file, one level of it, read by pages."""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError, NotFound, Unreadable
from daskreg.storage.axes import Axis, spatial
from daskreg.storage.format import ImageFormat, first_bytes
from daskreg.storage.formats.lazy import Box, common_part, lazy_voxels, slab_chunks
from daskreg.storage.formats.levels import chosen_level
from daskreg.storage.formats.tiff_details import TiffDetails
from daskreg.storage.formats.tiff_folder import is_folder, open_folder
from daskreg.storage.fs.address import Address
from daskreg.storage.fs.claims import require_memory
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.image_record import ImageRecord, Resolution
from daskreg.storage.zarr.nodes import check_dtype

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OPEN_FILES = 8  # in a process
JPEG = (6, 7, 34892, 33007)  # compressions whose strips need tables of the page
DAMAGE = re.compile("invalid|corrupt|truncated|contains no pages")  # of what tifffile logs
Stamp = tuple[int, int]  # of a file, so that another one in its place is not read from a handle of the old one


class TiffImage(ImageFormat):
    """TIFF, OME-TIFF and ImageJ TIFF. Voxel sizes are those of OME and ImageJ; a plain TIFF states none along z."""

    name = "TIFF"
    endings = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
    writes = False
    leading_axes = True
    remote = False

    def sniff(self, path: str) -> bool:
        """By the first bytes, of BigTIFF too; folders by the files in them."""
        return first_bytes(path, 4) in STARTS or is_folder(path)

    def open(self, address: Address) -> ImageRecord:
        """The series that ``::array=`` names, by number or name, else the largest; its level ``::level=``."""
        path = address.path
        if os.path.isdir(path):
            return open_folder(address, _tifffile(path))
        with _complete(path), _tifffile(path).TiffFile(path) as file:
            number = _series_number(file, address)
            levels = file.series[number].levels
            level = chosen_level(address, len(levels))
            series = levels[level]
            _require_whole(path, series, missing=address.missing)
            dtype = np.dtype(series.dtype).newbyteorder("=")
            check_dtype(dtype, path)
            require_memory(path, series.keyframe.size * dtype.itemsize)  # a page is decoded as a whole
            details = TiffDetails.of(file, number)
            axes, shape = details.axes(series.axes), tuple(series.shape)
            form, piece = f"{details.kind}, {_compression(series)}", _piece(series)
        chunks = _chunks(axes, shape, dtype.itemsize)
        data = lazy_voxels(partial(_read, path, number, level, _stamp(path)), shape, dtype, chunks, piece)
        resolutions = _resolutions([(k.axes, tuple(k.shape)) for k in levels], details)
        grid = details.grid(_along(axes, shape), _along(details.axes(levels[0].axes), levels[0].shape))
        sizes, unit = details.sizes if level == 0 else (), details.unit or ""
        return ImageRecord(
            address.text, form, data, axes, grid, chunks, resolutions, details.channels, colors=details.colors,
            partial_spacing=sizes, partial_unit=unit,
            piece=piece or (*(1 for _ in shape[1:]), shape[-1]),
        )  # fmt: skip


# ---------------------------------------------------------------- which series, which level


def _series_number(file: Any, address: Address) -> int:
    series, names = file.series, [str(s.name) for s in file.series]
    shapes = ["x".join(map(str, s.shape)) for s in series]
    listed = ", ".join(f"{k} ({name}, {shape})" for k, (name, shape) in enumerate(zip(names, shapes, strict=True)))
    if not series:
        raise Unreadable(f"{address.path} is a TIFF file without an image in it; it may be cut short: copy it again.")
    if address.array is None:
        sizes = [s.size for s in series]
        if sizes.count(max(sizes)) > 1:
            raise Unreadable(f"{address.path} holds {len(series)} images; choose one with '::array=0' (there are {listed}).")
        return sizes.index(max(sizes))
    if address.array in names:
        return names.index(address.array)
    if not address.array.isdecimal() or int(address.array) >= len(series):
        raise NotFound(f"{address.path} has no image {address.array!r}; it has {listed}.")
    return int(address.array)


def _along(axes: tuple[Axis, ...], shape: Sequence[int]) -> tuple[int, ...] | None:
    order = spatial(axes)
    return None if order is None else tuple(shape[i] for i in order)


def _resolutions(levels: Sequence[tuple[str, tuple[int, ...]]], details: TiffDetails) -> tuple[Resolution, ...]:
    found, finest = [], _along(details.axes(levels[0][0]), levels[0][1])
    for k, (names, shape) in enumerate(levels):
        here = _along(details.axes(names), shape)
        grid = details.grid(here, finest)
        if here is not None:
            found.append(Resolution(str(k), here, (1.0,) * 3 if grid is None else grid.spacing))
    return tuple(found)


# ---------------------------------------------------------------- what a file says


def _compression(series: Any) -> str:
    name = str(getattr(series.keyframe.compression, "name", series.keyframe.compression)).lower()
    return "uncompressed" if name == "none" else name


@contextmanager
def _complete(path: str) -> Iterator[None]:
    """Raises Unreadable where tifffile complains of pages that are not there: it goes on with those before."""
    complaints = _Complaints()
    logger = logging.getLogger("tifffile")
    logger.addHandler(complaints)
    try:
        yield
    finally:
        logger.removeHandler(complaints)
    if complaints.texts:
        raise Unreadable(f"{path} is cut short or damaged: {complaints.texts[0]}; copy it again.")


class _Complaints(logging.Handler):
    """What tifffile says of damage."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        text = re.sub(r"<[^>]*> ", "", record.getMessage())
        if DAMAGE.search(text):
            self.texts.append(text)


def _require_whole(path: str, series: Any, *, missing: str | None) -> None:
    """Raises Unreadable where voxels are not in the file: tifffile would read zeros."""
    pages, sparse = [p for p in series.pages if p is not None], 0
    absent = len(series.pages) - len(pages)
    for page in pages:
        offsets, counts = page.dataoffsets, page.databytecounts
        end = max((o + n for o, n in zip(offsets, counts, strict=False)), default=0)
        if series.dataoffset is not None:  # one stretch of the file
            end = series.dataoffset + series.nbytes
        if end > page.parent.filehandle.size:
            raise Unreadable(
                f"{path} is cut short: it has {page.parent.filehandle.size} bytes, and voxels up to byte {end}; copy it again."
            )
        sparse += sum(n == 0 for n in counts)
    if (absent or sparse) and missing != "fill":
        what = f"{absent} of {len(series.pages)} planes" if absent else f"{sparse} strips or tiles"
        raise Unreadable(f"{path}: {what} are missing; copy all of its files, or read them as 0 with '{path}::missing=fill'.")


# ---------------------------------------------------------------- voxels


def _chunks(axes: tuple[Axis, ...], shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Slabs of planes, whole pixels."""
    names = [a.name for a in axes]
    inner = len(shape) - names.index("z") if "z" in names else min(len(shape), 3)
    return slab_chunks(shape, itemsize, -inner)


def _piece(series: Any) -> tuple[int, ...] | None:
    """What is decoded at once; None where voxels lie in the file as they are."""
    if series.dataoffset is not None:
        return None
    segment, shape = _segment(series.keyframe), tuple(series.shape)
    page = segment or shape[_inner(series) :]
    return (*(1 for _ in shape[: len(shape) - len(page)]), *page)


def _inner(series: Any) -> int:
    """The first axis of an array that lies within a page."""
    shape, page = tuple(series.shape), series.keyframe.size
    return next(k for k in range(len(shape), -1, -1) if math.prod(shape[k:]) == page)


def _segment(keyframe: Any) -> tuple[int, int] | None:
    """Rows and columns of a strip or tile of pages that can be decoded one by one; None for other pages."""
    if keyframe.compression in JPEG or len(keyframe.shape) != 2 or len(keyframe.chunks) != 2:
        return None
    rows, columns = keyframe.chunks
    return int(rows), int(columns)


def _read(path: str, number: int, level: int, stamp: Stamp, box: Box) -> NDArray[Any]:
    with read_errors(path):
        if _stamp(path) != stamp:
            raise Unreadable(f"{path} has changed since it was opened; open it again.")
        found = _opened(path, number, level, stamp).read(box)
        return np.ascontiguousarray(found, found.dtype.newbyteorder("="))


class _Opened:
    """A level of a series, read by whole pages; its file is closed with the last use.

    inner: axes of the array within a page
    """

    def __init__(self, path: str, number: int, level: int) -> None:
        self.file, self.lock = _tifffile(path).TiffFile(path), threading.RLock()
        self.series = self.file.series[number].levels[level]
        shape, self.inner, self.segment = tuple(self.series.shape), _inner(self.series), _segment(self.series.keyframe)
        self.whole: NDArray[Any] | None = None
        if self.series.dataoffset is not None:  # one stretch of the file, of which ImageJ describes the first page alone
            dtype = np.dtype(self.series.dtype).newbyteorder(self.file.byteorder)
            self.whole = np.memmap(path, dtype, "r", self.series.dataoffset, shape)

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box."""
        if self.whole is not None:
            return self.whole[box]
        outer, inner, shape = box[: self.inner], box[self.inner :], tuple(self.series.shape)
        found = np.empty([s.stop - s.start for s in box], self.series.dtype)
        for index in np.ndindex(*found.shape[: self.inner]):
            place = [s.start + k for s, k in zip(outer, index, strict=True)]
            number = int(np.ravel_multi_index(place, shape[: self.inner])) if place else 0
            found[index] = self._pixels(self.series.pages[number], inner)
        return found

    def _pixels(self, page: Any, inner: Box) -> NDArray[Any]:
        """Of a page; 0 where it is missing."""
        shape = tuple(self.series.shape)[self.inner :]
        if page is None:
            return np.zeros([s.stop - s.start for s in inner], self.series.dtype)
        if self.segment is not None and len(shape) == len(self.segment):
            return self._segments(page, self.segment, inner)
        pixels: NDArray[Any] = page.asarray(lock=self.lock, maxworkers=1)
        return pixels.reshape(shape)[inner]

    def _segments(self, page: Any, segment: tuple[int, int], inner: Box) -> NDArray[Any]:
        """From the strips or tiles of a page that reach into a box."""
        columns = -(-int(self.series.shape[-1]) // segment[1])
        touched = itertools.product(*(range(s.start // n, -(-s.stop // n)) for s, n in zip(inner, segment, strict=True)))
        found = np.empty([s.stop - s.start for s in inner], self.series.dtype)
        for j, i in touched:
            extents = zip((j, i), segment, self.series.shape[-2:], strict=True)
            whole = tuple(slice(k * n, min((k + 1) * n, end)) for k, n, end in extents)
            here, there = common_part(inner, whole)
            decoded = self._decoded(page, j * columns + i)
            found[here] = page.keyframe.nodata if decoded is None else decoded[there]  # none: of a sparse file
        return found

    def _decoded(self, page: Any, index: int) -> NDArray[Any] | None:
        """A strip or tile, as far as it lies in the page."""
        where = [page.dataoffsets[index]], [page.databytecounts[index]]
        stored, _ = next(self.file.filehandle.read_segments(*where, indices=[index], lock=self.lock))
        pixels, _, shape = page.keyframe.decode(stored, index)
        if pixels is None:
            return None
        found: NDArray[Any] = pixels.reshape(pixels.shape[-3:-1])[: shape[1], : shape[2]]
        return found

    def __del__(self) -> None:
        """Close the file."""
        self.file.close()


@lru_cache(OPEN_FILES)
def _opened(path: str, number: int, level: int, stamp: Stamp) -> _Opened:
    """One for all reads of a process."""
    return _Opened(path, number, level)


atexit.register(_opened.cache_clear)


def _stamp(path: str) -> Stamp:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _tifffile(path: str) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise ConfigError(f"{path}: it needs tifffile, which is not installed; pip install 'daskreg[tiff]'.") from error
    return tifffile
