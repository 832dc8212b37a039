"""OME-Zarr metadata, versions 0.4 and 0.5: read into plain values, and written; 0.6 is in ``ngff06``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05
from pydantic import ValidationError

from daskreg.errors import GridError, Unreadable
from daskreg.grid import IDENTITY, UNITS, Grid
from daskreg.storage.frame import Frame

log = logging.getLogger(__name__)

SPACE = ("z", "y", "x")
KINDS = {"t": "time", "time": "time", "c": "channel", "channel": "channel", "z": "space", "y": "space", "x": "space"}

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
class Axis:
    """One axis of a stored array; kind is space, time, channel or other."""

    name: str
    kind: str
    unit: str | None = None
    orientation: str | None = None


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

    def frame(self, name: str, level: int) -> Frame | None:
        """Where the level's voxels are, None unless the spatial axes are z, y, x."""
        order = spatial(self.axes)
        if order is None:
            return None
        if self.grid is not None:
            return _own_frame(self.grid, self._scale(level, order), self.sampled)
        units = _one_unit([self.axes[i].unit for i in order])
        scale = [s * k for s, k in zip(self._scale(level, order), units[1], strict=True)]
        shift = [s * k for s, k in zip(self._translation(name, level, order), units[1], strict=True)]
        direction = _direction(name, [self.axes[i].orientation for i in order])
        return Frame(tuple(scale), tuple(shift), direction or IDENTITY, units[0], direction is not None)  # type: ignore[arg-type]

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
        first, fine, here = self._translation(name, 0, order), self._scale(0, order), self._scale(level, order)
        return tuple(t + (b - a) / 2 for t, a, b in zip(first, fine, here, strict=True))


def spatial(axes: Sequence[Axis]) -> tuple[int, ...] | None:
    """Array axes of z, y and x, or None when they are not exactly these three."""
    names = [a.name.lower() if a.kind == "space" else "" for a in axes]
    if sum(n != "" for n in names) != 3:
        return None
    if all(s in names for s in SPACE):
        return tuple(names.index(s) for s in SPACE)
    return tuple(i for i, n in enumerate(names) if n)  # names of their own: taken in the order stored


def holds_image(attrs: Mapping[str, Any]) -> bool:
    """Whether a group's attributes are those of a multiscale image."""
    ome = attrs.get("ome", attrs)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    return isinstance(images, list) and bool(images) and isinstance(images[0], Mapping)


def parse(name: str, attrs: Mapping[str, Any]) -> Multiscale | None:
    """The first multiscale image of a group's attributes, None when there is none.

    Raises Unreadable for metadata that no voxel can be placed with.
    """
    if not holds_image(attrs):
        return None
    ome = attrs.get("ome", attrs)
    images = ome["multiscales"]
    version = str(ome.get("version") or images[0].get("version") or ("0.5" if "ome" in attrs else "0.4"))
    if version.startswith("0.6"):
        from daskreg.storage.ngff06 import parse_image  # which builds on this module

        return parse_image(name, images[0], _labels(ome), _stored_grid(attrs))
    model = _validated(name, version, images[0])
    axes = tuple(_axis(a) for a in model.axes)
    outer = _steps(name, model.coordinateTransformations or (), len(axes))
    datasets = tuple(_dataset(name, d, outer, len(axes)) for d in model.datasets)
    return Multiscale(version, axes, datasets, _labels(ome), _stored_grid(attrs), images[0].get("type") == "sampled")


def group_attributes(
    grid: Grid,
    levels: Sequence[tuple[str, tuple[int, int, int]]],
    name: str,
    kind: str = "mean",
    *,
    components: int = 0,
    lead: Sequence[str] = (),
) -> dict[str, Any]:
    """Attributes of an NGFF 0.5 image group: ``levels`` are (path, factors from level 0) of blocks of voxels, of which ``kind``
    says what was taken: the mean, or the mode;  lead: names of leading axes.

    NGFF 0.5 states no direction: ``daskreg.grid`` beside it does, and RFC-4 orientations where the axes lie along LPS.
    """
    outer = list(lead) or (["c"] if components else [])
    axes: list[dict[str, Any]] = [{"name": n, "type": KINDS.get(n, "other")} for n in outer]
    axes += [_axis_attributes(n, grid, k) for k, n in enumerate(SPACE)]
    datasets = [_dataset_attributes(path, grid.coarsen(f), len(outer)) for path, f in levels]
    multiscale = {"name": name, "axes": axes, "datasets": datasets, "type": kind}
    return {"ome": {"version": "0.5", "multiscales": [multiscale]}, "daskreg": {"grid": grid_attributes(grid)}}


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


def guessed_axes(names: Sequence[str | None] | None, ndim: int) -> tuple[Axis, ...]:
    """Axes of an array without metadata: by its dimension names where they tell, else t, c, z, y, x from the end."""
    known = [str(n).lower() for n in names or ()]
    if len(known) != ndim or not set(SPACE[-min(ndim, 3) :]) <= set(known):
        known = list(("t", "c", *SPACE)[-ndim:]) if ndim <= 5 else [f"axis{i}" for i in range(ndim)]
    return tuple(Axis(n, KINDS.get(n, "other")) for n in known)


def _validated(name: str, version: str, image: Mapping[str, Any]) -> Multiscale04 | Multiscale05:
    if not version.startswith(("0.4", "0.5")):
        raise Unreadable(
            f"{name} is OME-Zarr {version}; versions 0.4, 0.5 and 0.6 are read. Name one of its arrays, with '::spacing=ZxYxX'."
        )
    model = Multiscale05 if version.startswith("0.5") else Multiscale04
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.model_validate(_mended(image))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(k) for k in first["loc"])
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise Unreadable(f"{name}: its OME-Zarr {version} metadata is invalid at multiscales[0].{where}: {message}.") from None


