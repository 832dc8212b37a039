"""OME-NGFF 0.6, written and read: coordinate systems, multiscale displacement fields, and scenes of transformations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable
from daskreg.grid import IDENTITY, UNITS, Grid
from daskreg.storage.axes import KINDS, SPACE, Axis
from daskreg.storage.grid_metadata import triple
from daskreg.storage.zarr.multiscale import Dataset, Multiscale, grid_attributes

VERSION = "0.6"
PHYSICAL = "physical"  # a field's own system: along its grid's axes, in world units
Matrix = NDArray[np.float64]
Tree = Mapping[str, Any]


def space_axes(unit: str | None) -> list[dict[str, Any]]:
    """z, y and x."""
    return [{"name": n, "type": "space", **({"unit": unit} if unit else {})} for n in SPACE]


def field_attributes(grid: Grid, levels: Sequence[tuple[str, tuple[int, int, int]]], name: str) -> dict[str, Any]:
    """Attributes of a displacement group: vector axis first, vectors and positions along the grid's axes, world units.

    levels: (path, factors from level 0) of block averages
    """
    axes = [{"name": "c", "type": "displacement", "discrete": True}, *space_axes(grid.unit)]
    datasets = [_dataset(path, grid.coarsen(factors)) for path, factors in levels]
    multiscale = {"name": name, "coordinateSystems": [{"name": PHYSICAL, "axes": axes}], "datasets": datasets}
    return {"ome": {"version": VERSION, "multiscales": [multiscale]}, "daskreg": {"grid": grid_attributes(grid)}}


def _dataset(path: str, grid: Grid) -> dict[str, Any]:
    shift = np.linalg.solve(np.asarray(grid.direction), np.asarray(grid.origin)).tolist()
    steps = [{"type": "scale", "scale": [1.0, *grid.spacing]}, {"type": "translation", "translation": [0.0, *shift]}]
    ends = {"input": {"path": path}, "output": {"name": PHYSICAL}}
    return {"path": path, "coordinateTransformations": [{"type": "sequence", **ends, "transformations": steps}]}


def scene_attributes(
    forward: Sequence[tuple[Matrix, Grid | None, str | None]],
    unit: str | None,
    backward: Sequence[tuple[Matrix, Grid | None, str | None]] = (),
) -> dict[str, Any]:
    """A scene whose one transformation takes points of the world ``fixed`` to the world ``moving``.

    forward, backward: W, grid and path of the field of every link ``W(x + d(x))``; with ``backward``, it is a bijection
    """
    systems = [{"name": name, "axes": space_axes(unit)} for name in ("fixed", "moving")]
    transformation = sequence(forward)
    if backward:
        transformation = {"type": "bijection", "forward": transformation, "inverse": sequence(backward)}
    transformation = {"name": "fixed_to_moving", "input": {"name": "fixed"}, "output": {"name": "moving"}, **transformation}
    return {"version": VERSION, "scene": {"coordinateSystems": systems, "coordinateTransformations": [transformation]}}


def sequence(
    links: Sequence[tuple[Matrix, Grid | None, str | None]], before: Matrix | None = None, after: Matrix | None = None
) -> dict[str, Any]:
    """Links as a sequence: a field is looked up and added along its grid's own axes, so the direction goes before and after.

    before, after: (4, 4), into the world that the links begin in, and out of the one that they end in
    """
    steps: list[dict[str, Any]] = []
    pending = np.eye(4) if before is None else before
    for affine, grid, path in links:
        if path is not None and grid is not None:
            direction = direction_of(grid)
            steps += _affine(np.linalg.inv(direction) @ pending)
            steps.append({"type": "displacements", "path": path, "interpolation": "linear"})
            pending = affine @ direction
        else:
            pending = affine @ pending
    steps += _affine(pending if after is None else after @ pending)
    return {"type": "sequence", "transformations": steps or [{"type": "identity"}]}


def _affine(matrix: Matrix) -> list[dict[str, Any]]:
    return [] if np.allclose(matrix, np.eye(4), rtol=0, atol=1e-12) else [{"type": "affine", "affine": matrix[:3].tolist()}]


def direction_of(grid: Grid) -> Matrix:
    """(4, 4): from the frame along a grid's axes to the world."""
    direction = np.eye(4)
    direction[:3, :3] = np.asarray(grid.direction)
    return direction


