"""Composite transforms of ITK and ANTs in HDF5: affine maps and displacement fields, the last one applied first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import Unreadable
from daskreg.grid import Grid
from daskreg.storage.format import TransformFormat
from daskreg.storage.formats.hdf5 import has_external_data, is_hdf5
from daskreg.storage.formats.itk_linear import AFFINE, affine_parameters, linear_matrix, require_linear
from daskreg.storage.formats.lazy import Box, lazy_voxels
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.claims import DEFLATE_RATIO
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.grid_metadata import matrix3, triple
from daskreg.storage.transform_record import StoredLink, TransformRecord

if TYPE_CHECKING:
    import dask.array as da
    import h5py
else:
    da, h5py = DeferredModule("dask.array"), DeferredModule("h5py")

FIELD_TRANSFORM = "DisplacementFieldTransform"
TRANSFORM_GROUP = "TransformGroup"
MOST_PARAMETERS = 64  # of a linear transform, and fixed ones of any
FIELD_SLAB = 16 << 20  # bytes of a field that are read or written together
PARAMETERS = ("TransformParameters", "TranformParameters")  # ITK 4 misspelt them
FIXED = ("TransformFixedParameters", "TranformFixedParameters")
Matrix = NDArray[np.float64]


class ItkComposite(TransformFormat):
    """A composite transform of ITK and ANTs: a chain of affine maps and displacement fields."""

    name = "ITK composite, HDF5"
    endings = (".h5", ".hdf5")
    unit = "millimeter"
    remote = False

    def sniff(self, path: str) -> bool:
        """By its group of transforms."""
        if not is_hdf5(path):
            return False
        with h5py.File(path, "r") as file:
            return TRANSFORM_GROUP in file

    def open(self, path: str) -> TransformRecord:
        """See ``read_composite``."""
        links = read_composite(path)
        first = next((link.grid for link in links if link.grid is not None), None)
        return TransformRecord(tuple(links), self.unit, first, format=self.name)

    def write(self, path: str, links: Sequence[StoredLink]) -> None:
        """Fields plane by plane, in double precision as is ITK's default."""
        with h5py.File(path, "w") as file:
            _write_links(file, links)


def read_composite(address: str | Path) -> list[StoredLink]:
    """The links of an ITK HDF5 transform file in the order of application, LPS, z, y, x, millimetres; fields lazily.

    Raises NotFound, and Unreadable for what is neither linear nor a displacement field.
    """
    path = parse_address(address).path
    require_exists(path)
    if not is_hdf5(path):
        raise Unreadable(f"{path} cannot be read: it is no HDF5 file; a composite transform of ITK or ANTs was expected.")
    with read_errors(path), h5py.File(path, "r") as file:
        _require_own(path, file, TRANSFORM_GROUP)
        if not isinstance(file.get(TRANSFORM_GROUP), h5py.Group):
            inside = ", ".join(sorted(file)[:5]) or "nothing"
            raise Unreadable(
                f"{path} is an HDF5 file with {inside} in it, but no transform: it has no group {TRANSFORM_GROUP!r}, as ITK and "
                "ANTs write it."
            )
        names = list(file[TRANSFORM_GROUP])
        if not all(n.isdecimal() for n in names):
            raise Unreadable(f"{path}: its transforms are named {', '.join(names[:5])}; numbers were expected.")
        for name in names:
            _require_own(path, file[TRANSFORM_GROUP], name)
        numbers = sorted(int(n) for n in names)
        links = [_read_one(path, file[f"{TRANSFORM_GROUP}/{n}"], n) for n in numbers]
    return [link for link in reversed(links) if link is not None]


def _require_own(path: str, group: Any, name: str) -> None:
    """Raises Unreadable where a member of a group, or one of its own, is in another file: none says which files are read."""
    member = None if isinstance(group.get(name, getlink=True), h5py.ExternalLink) else group.get(name)
    if isinstance(member, h5py.Group):
        for below in member:
            if member.get(below, getclass=True, getlink=True) is h5py.ExternalLink or has_external_data(member.get(below)):
                raise _elsewhere(path, f"{member.name}/{below}")
    elif name in group.keys() and (member is None or has_external_data(member)):  # noqa: SIM118  # ``in`` follows the link
        raise _elsewhere(path, name)


def _elsewhere(path: str, name: str) -> Unreadable:
    return Unreadable(f"{path}: {name} is a link to another file, or stored in one; copy the transform into one file.")