def _mended(image: Mapping[str, Any]) -> dict[str, Any]:
    """Small sins of writers: axis types left out, identity transformations, a version of its own."""
    tree = {k: v for k, v in image.items() if k != "version"}
    if isinstance(tree.get("axes"), list):
        tree["axes"] = [_with_type(a) for a in tree["axes"]]
    outer = tree.get("coordinateTransformations")
    if isinstance(outer, list):
        kept = [t for t in outer if not (isinstance(t, Mapping) and t.get("type") == "identity")]
        tree["coordinateTransformations"] = kept or None
    return tree


def _with_type(axis: Any) -> Any:
    if isinstance(axis, Mapping) and not axis.get("type"):
        kind = KINDS.get(str(axis.get("name")).lower())
        return {**axis, "type": kind} if kind else axis
    return axis


def _axis(axis: Any) -> Axis:
    kind = axis.type if axis.type in ("space", "time", "channel") else "other"
    unit = axis.unit if kind == "space" and isinstance(axis.unit, str) else None
    extra = axis.model_extra or {}
    orientation = extra.get("orientation", extra.get("anatomicalOrientation"))
    if isinstance(orientation, Mapping):
        orientation = orientation.get("value")
    return Axis(str(axis.name), kind, unit, orientation if isinstance(orientation, str) else None)


def _dataset(name: str, dataset: Any, outer: tuple[Any, Any], ndim: int) -> Dataset:
    scale, shift = _steps(name, dataset.coordinateTransformations, ndim)
    total = tuple(float(a * b) for a, b in zip(scale, outer[0], strict=True))
    if shift is None and outer[1] is None:
        return Dataset(dataset.path, total, None)
    inner, beyond = (np.zeros(ndim) if s is None else np.asarray(s) for s in (shift, outer[1]))
    return Dataset(dataset.path, total, tuple((np.asarray(outer[0]) * inner + beyond).tolist()))


def _steps(name: str, transforms: Sequence[Any], ndim: int) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """(scale, translation or None) of one transformation list, a scale first."""
    scale, shift = (1.0,) * ndim, None
    for step in transforms:
        values = getattr(step, "scale", None) or getattr(step, "translation", None)
        if values is None:
            raise Unreadable(f"{name}: its {step.type} stands in a file of its own ('path'); numbers were expected.")
        if step.type == "scale":
            scale = tuple(values)
        else:
            shift = tuple(values)
    return scale, shift


def _labels(ome: Mapping[str, Any]) -> tuple[str, ...]:
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list):
        return ()
    return tuple(str(c.get("label", i)) if isinstance(c, Mapping) else str(i) for i, c in enumerate(channels))


def _stored_grid(attrs: Mapping[str, Any]) -> Grid | None:
    own = attrs.get("daskreg")
    try:
        return grid_from_attributes(own["grid"]) if own else None
    except (KeyError, TypeError, GridError):
        return None


def _own_frame(grid: Grid, scale: Sequence[float], sampled: bool) -> Frame:
    """From the full grid, exactly: a level's scale tells its factors."""
    z, y, x = (max(1, round(b / a)) for a, b in zip(grid.spacing, scale, strict=True))
    return Frame.of(level_grid(grid, (z, y, x), sampled))


def _one_unit(units: Sequence[str | None]) -> tuple[str | None, tuple[float, ...]]:
    """One unit for the three axes, and what each axis is multiplied with."""
    stated = next((u for u in units if u), None)
    if any(u not in (None, "", stated) for u in units) and stated in UNITS and all(u in UNITS for u in units if u):
        return stated, tuple(UNITS[u] / UNITS[stated] if u else 1.0 for u in units)
    return stated, (1.0, 1.0, 1.0)


def _direction(name: str, words: Sequence[str | None]) -> Any:
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
    return tuple(tuple(row) for row in matrix.tolist())


def _axis_attributes(name: str, grid: Grid, column: int) -> dict[str, Any]:
    axis: dict[str, Any] = {"name": name, "type": "space"}
    if grid.unit:
        axis["unit"] = grid.unit
    word = _orientation(np.asarray(grid.direction)[:, column]) if grid.oriented else None
    return {**axis, "orientation": {"type": "anatomical", "value": word}} if word else axis


def _orientation(column: NDArray[np.float64]) -> str | None:
    """The word for a unit vector along a world axis, None for an oblique one."""
    for word, (row, sign) in ORIENTATIONS.items():
        if abs(column[row] * sign - 1) < 1e-6:
            return word
    return None


def _dataset_attributes(path: str, grid: Grid, outer: int) -> dict[str, Any]:
    shift = np.linalg.solve(np.asarray(grid.direction), np.asarray(grid.origin)).tolist()
    lead = [1.0] * outer, [0.0] * outer
    return {
        "path": path,
        "coordinateTransformations": [
            {"type": "scale", "scale": [*lead[0], *grid.spacing]},
            {"type": "translation", "translation": [*lead[1], *shift]},
        ],
    }


@cache  # once a store and level
def _warn_of_missing_translation(name: str, path: str) -> None:
    log.warning(
        "%s: level %s states no translation; its voxels are taken as block averages, (factor - 1)/2 fine voxels further.",
        name,
        path,
    )
