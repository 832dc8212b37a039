"""Images of other libraries, in memory or opened lazily, with their geometry: those of Zarr, xarray, SimpleITK, ITK and nibabel.

They are recognised by their class, so that none of these libraries has to be installed or imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import GridError, UnitsError
from daskreg.grid import Grid, unit_name
from daskreg.storage.axes import Axis, guessed_axes
from daskreg.storage.fs.address import join
from daskreg.storage.grid_metadata import GridMetadata, matrix3, triple
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.zarr.nodes import check_dtype, dimension_names, lazy_array

if TYPE_CHECKING:
    import dask.array as da
    import zarr
else:
    da, zarr = DeferredModule("dask.array"), DeferredModule("zarr")

log = logging.getLogger("daskreg")
ARRAY = "array"  # the format of what is in memory
UNIFORM = 1e-3  # of a step, by which coordinates may differ from even ones
SPACE = (Axis("z", "space"), Axis("y", "space"), Axis("x", "space"))
LPS_OF_RAS = np.diag([1.0, -1.0, -1.0, 1.0])  # of z, y, x, 1
REVERSED = np.ix_([2, 1, 0, 3], [2, 1, 0, 3])
KNOWN = "an address, a NumPy, Dask or Zarr array, an xarray.DataArray, or an image of SimpleITK, ITK or nibabel"


def address_of_object(source: Any) -> str | None:
    """Where a Zarr array or group of a store on disk or behind a URL is; None for anything else."""
    if not _is(source, "zarr.core.array.Array", "zarr.core.group.Group"):
        return None
    store, inner = source.store, source.path
    if isinstance(store, zarr.storage.LocalStore):
        return join(str(store.root), inner) if inner else str(store.root)
    if isinstance(store, zarr.storage.FsspecStore) and not _is_wrapped(store.fs):
        url = store.fs.unstrip_protocol(store.path)
        return str(join(url, inner) if inner else url)
    return None


def record_of(source: Any) -> ImageRecord | None:
    """The image in an object of another library, None for an object of none. Raises GridError, UnitsError, Unreadable."""
    for names, read in READERS.items():
        if _is(source, *names):
            return read(source)
    return None


def _is(source: Any, *names: str) -> bool:
    """Whether one of the classes of an object has one of these names; only the first word of the module has to be the same."""
    return any(
        cls.__name__ == name.rpartition(".")[2] and cls.__module__.partition(".")[0] == name.partition(".")[0]
        for cls in type(source).__mro__
        for name in names
    )


def _is_wrapped(system: Any) -> bool:
    return _is(system, "fsspec.AsyncFileSystemWrapper") or system.protocol == "zip"


def _of_zarr(source: Any) -> ImageRecord:
    axes = guessed_axes(dimension_names(source), source.ndim)
    return ImageRecord("the Zarr array", ARRAY, lazy_array(source, "the Zarr array"), axes, None, source.shards or source.chunks)


# ---------------------------------------------------------------- xarray


def _of_xarray(source: Any) -> ImageRecord:
    """Dimensions are axes; coordinates at even steps are the places of voxels, in the ``units`` of their attributes."""
    name = f"the DataArray {source.name}" if source.name is not None else "the DataArray"
    check_dtype(source.dtype, name)
    axes = tuple(_placed(name, a, source) for a in guessed_axes([str(d) for d in source.dims], source.ndim))
    _tell_of_guesses(name, source.dims, axes)
    data = source.data if hasattr(source.data, "dask") else da.from_array(np.asarray(source.data), name=False)
    labels = _labels(source, next((d for d, a in zip(source.dims, axes, strict=True) if a.kind == "channel"), None))
    return ImageRecord(name, ARRAY, data, axes, _grid_of_coordinates(name, source, axes), data.chunksize, (), labels)


def _tell_of_guesses(name: str, dimensions: Sequence[Any], axes: Sequence[Axis]) -> None:
    """Warns of dimensions whose names say something else than what they are taken as; those of ``dim_0`` say nothing."""
    found = [str(d) for d in dimensions]
    if not all(a.stated for a in axes) and not all(d.startswith("dim_") for d in found):
        taken = ", ".join(a.name for a in axes)
        log.warning("%s: its dimensions %s are taken as %s; rename what is something else", name, ", ".join(found), taken)


def _grid_of_coordinates(name: str, source: Any, axes: Sequence[Axis]) -> GridMetadata | None:
    places = [(a, _steps(name, source, d)) for a, d in zip(axes, source.dims, strict=True) if a.kind == "space"]
    if len(places) != 3 or all(p is None for _, p in places):
        return None
    lacking = [a.name for a, p in places if p is None]
    if lacking:
        raise GridError(f"{name} has no coordinates along {', '.join(lacking)}; give them, or give a grid (grid=).")
    by_name = {a.name: p for a, p in places if p is not None}
    order = [by_name[n] for n in "zyx"] if set(by_name) == set("zyx") else [p for _, p in places if p is not None]
    units = sorted({a.unit for a, _ in places if a.unit})
    if len(units) > 1:
        raise UnitsError(f"{name}: its coordinates are in {', '.join(units)}; one unit was expected.")
    direction = matrix3(np.diag([np.sign(step) for _, step in order]))
    origin = triple(first for first, _ in order)
    return GridMetadata(triple(abs(step) for _, step in order), direction=direction, unit=next(iter(units), None), origin=origin)


def _steps(name: str, source: Any, dimension: Any) -> tuple[float, float] | None:
    """The first coordinate and the step, None without coordinates. Raises GridError for uneven ones."""
    if dimension not in source.coords:
        return None
    values = np.asarray(source.coords[dimension].values)
    if values.dtype.kind not in "iuf" or values.ndim != 1 or len(values) < 2:
        return None
    step = float(values[-1] - values[0]) / (len(values) - 1)
    if step == 0 or not np.isfinite(values).all() or np.abs(np.diff(values) - step).max() > UNIFORM * abs(step):
        raise GridError(f"{name}: its coordinates along {dimension} are not at even steps; interpolate it first.")
    return float(values[0]), step


def _placed(name: str, axis: Axis, source: Any) -> Axis:
    """An axis with the unit of its coordinates, and of times their step."""
    dimension = next((d for d in source.dims if str(d).lower() == axis.name), None)
    if dimension is None or dimension not in source.coords:
        return axis
    stated = source.coords[dimension].attrs.get("units", source.coords[dimension].attrs.get("unit"))
    if axis.kind == "space":
        return Axis(axis.name, axis.kind, None if stated is None else unit_name(str(stated)))
    found = _steps(name, source, dimension) if axis.kind == "time" else None
    if found is None or found[1] <= 0:
        return axis
    return Axis(axis.name, axis.kind, None if stated is None else str(stated), scale=found[1], origin=found[0])


def _labels(source: Any, dimension: Any) -> tuple[str, ...]:
    return () if dimension is None or dimension not in source.coords else tuple(map(str, source.coords[dimension].values))


# ---------------------------------------------------------------- ITK


def _of_simpleitk(source: Any) -> ImageRecord:
    import SimpleITK

    components = int(source.GetNumberOfComponentsPerPixel())
    geometry = source.GetSpacing(), source.GetOrigin(), np.reshape(source.GetDirection(), (source.GetDimension(),) * 2)
    return _of_itk_array("the SimpleITK image", SimpleITK.GetArrayViewFromImage(source), components, *geometry)


def _of_itk(source: Any) -> ImageRecord:
    import itk

    direction = np.asarray(itk.array_from_matrix(source.GetDirection()))
    geometry = tuple(source.GetSpacing()), tuple(source.GetOrigin()), direction
    return _of_itk_array("the ITK image", itk.array_view_from_image(source), source.GetNumberOfComponentsPerPixel(), *geometry)


def _of_itk_array(
    name: str, voxels: NDArray[Any], components: int, spacing: Sequence[float], origin: Sequence[float], direction: NDArray[Any]
) -> ImageRecord:
    """spacing, origin, direction: x first, as ITK keeps them; millimetres, LPS."""
    check_dtype(voxels.dtype, name)
    dimension = len(spacing)
    time = (Axis("t", "time", scale=float(spacing[3]), origin=float(origin[3])),) if dimension == 4 else ()
    axes = (*time, *SPACE[-dimension:], *((Axis("c", "channel"),) if components > 1 else ()))
    metadata = None
    if dimension >= 3:
        turned = matrix3(np.asarray(direction)[2::-1, 2::-1])
        place = triple(origin[2::-1])
        metadata = GridMetadata(triple(spacing[2::-1]), direction=turned, unit="millimeter", oriented=True, origin=place)
    data = da.from_array(voxels, name=False)
    return ImageRecord(name, ARRAY, data, axes, metadata, data.chunksize)


# ---------------------------------------------------------------- nibabel


def _of_nibabel(source: Any) -> ImageRecord:
    """Voxels are read from the file when they are computed; the affine is RAS, millimetres where the header says nothing else."""
    if source.affine is None:
        raise GridError("the nibabel image has no affine; give it one, or give its array with grid=.")
    proxy, shape = source.dataobj, tuple(int(n) for n in reversed(source.shape))
    dtype = _dtype_of(proxy)
    check_dtype(dtype, "the nibabel image")
    units = getattr(source.header, "get_xyzt_units", lambda: ("mm", "unknown"))()
    unit = {"mm": "millimeter", "micron": "micrometer", "meter": "meter"}.get(units[0], "millimeter")
    matrix = LPS_OF_RAS @ np.asarray(source.affine, float)[REVERSED]
    metadata = GridMetadata.of(Grid.from_matrix((1, 1, 1), matrix, unit))
    data = da.from_array(
        _Reversed(partial(_read_proxy, proxy), shape, dtype), name=False, meta=np.empty((0,) * len(shape), dtype)
    )
    zooms = source.header.get_zooms()
    scale = float(zooms[3]) if len(zooms) > 3 and float(zooms[3]) > 0 else 1.0
    time_unit = {"sec": "second", "msec": "millisecond", "usec": "microsecond"}.get(units[1])
    extra = [Axis("t", "time", time_unit, scale=scale), Axis("c", "channel")]
    more = (Axis(f"axis{k}", "other") for k in range(len(shape) - 5))
    axes = (*more, *reversed(extra[: max(0, min(2, len(shape) - 3))]), *SPACE[-len(shape) :])
    return ImageRecord("the nibabel image", ARRAY, data, axes, metadata, data.chunksize)


def _dtype_of(proxy: Any) -> np.dtype[Any]:
    """Of the voxels after scaling: of the first of them."""
    return np.asarray(proxy[(slice(0, 1),) * len(proxy.shape)]).dtype.newbyteorder("=")


def _read_proxy(proxy: Any, index: tuple[Any, ...]) -> NDArray[Any]:
    return np.asarray(proxy[index[::-1]]).T


class _Reversed:
    """An array with its axes reversed, of which boxes are read."""

    def __init__(self, read: Callable[[tuple[Any, ...]], NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.read, self.shape, self.dtype, self.ndim = read, shape, dtype, len(shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of basic slices, one for each axis."""
        return np.ascontiguousarray(self.read(tuple(index)), self.dtype)


READERS: dict[tuple[str, ...], Callable[[Any], ImageRecord]] = {
    ("zarr.Array",): _of_zarr,
    ("xarray.DataArray",): _of_xarray,
    ("SimpleITK.Image",): _of_simpleitk,
    ("itk.itkImageBase2", "itk.itkImageBase3", "itk.itkImageBase4"): _of_itk,
    ("nibabel.SpatialImage",): _of_nibabel,
}