def parse_image(name: str, image: Tree, channels: tuple[str, ...], grid: Grid | None) -> Multiscale:
    """The multiscales metadata of a 0.6 image or field. Raises Unreadable for what no voxel can be placed with."""
    systems = {s.get("name"): s for s in image.get("coordinateSystems") or () if isinstance(s, Mapping)}
    if not systems or not isinstance(image.get("datasets"), list) or not image["datasets"]:
        raise Unreadable(f"{name}: its OME-Zarr 0.6 metadata has no coordinateSystems or no datasets; both were expected.")
    try:
        output = image["datasets"][0]["coordinateTransformations"][0]["output"]
        axes = tuple(_axis(a) for a in systems[output["name"] if isinstance(output, Mapping) else output]["axes"])
        datasets = tuple(_placed(name, d, len(axes)) for d in image["datasets"])
    except (KeyError, IndexError, TypeError) as error:
        raise Unreadable(f"{name}: its OME-Zarr 0.6 metadata is incomplete: {error!r}.") from None
    return Multiscale(VERSION, axes, datasets, channels, grid, image.get("type") == "sampled")


def _axis(axis: Tree) -> Axis:
    kind = axis.get("type") or KINDS.get(str(axis.get("name")).lower(), "other")
    unit = axis.get("unit") if kind == "space" else None
    orientation = axis.get("orientation")
    word = orientation.get("value") if isinstance(orientation, Mapping) else orientation
    kind = "channel" if kind == "displacement" else kind if kind in ("space", "time", "channel") else "other"
    return Axis(str(axis["name"]), kind, unit, word if isinstance(word, str) else None)


def _placed(name: str, dataset: Tree, ndim: int) -> Dataset:
    (step,) = dataset["coordinateTransformations"]
    scale, shift, stated = np.ones(ndim), np.zeros(ndim), False
    for part in step["transformations"] if step["type"] == "sequence" else [step]:
        match part["type"]:
            case "scale":
                scale, shift = scale * part["scale"], shift * part["scale"]
            case "translation":
                shift, stated = shift + part["translation"], True
            case "identity":
                pass
            case other:
                raise Unreadable(f"{name}: a dataset is placed by {other!r}; scale and translation were expected.")
    return Dataset(str(dataset["path"]), tuple(scale.tolist()), tuple(shift.tolist()) if stated else None)


def flattened(name: str, step: Tree, axes: int = 3) -> list[Matrix | str]:
    """A transformation as affine maps (4, 4) and paths of displacement fields, in the order of application.

    Affine, scale, translation, rotation, mapAxis, identity, displacements, sequence and the forward part of a bijection.
    Raises Unreadable for any other, and for numbers that do not make a map of three axes.
    """
    kind = step.get("type")
    try:
        match kind:
            case "sequence":
                return [part for inner in step["transformations"] for part in flattened(name, inner, axes)]
            case "bijection":
                return flattened(name, step["forward"], axes)
            case "displacements":
                return [str(step["path"])]
            case _:
                return [_linear(name, str(kind), step)]
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{name}: its {kind} transformation cannot be understood: {error}.") from None


def _linear(name: str, kind: str, step: Tree) -> Matrix:
    matrix = np.eye(4)
    match kind:
        case "identity":
            pass
        case "scale":
            matrix[range(3), range(3)] = step["scale"]
        case "translation":
            matrix[:3, 3] = step["translation"]
        case "rotation":
            matrix[:3, :3] = np.asarray(_numbers(step, "rotation"), float)
        case "affine":
            rows = np.asarray(_numbers(step, "affine"), float)
            matrix[:3, : rows.shape[1]] = rows[:3]
        case "mapAxis":
            matrix[:3, :3] = np.eye(3)[list(step["mapAxis"])]
        case _:
            raise Unreadable(
                f"{name} holds a transformation of type {kind!r}; affine, scale, translation, rotation, mapAxis, identity, "
                "displacements, sequence and bijection are read."
            )
    return matrix


def _numbers(step: Tree, key: str) -> Any:
    if key not in step:
        raise ValueError(f"its {key} stands in an array of its own, numbers were expected")
    return step[key]


def unit_of(scene: Tree, system: str | None) -> str | None:
    """The unit of length of a scene's coordinate system, None where it states none, or not one."""
    for entry in scene.get("coordinateSystems") or ():
        if entry.get("name") == system:
            units = {a.get("unit") for a in entry.get("axes", ()) if a.get("type") == "space"}
            unit = units.pop() if len(units) == 1 else None
            return unit if unit in UNITS else None
    return None


def field_grid(name: str, multiscale: Multiscale, shape: Sequence[int], level: int = 0) -> Grid:
    """The grid of a field (3, Z, Y, X) along its own axes. Raises Unreadable unless the vector axis comes first of four."""
    if len(shape) != 4 or shape[0] != 3 or len(multiscale.datasets[level].scale) != 4:
        raise Unreadable(f"{name} has shape {tuple(shape)}; a displacement field (3, Z, Y, X), vector axis first, was expected.")
    dataset = multiscale.datasets[level]
    unit = next((a.unit for a in multiscale.axes if a.kind == "space" and a.unit in UNITS), None)
    shift = triple((dataset.translation or (0.0,) * 4)[1:])
    return Grid((shape[1], shape[2], shape[3]), triple(dataset.scale[1:]), shift, IDENTITY, unit)
