"""Images in Zarr stores: OME-Zarr groups, one level of them, and bare arrays."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, InputError, NotFound, Unreadable
from daskreg.grid import Grid
from daskreg.storage.axes import Axis, guessed_axes, spatial
from daskreg.storage.format import Array, ImageFormat, first_bytes
from daskreg.storage.fs.address import Address, is_remote, parent
from daskreg.storage.image_record import ImageRecord, Resolution, VoxelSource
from daskreg.storage.zarr import ngff, ngff05
from daskreg.storage.zarr.chunks import require_all_stored
from daskreg.storage.zarr.collections import SeveralImages, images_below
from daskreg.storage.zarr.multiscale import PARENT_FOLDERS, Multiscale, one_unit
from daskreg.storage.zarr.ngff03 import measured
from daskreg.storage.zarr.nodes import attributes, checked_array, children, dimension_names, lazy_array, open_member, open_node
from daskreg.storage.zarr.pyramid import CHUNK, Factors, LevelWriter, coarsen, new_array, pyramid, steps

if TYPE_CHECKING:
    import dask.array as da
    import zarr
else:
    da, zarr = DeferredModule("dask.array"), DeferredModule("zarr")

log = logging.getLogger(__name__)
ZIP_START = b"PK\x03\x04"


class ZarrImage(ImageFormat):
    """OME-Zarr 0.1 to 0.6, one level of it, or a bare Zarr array; written as OME-Zarr 0.5."""

    name = "OME-Zarr"
    endings: ClassVar[tuple[str, ...]] = (".ome.zarr", ".zarr")
    leading_axes = True
    single_file = False
    linkable = True

    def sniff(self, path: str) -> bool:
        """Folders and URLs."""
        return is_remote(path) or os.path.isdir(path)

    def open(self, address: Address) -> ImageRecord:
        """See ``open_zarr``."""
        return open_zarr(address)

    def write(self, path: str, data: Array, grid: Grid, *, labels: bool = False, axes: tuple[Axis, ...] = ()) -> None:
        """As NGFF 0.5 with coarser levels, chunk by chunk."""
        _write(path, data, grid, labels, axes)


class ZippedZarrImage(ZarrImage):
    """The same in one zip file, on a local disk or behind a URL."""

    name = "zipped OME-Zarr"
    endings = (".ozx", ".ome.zarr.zip", ".zarr.zip", ".zip")
    writes = False
    single_file = True
    linkable = False

    def sniff(self, path: str) -> bool:
        """By the first bytes."""
        return first_bytes(path, len(ZIP_START)) == ZIP_START


def open_zarr(address: Address) -> ImageRecord:
    """What is at an address.

    Raises NotFound, Unreadable, and ConfigError for a level where there are none.
    """
    node, address = _node_at(address)
    if isinstance(node, zarr.Group):
        return _in_group(node, address)
    if address.level is not None:
        raise ConfigError(f"{address.text}: a single array has no levels; leave '::level=' out, or point at the group above.")
    return _level_of_parent(node, address) or _bare(node, address)


def array_at(address: Address) -> zarr.Array[Any]:
    """The array that the image at an address is read from. Raises as ``open_zarr`` does."""
    node, address = _node_at(address)
    if isinstance(node, zarr.Array):
        return node
    multiscale, level = _level_in(node, address)
    return open_member(node, multiscale.datasets[level].path, address.node)


def _node_at(address: Address) -> tuple[zarr.Array[Any] | zarr.Group, Address]:
    """The array or group at an address; the one series of a converted file that has no other."""
    try:
        node = open_node(address.node)
    except NotFound as error:
        if said := _what_there_is(address):
            raise NotFound(said) from error
        raise
    if isinstance(node, zarr.Array) or ngff.holds_image(attributes(node)):
        return node, address
    below = images_below(node)
    if below is None or set(below.members) != {"series"} or len(below.paths) != 1:
        return node, address
    inner = replace(address, array="/".join(filter(None, (address.array, below.paths[0]))))
    return open_node(inner.node), inner


def _what_there_is(address: Address) -> str:
    """A sentence about the images in the plate, well or file that has not the one asked for; empty for no such group."""
    parts = (address.array or "").split("/")
    for k in range(len(parts) - 1, -1, -1):
        inner = replace(address, array="/".join(parts[:k]) or None)
        try:
            group = open_node(inner.node)
        except InputError:
            continue
        below = images_below(group) if isinstance(group, zarr.Group) else None
        if below is not None:
            return f"{inner.node} has no {'/'.join(parts[k:])}; {below.sentence('it', inner.array)}"
    return ""


def _in_group(group: zarr.Group, address: Address) -> ImageRecord:
    return _record(group, *_level_in(group, address), address)


def _level_in(group: zarr.Group, address: Address) -> tuple[Multiscale, int]:
    multiscale = ngff.parse(address.node, attributes(group), address.level)
    if multiscale is None:
        below = images_below(group)
        if below is not None:
            raise SeveralImages(below.sentence(address.node, address.array), below)
        raise Unreadable(_no_image(group, address))
    multiscale = _measured(group, multiscale, address.node)
    level = multiscale.index(address.level if address.level is not None else 0)
    if level is None:
        paths = ", ".join(f"{i} ({d.path})" for i, d in enumerate(multiscale.datasets))
        raise NotFound(f"{address.node} has no level {address.level!r}; it has {paths}.")
    return multiscale, level


def _measured(group: zarr.Group, multiscale: Multiscale, name: str) -> Multiscale:
    if multiscale.sized:
        return multiscale
    return measured(multiscale, [open_member(group, d.path, name).shape for d in multiscale.datasets])


def _record(group: zarr.Group, multiscale: Multiscale, level: int, address: Address) -> ImageRecord:
    array = open_member(group, multiscale.datasets[level].path, address.node)
    if array.ndim != len(multiscale.axes):
        raise Unreadable(f"{address.node}: level {level} has {array.ndim} axes, its metadata names {len(multiscale.axes)}.")
    frame, stored = multiscale.grid_metadata(address.node, level), checked_array(array, address.node)
    _check_own_shape(multiscale, level, array.shape, address.node)
    return ImageRecord(
        address.text,
        f"OME-Zarr {multiscale.version}, Zarr v{array.metadata.zarr_format}",
        VoxelSource(stored.shape, stored.dtype, partial(lazy_array, stored, address.node)),
        multiscale.level_axes(level),
        frame,
        array.shards or array.chunks,
        _levels(group, multiscale, address.node),
        multiscale.channels,
        stored,
    )


def _check_own_shape(multiscale: Multiscale, level: int, shape: Sequence[int], name: str) -> None:
    """Raises Unreadable where the grid that daskreg keeps beside the metadata has not the shape of the first level."""
    order = spatial(multiscale.axes)
    if level == 0 and multiscale.grid is not None and order is not None:
        found = tuple(shape[i] for i in order)
        if found != multiscale.grid.shape:
            raise Unreadable(
                f"{name}: its level 0 has shape {found}, its daskreg.grid {multiscale.grid.shape}; remove daskreg.grid from the "
                "attributes if the array is right."
            )


def _levels(group: zarr.Group, multiscale: Multiscale, name: str) -> tuple[Resolution, ...]:
    order = spatial(multiscale.axes)
    levels = []
    for dataset in multiscale.datasets:
        shape = open_member(group, dataset.path, name).shape
        if len(shape) == len(multiscale.axes):
            along = order or range(len(shape))
            factors = (1.0,) * len(shape) if order is None else one_unit(name, [multiscale.axes[i].unit for i in order])[1]
            spacing = tuple(dataset.scale[i] * k for i, k in zip(along, factors, strict=True))
            levels.append(Resolution(dataset.path, tuple(shape[i] for i in along), spacing))
    if order is not None:
        _check_extents(name, levels)
    return tuple(levels)


def _check_extents(name: str, levels: Sequence[Resolution]) -> None:
    """Warns of levels that do not cover what the first does: one of their scales is wrong."""
    for level in levels[1:]:
        for n, s, first, fine in zip(level.shape, level.spacing, levels[0].shape, levels[0].spacing, strict=True):
            if abs(n * s - first * fine) > 2 * max(s, fine):
                _warn_of_extent(name, level.path, levels[0].path)
                return


@cache  # once a store and level
def _warn_of_extent(name: str, path: str, first: str) -> None:
    log.warning(
        "%s: by their scales, level %s does not cover the space that level %s covers; check its metadata.", name, path, first
    )


def _level_of_parent(array: zarr.Array[Any], address: Address) -> ImageRecord | None:
    """The array as a level of the multiscale image that contains it, None without one."""
    above = address.node
    for _ in range(PARENT_FOLDERS):
        below, above = above, parent(above)
        if above == below:
            return None
        record = _as_level(above, address)
        if record is not None:
            return record
    return None


def _as_level(above: str, address: Address) -> ImageRecord | None:
    try:
        group = open_node(above)
    except (NotFound, Unreadable):
        return None
    inner = address.node[len(above) :].strip("/")
    multiscale = ngff.parse(above, attributes(group), inner) if isinstance(group, zarr.Group) else None
    level = multiscale.index(inner) if multiscale else None
    if multiscale is None or level is None or not isinstance(group, zarr.Group):
        return None
    return _record(group, _measured(group, multiscale, above), level, address)


def _bare(array: zarr.Array[Any], address: Address) -> ImageRecord:
    axes = guessed_axes(dimension_names(array), array.ndim)
    form = f"Zarr v{array.metadata.zarr_format} array"
    stored = checked_array(array, address.node)
    data = VoxelSource(stored.shape, stored.dtype, partial(lazy_array, stored, address.node))
    return ImageRecord(address.text, form, data, axes, None, array.shards or array.chunks, stored=stored)


def _no_image(group: zarr.Group, address: Address) -> str:
    inside = children(group)
    name = address.node
    own = attributes(group).get("daskreg")
    if isinstance(own, dict) and own.get("kind") == "run":
        return f"{name} is a daskreg run, not an image; its resampled moving image is '{name}/moved'."
    images = [k for k, v in inside.items() if isinstance(v, zarr.Group) and ngff.holds_image(attributes(v))]
    if images:
        return f"{name} holds images inside; choose one with '::array={min(images)}' (there are {', '.join(sorted(images))})."
    arrays = sorted(k for k, v in inside.items() if isinstance(v, zarr.Array))
    if arrays:
        return f"{name} has no multiscales metadata; choose an array with '::array={arrays[0]}' (there are {', '.join(arrays)})."
    return f"{name} is a Zarr group without an image in it; an OME-Zarr image or a Zarr array was expected."


def _write(path: str, data: NDArray[Any] | da.Array, grid: Grid, labels: bool, axes: tuple[Axis, ...]) -> None:
    factors = pyramid(grid)
    dtype = np.dtype(np.uint8) if data.dtype == bool else np.dtype(data.dtype).newbyteorder("=")
    group = zarr.create_group(path, zarr_format=3)
    lead = tuple(zip((a.name for a in axes), data.shape[:-3], strict=True))
    levels = [new_array(group, str(k), grid.coarsen(f).shape, dtype, lead=lead) for k, f in enumerate(factors)]
    done = _store(data, levels, factors, labels)
    for k in range(done, len(levels)):
        coarsen(levels[k - 1], levels[k], steps(factors)[k - 1], labels=labels)
    name = path.rpartition("/")[2].removesuffix(".zarr").removesuffix(".ome")
    kind = "mode" if labels else "mean"
    for level in levels:
        require_all_stored(level, f"{path}/{level.basename}")
    attributes = ngff05.group_attributes(grid, [(str(k), f) for k, f in enumerate(factors)], name, kind, lead=axes)
    group.attrs.update(attributes)  # last: without it the group is not an image


def _store(data: NDArray[Any] | da.Array, levels: list[zarr.Array[Any]], factors: list[Factors], labels: bool) -> int:
    """Store in Dask chunks that are whole Zarr chunks: two writers of the same chunk overwrite each other's voxels.

    Returns how many levels are complete.
    """
    chunks = levels[0].chunks
    lazy = data if isinstance(data, da.Array) else da.from_array(data, chunks=_blocks(chunks), name=False)
    whole = all(all(n % c == 0 for n in axis[:-1]) for axis, c in zip(lazy.chunks, chunks, strict=True))
    lazy = lazy if whole else lazy.rechunk(chunks)
    writer = LevelWriter(levels, factors, lazy.chunks[-3:], labels=labels)
    da.store(lazy, writer, lock=False)  # type: ignore[arg-type]  # it takes slices as NumPy does
    return writer.done


def _blocks(chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Of two chunks along each axis: a chunk of the next level."""
    return (*chunks[:-3], 2 * CHUNK, 2 * CHUNK, 2 * CHUNK)
