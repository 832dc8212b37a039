"""Resample an image through a chain of maps, block by block; the chain is interpolated once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, UnitsError, require_known
from daskreg.grid import OPENED_ARRAY, Grid, Region
from daskreg.lazy.blocks import CACHED_BYTES, Reader, block_of, by_block, larger_block, leading_block
from daskreg.storage import Stack, Volume
from daskreg.storage.fill import Fill, fill_of, require_fill
from daskreg.transforms.bounds import INTERPOLATION_MARGIN, local_coefficients, sampling_bounds
from daskreg.transforms.chain import SampledMap, sample_chain
from daskreg.transforms.execution import KernelRunner, run_on_cpu, run_on_cuda
from daskreg.transforms.linear import linear_part
from daskreg.transforms.link import Link

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.kernels.compiler.launch import Kernel
    from daskreg.kernels.device import Kind
    from daskreg.kernels.sampling import cpu
    from daskreg.lazy import large_blocks
else:
    da, cpu = DeferredModule("dask.array"), DeferredModule("daskreg.kernels.sampling.cpu")
    large_blocks = DeferredModule("daskreg.lazy.large_blocks")

log = logging.getLogger("daskreg")
Interpolation = Literal["linear", "nearest", "cubic", "label"]
Domain = Literal["extent", "centers"]
RUNS: dict[str, KernelRunner] = {"cpu": run_on_cpu, "cuda": run_on_cuda}
NUMBER = 4  # bytes of a voxel that is sampled
READ_BYTES = 256 << 20  # of an image that are read at once for a block
SMOOTH = ("linear", "cubic")  # interpolate between values
LEAST_SHARED = 0.01  # of the smaller of two images of one thing that lies within the other
LARGEST_RATIO = 300  # of the lengths of two images of one thing: beyond, a unit was mistaken
OTHER = {"fixed": "moving", "moving": "fixed"}  # side of a transform
SAME_VOXELS = 10  # largest ratio of the voxel sizes of a small part and its whole; a mistaken unit makes more of it


def resampled(
    image: Stack | Volume,
    grid: Grid,
    links: Sequence[Link],
    unit: str | None,
    interpolation: str,
    *,
    planes: bool = False,
    device: Kind = "cpu",
    fill: Fill = 0,
    domain: Domain = "extent",
) -> da.Array:
    """``image(phi(x))`` on ``grid``, lazily (.., Z, Y, X) in the image's type, one task a block.

    links: phi, in the world's unit ``unit``;  planes: blocks as a streamed file is written;  device: cpu or cuda;
    fill: value outside of the image, None: see ``daskreg.storage.fill``;  domain: where the image ends for linear interpolation,
    at the extents of its outermost voxels, or at their centres, as in the loss and the measures of a registration.
    Raises ConfigError for an unknown interpolation or device, and for a value that the image's type does not have.
    """
    require_known("interpolation", interpolation, get_args(Interpolation))
    require_known("device", device, list(RUNS))
    require_fill(fill, image.dtype, image.name)
    compute = Resampler(image, grid, links, unit, interpolation, device, fill, domain)
    lead, dtype = image.data.shape[:-3], image.dtype.newbyteorder("=")
    block = block_of(grid.shape, dtype.itemsize if planes else 0)
    if _reads_much(image, grid, unit, block):
        block = larger_block(grid.shape, block, 1 if planes else 0)
    outer = (1,) * len(lead) if planes else leading_block(lead)  # a file holds one image after the other
    return by_block(compute, (*lead, *grid.shape), dtype, (*outer, *block))


def _reads_much(image: Stack | Volume, grid: Grid, unit: str | None, block: tuple[int, int, int]) -> bool:
    """Whether a block of a grid much coarser than an image reads more of it than goes at once, by the voxel sizes alone."""
    ratio = float(np.prod(grid.to_unit(unit).spacing) / np.prod(image.grid.to_unit(unit).spacing))
    return NUMBER * ratio * math.prod(block) > READ_BYTES and image.data.nbytes > CACHED_BYTES


class Resampler:
    """Computes any block of a resampled image. Not a dataclass, whose fields Dask would traverse and compute."""

    def __init__(
        self,
        image: Stack | Volume,
        grid: Grid,
        links: Sequence[Link],
        unit: str | None,
        interpolation: str = "linear",
        device: Kind = "cpu",
        fill: Fill = 0,
        domain: Domain = "extent",
    ) -> None:
        self.target, self.source = grid.to_unit(unit), image.grid.to_unit(unit)
        self.interpolation, self.image, self.links = interpolation, Reader(image.data), tuple(links)
        self.device, self._fill, self.domain, self.name = device, fill, domain, image.name

    @property
    def fill(self) -> float | int:
        """The value outside of the image; where none was chosen, its corners are read the first time."""
        if self._fill is None or isinstance(self._fill, str):
            self._fill = fill_of(self.image.data, self._fill)
        return self._fill

    def __call__(self, box: Region, *lead: range) -> NDArray[Any]:
        """The voxels of ``box``, (.., Z, Y, X)."""
        run = RUNS[self.device]
        at = sample_chain(self.links, self.target, box, run)
        matrix, linear = at.in_voxels(self.source)
        near = sampling_bounds(
            matrix, linear, at.e, box, self.source.shape, INTERPOLATION_MARGIN + (self.interpolation == "cubic")
        )
        moved = np.full((*map(len, lead), *box.shape), self.fill, self.image.dtype)
        if NUMBER * near.size > READ_BYTES and max(box.shape) > 1 and self.image.data.nbytes > CACHED_BYTES:
            self._fill_large(moved, box, at, lead)
        elif near.size:
            sampling_map = (0, local_coefficients(matrix, box, near), linear_part(linear), at.e)
            for k in np.ndindex(moved.shape[:-3]):
                entry = tuple(r[i] for r, i in zip(lead, k, strict=True))
                moved[k] = self._sampled(box, sampling_map, self.image[(*entry, *near.slices)], run)
        return moved

    def _fill_large(self, moved: NDArray[Any], box: Region, at: SampledMap, lead: Sequence[range]) -> None:
        """``moved``, of a box whose points reach over too much of the image to read it at once."""
        if self.interpolation != "linear" or self.device != "cpu" or _in_float64(self.image.dtype):
            for half in large_blocks.halves(box):
                moved[(..., *half.within(box))] = self(half, *lead)
            return
        matrix, linear = at.in_voxels(self.source)
        domain = cpu.EXTENT if self.domain == "extent" else cpu.CENTERS
        z, y, x = (int(n) for n in self.image.data.chunksize[-3:])
        for k in np.ndindex(moved.shape[:-3]):
            entry = tuple(r[i] for r, i in zip(lead, k, strict=True))
            read = partial(self._voxels, entry)
            found = large_blocks.sample_large(read, self.source.shape, (z, y, x), box, matrix, linear, at.e, domain, self.name)
            moved[k] = to_image_dtype(found, self.image.dtype, self.interpolation, self.fill)

    def _voxels(self, entry: tuple[int, ...], region: Region) -> NDArray[Any]:
        return to_kernel_dtype(self.image[(*entry, *region.slices)], self.interpolation)

    def _sampled(self, box: Region, sampling_map: tuple[Any, ...], stored: NDArray[Any], run: Callable[..., Any]) -> NDArray[Any]:
        voxels = to_kernel_dtype(stored, self.interpolation)
        moved = np.full(box.shape, self.fill, voxels.dtype)
        domain = cpu.EXTENT if self.domain == "extent" else cpu.CENTERS
        extra = (0, voxels.shape[0], domain) if self.interpolation == "linear" else ()  # `sample` also takes shards
        run(_kernel(self.interpolation), box.shape, *sampling_map, *extra, voxels, moved)
        return to_image_dtype(moved, self.image.dtype, self.interpolation, self.fill)


def _kernel(interpolation: str) -> Kernel:
    from daskreg.kernels.sampling.cubic import sample_cubic
    from daskreg.kernels.sampling.labels import sample_label

    return {"linear": cpu.sample, "nearest": cpu.sample_nearest, "cubic": sample_cubic, "label": sample_label}[interpolation]


def _in_float64(dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize > 2 and dtype != np.float32


def to_kernel_dtype(voxels: NDArray[Any], interpolation: str) -> NDArray[Any]:
    """Voxels in a type that kernels take: floats wide enough for the values to interpolate; otherwise the same bits."""
    if interpolation in SMOOTH:
        return voxels.astype(np.float64 if _in_float64(voxels.dtype) else np.float32, copy=False)
    if voxels.dtype == bool:
        return voxels.view(np.uint8)
    return voxels.astype(np.float32) if voxels.dtype == np.float16 else voxels


def to_image_dtype(moved: NDArray[Any], dtype: np.dtype[Any], interpolation: str, fill: float = 0) -> NDArray[Any]:
    """Results in the image's type: interpolated integers are rounded and clipped, values outside the image are ``fill``."""
    if interpolation not in SMOOTH:
        return moved.astype(dtype, copy=False)
    outside = np.isnan(moved)
    if dtype.kind == "f":
        moved[outside] = fill
        return moved.astype(dtype, copy=False)
    moved[outside] = 0
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    top = np.array(high, moved.dtype)
    top = top if int(top) <= high else np.nextafter(top, moved.dtype.type(0))  # 2^63 - 1 is no float
    found = np.clip(np.rint(moved, out=moved), moved.dtype.type(low), top, out=moved).astype(dtype)
    found[outside] = fill
    return found


