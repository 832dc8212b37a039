"""Images of every format: read as lazy voxels on a grid, and written."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from daskreg.arguments import checked_arguments
from daskreg.deferred import DeferredModule
from daskreg.errors import AxesError, ConfigError, GridError, InputError, OutputError, counted
from daskreg.grid import IDENTITY, OPENED_ARRAY, Grid, unit_name
from daskreg.html import joined
from daskreg.storage.axes import SPACE, Axis, display, guessed_axes, leading, spatial
from daskreg.storage.fs.address import Address, is_remote, parse_address, parse_axes, parse_spacing, with_key, without_key
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.upload import local_place
from daskreg.storage.given_axes import how_to_divide, how_to_name, with_axes
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.objects import ARRAY, KNOWN, address_of_object
from daskreg.storage.objects import record_of as record_of_object
from daskreg.storage.registry import image_formats
from daskreg.storage.selection import chosen_index, select, selection
from daskreg.storage.volume import Stack, Volume
from daskreg.storage.zarr.nodes import check_dtype, missing_chunks
from daskreg.storage.zarr.stored import StoredVoxels

if TYPE_CHECKING:
    import dask.array as da

    ImageSource = str | Path | np.ndarray | da.Array | Any  # also what ``daskreg.storage.objects`` reads
else:
    da, ImageSource = DeferredModule("dask.array"), Any
log = logging.getLogger("daskreg")


def open_stack(source: ImageSource | Volume, *, grid: Grid | None = None) -> Stack:
    """The channels and time points at an address that chooses none, or an array (.., Z, Y, X) on ``grid``.

    Raises as ``open_volume`` does, and GridError for an array without a grid.
    """
    if isinstance(source, Volume):
        return Stack(source.data, source.grid if grid is None else _require_shape(grid, source.shape, source.name), source.name)
    if not is_bare(source):
        record, address = _opened(source)
        data, axes = select(record, address, keep=True)
        return _stack(record, data, axes, address, grid)
    if source.ndim < 3:
        raise AxesError(f"an array (.., Z, Y, X) was expected, {source.shape} was given.")
    if grid is None:
        raise GridError("an array has no grid; give grid=, or open_volume(array, grid=...).")
    check_dtype(source.dtype, "the array")
    data = source if isinstance(source, da.Array) else da.from_array(source, name=False)
    names = ("t", "c")[-(data.ndim - 3) :] if 3 < data.ndim <= 5 else tuple(f"axis{i}" for i in range(data.ndim - 3))
    return Stack(data, _require_shape(grid, data.shape[-3:], "the array"), "array", leading(names))


def _stack(record: ImageRecord, data: da.Array, axes: tuple[Axis, ...], address: Address, grid: Grid | None) -> Stack:
    inner = spatial(axes)
    if inner is None:
        raise AxesError(
            f"{record.name} has the axes {', '.join(a.name for a in axes)}; three spatial ones (z, y, x) were expected"
            f"{how_to_name(record)}."
        )
    outer = [i for i in range(len(axes)) if i not in inner]
    data = data.transpose([*outer, *inner])
    lead = tuple(_displayed(record, axes[i]) for i in outer)
    return Stack(data, _grid(record, data.shape[-3:], address, grid), record.name, lead)


def _displayed(record: ImageRecord, axis: Axis) -> Axis:
    """A channel axis with the names and colours of its channels, as OME-Zarr keeps them."""
    if axis.kind != "channel" or axis.omero is not None or not record.channels:
        return axis
    highest = int(np.iinfo(record.dtype).max) if record.dtype.kind in "iu" else None
    return replace(axis, omero=display(record.channels, record.colors, highest))


@checked_arguments()
def open_volume(
    source: ImageSource | Volume,
    *,
    grid: Grid | None = None,
    spacing: object = None,
    unit: str | None = None,
    axes: str | Sequence[str] | None = None,
) -> Volume:
    """An image from an address (``PATH[::key=value,...]``), a NumPy or Dask array (Z, Y, X), a Volume, or an image of another
    library with its geometry: a zarr.Array, an xarray.DataArray, an image of SimpleITK, ITK or nibabel.

    grid: replaces that of the file;  spacing: world units a voxel, z, y, x or one number;  unit: of length;
    axes: a letter for each axis as stored (``"xyz"``, ``"czyx"``), where the file names none or wrong ones. grid and spacing are
    z, y, x whatever the axes are.

    Raises NotFound, Unreadable, AxesError, GridError, UnitsError, ConfigError: each says what to do.
    """
    letters = None if axes is None else parse_axes(axes)
    if isinstance(source, Volume):
        _require_no_axes(source, letters)
        return _with_grid(source, grid, spacing, unit)
    if is_bare(source) and letters is None:
        return _of_array(source, grid, spacing, unit)
    if letters is not None and is_bare(source):
        record, address = _named_array(source, letters)
    else:
        record, address = _opened(source, letters)
    if spacing is not None:
        address = replace(address, spacing=parse_spacing(spacing))
    if unit is not None:
        address = replace(address, unit=unit_name(unit))
    return _volume(record, address, grid)


def open_on(source: ImageSource | Volume, grid: Grid | None, side: str, other: Grid | None = None) -> Volume:
    """``open_volume``; an image that does not say where its voxels are is on a grid that is known, if it has its shape.

    Raises as ``open_volume`` and ``grid_of_array`` do, which has the other arguments.
    """
    return open_volume(source, grid=grid_of_array(source, grid, side, other))


def grid_of_array(source: Any, grid: Grid | None, side: str, other: Grid | None = None, how: str = OPENED_ARRAY) -> Grid | None:
    """The grid of an image that does not say where its voxels are: that of its side of a transform; None for any other image.

    source: an array, an object without a geometry, a local file that states no voxel size;  grid: of its side, None where it is
    not known;  side: fixed or moving;  other: the grid of the other side;  how: to say where the voxels of an array are.
    Raises GridError unless the image has the shape of its side: nothing says of which size its voxels are.
    """
    found = None if isinstance(source, str | Path) and is_remote(str(source)) else without_grid(source)
    if found is None:
        return None
    name, shape = found
    if grid is None or shape != grid.shape:
        raise GridError(_unplaced(name, shape, grid, side, other, how if name == "the array" else BEHIND))
    log.info("%s is taken on the grid of the %s image, whose shape it has: %s", name, side, grid.summary())
    return grid


BEHIND = "'::spacing=ZxYxX,unit=mm' behind its path"


def without_grid(source: Any) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape along z, y, x of an image that does not say where its voxels are.

    None for others, and where these axes are not known, which opening the image refuses.
    """
    if isinstance(source, Volume):
        return None
    if is_bare(source):
        return None if source.ndim < 3 else ("the array", tuple(int(n) for n in source.shape[-3:]))
    record, address = _opened(source)
    placed = record.grid_metadata is not None and record.grid_metadata.places
    if placed or any(record.partial_spacing) or (address.spacing, address.unit) != (None, None):
        return None
    inner = spatial(record.axes)
    name = "the array" if record.format == ARRAY else record.name
    return None if inner is None else (name, tuple(int(record.shape[i]) for i in inner))


