"""OME-NGFF 0.6 as it is read: images, displacement fields, and transformations between coordinate systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable
from daskreg.grid import IDENTITY, Grid
from daskreg.storage.axes import KINDS, Axis
from daskreg.storage.grid_metadata import triple
from daskreg.storage.zarr.multiscale import Multiscale, StatedLevel, one_unit, placed
from daskreg.storage.zarr.ngff06_schema import AxisSchema, DatasetSchema, ImageSchema, SceneSchema, StepSchema
from daskreg.storage.zarr.schema import validated

ORTHONORMAL = 1e-4  # largest entry of R^T R - 1 of a rotation: writers may keep six digits
Matrix = NDArray[np.float64]


def parse_image(name: str, version: str, image: Mapping[str, Any], channels: tuple[str, ...], grid: Grid | None) -> Multiscale:
    """The multiscales metadata of a 0.6 image or field. Raises Unreadable for what no voxel can be placed with."""
    model = validated(ImageSchema, image, name, "multiscales[0]")
    outputs = {_end(d.coordinateTransformations[0]) for d in model.datasets}
    systems = {s.name: s for s in model.coordinateSystems}
    if len(outputs) != 1 or not outputs <= systems.keys():
        words = ", ".join(sorted(map(str, outputs)))
        raise Unreadable(
            f"{name}: its datasets lie in {words}; one of its coordinateSystems ({', '.join(systems)}) was expected."
        )
    axes = tuple(_axis(a) for a in systems[str(outputs.pop())].axes)
    if len({a.name for a in axes}) < len(axes):
        raise Unreadable(f"{name}: two of its axes {', '.join(a.name for a in axes)} have one name; repair its metadata.")
    levels = [_level(name, d, len(axes)) for d in model.datasets]
    return Multiscale(version, axes, placed(name, levels), channels, grid, model.type == "sampled")


def _end(step: StepSchema) -> str | None:
    return None if step.output is None else step.output.name


def _axis(axis: AxisSchema) -> Axis:
    kind = axis.type or KINDS.get(axis.name.lower(), "other")
    unit = axis.unit
    word = axis.orientation.get("value") if isinstance(axis.orientation, Mapping) else axis.orientation
    kind = "channel" if kind == "displacement" else kind if kind in ("space", "time", "channel") else "other"
    return Axis(axis.name, kind, unit, word if isinstance(word, str) else None)


def _level(name: str, dataset: DatasetSchema, ndim: int) -> StatedLevel:
    (step,) = dataset.coordinateTransformations
    scale, shift, stated = np.ones(ndim), np.zeros(ndim), False
    for part in (step.transformations or ()) if step.type == "sequence" else (step,):
        if part.type == "identity":
            continue
        values = part.scale if part.type == "scale" else part.translation if part.type == "translation" else None
        if values is None or len(values) != ndim:
            raise Unreadable(
                f"{name}: a dataset is placed by {part.type!r} {values}; scale and translation of {ndim} axes were expected."
            )
        if part.type == "scale":
            scale, shift = scale * np.asarray(values), shift * np.asarray(values)
        else:
            shift, stated = shift + np.asarray(values), True
    return StatedLevel(dataset.path, tuple(scale.tolist()), tuple(shift.tolist()) if stated else None)


def parse_scene(name: str, scene: Any) -> SceneSchema:
    """A scene, or the transformations of a document. Raises Unreadable."""
    return validated(SceneSchema, scene, name, "scene")


def flattened(name: str, step: StepSchema) -> list[Matrix | str]:
    """A transformation as affine maps (4, 4) and paths of displacement fields, in the order of application.

    Affine, scale, translation, rotation, mapAxis, identity, displacements, sequence and the forward part of a bijection.
    Raises Unreadable for any other, and for numbers that do not make a map of three axes.
    """
    match step.type:
        case "sequence":
            return [part for inner in _required(name, step, "transformations") for part in flattened(name, inner)]
        case "bijection":
            return flattened(name, _required(name, step, "forward"))
        case "displacements":
            if step.interpolation != "linear":
                raise Unreadable(
                    f"{name}: a displacement field is to be interpolated by {step.interpolation!r}; 'linear' alone is read."
                )
            return [str(_required(name, step, "path"))]
        case "identity":
            return [np.eye(4)]
    if step.type not in LINEAR:
        raise Unreadable(
            f"{name} holds a transformation of type {step.type!r}; {', '.join(LINEAR)}, identity, displacements, sequence and "
            "bijection are read."
        )
    return [LINEAR[step.type](name, _required(name, step, step.type))]


def _required(name: str, step: StepSchema, key: str) -> Any:
    value = getattr(step, key)
    if value is None:
        where = ", which stands in an array of its own" if step.path and key != "path" else ""
        raise Unreadable(f"{name}: its {step.type} has no {key!r}{where}; it was expected in the metadata.")
    return value


def _shaped(name: str, kind: str, values: Any, *shapes: tuple[int, ...]) -> Matrix:
    """Numbers as an array of one of the shapes. Raises Unreadable."""
    ragged = isinstance(values[0], list) and len({len(row) for row in values}) > 1 if values else True
    array = np.zeros(0) if ragged else np.asarray(values, float)
    if array.shape not in shapes:
        found = "rows of different lengths" if ragged else f"shape {array.shape}"
        raise Unreadable(f"{name}: its {kind} has {found}; {' or '.join(map(str, shapes))} was expected, for the axes z, y, x.")
    return array


def _scale(name: str, values: Any) -> Matrix:
    return np.diag([*_shaped(name, "scale", values, (3,)), 1.0])


def _translation(name: str, values: Any) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, 3] = _shaped(name, "translation", values, (3,))
    return matrix


def _rotation(name: str, values: Any) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, :3] = linear = _shaped(name, "rotation", values, (3, 3))
    if abs(linear.T @ linear - np.eye(3)).max() > ORTHONORMAL or np.linalg.det(linear) < 0:
        raise Unreadable(
            f"{name}: its rotation {np.round(linear, 4).tolist()} is none (it scales, shears or mirrors); an affine says that."
        )
    return matrix


def _affine(name: str, values: Any) -> Matrix:
    rows = _shaped(name, "affine", values, (3, 4), (4, 4))
    if rows.shape == (4, 4) and rows[3].tolist() != [0, 0, 0, 1]:
        raise Unreadable(f"{name}: the last row of its affine is {rows[3].tolist()}; 0, 0, 0, 1 was expected.")
    return np.vstack([rows[:3], [0, 0, 0, 1.0]])


def _map_axis(name: str, values: Any) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[_shaped(name, "mapAxis", values, (3,)).astype(int)]
    return matrix


LINEAR: dict[str, Callable[[str, Any], Matrix]] = {
    "affine": _affine,
    "scale": _scale,
    "translation": _translation,
    "rotation": _rotation,
    "mapAxis": _map_axis,
}


def unit_of(name: str, scene: SceneSchema, system: str | None) -> str | None:
    """The unit of length of a scene's coordinate system, None where it states none. Raises Unreadable where its axes differ."""
    for entry in scene.coordinateSystems:
        if entry.name == system:
            return _shared_unit(name, [a.unit for a in entry.axes if (a.type or "space") == "space"])
    return None


def field_grid(name: str, multiscale: Multiscale, shape: Sequence[int], level: int = 0) -> Grid:
    """The grid of a field (3, Z, Y, X) along its own axes. Raises Unreadable unless the vector axis comes first of four."""
    dataset = multiscale.datasets[level]
    if len(shape) != 4 or shape[0] != 3 or len(dataset.scale) != 4 or multiscale.axes[0].kind == "space":
        raise Unreadable(f"{name} has shape {tuple(shape)}; a displacement field (3, Z, Y, X), vector axis first, was expected.")
    unit = _shared_unit(name, [a.unit for a in multiscale.axes if a.kind == "space"])
    return Grid((shape[1], shape[2], shape[3]), triple(dataset.scale[1:]), triple(dataset.translation[1:]), IDENTITY, unit)


def _shared_unit(name: str, units: Sequence[str | None]) -> str | None:
    unit, factors = one_unit(name, units)
    if any(k != 1 for k in factors):
        raise Unreadable(f"{name}: the axes of a transformation are in {', '.join(map(str, units))}; one unit was expected.")
    return unit