def warn_without_overlap(links: Sequence[Link], unit: str | None, grid: Grid, image: Stack | Volume) -> None:
    """Log a warning where the image, or a displacement, does not overlap the output grid.

    Bounding boxes are compared, without displacements: one larger than the image could still bring them together.
    """
    _require_known_units(unit, image)
    target = grid.to_unit(unit)
    affine = [Link(link.affine) for link in links]
    if _apart(affine, target, image.grid.to_unit(unit)):
        log.warning("%s does not overlap the output grid in space; nothing of it is seen there. Is its header right?", image.name)
    for k, link in enumerate(links):
        if link.displacement is not None and _apart(affine[:k], target, link.displacement_grid):
            log.warning(
                "part %d of the transform: its displacement does not overlap the output grid in space; nothing is displaced "
                "there. Is its header right?", k + 1,
            )  # fmt: skip


def _require_known_units(unit: str | None, image: Stack | Volume) -> None:
    """Raises UnitsError where a transform states no unit of length, and the image does: it was found on arrays in memory."""
    if unit is None and image.grid.unit is not None:
        raise UnitsError(
            f"{image.name} is in {image.grid.unit}, and the transform states no unit of length, as after a registration of "
            f"arrays. Where its lengths are in {image.grid.unit}, say so behind its path: 'RUN.zarr::unit={image.grid.unit}'. "
            "Where they are voxels, give the voxels alone, which are then on the moving grid: daskreg.apply('RUN.zarr', array)."
        )