def _read_one(path: str, group: Any, number: int) -> StoredLink | None:
    kind = _type(path, group)
    if kind.startswith("CompositeTransform"):
        return None
    values = _named(path, group, PARAMETERS)
    fixed = _small(path, _named(path, group, FIXED))
    base = kind.split("_")[0]
    if base.endswith(FIELD_TRANSFORM):
        grid = _grid(path, fixed)
        if values.size != 3 * grid.size:
            raise Unreadable(f"{path}: {kind} has {values.size} parameters; 3 x {grid.shape} were expected.")
        if values.dtype.kind != "f" or values.id.get_storage_size() * DEFLATE_RATIO < values.size * values.dtype.itemsize:
            raise Unreadable(f"{path}: the file does not hold all of the {values.size} numbers of its {kind}; copy it again.")
        planes = max(1, FIELD_SLAB // (24 * grid.shape[1] * grid.shape[2]))
        read = partial(_read_planes, path, values.name, grid.shape)
        source = lazy_voxels(read, (*grid.shape, 3), np.float32, (planes, *grid.shape[1:], 3))
        return StoredLink(np.eye(4), grid, da.moveaxis(source, 3, 0)[::-1])
    require_linear(path, kind)
    return StoredLink(linear_matrix(path, kind, _small(path, values).tolist(), fixed.tolist()))


def _type(path: str, group: Any) -> str:
    """The name of a transform's type. Raises Unreadable where the file states none."""
    stated = group.get("TransformType") if isinstance(group, h5py.Group) else None
    if not isinstance(stated, h5py.Dataset) or stated.size != 1:
        raise Unreadable(f"{path}: {group.name} has no TransformType; an ITK transform was expected.")
    found = np.ravel(stated[()])[0]
    return found.decode("ascii", "replace") if isinstance(found, bytes) else str(found)


def _small(path: str, values: Any) -> Matrix:
    """The few parameters of a linear transform or a grid. Raises Unreadable for many, before they are read."""
    if values.size > MOST_PARAMETERS or values.dtype.kind not in "iuf":
        raise Unreadable(f"{path}: {values.name} has {values.size} values of type {values.dtype}; a few numbers were expected.")
    return np.ravel(np.asarray(values[()], float))


def _named(path: str, group: Any, names: Sequence[str]) -> Any:
    for name in names:
        if isinstance(group.get(name), h5py.Dataset):
            return group[name]
    raise Unreadable(f"{path}: {group.name} has no {names[0]}; an ITK transform was expected.")


def _grid(path: str, fixed: Matrix) -> Grid:
    """From size, origin, spacing and direction, x first."""
    if fixed.size != 18:
        raise Unreadable(
            f"{path}: a displacement field has {fixed.size} fixed parameters; 18, of three dimensions, were expected."
        )
    size, origin, spacing, rows = fixed[:3], fixed[3:6], fixed[6:9], fixed[9:].reshape(3, 3)
    if not np.isfinite(fixed).all() or (size != np.round(size)).any():
        raise Unreadable(f"{path}: a displacement field has the size {size.tolist()}; whole numbers of voxels were expected.")
    z, y, x = (int(n) for n in size[::-1])
    return Grid((z, y, x), triple(spacing[::-1]), triple(origin[::-1]), matrix3(rows[::-1, ::-1]), "millimeter", True)


def _read_planes(path: str, name: str, shape: tuple[int, int, int], box: Box) -> NDArray[np.float32]:
    """A box of the parameters of a field, (Z, Y, X, 3), components x, y, z, of which whole planes are read."""
    start, stop, plane = box[0].start, box[0].stop, 3 * shape[1] * shape[2]
    with read_errors(path), h5py.File(path, "r") as file:
        values = file[name][start * plane : stop * plane].astype(np.float32)
    return np.asarray(values.reshape(stop - start, *shape[1:], 3)[(slice(None), *box[1:])])


def _write_links(file: Any, links: Sequence[StoredLink]) -> None:
    for name, value in (("HDFVersion", h5py.version.hdf5_version), ("ITKVersion", "5.4"), ("OSName", "-"), ("OSVersion", "-")):
        _text(file, name, value)
    _text(file, f"{TRANSFORM_GROUP}/0/TransformType", "CompositeTransform_double_3_3")
    number = 1
    for link in reversed(links):
        number = _write_affine(file, number, link.affine)
        if link.grid is not None and link.field is not None:
            number = _write_field(file, number, link.grid, link.field)


def _text(file: Any, name: str, value: str) -> None:
    file.create_dataset(name, data=np.array([value.encode()], dtype=object), dtype=h5py.string_dtype("ascii"))


def _write_affine(file: Any, number: int, affine: Matrix) -> int:
    if np.array_equal(affine, np.eye(4)) and number > 1:
        return number
    group = file.create_group(f"{TRANSFORM_GROUP}/{number}")
    _text(group, "TransformType", AFFINE)
    group["TransformFixedParameters"] = np.zeros(3)
    group["TransformParameters"] = affine_parameters(affine)
    return number + 1


def _write_field(file: Any, number: int, grid: Grid, field: Any) -> int:
    group = file.create_group(f"{TRANSFORM_GROUP}/{number}")
    _text(group, "TransformType", f"{FIELD_TRANSFORM}_double_3_3")
    direction = np.asarray(grid.direction)[::-1, ::-1]
    group["TransformFixedParameters"] = np.array(
        [*grid.shape[::-1], *grid.origin[::-1], *grid.spacing[::-1], *direction.ravel()], float
    )
    values = group.create_dataset("TransformParameters", (3 * grid.size,), np.float64)
    plane = 3 * grid.shape[1] * grid.shape[2]
    depth = max(1, FIELD_SLAB // (8 * plane))
    for z in range(0, grid.shape[0], depth):
        stop = min(z + depth, grid.shape[0])
        d = np.asarray(field[:, z:stop, :, :], np.float64)
        values[z * plane : stop * plane] = np.moveaxis(d[::-1], 0, 3).ravel()
    return number + 1
