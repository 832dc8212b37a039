"""OME-NGFF 0.4 and 0.5 metadata: read into plain values, and written as 0.5, or as 0.4 for what is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable
from daskreg.grid import Grid
from daskreg.storage.axes import KINDS, SPACE, Axis, leading
from daskreg.storage.zarr.multiscale import ORIENTATIONS, Multiscale, StatedLevel, grid_attributes, placed
from daskreg.storage.zarr.schema import validated

if TYPE_CHECKING:
    from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
    from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05


def parse_image(name: str, version: str, image: Mapping[str, Any], channels: tuple[str, ...], grid: Grid | None) -> Multiscale:
    """The multiscales metadata of a 0.4 or 0.5 image. Raises Unreadable for metadata that no voxel can be placed with."""
    model = _validated(name, version, image)
    axes = tuple(_axis(a) for a in model.axes)
    outer = _steps(name, model.coordinateTransformations or (), len(axes))
    levels = [StatedLevel(d.path, *_steps(name, d.coordinateTransformations, len(axes))) for d in model.datasets]
    return Multiscale(version, axes, placed(name, levels, outer), channels, grid, image.get("type") == "sampled")


def group_attributes(
    grid: Grid,
    levels: Sequence[tuple[str, tuple[int, int, int]]],
    name: str,
    kind: str = "mean",
    *,
    components: int = 0,
    lead: Sequence[Axis] = (),
) -> dict[str, Any]:
    """Attributes of an NGFF 0.5 image group: ``levels`` are (path, factors from level 0) of blocks of voxels, of which ``kind``
    says what was taken: the mean, or the mode;  lead: leading axes.

    NGFF 0.5 states no direction: ``daskreg.grid`` beside it does, and RFC-4 orientations where the axes lie along LPS.
    """
    outer = tuple(lead) or (leading(("c",)) if components else ())
    axes: list[dict[str, Any]] = [{"name": a.name, "type": a.kind, **({"unit": a.unit} if a.unit else {})} for a in outer]
    axes += [_axis_attributes(n, grid, k) for k, n in enumerate(SPACE)]
    datasets = [_dataset_attributes(path, grid.coarsen(f), outer) for path, f in levels]
    multiscale = {"name": name, "axes": axes, "datasets": datasets, "type": kind}
    shown = next(({"omero": a.omero} for a in outer if a.omero), {})
    return {"ome": {"version": "0.5", "multiscales": [multiscale], **shown}, "daskreg": {"grid": grid_attributes(grid)}}


def as_version_04(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a 0.5 image group as NGFF 0.4 has them."""
    ome = attributes["ome"]
    images = [{"version": "0.4", **image} for image in ome["multiscales"]]
    shown = {"omero": {"version": "0.4", **ome["omero"]}} if "omero" in ome else {}
    return {"multiscales": images, **shown, **{k: v for k, v in attributes.items() if k != "ome"}}


def _validated(name: str, version: str, image: Mapping[str, Any]) -> Multiscale04 | Multiscale05:
    from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
    from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05

    model: type[Multiscale04 | Multiscale05] = Multiscale05 if version.startswith("0.5") else Multiscale04
    return validated(model, _repaired(image), name, "multiscales[0]")


def _repaired(image: Mapping[str, Any]) -> dict[str, Any]:
    """Repair common omissions of writers: axis types left out, identity transformations, a version of its own."""
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
    unit = axis.unit if isinstance(axis.unit, str) else None
    extra = axis.model_extra or {}
    orientation = extra.get("orientation", extra.get("anatomicalOrientation"))
    if isinstance(orientation, Mapping):
        orientation = orientation.get("value")
    return Axis(str(axis.name), kind, unit, orientation if isinstance(orientation, str) else None)


def _steps(name: str, transforms: Sequence[Any], ndim: int) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """(scale, translation or None) of one transformation list, a scale first."""
    scale, shift = (1.0,) * ndim, None
    for step in transforms:
        values = getattr(step, "scale", None) or getattr(step, "translation", None)
        if values is None:
            raise Unreadable(f"{name}: its {step.type} stands in a file of its own ('path'); numbers were expected.")
        if len(values) != ndim or not all(isinstance(v, int | float) for v in values):
            raise Unreadable(
                f"{name}: its {step.type} is {str(values)[:100]}; {ndim} numbers were expected: repair its metadata."
            )
        if step.type == "scale":
            scale = tuple(values)
        else:
            shift = tuple(values)
    return scale, shift


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


def _dataset_attributes(path: str, grid: Grid, outer: Sequence[Axis]) -> dict[str, Any]:
    shift = np.linalg.solve(np.asarray(grid.direction), np.asarray(grid.origin)).tolist()
    lead = [a.scale for a in outer], [a.origin for a in outer]
    return {
        "path": path,
        "coordinateTransformations": [
            {"type": "scale", "scale": [*lead[0], *grid.spacing]},
            {"type": "translation", "translation": [*lead[1], *shift]},
        ],
    }
