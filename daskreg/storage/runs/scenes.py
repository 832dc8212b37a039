"""OME-NGFF 0.6 scenes between images, which are linked below the scene and not modified."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, UnitsError
from daskreg.grid import UNITS, Grid, unit_name
from daskreg.storage.axes import spatial
from daskreg.storage.fs.address import Address, is_remote, join, parent, parse_address
from daskreg.storage.fs.errors import open_errors, write_errors
from daskreg.storage.registry import image_formats
from daskreg.storage.zarr import ngff, ngff06
from daskreg.storage.zarr.multiscale import PARENT_FOLDERS
from daskreg.storage.zarr.nodes import attributes, open_node

if TYPE_CHECKING:
    import zarr
else:
    zarr = DeferredModule("zarr")

INTRINSIC = "intrinsic"  # ngff-zarr's name for the coordinate system of a 0.4 or 0.5 image, which has none
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LinkedImage:
    """An OME-Zarr image that a scene refers to.

    name: its path below the scene;  target: where it is;  system: its coordinate system;  lead: its leading axes;
    grid: of its first level: the system lies along its direction, in its unit
    """

    name: str
    target: str
    system: str
    lead: tuple[str, ...]
    grid: Grid

    @property
    def end(self) -> dict[str, str]:
        """The input or output of a transformation."""
        return {"path": self.name, "name": self.system}

    def to_world(self, unit: str | None) -> Matrix:
        """(4, 4) from its own system to the world in ``unit``. Raises UnitsError when only one of the two units is known."""
        if (unit is None) != (self.grid.unit is None):
            raise UnitsError(
                f"{self.target} is in {self.grid.unit or 'no unit'}, the transform in {unit or 'no unit'}; they cannot be linked."
            )
        scale = 1.0 if unit is None or self.grid.unit is None else UNITS[self.grid.unit] / UNITS[unit]
        return np.asarray(ngff06.direction_of(self.grid) @ np.diag([scale, scale, scale, 1.0]), np.float64)


def find_image(name: str, address: str | Path) -> LinkedImage:
    """The archive at an address, or the one that the array there is a level of, to be linked as ``<name>.ome.zarr``.

    Raises ConfigError for what no scene can link: other files, bare arrays, remote stores, a voxel size given by hand, axes
    stored in another order than z, y, x; NotFound and Unreadable.
    """
    given = parse_address(address)
    if given.spacing is not None or given.unit is not None:
        raise ConfigError(
            f"{address}: a scene links an archive as it is; it cannot say another spacing or unit than the archive."
        )
    if is_remote(given.path) or any(not f.linkable for f in image_formats.by_ending(given.path)):
        raise ConfigError(f"{given.path}: a scene links OME-Zarr archives of this file system; other files and URLs are not.")
    with open_errors(given.path):
        return _linked(name, given)


def _linked(name: str, given: Address) -> LinkedImage:
    path, tree = _image_above(given.node)
    multiscale = ngff.parse(path, tree)
    assert multiscale is not None
    if spatial(multiscale.axes) != tuple(range(len(multiscale.axes)))[-3:]:
        order = ", ".join(a.name for a in multiscale.axes)
        raise ConfigError(f"{path} has the axes {order}; a scene links images whose last axes are z, y, x.")
    units = {unit_name(axis.unit) for axis in multiscale.axes[-3:]}
    if len(units) > 1:
        raise ConfigError(f"{path} has axes in {', '.join(map(str, units))}; a scene links images whose axes have one unit.")
    frame = multiscale.grid_metadata(path, 0)
    assert frame is not None
    if not frame.sized:
        raise ConfigError(f"{path} is OME-Zarr {multiscale.version}, which states no voxel size; a scene links images that do.")
    shape = zarr.open_array(join(path, multiscale.datasets[0].path), mode="r").shape[-3:]
    lead = tuple(a.name for a in multiscale.axes[:-3])
    return LinkedImage(f"{name}.ome.zarr", os.path.realpath(path), _system(tree), lead, frame.grid(shape))


def _image_above(path: str) -> tuple[str, Mapping[str, Any]]:
    folder = path
    for _ in range(PARENT_FOLDERS):
        tree = attributes(open_node(folder))
        if ngff.holds_image(tree):
            return folder, tree
        folder = parent(folder)
        if not os.path.isfile(os.path.join(folder, "zarr.json")) and not os.path.isfile(os.path.join(folder, ".zgroup")):
            break
    raise ConfigError(f"{path} is no OME-Zarr image; a scene links images with multiscales metadata.")


def _system(tree: Mapping[str, Any]) -> str:
    """The name of the coordinate system of an image's levels."""
    image = tree.get("ome", tree)["multiscales"][0]
    if "coordinateSystems" not in image:
        return INTRINSIC
    output = image["datasets"][0]["coordinateTransformations"][0]["output"]
    return str(output["name"] if isinstance(output, Mapping) else output)


