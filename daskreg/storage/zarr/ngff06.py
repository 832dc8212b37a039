"""OME-NGFF 0.6 as it is written: coordinate systems, multiscale displacement fields, and scenes of transformations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Grid
from daskreg.storage.axes import SPACE
from daskreg.storage.zarr.multiscale import grid_attributes

VERSION = "0.6"
PHYSICAL = "physical"  # a field's own system: along its grid's axes, in world units
Matrix = NDArray[np.float64]


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