def _unplaced(name: str, shape: tuple[int, ...], grid: Grid | None, side: str, other: Grid | None, how: str) -> str:
    """What is said of an array of another shape than the image that it stands for."""
    found = f"{name} has {joined(shape)} voxels (z, y, x) and does not say of which size"
    if grid is None:
        return f"{found}, and the transform does not know its {side} image; say where its voxels are: {how}."
    said = (
        f"{found}, and the {side} image of the transform has {grid.summary()}. Give one of that shape, or say where its "
        f"voxels are: {how}."
    )
    if other is None or shape != other.shape:
        return said
    return f"{said} It has the shape of the {'moving' if side == 'fixed' else 'fixed'} image: were they exchanged?"


def is_bare(source: Any) -> TypeGuard[NDArray[Any] | da.Array]:
    """Whether an image is an array alone, which has no grid of its own."""
    return not isinstance(source, str | Path | Volume) and isinstance(source, np.ndarray | da.Array)


def _opened(source: Any, letters: str | None = None) -> tuple[ImageRecord, Address]:
    """The image at an address, or in an object of another library. letters: of its axes, instead of its own.

    Raises ConfigError for what is neither.
    """
    where = source if isinstance(source, str | Path) else address_of_object(source)
    if where is not None:  # with the letters in the name, by which the image is opened again
        address = parse_address(where if letters is None else with_key(without_key(str(where), "axes"), "axes", letters))
        return open_record(address), address
    record = record_of_object(source)
    if record is None:
        raise ConfigError(f"an image of type {type(source).__name__} cannot be read; give {KNOWN}.")
    return record if letters is None else with_axes(record, letters), Address(record.name, record.name)


def _named_array(source: Any, letters: str) -> tuple[ImageRecord, Address]:
    """A NumPy or Dask array whose axes are named."""
    check_dtype(source.dtype, "the array")
    data = _lazy(source)
    record = ImageRecord("the array", ARRAY, data, guessed_axes(None, data.ndim), None, tuple(int(n) for n in data.chunksize))
    return with_axes(record, letters), Address("array", "array")


