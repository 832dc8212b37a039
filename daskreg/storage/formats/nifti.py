"""NIfTI images, read by regions and written plane by plane; converts RAS to LPS and (i, j, k) to (Z, Y, X)."""

from __future__ import annotations

import gzip
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import dask.array as da
import fsspec
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError, GridError, InputError, Unreadable
from daskreg.grid import UNITS, Grid
from daskreg.storage.axes import Axis
from daskreg.storage.format import Array, ImageFormat
from daskreg.storage.formats.streaming import SLAB_BYTES, open_output, slabs
from daskreg.storage.fs.address import Address, is_remote
from daskreg.storage.fs.errors import read_errors, reason, require_exists
from daskreg.storage.grid_metadata import GridMetadata
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.zarr.nodes import check_dtype

NIFTI_AXES = tuple(Axis(n, k) for n, k in (("c", "channel"), ("t", "time"), ("z", "space"), ("y", "space"), ("x", "space")))
UNIT_CODES = {
    0: "millimeter",
    1: "meter",
    2: "millimeter",
    3: "micrometer",
}  # 0, unknown: taken as mm by all readers
LARGEST_NIFTI1 = 32767  # voxels an axis: its header keeps 16 bits
MILLIMETRES = 2  # NIfTI's code
RAS = np.array([1.0, -1.0, -1.0, 1.0])  # of world components z, y, x, 1: NIfTI's y and x point the other way


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

    def write(self, path: str, data: Array, grid: Grid, *, labels: bool = False, axes: tuple[str, ...] = ()) -> None:
        """RAS, sform and qform, millimetres where the grid has a unit."""
        dtype = _stored_dtype(np.dtype(data.dtype))
        with open_output(path) as file:
            file.write(header_bytes(nifti_header(grid, grid.shape, dtype)))
            for slab in slabs(data):
                file.write(np.ascontiguousarray(slab, dtype).tobytes())


class NiftiVoxels:
    """The voxels of a file as an array (.., Z, Y, X), read when it is indexed.

    An uncompressed file is read plane by plane; a compressed one is decompressed from its start, keeping only the planes asked
    for in memory.
    """

    def __init__(self, path: str, header: Any) -> None:
        """``header`` is a nibabel header of ``path``."""
        self.path = path
        self.stored = np.dtype(header.get_data_dtype())
        self.shape = tuple(int(n) for n in reversed(header.get_data_shape()))
        self.ndim = len(self.shape)
        self.offset = int(header["vox_offset"]) or int(header.sizeof_hdr) + 4
        slope, inter = (float(header[k]) for k in ("scl_slope", "scl_inter"))
        scaled = math.isfinite(slope) and slope != 0 and math.isfinite(inter) and (slope, inter) != (1.0, 0.0)
        self.slope, self.inter = (slope, inter) if scaled else (1.0, 0.0)
        self.scaled = scaled
        wide = np.float32 if self.stored.itemsize <= 2 else np.float64
        self.dtype = np.dtype(wide if scaled else self.stored).newbyteorder("=")

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of basic slices. Raises Unreadable."""
        parts = _slices(index, self.shape)
        with read_errors(self.path), _opened(self.path) as file:
            whole = np.empty([len(range(*p.indices(n))) for p, n in zip(parts, self.shape, strict=True)], self.dtype)
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
    _check_length(voxels)
    chunks = _chunks(voxels)
    data = da.from_array(voxels, chunks=chunks, name=False, meta=np.empty((0,) * voxels.ndim, voxels.dtype))
    form = "NIfTI-2" if header.sizeof_hdr == 540 else "NIfTI-1"
    with read_errors(address.path):  # nibabel raises its own exceptions for some headers
        frame = header_grid(header, address.path)
    return ImageRecord(address.text, form, data, _axes(voxels.shape), frame, chunks)


def read_header(path: str) -> Any:
    """The nibabel header. Raises NotFound and Unreadable."""
    with read_errors(path), _opened(path) as file:
        start = file.read(540)
    kinds: tuple[Any, ...] = (nib.Nifti1Header, nib.Nifti2Header)
    if not start:
        raise Unreadable(f"{path} is empty; a NIfTI file was expected.")
    for kind in kinds:
        if len(start) >= kind.sizeof_hdr and kind.may_contain_header(start):
            return _checked_header(path, kind, start[: kind.sizeof_hdr])
    raise Unreadable(f"{path} does not start with a NIfTI header; a NIfTI file (.nii, .nii.gz) was expected.")


def header_grid(header: Any, path: str = "the image") -> GridMetadata:
    """The grid that a header states: sform if coded, else qform, else pixdim without an orientation."""
    unit = UNIT_CODES.get(int(header["xyzt_units"]) & 7, "millimeter")
    for coded, affine in ((header["sform_code"], header.get_sform), (header["qform_code"], header.get_qform)):
        if int(coded) > 0 and _regular(affine()):
            return GridMetadata.of(Grid.from_matrix((1, 1, 1), _lps_from_ras(affine()), unit))
    if int(header["sform_code"]) > 0 and header.get_sform()[:3, :3].any():  # all zeros: written by tools that state none
        raise GridError(f"{path}: the sform {header.get_sform()[:3, :3].tolist()} is singular or not finite; repair the header.")
    x, y, z = (abs(float(v)) for v in header["pixdim"][1:4])
    return GridMetadata((z, y, x), unit=unit)


def nifti_header(grid: Grid, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A nibabel header for an array whose reversed axes begin with the grid's x, y, z; ``shape`` is (.., Z, Y, X)."""
    kind = nib.Nifti2Header if max(shape) > LARGEST_NIFTI1 else nib.Nifti1Header
    header = kind()  # type: ignore[no-untyped-call]  # nibabel is partly typed
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    metric = grid if grid.unit is None else grid.to_unit("millimeter")
    affine = ras_from_lps(metric.index_to_world)
    header.set_qform(affine, 1, strip_shears=True)
    header.set_sform(affine, 1)
    header["xyzt_units"] = 0 if grid.unit is None else MILLIMETRES
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = header.single_magic
    return header


