"""Transforms in Zarr stores: what ``TransformStore`` writes, and OME-NGFF 0.6 scenes of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.deferred import DeferredModule
from daskreg.errors import IncompleteRun, InputError, NotFound, Unreadable
from daskreg.grid import unit_name
from daskreg.storage.format import TransformFormat
from daskreg.storage.fs.address import join, parse_address
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.runs.scenes import LinkedImage, find_image
from daskreg.storage.runs.transforms import TRANSFORM_FORMAT
from daskreg.storage.transform_record import StoredLink, TransformRecord
from daskreg.storage.zarr import ngff, ngff06_parse
from daskreg.storage.zarr.multiscale import grid_from_attributes
from daskreg.storage.zarr.ngff06_schema import EndSchema, SceneSchema, StepSchema
from daskreg.storage.zarr.nodes import attributes, lazy_array, open_member, open_node
from daskreg.storage.zarr.vector_frames import to_world_axes, vector_frame

if TYPE_CHECKING:
    import zarr
else:
    zarr = DeferredModule("zarr")


class NgffScene(TransformFormat):
    """A transform of daskreg, or a scene that another program wrote as OME-NGFF 0.6."""

    name = "OME-NGFF 0.6 scene"
    endings = (".zarr",)
    in_blocks = True

    def sniff(self, path: str) -> bool:
        """By the attributes of the root."""
        try:
            return is_transform(path)
        except InputError:
            return False

    def open(self, path: str) -> TransformRecord:
        """See ``read_transform``."""
        return read_transform(path)


def is_transform(address: str | Path) -> bool:
    """Whether a store is a transform, finished or not, or a scene. Raises NotFound and Unreadable."""
    node = open_node(parse_address(address).path)
    tree = attributes(node)
    own, ome = tree.get("daskreg"), tree.get("ome")
    if isinstance(own, Mapping):
        return own.get("kind") == "transform"
    return isinstance(ome, Mapping) and "multiscales" not in ome and bool({"scene", "coordinateTransformations"} & set(ome))


def read_transform(address: str | Path) -> TransformRecord:
    """The transform in a store that ``TransformStore`` or another program wrote as NGFF 0.6, its fields lazily.

    In a scene of several transformations, or to choose one of them: the first, unless one is named ``fixed_to_moving``.
    Raises NotFound, Unreadable, and IncompleteRun for one that was not finished.
    """
    path = parse_address(address).path
    node = open_node(path)
    tree = attributes(node)
    own = tree.get("daskreg")
    if isinstance(own, Mapping) and own.get("kind") == "transform":
        return replace(_own(path, node, own), images=_images(path, tree))
    return _foreign(path, node, tree)


def _own(path: str, node: Any, own: Mapping[str, Any]) -> TransformRecord:
    if not own.get("complete"):
        raise IncompleteRun(f"{path} is incomplete: writing it did not finish; write it again.")
    if own.get("format") != TRANSFORM_FORMAT:
        raise Unreadable(
            f"{path} has transform format {own.get('format')}, {TRANSFORM_FORMAT} was expected; use the daskreg that wrote it."
        )
    with read_errors(path):
        grids = [grid_from_attributes(own[k], path, f"daskreg.{k}") if k in own else None for k in ("fixed", "moving")]
        links = tuple(_own_link(path, node, entry) for entry in own["links"])
        return TransformRecord(links, unit_name(own["unit"]), grids[0], grids[1], f"daskreg transform, {NgffScene.name}", own)


def _own_link(path: str, node: Any, entry: Mapping[str, Any]) -> StoredLink:
    affine, field = np.asarray(entry["affine"], float), entry["field"]
    if field is None:
        return StoredLink(affine)
    grid = grid_from_attributes(node[field].attrs["daskreg"]["grid"], join(path, field), "daskreg.grid")
    array = lazy_array(open_member(node, f"{field}/0", path), join(path, field))
    return StoredLink(affine, grid, to_world_axes(array, vector_frame(grid)))


def _foreign(path: str, node: Any, tree: Mapping[str, Any]) -> TransformRecord:
    scene = _scene(path, tree)
    chosen = _chosen(scene)
    if chosen is None or not isinstance(node, zarr.Group):
        raise Unreadable(f"{path} holds no transform; a run, a daskreg transform or an OME-Zarr 0.6 scene was expected.")
    parts = ngff06_parse.flattened(path, chosen)
    links = [_foreign_field(path, node, part) if isinstance(part, str) else StoredLink(part) for part in parts]
    fixed, moving = (_image_at(path, n, end) for n, end in (("input", chosen.input), ("output", chosen.output)))
    unit = _unit_of(path, scene, chosen, fixed) or next((link.grid.unit for link in links if link.grid is not None), None)
    before = [] if fixed is None else _unless_identity(np.linalg.inv(fixed.to_world(unit)))
    after = [] if moving is None else _unless_identity(moving.to_world(unit))
    grids = [None if image is None else image.grid for image in (fixed, moving)]
    return TransformRecord((*before, *links, *after), unit, grids[0], grids[1], NgffScene.name, images=_images(path, tree))


def _images(path: str, tree: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Which images a scene's transformation goes between; None for a system of the scene's own."""
    chosen = _chosen(_scene(path, tree))
    ends = (None, None) if chosen is None else (chosen.input, chosen.output)
    fixed, moving = (None if end is None else end.path for end in ends)
    return fixed, moving


