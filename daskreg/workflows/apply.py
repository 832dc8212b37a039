"""``daskreg apply``: another image through the transform of a finished run, block by block, however large."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from uuid import uuid4

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError
from daskreg.grid import Grid, Region
from daskreg.kernels.labels import sample_label
from daskreg.kernels.sample import sample, sample_nearest
from daskreg.storage import RunStore, Volume, open_volume, write_image
from daskreg.storage.images import Source
from daskreg.storage.nifti import SLAB, is_nifti
from daskreg.storage.pyramid import CHUNK
from daskreg.transforms.composite import Transform
from daskreg.transforms.linear import fixed_point, linear_part

log = logging.getLogger("daskreg")
Interpolation = Literal["linear", "nearest", "label"]
DISPLACEMENT = "transform/displacement"
EDGE = 128  # voxels an axis of a block: two chunks, and 24 MiB of displacement
KEPT = 256 << 20  # bytes up to which an image is decoded once and kept: a compressed file can only be read from its start
MANY = 8  # times SLAB that a run of planes may be, if that saves decoding
UNTURNED = linear_part(np.eye(4))
MARGIN = 2  # voxels around what a block can reach: trilinear corners and rounding
_ONE_LAUNCH = Lock()  # kernels are parallel themselves, and not every threading layer of Numba bears two launches at once


def apply(
    run: str | Path | RunStore,
    image: Source | Volume,
    output: str | Path | None = None,
    *,
    interpolation: Interpolation = "linear",
    like: Source | Volume | Grid | None = None,
    overwrite: bool = False,
) -> Volume:
    """``moved(x) = image(phi(x))`` on the fixed grid or on that of ``like``, in the image's own type, 0 outside.

    image: an address, an array or a Volume, of any grid: only world coordinates matter;  output: ``.nii``, ``.nii.gz`` or
    ``.zarr`` (None: nothing is computed yet);  interpolation: linear, nearest, or label (the one with the most weight around).
    Raises InputError and OutputError in all their forms.
    """
    known_word("interpolation", interpolation, list(KERNELS))
    transform, volume = load_transform(run), open_volume(image)
    grid = transform.grid if like is None else like if isinstance(like, Grid) else open_volume(like).grid
    _warn_apart(transform, grid, volume)
    planes = output is not None and is_nifti(str(output))
    moved = resampled(volume, grid, transform, interpolation, block_of(grid.shape, volume.dtype.itemsize if planes else 0))
    if output is None:
        return Volume(moved, grid, f"{volume.name}, moved")
    write_image(output, moved, grid, labels=interpolation != "linear", overwrite=overwrite)
    return open_volume(output)


def load_transform(run: str | Path | RunStore) -> Transform:
    """The transform of a run, its displacement lazily. Raises NotFound, Unreadable and IncompleteRun."""
    store = run if isinstance(run, RunStore) else RunStore.open(run)
    displacement = Reader(store.displacement()) if store.has(DISPLACEMENT) else None
    return Transform(store.affine, store.fixed_grid, displacement)


def known_word(kind: str, word: object, known: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest known one, for a word that is not among the known."""
    if word not in known:
        near = difflib.get_close_matches(str(word), known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise ConfigError(f"unknown {kind} {word!r}; {hint}")


def block_of(shape: tuple[int, int, int], itemsize: int = 0) -> tuple[int, int, int]:
    """Voxels (z, y, x) of a block of the output; with ``itemsize`` (bytes a voxel) of the depth a NIfTI file is written by."""
    depth = _slab_depth(shape[1] * shape[2] * itemsize) if itemsize else EDGE
    edge = max(16, min(EDGE, math.isqrt(EDGE**3 // depth))) if depth > EDGE else EDGE
    return min(depth, shape[0]), min(edge, shape[1]), min(edge, shape[2])


def _slab_depth(plane: int) -> int:
    """Planes (of ``plane`` bytes) a slab: whole chunks of what is read where that is affordable, so each is decoded once."""
    depth = max(1, SLAB // plane)
    return -(-depth // CHUNK) * CHUNK if plane * CHUNK <= MANY * SLAB else depth


def resampled(volume: Volume, grid: Grid, transform: Transform, interpolation: str, block: tuple[int, int, int]) -> da.Array:
    """``volume(phi(x))`` on ``grid``, lazily (Z, Y, X) in the volume's type, one task a block."""
    dtype = volume.dtype.newbyteorder("=")
    return by_block(_Resampler(volume, grid, transform, interpolation), grid.shape, dtype, block)


def by_block(compute: Any, shape: tuple[int, ...], dtype: Any, block: tuple[int, ...]) -> da.Array:
    """A Dask array (.., Z, Y, X) whose blocks are ``compute(region)``; regions count all axes."""
    chunks = da.core.normalize_chunks(block, shape, dtype=dtype)

    def _at(block_info: Any = None) -> NDArray[Any]:
        place = np.array(block_info[None]["array-location"])
        box = Region(tuple(place[-3:, 0]), tuple(place[-3:, 1]))
        return np.asarray(compute(box, *place[:-3, 0]))

    meta = np.empty((0,) * len(shape), dtype)
    lazy: da.Array = da.map_blocks(_at, chunks=chunks, dtype=dtype, meta=meta, name=f"daskreg-{uuid4().hex}")
    return lazy


class Reader:
    """A lazy array that is read box by box; a small one is decoded once and kept."""

    def __init__(self, data: da.Array) -> None:
        self.data, self.shape, self.dtype = data, data.shape, data.dtype.newbyteorder("=")
        self._whole: NDArray[Any] | None = None
        self._lock = Lock()

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of basic slices, in C order. Raises Unreadable."""
        if self.data.nbytes <= KEPT:
            return np.ascontiguousarray(self._kept()[index])
        return self._decoded(self.data[index])

    def _kept(self) -> NDArray[Any]:
        with self._lock:
            if self._whole is None:
                self._whole = self._decoded(self.data)
        return self._whole

    def _decoded(self, data: da.Array) -> NDArray[Any]:
        """In this thread: whoever asks may be one of many already."""
        return np.ascontiguousarray(data.compute(scheduler="synchronous"), self.dtype)

    def __reduce__(self) -> Any:
        """Workers get the recipe, not the voxels."""
        return Reader, (self.data,)


def sample_linear(shape: tuple[int, int, int], *arguments: Any) -> None:
    """``sample`` from an image that is all here."""
    *place, image, moved = arguments
    sample(shape, *place, 0, image.shape[0], image, moved)


KERNELS: dict[str, Any] = {"linear": sample_linear, "nearest": sample_nearest, "label": sample_label}


class _Resampler:
    """Computes any block of a resampled image. Not a dataclass: Dask would look inside, and compute what is lazy there."""

    def __init__(self, volume: Volume, grid: Grid, transform: Transform, interpolation: str) -> None:
        fixed = transform.grid
        here, image = grid.to_unit(fixed.unit), volume.grid.to_unit(fixed.unit)
        self.interpolation, self.image, self.transform = interpolation, Reader(volume.data), transform
        self.kernel = KERNELS[interpolation]
        self.matrix = image.world_to_index @ transform.affine @ here.index_to_world
        self.linear = (image.world_to_index @ transform.affine)[:3, :3]  # S takes d in world units
        same = np.array_equal(here.index_to_world, fixed.index_to_world)
        self.to_fixed = np.eye(4) if same else fixed.world_to_index @ here.index_to_world
        self.aligned = same

    def __call__(self, box: Region) -> NDArray[Any]:
        """The voxels of ``box``, (Z, Y, X)."""
        d = self._displacement(box)
        reach = _interval(self.linear, d)
        there = reached(self.matrix, box, self.image.shape, reach)
        if not there.size:
            return np.zeros(box.shape, self.image.dtype)
        voxels = _workable(self.image[there.slices], self.interpolation)
        moved = np.zeros(box.shape, voxels.dtype)
        with _ONE_LAUNCH:
            self.kernel(box.shape, 0, shifted(self.matrix, box, there), linear_part(self.linear), d, voxels, moved)
        return _as_stored(moved, self.image.dtype, self.interpolation)

    def _displacement(self, box: Region) -> NDArray[np.float32]:
        """Values of d at the voxels of a block, (3, Z, Y, X) world units; 0 outside the fixed grid."""
        field, d = self.transform.displacement, np.zeros((3, *box.shape), np.float32)
        if field is None:
            return d
        if self.aligned and box & self.transform.grid.region == box:
            return np.asarray(field[(slice(None), *box.slices)], np.float32)
        there = reached(self.to_fixed, box, self.transform.grid.shape)
        if there.size:
            part = np.asarray(field[(slice(None), *there.slices)], np.float32)
            with _ONE_LAUNCH:
                for c in range(3):
                    sample_linear(box.shape, 0, shifted(self.to_fixed, box, there), UNTURNED, None, part[c], d[c])
        return np.nan_to_num(d, copy=False, nan=0.0)


def reached(matrix: NDArray[np.float64], box: Region, shape: Sequence[int], reach: NDArray[np.float64] | float = 0.0) -> Region:
    """The voxels of an image of ``shape`` that ``matrix`` and a displacement within ``reach`` ((2, 3), least and most) read."""
    ends = np.array([box.start, np.array(box.stop) - 1])
    corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(8, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    low, high = np.array([corners.min(axis=0), corners.max(axis=0)]) + reach
    low, high = np.clip([low - MARGIN, high + MARGIN + 1], -1.0, np.asarray(shape) + 1.0)  # far away is far enough
    return Region(tuple(np.floor(low).astype(int)), tuple(np.ceil(high).astype(int))) & Region((0, 0, 0), tuple(shape))  # type: ignore[arg-type]


def shifted(matrix: NDArray[np.float64], box: Region, there: Region) -> tuple[np.int64, ...]:
    """(A t) for local indices of a block and of the part of the image read for it, exactly: a block changes no bit."""
    a = [int(v) for v in fixed_point(matrix)]
    for r in range(3):
        a[4 * r + 3] += sum(a[4 * r + c] * box.start[c] for c in range(3)) - (there.start[r] << 32)
    return tuple(np.int64(v) for v in a)


def _interval(linear: NDArray[np.float64], d: NDArray[np.float32]) -> NDArray[np.float64]:
    """Least and most of ``S d`` a component, (2, 3), from the range of each component of d."""
    ends = np.stack([linear * d.min(axis=(1, 2, 3)), linear * d.max(axis=(1, 2, 3))])
    return np.asarray([ends.min(axis=0).sum(axis=1), ends.max(axis=0).sum(axis=1)])


def _workable(voxels: NDArray[Any], interpolation: str) -> NDArray[Any]:
    """In a type the kernels know: floats to interpolate, wide enough for the numbers; else the very bits."""
    if interpolation == "linear":
        return voxels.astype(np.float32 if voxels.dtype.itemsize <= 2 or voxels.dtype == np.float32 else np.float64, copy=False)
    if voxels.dtype == bool:
        return voxels.view(np.uint8)
    return voxels.astype(np.float32) if voxels.dtype == np.float16 else voxels


def _as_stored(moved: NDArray[Any], dtype: np.dtype[Any], interpolation: str) -> NDArray[Any]:
    """Back in the image's type: interpolated integers rounded and clipped, out of domain 0."""
    if interpolation != "linear":
        return moved.astype(dtype, copy=False)
    moved = np.nan_to_num(moved, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)
    if dtype.kind == "f":
        return moved.astype(dtype, copy=False)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    top = np.array(high, moved.dtype)
    top = top if int(top) <= high else np.nextafter(top, moved.dtype.type(0))  # 2^63 - 1 is no float
    return np.clip(np.rint(moved, out=moved), moved.dtype.type(low), top, out=moved).astype(dtype)


def _warn_apart(transform: Transform, grid: Grid, volume: Volume) -> None:
    """Boxes around boxes: what they keep apart does not meet, unless the displacement is larger than the image."""
    here, image = grid.to_unit(transform.grid.unit), volume.grid.to_unit(transform.grid.unit)
    if not reached(image.world_to_index @ transform.affine @ here.index_to_world, here.region, image.shape).size:
        log.warning("%s does not overlap the output grid in space; the result is 0 there. Is its header right?", volume.name)