def _require_no_axes(volume: Volume, letters: str | None) -> None:
    if letters is not None:
        raise ConfigError(
            f"{volume.name} is a Volume, whose axes are z, y, x; give axes= where daskreg.open_volume opens its file or array."
        )


def open_record(address: Address) -> ImageRecord:
    """The image at an address, as it is stored, its axes named as the address does. Raises NotFound, Unreadable, AxesError."""
    with missing_chunks(address.missing):
        record = image_formats.read(address.path, lambda format: format.open(address))
    return record if address.axes is None else with_axes(record, address.axes)


def grid_of(record: ImageRecord, address: Address) -> Grid:
    """The grid of the 3D image that an address chooses; its voxels are not opened. Raises as ``open_volume`` does."""
    _, order, shape = _placed(record, address)
    return _grid(record, tuple(shape[i] for i in order), address, None)


def _placed(record: ImageRecord, address: Address) -> tuple[tuple[int | slice, ...], tuple[int, ...], tuple[int, ...]]:
    """What is taken along each axis, the order of the axes that are left as z, y, x, and their lengths as stored."""
    index = selection(record, address)
    left = [(a, n) for a, n, i in zip(record.axes, record.shape, index, strict=True) if isinstance(i, slice)]
    axes, shape = tuple(a for a, _ in left), tuple(n for _, n in left)
    order = spatial(axes)
    if order is None:
        raise AxesError(
            f"{record.name} has the spatial axes {', '.join(a.name for a in axes) or 'none'} of shape {shape}; "
            f"a 3D image (z, y, x) was expected{how_to_name(record) or ONE_PLANE}."
        )
    return index, order, shape


def _volume(record: ImageRecord, address: Address, grid: Grid | None) -> Volume:
    index, order, _ = _placed(record, address)
    data = record.data[index].transpose(order)
    stored = _stored(record, address, order, data.name)
    where = _grid(record, data.shape, address, grid)
    decoded = None if record.piece is None else _along(record.piece, index, order)
    return Volume(data, where, record.name, record.format, record.levels, record.channels, stored, decoded)


def _along(lengths: Sequence[int], index: Sequence[int | slice], order: Sequence[int]) -> tuple[int, int, int]:
    """Lengths along all axes of a record, of the three that an image has."""
    left = [int(n) for n, i in zip(lengths, index, strict=True) if isinstance(i, slice)]
    return left[order[0]], left[order[1]], left[order[2]]


def _stored(record: ImageRecord, address: Address, order: tuple[int, ...], name: str) -> StoredVoxels | None:
    """Where the voxels of a volume are in a Zarr store. order: of its axes among the spatial ones;  name: of its Dask array."""
    if record.stored is None:
        return None
    chosen, index = {"time": address.time, "channel": address.channel}, []
    for axis, length in zip(record.axes, record.shape, strict=True):
        index.append(None if axis.kind == "space" else chosen_index(record, axis, length, chosen.get(axis.kind)))
    z, y, x = order
    return StoredVoxels(name, record.stored, tuple(index), (z, y, x))


def _grid(record: ImageRecord, shape: tuple[int, ...], address: Address, grid: Grid | None) -> Grid:
    if grid is not None:
        return _require_shape(grid, shape, record.name)
    metadata = record.grid_metadata
    if metadata is not None and (metadata.sized or address.spacing is not None):
        try:
            return metadata.grid(shape, address.spacing, address.unit)
        except InputError as error:
            raise type(error)(f"{record.name}: {error}") from None
    z, y, x = shape
    if address.spacing is None and record.format == ARRAY:
        _warn_of_unit_spacing()
        return Grid((z, y, x), unit=address.unit)
    if address.spacing is None:
        raise GridError(_unsized(record))
    return Grid((z, y, x), address.spacing, unit=address.unit)


def _unsized(record: ImageRecord) -> str:
    """What is said of an image whose voxel size is not known, or not along all axes."""
    sizes, unit = record.partial_spacing, record.partial_unit
    if not any(sizes):
        return (
            f"{record.name} states no voxel size ({record.format}); give it with '::spacing=ZxYxX' behind the path "
            f"(for example '::spacing=2x1x1,unit=um') or with --spacing of register.{how_to_divide(record)}"
        )
    lacking = " and ".join(n for n, s in zip(SPACE, sizes, strict=True) if s is None)
    stated = " and ".join(f"{s:.6g} along {n}" for n, s in zip(SPACE, sizes, strict=True) if s is not None)
    given = "x".join(n.upper() if s is None else f"{s:.15g}" for n, s in zip(SPACE, sizes, strict=True))
    return (
        f"{record.name} states no voxel size along {lacking}, but {stated}{unit and f', in {unit}'} ({record.format}); give all "
        f"three with '::spacing={given}{unit and f',unit={unit}'}' behind the path, a number in place of {lacking.upper()}, "
        "or with --spacing of register."
    )