def link_images(store: str, images: Sequence[LinkedImage], location: str) -> None:
    """Create a relative symbolic link to each image in a store, so that they can be moved together. Raises OutputError.

    location: where the store will be when it is complete
    """
    for image in images:
        with write_errors(join(store, image.name)):
            os.symlink(
                os.path.relpath(image.target, os.path.realpath(location)), join(store, image.name), target_is_directory=True
            )


def between_images(
    forward: Sequence[tuple[Matrix, Grid | None, str | None]],
    unit: str | None,
    fixed: LinkedImage | None,
    moving: LinkedImage | None,
) -> dict[str, Any]:
    """A scene whose one transformation maps points of the fixed to the moving image, each in its own coordinate system.

    Where an image is None, that end is a system of the scene, the world, LPS. Leading axes that both images have are kept
    (byDimension); others are dropped before and are 0 after, by affine maps between spaces of different dimension.

    forward: as for ``ngff06.scene_attributes``
    """
    before = np.eye(4) if fixed is None else fixed.to_world(unit)
    after = np.eye(4) if moving is None else np.asarray(np.linalg.inv(moving.to_world(unit)), np.float64)
    transformation = ngff06.sequence(forward, before, after)
    if len(transformation["transformations"]) == 1 and not (fixed and fixed.lead) and not (moving and moving.lead):
        transformation = transformation["transformations"][0]  # for readers that do not support sequences
    transformation = _with_lead(transformation, () if fixed is None else fixed.lead, () if moving is None else moving.lead)
    worlds = [n for n, image in (("fixed", fixed), ("moving", moving)) if image is None]
    ends = [{"name": n} if image is None else image.end for n, image in (("fixed", fixed), ("moving", moving))]
    scene: dict[str, Any] = {"coordinateSystems": [{"name": n, "axes": ngff06.space_axes(unit)} for n in worlds]}
    scene = {k: v for k, v in scene.items() if v}
    scene["coordinateTransformations"] = [{"name": "fixed_to_moving", "input": ends[0], "output": ends[1], **transformation}]
    return {"version": ngff06.VERSION, "scene": scene}


def _with_lead(transformation: dict[str, Any], before: tuple[str, ...], after: tuple[str, ...]) -> dict[str, Any]:
    if not before and not after:
        return transformation
    if before == after:
        n = len(before)
        kept, space = list(range(n)), list(range(n, n + 3))
        parts = [({"type": "identity"}, kept), (transformation, space)]
        return {"type": "byDimension", "transformations": [
            {"transformation": t, "inputAxes": axes, "outputAxes": axes} for t, axes in parts]}  # fmt: skip
    steps = list(transformation["transformations"])
    if before:
        steps.insert(0, {"type": "affine", "affine": np.eye(3, len(before) + 4, len(before)).tolist()})
    if after:
        steps.append({"type": "affine", "affine": np.eye(len(after) + 3, 4, -len(after)).tolist()})
    return {"type": "sequence", "transformations": steps}
