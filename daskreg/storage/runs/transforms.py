"""A transform as a Zarr store: an OME-NGFF 0.6 scene with a multiscale group per displacement field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region
from daskreg.storage.fs.address import join
from daskreg.storage.fs.errors import read_errors, write_errors
from daskreg.storage.runs.scenes import LinkedImage, between_images, link_images
from daskreg.storage.zarr import ngff06
from daskreg.storage.zarr.chunks import require_all_stored
from daskreg.storage.zarr.multiscale import grid_attributes
from daskreg.storage.zarr.nodes import lazy_array
from daskreg.storage.zarr.pyramid import coarsen, new_array, pyramid, steps
from daskreg.storage.zarr.vector_frames import to_grid_axes, to_world_axes, vector_frame

if TYPE_CHECKING:
    import dask.array as da
    import zarr

    from daskreg.storage.zarr import codecs
else:
    da, zarr = DeferredModule("dask.array"), DeferredModule("zarr")
    codecs = DeferredModule("daskreg.storage.zarr.codecs")

TRANSFORM_FORMAT = 1
FIELDS_FOLDER = "coordinateTransformations"
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class TransformStore:
    """A store while it is written: ``create``, ``write`` of each chunk of each field once, by any process, then ``finish``."""

    path: str

    @classmethod
    def create(cls, path: str, grids: Sequence[Grid | None]) -> TransformStore:
        """Empty fields on the grids of those links that have one. Raises OutputError, OutOfSpace."""
        with write_errors(path):
            group = zarr.create_group(path, zarr_format=3, attributes={"daskreg": {"kind": "transform", "complete": False}})
            for k, grid in enumerate(grids):
                if grid is not None:
                    new_array(group.require_group(_field(k)), "0", grid.shape, np.float32, 3)
        return cls(path)

    def write(self, link: int, grid: Grid, region: Region, d: NDArray[Any]) -> None:
        """Whole chunks of a link's field: (3, Z, Y, X) of ``region``, world units, along the world's axes."""
        with write_errors(self.path):
            array = codecs.with_zarrs_codecs(zarr.open_array(join(self.path, f"{_field(link)}/0"), mode="r+"))
            array[(slice(None), *region.slices)] = to_grid_axes(d, vector_frame(grid))

    def finish(
        self,
        links: Sequence[tuple[Matrix, Grid | None]],
        unit: str | None,
        fixed: Grid | None,
        moving: Grid | None,
        metadata: Mapping[str, Any],
        backward: int = 0,
        images: tuple[LinkedImage | None, LinkedImage | None] = (None, None),
        location: str | None = None,
    ) -> None:
        """Coarser levels, then the metadata; links: W and the field's grid of each; metadata: JSON that goes with it.

        backward: how many links, the last ones, are those of the inverse: with some, the scene's transformation is a bijection;
        images: the fixed and the moving archive, which the scene then goes between, instead of between two worlds;
        location: where the store will be when it is complete, if not here.
        """
        paths = [None if grid is None else _field(k) for k, (_, grid) in enumerate(links)]
        named = [(w, grid, path) for (w, grid), path in zip(links, paths, strict=True)]
        forward, back = named[: len(named) - backward], named[len(named) - backward :]
        own = {
            "kind": "transform",
            "format": TRANSFORM_FORMAT,
            "complete": True,
            "unit": unit,
            "links": [{"affine": w.tolist(), "field": path} for w, _, path in forward],
            **{k: grid_attributes(g) for k, g in (("fixed", fixed), ("moving", moving)) if g is not None},
            **metadata,
        }
        with write_errors(self.path):
            group = zarr.open_group(self.path, mode="r+")
            for _, grid, path in named:
                if grid is not None and path is not None:
                    _build(group[path], grid, path)
            linked = [image for image in images if image is not None]
            link_images(self.path, linked, location or self.path)
            scene = between_images(forward, unit, *images) if linked else ngff06.scene_attributes(forward, unit, back)
            group.attrs.put({"ome": scene, "daskreg": own})


def reopened(store: TransformStore, link: int, grid: Grid) -> da.Array:
    """The field of a link, along the world's axes, lazily, also from an unfinished store."""
    where = join(store.path, f"{_field(link)}/0")
    with read_errors(where):
        array = zarr.open_array(where, mode="r")
    return to_world_axes(lazy_array(array, where), vector_frame(grid))


def _field(link: int) -> str:
    return f"{FIELDS_FOLDER}/{link}"


def _build(group: Any, grid: Grid, name: str) -> None:
    factors = pyramid(grid)
    below = codecs.with_zarrs_codecs(group["0"])
    levels = [below]
    for k, step in enumerate(steps(factors), 1):
        level = new_array(group, str(k), grid.coarsen(factors[k]).shape, np.float32, 3)
        coarsen(below, level, step)
        levels.append(below := level)
    for level in levels:
        require_all_stored(level, f"{name}/{level.basename}")
    group.attrs.update(ngff06.field_attributes(grid, [(str(k), f) for k, f in enumerate(factors)], name))