def _scene(path: str, tree: Mapping[str, Any]) -> SceneSchema:
    """The scene of a store. Raises Unreadable for one of another version than 0.6."""
    ome = tree.get("ome")
    if not isinstance(ome, Mapping):
        return SceneSchema()
    version = ome.get("version")
    if not isinstance(version, str) or not version.startswith("0.6"):
        found = "no version" if version is None else f"the version {version!r}"
        raise Unreadable(f"{path}: its scene states {found} of OME-Zarr; 0.6 was expected: repair its metadata.")
    return ngff06_parse.parse_scene(path, ome.get("scene", ome))


def _chosen(scene: SceneSchema) -> StepSchema | None:
    """The transformation named ``fixed_to_moving``, or else the first."""
    found = scene.coordinateTransformations
    return next((t for t in found if t.name == "fixed_to_moving"), found[0] if found else None)


def _unless_identity(matrix: Any) -> list[StoredLink]:
    return [] if np.array_equal(matrix, np.eye(4)) else [StoredLink(np.asarray(matrix, np.float64))]


def _image_at(path: str, name: str, end: EndSchema | None) -> LinkedImage | None:
    """The image that an end of a scene's transformation names by its path; None where it is a system of the scene."""
    if end is None or end.path is None:
        return None
    return find_image(name, join(path, _below(path, end.path)))


def _below(path: str, inner: str) -> str:
    """A path below a scene. Raises Unreadable for one that leads out of it."""
    if any(part in ("", ".", "..") for part in inner.split("/")):
        raise Unreadable(f"{path}: its scene names {inner!r}; a path below the scene was expected.")
    return inner


def _unit_of(path: str, scene: SceneSchema, chosen: StepSchema, fixed: LinkedImage | None) -> str | None:
    if fixed is not None:
        return fixed.grid.unit
    return unit_name(ngff06_parse.unit_of(path, scene, None if chosen.input is None else chosen.input.name))


def _foreign_field(path: str, node: zarr.Group, inner: str) -> StoredLink:
    where = join(path, _below(path, inner))
    try:
        with read_errors(where):
            group = node[inner]
    except (KeyError, NotFound):
        raise NotFound(f"{path} has no field {inner!r}, which its scene promises.") from None
    multiscale = ngff.parse(where, attributes(group))
    if multiscale is None or not isinstance(group, zarr.Group):
        raise Unreadable(f"{where} is no multiscale group; an OME-Zarr 0.6 displacement field was expected.")
    array = open_member(group, multiscale.datasets[0].path, where)
    grid = ngff06_parse.field_grid(where, multiscale, array.shape)
    return StoredLink(np.eye(4), grid, lazy_array(array, where).astype(np.float32))
