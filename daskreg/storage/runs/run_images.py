"""The images in a RUN.zarr, and the grids that they are on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import NotFound, Unreadable
from daskreg.grid import Grid, Region
from daskreg.storage.axes import SPACE
from daskreg.storage.fs.address import join
from daskreg.storage.fs.errors import open_errors, read_errors, write_errors
from daskreg.storage.fs.files import remove
from daskreg.storage.image_record import Resolution
from daskreg.storage.runs.layout import DISPLACEMENT
from daskreg.storage.runs.run_state import read_state
from daskreg.storage.volume import Volume
from daskreg.storage.zarr import ngff, ngff05, ngff06
from daskreg.storage.zarr.multiscale import grid_from_attributes
from daskreg.storage.zarr.nodes import attributes, lazy_array, open_node
from daskreg.storage.zarr.pyramid import CHUNK, Factors, coarsen, levels_within, new_array, pyramid, steps
from daskreg.storage.zarr.vector_frames import to_grid_axes, to_world_axes, vector_frame

if TYPE_CHECKING:
    import dask.array as da
    import zarr

    from daskreg.storage.zarr import codecs
else:
    da, zarr = DeferredModule("dask.array"), DeferredModule("zarr")
    codecs = DeferredModule("daskreg.storage.zarr.codecs")


@dataclass(frozen=True)
class RunImages:
    """``moved``, a 0.5 image, and ``transform/displacement``, a 0.6 field, of a Zarr v3 group; each chunk has one writer.

    path: where the run is read and written
    """

    path: str
    _arrays: dict[str, zarr.Array[Any]] = field(default_factory=dict, compare=False, repr=False, kw_only=True)
    # read once per process
    _vector_frames: dict[str, Any] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @property
    def state(self) -> dict[str, Any]:
        """The root attributes of the run, read now. Raises NotFound and Unreadable."""
        return read_state(self.path)

    @property
    def fixed_grid(self) -> Grid:
        """Grid of the fixed image, of ``moved`` and of the displacement."""
        return self._grid("fixed")

    @property
    def moving_grid(self) -> Grid:
        """Grid of the moving image."""
        return self._grid("moving")

    def create_image(
        self, name: str, grid: Grid, dtype: Any = np.float32, components: int = 0, chunk: int = CHUNK, coarser: bool = False
    ) -> None:
        """An empty image (Z, Y, X), or (components, Z, Y, X), cut into chunks of ``chunk`` voxels an axis.

        coarser: with the levels that the caller can make from single chunks of level 0, and will write (``coarse_steps``); else
        level 0 only. An existing image is replaced, with all its levels.
        """
        self._forget(name)
        factors = pyramid(grid)
        with write_errors(self.path):
            remove(join(self.path, name))
            group = self._group.require_group(name)
            for k in range(levels_within(factors, chunk) if coarser else 1):
                array = new_array(group, str(k), grid.coarsen(factors[k]).shape, dtype, components, chunk)
                self._arrays[f"{name}/{k}"] = array
            group.attrs.update(self._attributes(name, grid, [("0", (1, 1, 1))], components))

    def has(self, name: str) -> bool:
        """Whether the run has an image of this name."""
        with open_errors(self.path):
            return name in self._group

    def chunk(self, name: str) -> tuple[int, int, int]:
        """Voxels (z, y, x) of a chunk of level 0; regions that are written start and end at multiples of it."""
        z, y, x = self._array(name, 0).chunks[-3:]
        return z, y, x

    def level_shapes(self, name: str) -> list[tuple[int, int, int]]:
        """Voxels (z, y, x) of the levels that ``create_image`` has made."""
        return [(z, y, x) for z, y, x in (self._array(name, k).shape[-3:] for k in range(self._levels_made(name)))]

    def voxel_type(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape of a voxel, () or (components,), and the type of its numbers."""
        array = self._array(name, 0)
        return array.shape[:-3], array.dtype

    def coarse_steps(self, name: str) -> list[Factors]:
        """Factors between these levels."""
        return steps(pyramid(self._image_grid(name))[: self._levels_made(name)])

    def as_stored(self, name: str, voxels: NDArray[Any]) -> NDArray[Any]:
        """Voxels as they are stored: displacements along the grid's axes. voxels: displacements are along the world's."""
        return to_grid_axes(voxels, self._vector_frame) if name == DISPLACEMENT else voxels

    def write(self, name: str, region: Region, voxels: NDArray[Any]) -> None:
        """Whole chunks of level 0: voxels (Z, Y, X) or (components, Z, Y, X) of ``region``; displacements along the world's axes.

        Raises ValueError unless the region starts and ends at chunk boundaries or the image's edge, OutOfSpace, OutputError.
        """
        _require_fit(name, region, voxels, self._array(name, 0))
        self.write_stored(name, 0, region, self.as_stored(name, voxels))

    def write_stored(self, name: str, level: int, region: Region, voxels: NDArray[Any]) -> None:
        """Whole chunks of a level, of voxels ``as_stored``. Raises as ``write`` does."""
        array = self._array(name, level)
        _require_fit(name, region, voxels, array)
        with write_errors(join(self.path, name)):
            box = [*(slice(0, n) for n in array.shape[:-3]), *region.slices]
            if not codecs.encode_box(array, box, np.ascontiguousarray(voxels)):
                array[tuple(box)] = voxels

    def build_pyramid(self, name: str) -> None:
        """Coarser levels by block mean until the longest axis has 64 voxels, through Dask, each from the one before.

        Those that ``create_image`` has made are complete.
        """
        grid, made = self._image_grid(name), self._levels_made(name)
        factors, below = pyramid(grid), self._array(name, made - 1)
        components = below.shape[0] if below.ndim == 4 else 0
        with write_errors(join(self.path, name)):
            group = self._group.require_group(name)
            for k, step in list(enumerate(steps(factors), 1))[made - 1 :]:
                level = new_array(group, str(k), grid.coarsen(factors[k]).shape, below.dtype, components, self.chunk(name)[-1])
                coarsen(below, level, step)
                below = level
            group.attrs.update(self._attributes(name, grid, [(str(k), f) for k, f in enumerate(factors)], components))

    def read_image(self, name: str, level: int = 0) -> Volume:
        """A scalar image, lazily. Raises NotFound and Unreadable."""
        array, grids = self._array(name, level), self._level_grids(name)
        levels = tuple(Resolution(str(k), g.shape, g.spacing) for k, g in enumerate(grids))
        where = join(self.path, name)
        return Volume(lazy_array(array, where), grids[level], where, "OME-Zarr 0.5, Zarr v3", levels)

    def displacement(self, level: int = 0) -> da.Array:
        """(3, Z, Y, X) float32, world units, components z, y, x, lazily. Raises NotFound when the run has none."""
        return to_world_axes(lazy_array(self._array(DISPLACEMENT, level), join(self.path, DISPLACEMENT)), self._vector_frame)

    def displacement_grid(self, level: int = 0) -> Grid:
        """The grid of a level of the displacement. Raises NotFound."""
        return self._level_grids(DISPLACEMENT)[level]

    @property
    def displacement_levels(self) -> int:
        """How many levels the displacement has. Raises NotFound when the run has none."""
        return len(self._level_grids(DISPLACEMENT))

    def _attributes(self, name: str, grid: Grid, levels: list[tuple[str, Factors]], components: int) -> dict[str, Any]:
        if name == DISPLACEMENT and self._format > 1:
            return ngff06.field_attributes(grid, levels, name)
        return ngff05.group_attributes(grid, levels, name, components=components)

    @property
    def _format(self) -> int:
        return int(self.state["format"])

    @property
    def _vector_frame(self) -> NDArray[np.float64] | None:
        """The direction of the axes that stored displacements are given along, None for those of the world."""
        if "frame" not in self._vector_frames:
            self._vector_frames["frame"] = None if self._format == 1 else vector_frame(self.fixed_grid)
        frame: NDArray[np.float64] | None = self._vector_frames["frame"]
        return frame

    @property
    def _group(self) -> zarr.Group:
        with read_errors(self.path):
            return zarr.open_group(self.path, mode="r+")

    def _grid(self, which: str) -> Grid:
        with read_errors(self.path):
            return grid_from_attributes(self.state[which], self.path, f"daskreg.{which}")

    def _array(self, name: str, level: int) -> zarr.Array[Any]:
        """Opened once per process: a rank writes thousands of chunks."""
        key = f"{name}/{level}"
        if key not in self._arrays:
            with open_errors(join(self.path, name)):
                node = self._group.get(key)
            if not isinstance(node, zarr.Array):
                raise NotFound(f"{self.path} has no image {key!r}; it has {', '.join(self._group.group_keys())}.")
            self._arrays[key] = codecs.with_zarrs_codecs(node)
        return self._arrays[key]

    def _levels_made(self, name: str) -> int:
        with read_errors(join(self.path, name)):
            return len([*self._group[name].array_keys()])  # type: ignore[union-attr]  # a group

    def _forget(self, name: str) -> None:
        for key in [k for k in self._arrays if k.rpartition("/")[0] == name]:
            del self._arrays[key]

    def _image_grid(self, name: str) -> Grid:
        with read_errors(join(self.path, name)):
            own = self._group[name].attrs["daskreg"]["grid"]  # type: ignore[call-overload, index]  # any JSON
            return grid_from_attributes(own, join(self.path, name), "daskreg.grid")

    def _level_grids(self, name: str) -> list[Grid]:
        where = join(self.path, name)
        multiscale = ngff.parse(where, attributes(open_node(where)))
        if multiscale is None or multiscale.grid is None:
            raise Unreadable(f"{where} has no multiscales metadata; the run is damaged.")
        factors: list[Factors] = pyramid(multiscale.grid)
        return [multiscale.grid.coarsen(factors[k]) for k in range(len(multiscale.datasets))]


def _require_fit(name: str, region: Region, voxels: NDArray[Any], array: zarr.Array[Any]) -> None:
    """Raises ValueError for another shape, and for parts of chunks: two writers of one overwrite each other's voxels."""
    for axis, a, b, c, n in zip(SPACE, region.start, region.stop, array.chunks[-3:], array.shape[-3:], strict=True):
        if not 0 <= a < b <= n or a % c or (b % c and b != n):
            raise ValueError(f"{name}: {axis} {a}:{b} is not whole chunks of {c} voxels in an image of {n}.")
    lead = array.shape[:-3]
    if voxels.shape != lead + region.shape:
        raise ValueError(f"{name}: voxels of shape {voxels.shape} were given for {lead + region.shape}.")