def header_bytes(header: Any) -> bytes:
    """The header and the empty extension behind it."""
    return bytes(header.binaryblock).ljust(int(header.single_vox_offset), b"\0")


def millimetres(grid: Grid) -> float:
    """Millimetres in the grid's unit; 1 where it has none."""
    return 1.0 if grid.unit is None else UNITS[grid.unit] / UNITS["millimeter"]


def ras_from_lps(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """(k, j, i) -> LPS z, y, x, (4, 4), as NIfTI's (i, j, k) -> RAS x, y, z."""
    return _reversed(RAS[:, None] * np.asarray(matrix, float))


def _lps_from_ras(affine: NDArray[Any]) -> NDArray[np.float64]:
    return RAS[:, None] * _reversed(np.asarray(affine, float))


def _reversed(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    order = [2, 1, 0, 3]
    return matrix[np.ix_(order, order)]


def _regular(affine: NDArray[Any]) -> bool:
    return bool(np.isfinite(affine).all() and (np.linalg.norm(affine[:3, :3], axis=0) > 0).all())


def _checked_header(path: str, kind: Any, block: bytes) -> Any:
    with read_errors(path):
        header = kind.from_fileobj(io.BytesIO(block), check=False)
        shape = header.get_data_shape()
        header.get_data_dtype()
    if bytes(header["magic"])[:2] != b"n+":
        raise Unreadable(f"{path} keeps its voxels in another file (.hdr and .img); convert it to one .nii file.")
    if not shape or min(shape) < 1:
        raise Unreadable(f"{path} has shape {tuple(shape)}; positive numbers of voxels were expected.")
    return header


def _check_length(voxels: NiftiVoxels) -> None:
    """Raises Unreadable for an uncompressed local file that is shorter than its header states."""
    if voxels.path.lower().endswith(".gz") or is_remote(voxels.path):
        return
    wanted = voxels.offset + math.prod(voxels.shape) * voxels.stored.itemsize
    found = os.path.getsize(voxels.path)
    if found < wanted:
        raise Unreadable(f"{voxels.path} is cut short: it has {found} bytes, its header promises {wanted}; copy it again.")


def _axes(shape: Sequence[int]) -> tuple[Axis, ...]:
    """The fourth axis is time, the fifth holds components; further axes have no name."""
    extra = tuple(Axis(f"axis{i}", "other") for i in range(len(shape) - len(NIFTI_AXES)))
    return extra + NIFTI_AXES[-len(shape) :]


def _chunks(voxels: NiftiVoxels) -> tuple[int, ...]:
    """Slabs of planes; one chunk for a compressed file, which can only be read from its start."""
    if voxels.path.lower().endswith(".gz") or voxels.ndim < 3:
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


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a local or remote file."""
    with fsspec.open(path, "rb") if is_remote(path) else open(path, "rb") as raw:
        if not path.lower().endswith(".gz"):
            yield cast(BinaryIO, raw)
            return
        with gzip.GzipFile(fileobj=raw) as unpacked:
            try:
                yield cast(BinaryIO, unpacked)
            except (EOFError, gzip.BadGzipFile) as error:
                raise Unreadable(f"{path} is cut short or damaged: {reason(error)}; copy it again.") from error


def _stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type on disk: NIfTI has neither booleans nor half floats."""
    small = {"bool": np.uint8, "float16": np.float32}
    return np.dtype(small.get(dtype.name, dtype)).newbyteorder("<")