def mistaken_lengths(first: Grid, second: Grid, scale: float = 1.0) -> tuple[float, float] | None:
    """The diagonals of two grids in their unit where one is hundreds of times the other, as where units are mistaken, else None.

    scale: by which a map between them changes the lengths of the first
    """
    lengths = scale * float(np.linalg.norm(first.extent)), float(np.linalg.norm(second.extent))
    return lengths if max(lengths) > LARGEST_RATIO * min(lengths) > 0 else None


def require_size(grid: Grid, name: str, own: Grid | None, role: str) -> None:
    """Raises UnitsError for an image whose unit was mistaken, beside that of its side of a transform, where it is known.

    It is hundreds of times as long and has not its voxel size, as a part has, or has the same numbers in another unit.

    own, role: grid and name of its side
    """
    if own is None or (lengths := _lengths_of_other_unit(own, grid)) is None:
        return
    unit = own.unit or "no unit"
    raise UnitsError(
        f"{name} is {lengths[1]:.3g} {unit} across ({grid.summary()}), and the {role} image of the transform {lengths[0]:.3g} "
        f"({own.summary()}): one of their units or voxel sizes is wrong. State the true ones behind the address, as in "
        f"'::unit={own.unit or 'mm'}' or '::spacing=2x2x2,unit=mm' (of an array in Python: {OPENED_ARRAY})."
    )


