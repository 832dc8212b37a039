"""MetaImage and NRRD, through SimpleITK: header and voxels in one file (.mha, .nrrd) or in two (.mhd, .nhdr)."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError, Unreadable
from daskreg.grid import Grid
from daskreg.storage.axes import Axis
from daskreg.storage.format import Array, ImageFormat, first_bytes
from daskreg.storage.formats.compressed import check_stream
from daskreg.storage.formats.lazy import Box, lazy_voxels, slab_chunks
from daskreg.storage.fs.address import Address
from daskreg.storage.fs.claims import DEFLATE_RATIO, require_held
from daskreg.storage.grid_metadata import GridMetadata, matrix3, triple
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.zarr.nodes import check_dtype

log = logging.getLogger(__name__)

MILLIMETRES = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres")
DEFLATED = ("compressed", "gzip", "gz")  # encodings with a checksum
MOST_RATIO = 1 << 20  # bytes of voxels a byte of other encodings, such as bzip2 and text
HEADER_BYTES = 1 << 16  # longer than any header
NRRD, META = b"NRRD000", b"ElementDataFile"
META_END = re.compile(rb"^ElementDataFile\s*=\s*(.*?)\r?\n", re.M)
NRRD_END = re.compile(rb"\r?\n\r?\n")
SPATIAL_AXES = (Axis("z", "space"), Axis("y", "space"), Axis("x", "space"))


class ItkImage(ImageFormat):
    """Images of ITK, 3D Slicer and elastix. Millimetres; read by planes where they are not compressed, written whole."""

    name = "MetaImage or NRRD"
    endings = (".mha", ".mhd", ".nrrd", ".nhdr")
    library = "SimpleITK"
    units = False
    remote = False

    def sniff(self, path: str) -> bool:
        """By the header."""
        start = first_bytes(path, HEADER_BYTES)
        return start.startswith(NRRD) or (b"NDims" in start and META in start)

    def open(self, address: Address) -> ImageRecord:
        """Grid and voxels as ITK understands them; several components a voxel are channels, a fourth axis is time."""
        if address.level is not None or address.array is not None:
            raise ConfigError(f"{address.text}: {self.name} files have no levels and no arrays inside; leave the key out.")
        header = _read_header(address.path)
        check_dtype(header.dtype, address.path)
        whole = header.encoding != "raw" or (header.nrrd and header.offset is None)  # decoded from the start, once
        channel = header.components > 1
        chunks = header.shape if whole else slab_chunks(header.shape, header.dtype.itemsize, -4 if channel else -3)
        read = partial(_read_raw if header.nrrd and not whole else _read_box, header)
        data = lazy_voxels(read, header.shape, header.dtype, chunks)
        form = ("NRRD" if header.nrrd else "MetaImage") + ("" if header.encoding == "raw" else f", {header.encoding}")
        return ImageRecord(address.text, form, data, header.axes, header.grid_metadata, chunks)

    def write(self, path: str, data: Array, grid: Grid, *, labels: bool = False, axes: tuple[Axis, ...] = ()) -> None:
        """Uncompressed, so that it can be read by planes; the whole image is computed first."""
        sitk = _simpleitk(path)
        small = {"bool": np.uint8, "float16": np.float32}  # ITK has neither
        dtype = np.dtype(small.get(data.dtype.name, data.dtype)).newbyteorder("=")
        image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(data), dtype))
        image.SetSpacing(grid.spacing[::-1])
        image.SetOrigin(grid.origin[::-1])
        image.SetDirection(np.asarray(grid.direction)[::-1, ::-1].ravel().tolist())
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("NrrdImageIO" if path.lower().endswith(("nrrd", "nhdr")) else "MetaImageIO")
        writer.UseCompressionOff()
        writer.SetFileName(path)
        writer.Execute(image)


@dataclass(frozen=True)
class Header:
    """The metadata of a file. shape: as NumPy orders them, components last;  encoding: raw, or another one;
    offset: of the voxels in ``data_file``, None where ITK alone knows it.
    """

    path: str
    nrrd: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    components: int
    axes: tuple[Axis, ...]
    grid_metadata: GridMetadata | None
    encoding: str
    data_file: str
    offset: int | None


def _read_header(path: str) -> Header:
    start = first_bytes(path, HEADER_BYTES)
    nrrd = start.startswith(NRRD)
    reader = _reader(path, nrrd)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, nrrd, error) from error
    size, components = reader.GetSize(), int(reader.GetNumberOfComponents())
    shape = (*(int(n) for n in reversed(size)), *((components,) if components > 1 else ()))
    dtype = _dtype(path, reader.GetPixelID())
    encoding, data_file, offset = _voxels_of(path, start, nrrd)
    if encoding == "raw" and offset is not None:
        dtype = dtype.newbyteorder(">") if nrrd and re.search(rb"^endian:\s*big", start, re.M) else dtype
        _check_length(path, data_file, offset, math.prod(shape) * dtype.itemsize)
    elif offset is not None:
        ratio = DEFLATE_RATIO if encoding in DEFLATED else MOST_RATIO
        require_held(path, math.prod(shape) * dtype.itemsize, os.path.getsize(data_file) - offset, ratio)
    plain = nrrd and components == 1 and len(size) == 3 and b"skip:" not in start
    axes = _axes(len(size), components, reader)
    units = _units(start) if nrrd else []
    _tell_of_units(path, units)
    metadata = _grid_metadata(reader, _is_oriented(start, nrrd), any(units)) if len(size) >= 3 else None
    known = offset if plain or not nrrd else None
    return Header(path, nrrd, shape, dtype, components, axes, metadata, encoding, data_file, known)


def _axes(dimension: int, components: int, reader: Any) -> tuple[Axis, ...]:
    time = [Axis("t", "time", scale=float(reader.GetSpacing()[3]), origin=float(reader.GetOrigin()[3]))] if dimension == 4 else []
    outer = time if dimension == 4 else [Axis(f"axis{i}", "other") for i in range(dimension - 3)]
    return (*outer, *SPATIAL_AXES[-dimension:], *((Axis("c", "channel"),) if components > 1 else ()))


def _grid_metadata(reader: Any, oriented: bool, unit_stated: bool) -> GridMetadata:
    """The first three dimensions; ITK orders them x, y, z, and takes all lengths as millimetres."""
    dimension = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[2::-1, 2::-1]
    spacing, origin = triple(reader.GetSpacing()[2::-1]), triple(reader.GetOrigin()[2::-1])
    return GridMetadata(
        spacing, direction=matrix3(direction), unit="millimeter", oriented=oriented, origin=origin, unit_stated=unit_stated
    )


def _is_oriented(start: bytes, nrrd: bool) -> bool:
    """Whether the header states a direction; ITK takes the identity where it does not."""
    words = (b"\nspace directions:",) if nrrd else (b"TransformMatrix", b"Orientation", b"Rotation")
    return any(w in start for w in words)


def _voxels_of(path: str, start: bytes, nrrd: bool) -> tuple[str, str, int | None]:
    """How the voxels are encoded, the file that they are in, and where they begin there (None: only ITK knows)."""
    end = (NRRD_END if nrrd else META_END).search(start)
    text = start if end is None else start[: end.end()]
    named = re.search(rb"^data ?file:\s*(.*?)\s*$", text, re.M | re.I) if nrrd else end
    name = b"" if named is None else named.group(1).strip()
    if (named is None if nrrd else name.upper() == b"LOCAL") and end is not None:
        return _encoding(text, nrrd), path, end.end()
    data_file = os.path.join(os.path.dirname(path), name.decode("utf-8", "replace"))
    return _encoding(text, nrrd), data_file, 0 if os.path.isfile(data_file) and b"HeaderSize" not in text else None


def _units(start: bytes) -> list[str]:
    """Those that a NRRD header states, of its axes."""
    end = NRRD_END.search(start)
    stated = re.search(rb"^(?:space )?units:\s*(.*?)\s*$", start[: end.start()] if end else start, re.M)
    return [] if stated is None else [w.decode("utf-8", "replace") for w in re.findall(rb'"([^"]*)"', stated.group(1))]


def _tell_of_units(path: str, words: Sequence[str]) -> None:
    """Warns of other units than millimetres, which ITK does not read."""
    if any(word not in MILLIMETRES for word in words):
        _warn_of_units(path, ", ".join(words))


@cache  # once a file
def _warn_of_units(path: str, words: str) -> None:
    log.warning("%s states the units %s; it is read in millimetres, as ITK does: say '::unit=NAME' behind its path.", path, words)


def _encoding(text: bytes, nrrd: bool) -> str:
    if nrrd:
        found = re.search(rb"^encoding:\s*(\S+)", text, re.M)
        return "unknown" if found is None else found.group(1).decode("ascii", "replace").lower()
    if re.search(rb"^BinaryData\s*=\s*False", text, re.M | re.I):
        return "text"
    return "compressed" if re.search(rb"^CompressedData\s*=\s*True", text, re.M | re.I) else "raw"


def _check_length(path: str, data_file: str, offset: int, wanted: int) -> None:
    found = os.path.getsize(data_file) - offset
    if found < wanted:
        raise Unreadable(f"{path} is cut short: it has {found} bytes of voxels, its header promises {wanted}; copy it again.")


def _read_box(header: Header, box: Box) -> NDArray[Any]:
    """The voxels of a box, by ITK, which reads no more of an uncompressed MetaImage."""
    if header.encoding in DEFLATED:
        _check_stream(header)
    reader = _reader(header.path, header.nrrd)
    inner = box[:-1] if header.components > 1 else box
    if any(s.start == s.stop for s in box):
        return np.empty([s.stop - s.start for s in box], header.dtype)
    reader.SetExtractIndex([s.start for s in reversed(inner)])
    reader.SetExtractSize([s.stop - s.start for s in reversed(inner)])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(header.path, header.nrrd, error) from error
    voxels = _simpleitk(header.path).GetArrayFromImage(image)
    return np.asarray(voxels[..., box[-1]] if header.components > 1 else voxels)


def _check_stream(header: Header) -> None:
    """Raises Unreadable for damaged voxels: ITK does not compare their checksum."""
    _, data_file, offset = _voxels_of(header.path, first_bytes(header.path, HEADER_BYTES), header.nrrd)
    if offset is not None:
        check_stream(header.path, data_file, offset, math.prod(header.shape) * header.dtype.itemsize)


def _read_raw(header: Header, box: Box) -> NDArray[Any]:
    """The voxels of a box of an uncompressed NRRD file, of which ITK would read the whole."""
    mapped = np.memmap(header.data_file, header.dtype, "r", header.offset or 0, header.shape)
    return np.array(mapped[box], header.dtype.newbyteorder("="))


def _reader(path: str, nrrd: bool) -> Any:
    reader = _simpleitk(path).ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(path)
    return reader


def _dtype(path: str, pixel: int) -> np.dtype[Any]:
    sitk = _simpleitk(path)
    names = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64")
    known = {getattr(sitk, f"sitk{vector}{n}"): np.dtype(n.lower()) for n in names for vector in ("", "Vector")}
    if pixel not in known:
        kind = sitk.GetPixelIDValueAsString(pixel)
        raise Unreadable(f"{path} holds voxels of type {kind}; real numbers were expected: convert it first.")
    return known[pixel]


def _unreadable(path: str, nrrd: bool, error: RuntimeError) -> Unreadable:
    """In one sentence: ITK says it in many lines, the last of which is the cause."""
    lines = [line for line in str(error).splitlines() if line.startswith("[nrrd]")]
    cause = re.sub(r"^\[nrrd\] (\w+: )?", "", lines[-1]) if lines else "ITK cannot decode it"
    return Unreadable(f"{path} is damaged, cut short or no {'NRRD' if nrrd else 'MetaImage'} file: {cause}; copy it again.")


def _simpleitk(path: str) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ConfigError(f"{path}: it needs SimpleITK, which is not installed; pip install 'daskreg[itk]'.") from error
    return SimpleITK
