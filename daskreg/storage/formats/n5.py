"""Images of N5: a dataset, or a group of levels s0, s1, .. as BigDataViewer, Paintera and Janelia's archives keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from daskreg.errors import NotFound, UnitsError, Unreadable
from daskreg.grid import unit_name
from daskreg.storage.axes import Axis, guessed_axes, spatial
from daskreg.storage.format import ImageFormat
from daskreg.storage.formats.lazy import lazy_voxels
from daskreg.storage.formats.levels import chosen_level
from daskreg.storage.formats.n5_blocks import N5Dataset, dataset_at, node_attributes
from daskreg.storage.fs.address import Address, join, parent
from daskreg.storage.fs.files import exists, list_names
from daskreg.storage.grid_metadata import GridMetadata, triple
from daskreg.storage.image_record import ImageRecord, Resolution
from daskreg.storage.zarr.nodes import dask_chunks

DEPTH = 6  # of groups that are looked through for datasets
SHOWN = 12


class N5Image(ImageFormat):
    """Datasets in folders or behind URLs, read by blocks. Voxel sizes from ``pixelResolution`` or ``resolution``."""

    name = "N5"
    endings = (".n5",)
    writes = False
    leading_axes = True
    single_file = False

    def sniff(self, path: str) -> bool:
        """By the attributes of its top."""
        try:
            return "n5" in node_attributes(path) or dataset_at(path) is not None
        except Unreadable:
            return False

    def open(self, address: Address) -> ImageRecord:
        """A dataset, or the level ``::level=`` of a group of them. Raises NotFound, Unreadable listing the datasets there are."""
        levels = _levels_at(address)
        level = chosen_level(address, len(levels))
        first, dataset = levels[0], levels[level]
        axes = _axes(address.node, first)
        metadata = level_metadata(address.node, axes, first, dataset.shape)
        chunks = dask_chunks(dataset.shape, dataset.block, None, dataset.dtype.itemsize)
        data = lazy_voxels(dataset.read, dataset.shape, dataset.dtype, chunks)
        resolutions = _resolutions(address.node, axes, levels) if len(levels) > 1 else ()
        form = f"{self.name}, {dataset.compression.get('type', 'raw')}"
        return ImageRecord(address.text, form, data, axes, metadata, dataset.block, resolutions)


def _levels_at(address: Address) -> list[N5Dataset]:
    fill, node = address.missing == "fill", address.node
    single = dataset_at(node, fill=fill)
    if single is not None:
        return [single]
    levels = levels_below(node, fill=fill)
    if levels:
        return levels
    inside = _datasets(node)
    if len(inside) == 1 and (only := dataset_at(join(node, inside[0]), fill=fill)) is not None:
        return [only]
    if inside:
        listed = ", ".join(inside[:SHOWN]) + ", .." * (len(inside) > SHOWN)
        raise Unreadable(f"{node} holds {len(inside)} datasets; choose one with '::array={inside[0]}' (there are {listed}).")
    if not exists(node):
        raise NotFound(f"{node} does not exist.")
    raise Unreadable(f"{node} has no N5 dataset in it; one was expected: name one with '::array=PATH'.")


def levels_below(path: str, *, fill: bool = False) -> list[N5Dataset]:
    """The datasets s0, s1, .. of a group."""
    levels: list[N5Dataset] = []
    while (found := dataset_at(join(path, f"s{len(levels)}"), fill=fill)) is not None:
        levels.append(found)
    return levels


def _datasets(path: str, inner: str = "", depth: int = DEPTH) -> list[str]:
    """Paths of datasets, and of groups of levels, below a group that can be listed."""
    found: list[str] = []
    for name in sorted(list_names(join(path, inner) if inner else path)):
        place = f"{inner}/{name}" if inner else name
        if "." in name or name.isdecimal():
            continue
        if dataset_at(join(path, place)) is not None or dataset_at(join(path, f"{place}/s0")) is not None:
            found.append(place)
        elif depth:
            found += _datasets(path, place, depth - 1)
    return found


# ---------------------------------------------------------------- where the voxels are


def _axes(node: str, dataset: N5Dataset) -> tuple[Axis, ...]:
    stated = _stated(node, dataset.path).get("axes")
    names = [str(n) for n in reversed(stated)] if isinstance(stated, list) else None
    return guessed_axes(names, len(dataset.shape))


def _stated(node: str, dataset: str) -> dict[str, Any]:
    """Attributes of a dataset and of the groups above it, the nearest first."""
    found: dict[str, Any] = {}
    for path in dict.fromkeys((dataset, node, parent(node), parent(parent(node)))):
        found = {**node_attributes(path), **found}
    return found


def level_metadata(node: str, axes: Sequence[Axis], first: N5Dataset, shape: Sequence[int]) -> GridMetadata | None:
    """The grid of a level of a shape, whose first level is another, None where no voxel size is stated."""
    order, tree = spatial(axes), _stated(node, first.path)
    sizes, unit = _pixel_size(node, tree)
    if order is None or sizes is None:
        return None
    factors = [max(1, round(first.shape[i] / shape[i])) for i in order]
    spacing = triple(s * f for s, f in zip(sizes, factors, strict=True))
    return GridMetadata(spacing, triple((f - 1) / 2 * s for f, s in zip(factors, sizes, strict=True)), unit=unit)


def _pixel_size(node: str, tree: Mapping[str, Any]) -> tuple[tuple[float, float, float] | None, str | None]:
    """z, y, x, and the unit."""
    stated: Any = tree.get("pixelResolution", tree.get("resolution"))
    unit: Any = tree.get("units")
    if isinstance(stated, Mapping):
        stated, unit = stated.get("dimensions"), stated.get("unit", unit)
    unit = unit[0] if isinstance(unit, list) and unit else unit
    if not isinstance(stated, list) or len(stated) < 3 or not all(isinstance(s, int | float) and s > 0 for s in stated[:3]):
        return None, None
    try:
        return triple(reversed(stated[:3])), unit_name(unit) if isinstance(unit, str) else None
    except UnitsError as error:
        raise Unreadable(f"{node}: {error}") from None


def _resolutions(node: str, axes: Sequence[Axis], levels: Sequence[N5Dataset]) -> tuple[Resolution, ...]:
    order = spatial(axes)
    if order is None:
        return ()
    found = []
    for k, level in enumerate(levels):
        grid = level_metadata(node, axes, levels[0], level.shape)
        factors = np.array([levels[0].shape[i] / level.shape[i] for i in order])
        spacing = tuple(float(f) for f in np.round(factors)) if grid is None else grid.spacing
        found.append(Resolution(f"s{k}", tuple(level.shape[i] for i in order), spacing))
    return tuple(found)
