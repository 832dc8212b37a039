"""Images written whole: NIfTI slab by slab, OME-Zarr chunk by chunk."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import dask.array as da
import fsspec
import nibabel as nib
import numpy as np
import zarr
from numpy.typing import NDArray

from daskreg.errors import GridError, OutputError
from daskreg.grid import UNITS, Grid
from daskreg.storage.formats.nifti import SLAB, is_nifti, ras_from_lps
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.zarr import ngff05
from daskreg.storage.zarr.nodes import check_dtype
from daskreg.storage.zarr.pyramid import CHUNK, coarsen, new_array, pyramid, steps

LARGEST_NIFTI1 = 32767  # voxels an axis: its header keeps 16 bits
MILLIMETRES = 2  # NIfTI's code


def write_image(
    address: str | Path,
    data: NDArray[Any] | da.Array,
    grid: Grid,
    *,
    labels: bool = False,
    overwrite: bool = False,
    axes: tuple[str, ...] = (),
) -> None:
    """Write voxels (Z, Y, X) as ``.nii``, ``.nii.gz`` or ``.zarr`` (NGFF 0.5 with a pyramid), by the address's ending.

    axes: names of leading axes, t and c in this order; an OME-Zarr image alone can have them.

    NIfTI is in millimetres, as ITK reads it. labels: coarser levels are what most voxels of the
    level below are (see ``block_mode``), not means.
    Raises OutputExists, OutputError, OutOfSpace, GridError.
    """
    path = parse_address(address).path
    _check(path, data, grid, axes)
    if is_nifti(path):
        write_nifti(path, data, grid, overwrite)
    elif path.lower().endswith(".zarr"):
        _write_zarr(path, data, grid, labels, overwrite, axes)
    else:
        raise OutputError(f"{path}: the ending tells the format; use .nii, .nii.gz or .ome.zarr.")


def write_nifti(path: str, data: NDArray[Any] | da.Array, grid: Grid, overwrite: bool) -> None:
    """Voxels (Z, Y, X) as NIfTI: RAS, sform and qform, millimetres where the grid has a unit."""
    dtype = _nifti_dtype(np.dtype(data.dtype))
    header = nifti_header(grid, grid.shape, dtype)
    with atomic_output(path, overwrite) as temporary, opened(temporary, path) as file:
        file.write(header_bytes(header))
        for slab in slabs(data):
            file.write(np.ascontiguousarray(slab, dtype).tobytes())


def nifti_header(grid: Grid, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A nibabel header for an array whose reversed axes begin with the grid's x, y, z; ``shape`` is (.., Z, Y, X)."""
    kind = nib.Nifti2Header if max(shape) > LARGEST_NIFTI1 else nib.Nifti1Header
    header = kind()  # type: ignore[no-untyped-call]
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


def slabs(data: NDArray[Any] | da.Array) -> Iterator[NDArray[Any]]:
    """The array in runs of planes (z), each computed when it is due."""
    plane = max(1, int(np.prod(data.shape[1:])) * np.dtype(data.dtype).itemsize)
    depth = max(1, SLAB // plane)
    if isinstance(data, da.Array):
        depth = max(depth, int(data.chunksize[0]))  # a chunk is decoded once, not once a slab
    for z in range(0, data.shape[0], depth):
        slab = data[z : z + depth]
        yield slab.compute() if isinstance(slab, da.Array) else slab


@contextmanager
def opened(temporary: str, path: str) -> Iterator[BinaryIO]:
    """A file to write at ``temporary``, compressed when ``path`` ends so."""
    with fsspec.open(temporary, "wb") if is_remote(temporary) else open(temporary, "wb") as raw:
        if not path.lower().endswith(".gz"):
            yield cast(BinaryIO, raw)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=4, mtime=0) as packed:
            yield cast(BinaryIO, packed)


def _write_zarr(
    path: str, data: NDArray[Any] | da.Array, grid: Grid, labels: bool, overwrite: bool, axes: tuple[str, ...]
) -> None:
    factors = pyramid(grid)
    dtype = np.dtype(np.uint8) if data.dtype == bool else np.dtype(data.dtype).newbyteorder("=")
    with atomic_output(path, overwrite) as temporary:
        group = zarr.create_group(temporary, zarr_format=3)
        lead = tuple(zip(axes, data.shape[:-3], strict=True))
        below = new_array(group, "0", grid.shape, dtype, lead=lead)
        _store(data, below)
        for k, step in enumerate(steps(factors), 1):
            level = new_array(group, str(k), grid.coarsen(factors[k]).shape, dtype, lead=lead)
            coarsen(below, level, step, labels=labels)
            below = level
        name = path.rpartition("/")[2].removesuffix(".zarr").removesuffix(".ome")
        kind = "mode" if labels else "mean"
        attributes = ngff05.group_attributes(grid, [(str(k), f) for k, f in enumerate(factors)], name, kind, lead=axes)
        group.attrs.update(attributes)  # last: without it no reader takes the group for an image


def _store(data: NDArray[Any] | da.Array, array: zarr.Array[Any]) -> None:
    """Dask chunks are, or become, whole stored ones: two writers of one chunk lose each other's voxels."""
    lazy = data if isinstance(data, da.Array) else da.from_array(data, chunks=_blocks(array), name=False)
    whole = all(all(n % c == 0 for n in axis[:-1]) for axis, c in zip(lazy.chunks, array.chunks, strict=True))
    da.store(lazy if whole else lazy.rechunk(array.chunks), array, lock=False)  # type: ignore[arg-type]


def _blocks(array: zarr.Array[Any]) -> tuple[int, ...]:
    return (*array.chunks[:-3], CHUNK, CHUNK, CHUNK)


def _check(path: str, data: NDArray[Any] | da.Array, grid: Grid, axes: tuple[str, ...]) -> None:
    if tuple(data.shape[-3:]) != grid.shape or data.ndim != 3 + len(axes):
        raise GridError(f"{path}: voxels of shape {tuple(data.shape)} do not fit a grid of {grid.shape}.")
    if axes and is_nifti(path):
        raise OutputError(f"{path}: {data.shape[:-3]} images ({', '.join(axes)}) do not go into one file; write .ome.zarr.")
    check_dtype(np.dtype(data.dtype), f"what is to be written to {path}")


def _nifti_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """NIfTI has neither booleans nor half floats."""
    small = {"bool": np.uint8, "float16": np.float32}
    return np.dtype(small.get(dtype.name, dtype)).newbyteorder("<")
