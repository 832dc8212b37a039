"""Multiscales metadata as plain values, whatever version of OME-NGFF they were read from, and daskreg's own grid beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from daskreg.errors import GridError, InputError, UnitsError, Unreadable
from daskreg.grid import IDENTITY, UNITS, Grid, unit_name
from daskreg.grid.grid import Matrix3
from daskreg.storage.axes import Axis, spatial
from daskreg.storage.grid_metadata import GridMetadata, matrix3, triple
from daskreg.storage.zarr.schema import GridSchema, validated

log = logging.getLogger(__name__)

AGREEMENT = 1e-3  # voxels by which two statements of one place may differ
PARENT_FOLDERS = 4  # searched above an array for the multiscales metadata that it belongs to

# world axis (0 superior, 1 posterior, 2 left: LPS stored z, y, x) and sign that each word of RFC-4 runs along
ORIENTATIONS = {
    "inferior-to-superior": (0, 1.0),
    "superior-to-inferior": (0, -1.0),
    "anterior-to-posterior": (1, 1.0),
    "posterior-to-anterior": (1, -1.0),
    "right-to-left": (2, 1.0),
    "left-to-right": (2, -1.0),
}


@dataclass(frozen=True)
class StatedLevel:
    """One resolution as its own metadata states it: its path, and per array axis its scale and translation (None: unstated)."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...] | None


@dataclass(frozen=True)
class Dataset:
    """One resolution: its path in the group, and per array axis its scale and translation; stated: whether it has the latter."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    stated: bool = True


def placed(
    name: str, levels: Sequence[StatedLevel], outer: tuple[Sequence[float], Sequence[float] | None] | None = None
) -> tuple[Dataset, ...]:
    """The resolutions of an image. outer: scale and translation behind those of every level, as the whole image states them.

    A coarse level without a translation means block averages, nearly always: its voxels are at the centres of the blocks.
    Raises Unreadable for numbers that are not finite.
    """
    first = levels[0]
    origin = np.zeros(len(first.scale)) if first.translation is None else np.asarray(first.translation)
    scale, shift = (np.ones(len(first.scale)), None) if outer is None else (np.asarray(outer[0]), outer[1])
    datasets = []
    for k, level in enumerate(levels):
        stated = level.translation is not None
        own = np.asarray(level.translation) if stated else origin + (np.asarray(level.scale) - first.scale) / 2
        total, where = scale * level.scale, scale * own + (0.0 if shift is None else np.asarray(shift))
        if not (np.isfinite(total).all() and np.isfinite(where).all()):
            raise Unreadable(
                f"{name}: level {level.path!r} has the scale {total.tolist()} and the translation {where.tolist()}; finite "
                "numbers were expected: repair its metadata."
            )
        datasets.append(Dataset(level.path, tuple(total.tolist()), tuple(where.tolist()), stated or k == 0))
    return tuple(datasets)


@dataclass(frozen=True)
class Multiscale:
    """The multiscales metadata of a group.

    grid: the grid that daskreg itself put beside it;  sampled: coarse levels have the place of the first voxel of a block;
    sized: whether the size of a voxel is stated; without it, scales are relative to the first level
    """

    version: str
    axes: tuple[Axis, ...]
    datasets: tuple[Dataset, ...]
    channels: tuple[str, ...] = ()
    grid: Grid | None = None
    sampled: bool = False
    omero: Mapping[str, Any] | None = None
    sized: bool = True

    def level_axes(self, level: int) -> tuple[Axis, ...]:
        """The axes of a level, with the place of the entries along those that are not spatial."""
        dataset = self.datasets[level]
        return tuple(self._placed(axis, *at) for axis, *at in zip(self.axes, dataset.scale, dataset.translation, strict=True))

    def _placed(self, axis: Axis, scale: float, origin: float) -> Axis:
        if axis.kind == "space":
            return axis
        return replace(axis, scale=scale, origin=origin, omero=self.omero if axis.kind == "channel" else None)

    def grid_metadata(self, name: str, level: int) -> GridMetadata | None:
        """Where the level's voxels are, None unless the spatial axes are z, y, x."""
        order = spatial(self.axes)
        if order is None:
            return None
        if self.grid is not None:
            return _own_grid_metadata(name, self.grid, self._scale(level, order), self.sampled)
        units = one_unit(name, [self.axes[i].unit for i in order])
        scale = [s * k for s, k in zip(self._scale(level, order), units[1], strict=True)]
        shift = [s * k for s, k in zip(self._translation(name, level, order), units[1], strict=True)]
        direction = _direction(name, [self.axes[i].orientation for i in order])
        return GridMetadata(
            triple(scale), triple(shift), direction or IDENTITY, units[0], direction is not None, sized=self.sized
        )

    def index(self, level: int | str) -> int | None:
        """The number of a level given by number or dataset path, None when there is no such level."""
        paths = [d.path for d in self.datasets]
        if level in paths:
            return paths.index(str(level))
        return level if isinstance(level, int) and level < len(paths) else None

    def _scale(self, level: int, order: Sequence[int]) -> tuple[float, ...]:
        return tuple(self.datasets[level].scale[i] for i in order)

    def _translation(self, name: str, level: int, order: Sequence[int]) -> tuple[float, ...]:
        dataset = self.datasets[level]
        if not dataset.stated:
            _warn_of_missing_translation(name, dataset.path)
        return tuple(dataset.translation[i] for i in order)


