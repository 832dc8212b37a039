"""RUN.zarr: the result of one registration, complete or visibly not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import IncompleteRun, InputError, NotFound, OutputError, Unreadable
from daskreg.grid import Grid, Region
from daskreg.storage.axes import SPACE
from daskreg.storage.fs.address import is_remote, join, parse_address
from daskreg.storage.fs.atomic import require_writable
from daskreg.storage.fs.errors import open_errors, read_errors, write_errors
from daskreg.storage.fs.files import exists, remove
from daskreg.storage.fs.process import now
from daskreg.storage.fs.swap import version_of
from daskreg.storage.image_record import Resolution
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED, transform_attributes
from daskreg.storage.runs.place import (
    AWAITS_SWAP,
    REPLACED_VERSION,
    clear_place,
    is_remains,
    place_beside,
    publish,
    require_inactive,
    require_new,
    require_no_links,
    set_root,
    settle,
)
from daskreg.storage.runs.run_state import (
    has_checkpoint,
    incomplete_message,
    new_state,
    read_state,
    require_resumable,
    resumed_state,
    to_json,
)
from daskreg.storage.transform_record import StoredLink, require_map
from daskreg.storage.volume import Volume
from daskreg.storage.zarr import ngff, ngff05, ngff06
from daskreg.storage.zarr.chunks import require_all_stored
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
class RunStore:
    """One Zarr v3 group, an NGFF 0.6 scene: ``moved``, a 0.5 image, and ``transform/displacement``, a 0.6 field; affine and
    provenance are attributes.

    Every process that writes opens it with ``attach``; each chunk has one writer. The run is complete after ``finish``.

    path: where it is read and written;  target: the output that it takes the place of when it is complete, None if it is there
    already;  attempt: of several processes that work on it one after another, this one's
    """

    path: str
    target: str | None = None
    attempt: str = ""
    _arrays: dict[str, zarr.Array[Any]] = field(default_factory=dict, compare=False, repr=False)
    _vector_frames: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # read once per process

    @classmethod
    def create(
        cls, path: str | Path, *, fixed: Grid, moving: Grid, overwrite: bool = False, recipe: Mapping[str, Any] | None = None
    ) -> RunStore:
        """A new, incomplete run: at its path or, where something is, beside it until ``finish`` replaces that.

        The caller is the output's only writer (``only_writer``).
        recipe: JSON from which the run can be continued: addresses of the inputs and the configuration.
        Raises OutputExists, OutputBusy, OutputError, OutOfSpace.
        """
        target = _absolute(path)
        settle(target)
        require_new(target, overwrite)
        require_writable(target, overwrite)
        require_inactive(target, target)
        state = new_state(fixed, moving) | ({"recipe": to_json(recipe)} if recipe is not None else {})
        replaced = version_of(target)
        place = target if replaced is None else place_beside(target)
        if replaced is not None:
            clear_place(place)
            state[REPLACED_VERSION] = replaced
        with write_errors(target):
            group = zarr.create_group(place, zarr_format=3, attributes={"daskreg": state})
            group.create_group("transform", attributes=transform_attributes(np.eye(4)))
        return cls(place, None if replaced is None else target, state["attempt"])

    @classmethod
    def attach(cls, path: str | Path, attempt: str = "") -> RunStore:
        """A run, complete or not, to write to or to inspect.

        attempt: of the process that the caller writes for.
        Raises NotFound, Unreadable for what is no run, OutputError for one that was removed or belongs to another attempt by now.
        """
        store = cls(_absolute(path), attempt=attempt)
        store.require_mine() if attempt else read_state(store.path)
        return store

    @classmethod
    def resume(cls, path: str | Path) -> RunStore:
        """``unfinished(path).continued()``."""
        return cls.unfinished(path).continued()

    @classmethod
    def unfinished(cls, path: str | Path) -> RunStore:
        """An incomplete run that has a checkpoint: that which is to replace the output at the path, else that at the path.

        The caller is the output's only writer (``only_writer``).
        Raises NotFound, Unreadable, OutputExists when it is complete, IncompleteRun when it is active or has no checkpoint.
        """
        target = _absolute(path)
        settle(target, anyway=True)
        beside = place_beside(target)
        place = beside if exists(beside) and (has_checkpoint(beside) or not has_checkpoint(target)) else target
        require_resumable(target, place, read_state(place))
        require_no_links(place)
        return cls(place, target if place == beside else None)

    def continued(self, **changes: Any) -> RunStore:
        """The same as a run of this process; partly written images are deleted. changes: to its state."""
        state = resumed_state(self.state) | changes
        with write_errors(self.name):
            set_root(self.path, state)
            for name in (MOVED, DISPLACEMENT):
                remove(join(self.path, name))
        return RunStore(self.path, self.target, state["attempt"])

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """A complete run. Raises NotFound, Unreadable and IncompleteRun."""
        store = cls.attach(path)
        if not store.complete:
            raise IncompleteRun(incomplete_message(store.path, store.state))
        return store

    @property
    def state(self) -> dict[str, Any]:
        """The root attributes of the run, read now. Raises NotFound and Unreadable."""
        return read_state(self.path)

    @property
    def name(self) -> str:
        """Where the user finds the run when it is complete."""
        return self.target or self.path

    @property
    def complete(self) -> bool:
        """Whether the run finished."""
        return bool(self.state.get("complete"))

    @property
    def provenance(self) -> dict[str, Any]:
        """Configuration, inputs, losses and times, as given to ``finish``."""
        return dict(self.state.get("provenance", {}))

    @property
    def recipe(self) -> dict[str, Any]:
        """What the run can be continued from, as given to ``create``; empty without."""
        return dict(self.state.get("recipe", {}))

    @property
    def fixed_grid(self) -> Grid:
        """Grid of the fixed image, of ``moved`` and of the displacement."""
        return self._grid("fixed")

    @property
    def moving_grid(self) -> Grid:
        """Grid of the moving image."""
        return self._grid("moving")

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) world -> world, fixed to moving points, order z, y, x, 1; the identity until it is set."""
        with read_errors(self.path):
            matrix = np.asarray(self._group["transform"].attrs["daskreg"]["affine"], float)  # type: ignore[call-overload, index]  # any JSON
        require_map(self.path, StoredLink(matrix))
        return matrix

    def set_affine(self, matrix: ArrayLike) -> None:
        """Store the affine part, (4, 4). Raises ValueError for another shape or numbers that are not finite."""
        affine = np.asarray(matrix, float)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"an affine of shape {affine.shape} was given; (4, 4) finite numbers were expected.")
        with write_errors(self.path):
            self._group["transform"].attrs.update(transform_attributes(affine))

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

    def finish(self, provenance: Mapping[str, Any], images: Sequence[str] = ()) -> RunStore:
        """Write the provenance, mark the run complete, delete the checkpoints, and replace what it was to replace.

        images: that were written; others that are there count as well.
        Returns the run at its final path. Raises OutputError where it was removed or is another's; OutputExists where what was to
        be replaced has changed: both are then kept.
        """
        self.require_mine()
        for name in (MOVED, DISPLACEMENT):
            if name in images or self.has(name):
                self._require_all_stored(name)
        state = self.state | {"provenance": to_json(provenance), "complete": True, "finished": now()}
        if self.target is not None:
            state[AWAITS_SWAP] = True
        with write_errors(self.path):
            set_root(self.path, state, self._scene())
        CheckpointStore(self.path).remove()
        if self.target is None:
            return self
        publish(self.path, self.target)
        return RunStore(self.target)

    def _require_all_stored(self, name: str) -> None:
        """Raises OutputError where a chunk that was written is gone, or more."""
        try:
            levels = [self._array(name, k) for k in range(len(self._level_grids(name)))]
        except InputError as error:
            raise OutputError(f"{self.name}: {name}, which was written, cannot be read: {error}") from error
        for level in levels:
            require_all_stored(level, f"{self.name}/{name}/{level.basename}")

    def require_mine(self) -> None:
        """Raises OutputError when the run was removed, or when another process continues it."""
        try:
            state = self.state
        except InputError as error:
            raise OutputError(
                f"{self.name} was removed while the run wrote to it ({self.path}); nothing is left of it: start it again."
            ) from error
        if self.attempt and state.get("attempt") != self.attempt:
            raise OutputError(
                f"{self.name} was taken over by process {state.get('pid')} on {state.get('host')}, which continues it."
            )

    def mark_resumable(self) -> None:
        """Mark a stopped run that can be continued from its checkpoint. Raises ValueError when it has none."""
        if CheckpointStore(self.path).latest() is None:
            raise ValueError(f"{self.path} has no checkpoint to continue from; abandon() it.")
        with write_errors(self.path):
            set_root(self.path, self.state | {"stopped": now(), "resumable": True})

    def abandon(self) -> None:
        """Delete the run, or what is left of one that was removed. What it would have replaced stays, another's run too."""
        try:
            mine = not self.attempt or self.state.get("attempt") == self.attempt
        except InputError:
            mine = is_remains(self.path)
        if mine:
            with write_errors(self.path):
                remove(self.path)

    def _scene(self) -> dict[str, Any]:
        field = DISPLACEMENT if self.has(DISPLACEMENT) else None
        return ngff06.scene_attributes([(self.affine, self.fixed_grid, field)], self.fixed_grid.unit)

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


def is_run(path: str | Path) -> bool:
    """Whether a store is a run, complete or not. Raises NotFound and Unreadable."""
    own = attributes(open_node(_absolute(path))).get("daskreg")
    return isinstance(own, dict) and own.get("kind") == "run"


def _absolute(path: str | Path) -> str:
    clean = parse_address(path).path
    return clean if is_remote(clean) else os.path.abspath(clean)


def _require_fit(name: str, region: Region, voxels: NDArray[Any], array: zarr.Array[Any]) -> None:
    """Raises ValueError for another shape, and for parts of chunks: two writers of one overwrite each other's voxels."""
    for axis, a, b, c, n in zip(SPACE, region.start, region.stop, array.chunks[-3:], array.shape[-3:], strict=True):
        if not 0 <= a < b <= n or a % c or (b % c and b != n):
            raise ValueError(f"{name}: {axis} {a}:{b} is not whole chunks of {c} voxels in an image of {n}.")
    lead = array.shape[:-3]
    if voxels.shape != lead + region.shape:
        raise ValueError(f"{name}: voxels of shape {voxels.shape} were given for {lead + region.shape}.")