def _lengths_of_other_unit(own: Grid, grid: Grid) -> tuple[float, float] | None:
    same = grid.to_unit(own.unit)
    named = grid.unit != own.unit and grid.shape == own.shape and np.allclose(grid.spacing, own.spacing, rtol=1e-3)
    if named:
        return float(np.linalg.norm(own.extent)), float(np.linalg.norm(same.extent))
    voxels = [float(np.prod(g.spacing)) ** (1 / 3) for g in (own, same)]
    return None if max(voxels) < SAME_VOXELS * min(voxels) else mistaken_lengths(own, same)


def warn_of_other_grid(image: Stack | Volume, role: str, grids: Mapping[str, Grid | None]) -> list[str]:
    """Log warnings, and return them, where hardly anything of an image that stands for one side of a transform lies where that
    one is, or where it is on the grid of the other side.

    role: fixed or moving;  grids: of both images, where they are known. Raises UnitsError as ``require_size`` does.
    """
    own, found = grids[role], list[str]()
    if own is not None:
        _require_known_units(own.unit, image)
        require_size(image.grid, image.name, own, role)
    if own is not None and lies_elsewhere(image.grid.to_unit(own.unit), own):
        advice = orientation_advice(image, own, f"the {role} image of the transform")
        found.append(f"hardly anything of {image.name} lies where the {role} image of the transform is. {advice}")
    if on_other_grid(image, role, grids):
        found.append(
            f"{image.name} has the grid of the {OTHER[role]} image, and one in the space of the {role} image was expected; were "
            "they exchanged?"
        )
    for line in found:
        log.warning("%s", line)
    return found


def on_other_grid(image: Stack | Volume, role: str, grids: Mapping[str, Grid | None]) -> bool:
    """Whether an image that stands for one side of a transform has the grid of the other side, which is not that of its own."""
    own, other = grids[role], grids[OTHER[role]]
    return own is not None and other is not None and _same(image.grid, other) and not _same(image.grid, own)


def exchanged(fixed: Stack | Volume, moving: Stack | Volume, grids: Mapping[str, Grid | None]) -> bool:
    """Whether each of two images has the grid of the other side of a transform, and not its own."""
    return on_other_grid(fixed, "fixed", grids) and on_other_grid(moving, "moving", grids)


def require_not_exchanged(fixed: Stack | Volume, moving: Stack | Volume, grids: Mapping[str, Grid | None]) -> None:
    """Raises ConfigError where each of two images has the grid of the other side of a transform, and not its own."""
    if exchanged(fixed, moving, grids):
        raise ConfigError(
            f"{fixed.name}, given for the fixed image of the transform, has the grid of its moving image, and "
            f"{moving.name} that of its fixed image: they were exchanged. Give each for the other."
        )


def lies_elsewhere(grid: Grid, other: Grid) -> bool:
    """Whether hardly anything of either of two grids, in one unit, lies within the other, as where axes are stated otherwise."""
    return max(grid.share_within(other), other.share_within(grid)) < LEAST_SHARED


def orientation_advice(image: Stack | Volume, grid: Grid, name: str) -> str:
    """What may be wrong where an image lies elsewhere than another one, of that grid and name."""
    if image.grid.oriented == grid.oriented:
        return "Is its header right?"
    states, unsaid = (image.name, name) if image.grid.oriented else (name, image.name)
    return (
        f"The header of {states} says how its axes lie in space; {unsaid} says nothing, and is taken as LPS. Store both in a "
        "format that says it, or both in one that does not, or give voxels alone, which are put where that image is."
    )


def _same(a: Grid, b: Grid) -> bool:
    known = a.shape == b.shape and a.unit == b.unit
    return known and bool(np.allclose(a.index_to_world, b.index_to_world, rtol=1e-4, atol=1e-3 * min(a.spacing)))


def _apart(links: Sequence[Link], target: Grid, source: Grid) -> bool:
    matrix = sample_chain(links, target, target.region).in_voxels(source)[0]
    return not sampling_bounds(matrix, matrix[:3, :3], None, target.region, source.shape).size