def level_grid(grid: Grid, factors: tuple[int, int, int], sampled: bool = False) -> Grid:
    """The grid of a coarser level, at its blocks' centres; one that was sampled, as older versions did, keeps the first place."""
    coarse = grid.coarsen(factors)
    return replace(coarse, origin=grid.origin) if sampled else coarse


def grid_attributes(grid: Grid) -> dict[str, Any]:
    """A grid as JSON."""
    return {
        "order": "z, y, x; world is LPS: world = origin + direction @ (spacing * index)",
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "origin": list(grid.origin),
        "direction": [list(row) for row in grid.direction],
        "unit": grid.unit,
        "oriented": grid.oriented,
    }


def grid_from_attributes(tree: Any, name: str, where: str) -> Grid:
    """The inverse of ``grid_attributes``. name, where: of the store, and of the tree in it. Raises Unreadable."""
    model = validated(GridSchema, tree, name, where)
    try:
        return Grid(model.shape, model.spacing, model.origin, model.direction, model.unit, model.oriented)
    except InputError as error:
        raise Unreadable(f"{name}: its metadata is invalid at {where}: {error}") from None


def stored_grid(attrs: Mapping[str, Any], name: str) -> Grid | None:
    """The grid that daskreg wrote beside the multiscales metadata, None without one. Raises Unreadable for a wrong one."""
    own = attrs.get("daskreg")
    return grid_from_attributes(own["grid"], name, "daskreg.grid") if isinstance(own, Mapping) and "grid" in own else None


def channel_labels(ome: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels of the channels in the omero metadata, empty where there are none."""
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list):
        return ()
    return tuple(str(c.get("label", i)) if isinstance(c, Mapping) else str(i) for i, c in enumerate(channels))


def display_metadata(ome: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The omero metadata: names, colours and display windows of channels; None where there are none."""
    omero = ome.get("omero")
    return omero if isinstance(omero, Mapping) else None


def require_agreement(name: str, image: Multiscale) -> None:
    """Raises Unreadable where the grid that daskreg keeps beside an image is not that of the image's first level."""
    order = spatial(image.axes)
    if image.grid is None or order is None:
        return
    dataset, grid = image.datasets[0], image.grid
    scale, shift = (np.asarray([values[i] for i in order]) for values in (dataset.scale, dataset.translation))
    along = np.linalg.solve(np.asarray(grid.direction), np.asarray(grid.origin))
    units = {unit_name(image.axes[i].unit) for i in order}
    if (
        abs(scale - grid.spacing).max() > AGREEMENT * min(grid.spacing)
        or (abs(shift - along) > AGREEMENT * np.asarray(grid.spacing)).any()
        or units != {grid.unit}
    ):
        raise Unreadable(
            f"{name}: daskreg.grid states the spacing {grid.spacing} and the translation {tuple(along.tolist())} in {grid.unit}, "
            f"the OME-Zarr metadata {tuple(scale.tolist())} and {tuple(shift.tolist())} in {', '.join(map(str, units))}; remove "
            "daskreg.grid from the attributes if the latter are right."
        )


def _own_grid_metadata(name: str, grid: Grid, scale: Sequence[float], sampled: bool) -> GridMetadata:
    """From the full grid, exactly: a level's scale tells its factors."""
    ratios = [b / a for a, b in zip(grid.spacing, scale, strict=True)]
    z, y, x = (round(r) for r in ratios)
    if min(z, y, x) < 1 or any(abs(r - round(r)) > AGREEMENT * r for r in ratios):
        raise Unreadable(
            f"{name}: a level has the scale {tuple(scale)}; multiples of {grid.spacing}, that of daskreg.grid, were expected."
        )
    return GridMetadata.of(level_grid(grid, (z, y, x), sampled))


def one_unit(name: str, units: Sequence[str | None]) -> tuple[str | None, tuple[float, ...]]:
    """One unit for the axes, and what each axis is multiplied with. Raises UnitsError where they differ and one is unknown."""
    stated = [u for u in units if u]
    if len(set(stated)) < 2:
        if 0 < len(stated) < len(units):
            _warn_of_missing_unit(name, stated[0])
        return (stated[0] if stated else None), (1.0,) * len(units)
    try:
        names = [unit_name(u) for u in units]
    except UnitsError as error:
        raise UnitsError(f"{name}: its axes state the units {', '.join(map(str, units))}: {error}") from None
    unit = next((n for n in names if n), None)
    if None in names:
        _warn_of_missing_unit(name, str(unit))
    return unit, tuple(UNITS[n] / UNITS[unit] if n and unit else 1.0 for n in names)


def _direction(name: str, words: Sequence[str | None]) -> Matrix3 | None:
    """The direction matrix that three orientations state, None where they state none."""
    known = [ORIENTATIONS.get(w or "") for w in words]
    if not all(known):
        if any(words):
            log.warning("%s: axis orientations %s are not all known here and are ignored.", name, list(words))
        return None
    matrix = np.zeros((3, 3))
    for column, (row, sign) in enumerate(k for k in known if k):
        matrix[row, column] = sign
    if abs(np.linalg.det(matrix)) != 1:
        raise GridError(f"{name}: two axes have the same orientation in {list(words)}; repair the store's metadata.")
    return matrix3(matrix)


@cache  # once a store and level
def _warn_of_missing_translation(name: str, path: str) -> None:
    log.warning(
        "%s: level %s states no translation; its voxels are taken as block averages, (factor - 1)/2 fine voxels further.",
        name,
        path,
    )


@cache  # once a store
def _warn_of_missing_unit(name: str, unit: str) -> None:
    log.warning("%s: not all of its axes state a unit; those without one are taken to be in %s.", name, unit)