ONE_PLANE = (
    "; a two-dimensional one is given as one plane: in Python array[np.newaxis], of a TIFF as the folder with that file alone, "
    "else in a file with three axes"
)


def _of_array(source: Any, grid: Grid | None, spacing: object, unit: str | None) -> Volume:
    if source.ndim == 2:
        raise AxesError(f"the array has shape {source.shape}; three axes (z, y, x) were expected{ONE_PLANE}.")
    if source.ndim != 3:
        raise AxesError(
            f"the array has shape {source.shape}; three axes (z, y, x) were expected: index it, or name its axes, as in "
            "daskreg.open_volume(array, axes='czyx')."
        )
    check_dtype(source.dtype, "the array")
    if grid is None and spacing is None:
        _warn_of_unit_spacing()
    data = _lazy(source)
    return _with_grid(Volume(data, grid or Grid(data.shape), "array"), grid, spacing, unit)


def _lazy(source: Any) -> da.Array:
    data: da.Array = source if isinstance(source, da.Array) else da.from_array(source, name=False)
    if any(np.isnan(n) for n in data.shape):
        raise AxesError("the Dask array has unknown chunk sizes; call compute_chunk_sizes() first.")
    return data


@cache  # once a process
def _warn_of_unit_spacing() -> None:
    log.warning(
        f"an array has no voxel size; it is taken as 1 x 1 x 1, without a unit: give {OPENED_ARRAY}, or grid=. This is said once."
    )


def _with_grid(volume: Volume, grid: Grid | None, spacing: object, unit: str | None) -> Volume:
    if grid is not None:
        volume = replace(volume, grid=_require_shape(grid, volume.data.shape, volume.name))
    if spacing is not None:
        volume = replace(volume, grid=replace(volume.grid, spacing=parse_spacing(spacing)))
    return volume if unit is None else replace(volume, grid=replace(volume.grid, unit=unit_name(unit)))


def _require_shape(grid: Grid, shape: tuple[int, ...], name: str) -> Grid:
    if not isinstance(grid, Grid):
        raise GridError(f"grid is {reprlib.repr(grid)}; a daskreg.Grid was expected.")
    if grid.shape != shape:
        raise GridError(f"{name} has shape {shape}, the grid given for it {grid.shape}; they must be the same.")
    return grid


def write_image(
    address: str | Path,
    data: NDArray[Any] | da.Array,
    grid: Grid,
    *,
    labels: bool = False,
    overwrite: bool = False,
    axes: Sequence[str | Axis] = (),
) -> None:
    """Write voxels (Z, Y, X) by the address's ending: NIfTI and ITK's formats in millimetres, OME-Zarr with coarser levels.

    axes: leading axes or their names, t and c in this order; an OME-Zarr image alone can have them.  labels: coarser levels are
    modes of the level below (see ``block_mode``), not means.
    Raises OutputExists, OutputError, OutOfSpace, GridError.
    """
    path = parse_address(address).path
    if tuple(data.shape[-3:]) != grid.shape or data.ndim != 3 + len(axes):
        raise GridError(f"{path}: voxels of shape {tuple(data.shape)} do not fit a grid of {grid.shape}.")
    format = image_formats.to_write(path)
    if grid.direction != IDENTITY and not format.directions:
        able = " or ".join(image_formats.endings(writes=True, directions=True))
        raise OutputError(f"{path}: {format.name} states no direction of the axes, the grid has one; write {able}.")
    if not format.holds(leading(axes)):
        able = " or ".join(image_formats.endings(writes=True, leading_axes=True))
        names = [a.name if a.kind == "other" else a.kind for a in leading(axes)]
        several = " of ".join(counted(n, name) for n, name in zip(data.shape, names, strict=False))
        one = " or ".join(f"'IMAGE::{name}=0'" for name in names if name in ("channel", "time"))
        raise OutputError(f"{path}: {several} do not go into one file; write {able}{', or choose one, as in ' * bool(one)}{one}.")
    check_dtype(np.dtype(data.dtype), f"what is to be written to {path}")
    metric = grid if format.units or grid.unit is None else grid.to_unit("millimeter")
    with atomic_output(path, overwrite) as temporary, local_place(temporary, needed=not format.remote) as place:
        format.write(place, data, metric, labels=labels, axes=leading(axes))
