"""Multiscales metadata as plain values, whatever version of OME-NGFF they were read from, and daskreg's own grid beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from daskreg.errors import GridError
from daskreg.grid import IDENTITY, UNITS, Grid
from daskreg.grid.grid import Matrix3
from daskreg.storage.axes import Axis, spatial
from daskreg.storage.grid_metadata import GridMetadata, matrix3, triple

log = logging.getLogger(__name__)

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
class Dataset:
    """One resolution: its path in the group, and per array axis its scale and translation (None when unstated)."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...] | None


@dataclass(frozen=True)
class Multiscale:
    """The multiscales metadata of a group; ``grid`` is the grid daskreg itself put beside it."""

    version: str
    axes: tuple[Axis, ...]
    datasets: tuple[Dataset, ...]
    channels: tuple[str, ...] = ()
    grid: Grid | None = None
    sampled: bool = False

    def grid_metadata(self, name: str, level: int) -> GridMetadata | None:
        """Where the level's voxels are, None unless the spatial axes are z, y, x."""
        order = spatial(self.axes)
        if order is None:
            return None
        if self.grid is not None:
            return _own_grid_metadata(self.grid, self._scale(level, order), self.sampled)
        units = _one_unit([self.axes[i].unit for i in order])
        scale = [s * k for s, k in zip(self._scale(level, order), units[1], strict=True)]
        shift = [s * k for s, k in zip(self._translation(name, level, order), units[1], strict=True)]
        direction = _direction(name, [self.axes[i].orientation for i in order])
        return GridMetadata(triple(scale), triple(shift), direction or IDENTITY, units[0], direction is not None)

    def index(self, level: int | str) -> int | None:
        """The number of a level given by number or dataset path, None when there is no such level."""
        paths = [d.path for d in self.datasets]
        if level in paths:
            return paths.index(str(level))
        return level if isinstance(level, int) and level < len(paths) else None

    def _scale(self, level: int, order: Sequence[int]) -> tuple[float, ...]:
        return tuple(self.datasets[level].scale[i] for i in order)

    def _translation(self, name: str, level: int, order: Sequence[int]) -> tuple[float, ...]:
        """An archive that omits a coarse level's translation means block averages, nearly always."""
        stated = self.datasets[level].translation
        if stated is not None:
            return tuple(stated[i] for i in order)
        if level == 0:
            return (0.0, 0.0, 0.0)
        _warn_of_missing_translation(name, self.datasets[level].path)
        first, fine, coarse = self._translation(name, 0, order), self._scale(0, order), self._scale(level, order)
        return tuple(t + (b - a) / 2 for t, a, b in zip(first, fine, coarse, strict=True))


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


def grid_from_attributes(tree: Mapping[str, Any]) -> Grid:
    """The inverse of ``grid_attributes``. Raises KeyError, TypeError or GridError for anything else."""
    return Grid(*(tree[k] for k in ("shape", "spacing", "origin", "direction", "unit", "oriented")))


def stored_grid(attrs: Mapping[str, Any]) -> Grid | None:
    """The grid that daskreg wrote beside the multiscales metadata, None where there is none."""
    own = attrs.get("daskreg")
    try:
        return grid_from_attributes(own["grid"]) if own else None
    except (KeyError, TypeError, GridError):
        return None


def channel_labels(ome: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels of the channels in the omero metadata, empty where there are none."""
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list):
        return ()
    return tuple(str(c.get("label", i)) if isinstance(c, Mapping) else str(i) for i, c in enumerate(channels))


def _own_grid_metadata(grid: Grid, scale: Sequence[float], sampled: bool) -> GridMetadata:
    """From the full grid, exactly: a level's scale tells its factors."""
    z, y, x = (max(1, round(b / a)) for a, b in zip(grid.spacing, scale, strict=True))
    return GridMetadata.of(level_grid(grid, (z, y, x), sampled))


def _one_unit(units: Sequence[str | None]) -> tuple[str | None, tuple[float, ...]]:
    """One unit for the three axes, and what each axis is multiplied with."""
    stated = next((u for u in units if u), None)
    if any(u not in (None, "", stated) for u in units) and stated in UNITS and all(u in UNITS for u in units if u):
        return stated, tuple(UNITS[u] / UNITS[stated] if u else 1.0 for u in units)
    return stated, (1.0, 1.0, 1.0)


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
