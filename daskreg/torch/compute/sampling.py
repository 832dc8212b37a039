"""Sampling of images and its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple

import torch

from daskreg.torch.direct_launch import MOST_LAUNCHES, Array, KeptLaunch, LaunchSequence, Voxels
from daskreg.torch.kernels import sampling as kernels
from daskreg.torch.kernels.sampling import AFFINE, AFFINE_ALONE, GRID, REFLECT_CENTERS, REFLECT_EDGES
from daskreg.torch.launch import allocator, empty, on_cpu, planes, processors, run, total

MAX_OFFSET = 2**32  # voxels of a volume whose offsets have 32 bits


class Rule(NamedTuple):
    """How an image is sampled, see ``kernels.sampling``."""

    mode: int
    border: int
    nearest: bool
    plus: bool
    align: bool

    def scales(self, image: Sequence[int]) -> tuple[float, ...]:
        """Voxels per unit of a grid, along z, y, x, for an image of some shape."""
        return tuple(float(n - 1 if self.align else n) / 2 for n in image[2:])

    @property
    def beyond(self) -> int:
        """The border; what a reflection is about depends on ``align`` for grids, else it is the centres of voxels."""
        if self.border == REFLECT_CENTERS and self.mode == GRID and not self.align:
            return REFLECT_EDGES
        return self.border


class Points(NamedTuple):
    """Where an image is sampled: the points of ``kernels.sampling``, with their displacement or grid and affine map."""

    rule: Rule
    field: torch.Tensor
    affine: torch.Tensor

    def shape(self, size: list[int]) -> tuple[int, int, int]:
        """Voxels of the result along z, y, x."""
        if self.rule.mode == AFFINE_ALONE:
            return size[0], size[1], size[2]
        first = 1 if self.rule.mode == GRID else 2
        a, b, c = self.field.shape[first : first + 3]
        return a, b, c

    @property
    def voxels(self) -> Voxels:
        """The displacement or grid as kernels take it."""
        if self.rule.mode != GRID:
            return planes(self.field) if self.rule.mode != AFFINE_ALONE else Voxels(self.affine, (1, 1, self.affine.numel()))
        b, z, y, x, _ = self.field.shape
        return Voxels(self.field, (b * z, y, 3 * x))

    @property
    def matrix(self) -> Voxels:
        """The affine map as kernels take it; without one any array, which is not read."""
        rows = self.affine.numel() // 12 if self.rule.mode >= AFFINE else 1
        return Voxels(self.affine, (rows, self.affine.numel() // rows))


def sample(image: torch.Tensor, points: Points, size: list[int], first: int = 0, last: int | None = None) -> torch.Tensor:
    """The image at the points, for some of the channels: (B, last - first, Z, Y, X)."""
    batch, channels, depth = image.shape[:3]
    last = channels if last is None else last
    nz, ny, nx = points.shape(size)
    moved = empty((batch, last - first, nz, ny, nx), image)
    if in_tiles(image, moved):
        _sampling(_described(image, moved, points, first))(points.field, points.affine, image, moved)
        return moved
    rule = points.rule
    run(
        kernels.sample_batch, (batch * nz, ny, nx), nz, depth, channels, first, last, rule.mode, rule.beyond, rule.nearest,
        rule.plus, *rule.scales(image.shape), points.voxels, points.matrix, planes(image), planes(moved), like=image,
    )  # fmt: skip
    return moved


def scatter(slope: torch.Tensor, image: torch.Tensor, points: Points, out: torch.Tensor, first: int, last: int) -> None:
    """Add the derivative with respect to an image on a CPU."""
    channels, depth = image.shape[1:3]
    (nz, ny, nx), rule = slope.shape[2:], points.rule
    on_cpu(
        kernels.scatter_rows, nz, ny, nx, depth, channels, first, last, rule.mode, rule.beyond, rule.nearest,
        *rule.scales(image.shape), points.voxels, points.matrix, planes(slope), planes(out), dtype=image.dtype,
    )  # fmt: skip


def pull_back(
    slope: torch.Tensor,
    image: torch.Tensor,
    points: Points,
    to_field: torch.Tensor | None,
    to_image: torch.Tensor | None,
    first: int = 0,
    last: int | None = None,
    accumulate: bool = False,
) -> None:
    """From the derivative with respect to ``sample``: write that with respect to the field, and add that to the image's."""
    batch, channels, depth = image.shape[:3]
    last = channels if last is None else last
    (nz, ny, nx), rule = slope.shape[2:], points.rule
    if to_image is not None and not image.is_cuda:
        scatter(slope, image, points, to_image, first, last)
        to_image = None
    if in_tiles(image, slope):
        pull_back_tiles(slope, image, points, to_field, to_image, first, accumulate)
        return
    if to_field is None and to_image is None:
        return
    field = points.voxels if to_field is None else Voxels(to_field, points.voxels.shape)
    scattered = planes(image if to_image is None else to_image)
    run(
        kernels.sample_batch_backward, (batch * nz, ny, nx), nz, depth, channels, first, last, rule.mode, rule.beyond,
        rule.nearest, rule.plus, accumulate, to_field is not None, to_image is not None, *rule.scales(image.shape),
        points.voxels, points.matrix, planes(image), planes(slope), field, scattered, like=image,
    )  # fmt: skip


def pull_back_squared(slope: torch.Tensor, u: torch.Tensor, points: Points) -> torch.Tensor:
    """From the derivative with respect to u(x) + u(x + u(x)): that with respect to u, which is image and field at once."""
    of_field = torch.empty_like(u)
    if in_tiles(u, slope):
        pull_back(slope, u, points, of_field, of_field)
        return of_field
    of_image = torch.zeros_like(u)
    pull_back(slope, u, points, of_field, of_image)
    return of_image.add_(of_field)


def pull_back_tiles(
    slope: torch.Tensor,
    image: torch.Tensor,
    points: Points,
    to_field: torch.Tensor | None,
    to_image: torch.Tensor | None,
    first: int,
    accumulate: bool,
) -> None:
    """``pull_back`` on a GPU: both derivatives may be the same tensor, as that with respect to the field is written first."""
    nearest = points.rule.nearest
    if to_field is not None and nearest and not accumulate:
        to_field.zero_()
    elif to_field is not None and not nearest:
        _pulling(_described(image, slope, points, first), accumulate)(points.field, points.affine, image, slope, to_field)
    if to_image is not None:
        _scattering(_described(image, slope, points, first))(points.field, points.affine, slope, to_image)


def in_tiles(image: torch.Tensor, moved: torch.Tensor) -> bool:
    """Whether the kernels of ``sampling_cuda`` and ``scattering_cuda`` can be used."""
    return image.is_cuda and has_offsets(image.shape, moved.shape)


@lru_cache(MOST_LAUNCHES)
def has_offsets(image: torch.Size, moved: torch.Size) -> bool:
    """Whether 32 bits are enough for the offsets in a volume."""
    return max(prod(image[2:]), prod(moved[2:])) < MAX_OFFSET


class Described(NamedTuple):
    """Shapes of a launch of ``sampling_cuda`` or ``scattering_cuda``, with its first channel and device."""

    rule: Rule
    image: torch.Size
    moved: torch.Size
    field: torch.Size
    affine: torch.Size
    first: int
    device: int

    def launch(self, form: Any, height: int, *arrays: Array, room: int = 0) -> KeptLaunch:
        """Launch of a kernel for these.

        height: rows of a block;  arrays: after u and the affine map;  room: voxels of a window in shared memory
        """
        from daskreg.torch.kernels.blocks import TILE_X, block_depth, blocks

        batch, count, *extents = self.moved
        shape, tile = (extents[0], extents[1], extents[2]), (height, TILE_X)
        depth = block_depth(batch, shape, tile, processors(self.device))
        n = (*shape, *self.image[2:], depth, self.image[1], self.first, count, room)
        grid, matrices = blocks(batch, shape, tile, depth), Array((prod(self.affine) // 12, 12))
        return KeptLaunch(form, grid, (TILE_X, height, 1), n, *self.rule.scales(self.image), array(self.field), matrices,
                          *arrays, index=self.device, shared=4 * room)  # fmt: skip


def array(shape: Sequence[int]) -> Array:
    """A tensor of some shape as a one-dimensional array."""
    return Array((prod(shape),))


def _described(image: torch.Tensor, moved: torch.Tensor, points: Points, first: int) -> Described:
    rule, field, affine = points
    return Described(rule, image.shape, moved.shape, field.shape, affine.shape, first, image.get_device())


@lru_cache(MOST_LAUNCHES)
def _sampling(of: Described) -> KeptLaunch:
    from daskreg.torch.kernels.blocks import TILE_Y
    from daskreg.torch.kernels.sampling_cuda import sample_tiled

    form = sample_tiled.form(of.rule.mode, of.rule.beyond, of.rule.nearest, of.rule.plus)
    return of.launch(form, TILE_Y, array(of.image), array(of.moved))


@lru_cache(MOST_LAUNCHES)
def _pulling(of: Described, accumulate: bool) -> KeptLaunch:
    from daskreg.torch.kernels.blocks import TILE_Y
    from daskreg.torch.kernels.sampling_cuda import pull_back_tiled

    form = pull_back_tiled.form(of.rule.mode, of.rule.beyond, of.rule.plus, accumulate)
    return of.launch(form, TILE_Y, array(of.image), array(of.moved), array(of.field))


@lru_cache(MOST_LAUNCHES)
def _scattering(of: Described) -> KeptLaunch:
    from daskreg.torch.kernels.scattering_cuda import SCATTER_Y, scatter_tiled

    form, room = scatter_tiled.form(of.rule.mode, of.rule.beyond, of.rule.nearest), window_size(of.device)
    return of.launch(form, SCATTER_Y, array(of.moved), array(of.image), room=room)


@cache
def window_size(index: int) -> int:
    """Voxels of the image that a block of ``scatter_tiled`` keeps in the shared memory of a device."""
    from daskreg.torch.kernels.scattering_cuda import BLOCK_MEMORY, MAX_WINDOW

    memory = torch.cuda.get_device_properties(index).shared_memory_per_multiprocessor // BLOCK_MEMORY
    return min(MAX_WINDOW, (memory - 2048) // 4)  # 1 KiB of a block is the driver's


class PreparedSampling:
    """``sample`` and ``pull_back`` of contiguous CUDA tensors, an image and a displacement or grid, with offsets of 32 bits."""

    def __init__(self, rule: Rule, image: torch.Size, field: torch.Size, device: int) -> None:
        first = 1 if rule.mode == GRID else 2
        moved = torch.Size((*image[:2], *field[first : first + 3]))
        self.of = Described(rule, image, moved, field, field, 0, device)
        self.launches = LaunchSequence((_sampling(self.of), (0, 0, 1, 2)))
        self.moved, self.of_image, self.of_field = (allocator(shape, device) for shape in (moved, image, field))

    def forward(self, image: torch.Tensor, field: torch.Tensor) -> tuple[torch.Tensor]:
        """The image at the points."""
        moved = self.moved()
        self.launches(field.data_ptr(), image.data_ptr(), moved.data_ptr())
        return (moved,)

    def backward(
        self, needs: tuple[bool, bool], slope: torch.Tensor, image: torch.Tensor, field: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
        """The derivatives with respect to image and field; of the nearest voxel with respect to the image alone."""
        if needs[1] and self.of.rule.nearest:
            return None
        given = field.data_ptr(), image.data_ptr(), slope.data_ptr()
        if not needs[0]:
            of_field = self.of_field()
            self._pulling(*given, of_field.data_ptr())
            return None, of_field
        of_image = self.of_image()
        if not needs[1]:
            self._scattering(of_image.data_ptr(), *given)
            return of_image, None
        of_field = self.of_field()
        self._both(of_image.data_ptr(), *given, of_field.data_ptr())
        return of_image, of_field

    @cached_property
    def _pulling(self) -> LaunchSequence:
        return LaunchSequence((_pulling(self.of, False), (0, 0, 1, 2, 3)))

    @cached_property
    def _scattering(self) -> LaunchSequence:
        return LaunchSequence((_scattering(self.of), (1, 1, 3, 0)), cleared=4 * prod(self.of.image))

    @cached_property
    def _both(self) -> LaunchSequence:
        pulling = _pulling(self.of, False), (1, 1, 2, 3, 4)
        return LaunchSequence(pulling, (_scattering(self.of), (1, 1, 3, 0)), cleared=4 * prod(self.of.image))


def affine_sums(
    slope: torch.Tensor, image: torch.Tensor, points: Points, first: int = 0, last: int | None = None
) -> torch.Tensor:
    """The derivative with respect to the affine map: (B, 3, 4)."""
    batch, channels, depth = image.shape[:3]
    last = channels if last is None else last
    (nz, ny, nx), rule = slope.shape[2:], points.rule
    rows = run(
        kernels.affine_sums_batch, (batch * nz, ny, nx), nz, depth, channels, first, last, rule.mode, rule.beyond,
        *rule.scales(image.shape), points.voxels, points.matrix, planes(image), planes(slope), like=image,
    )  # fmt: skip
    assert rows is not None
    return total(rows, (12 * batch,), 1.0).reshape(3, 4, batch).permute(2, 0, 1).contiguous()


def squares(
    fixed: torch.Tensor, image: torch.Tensor, points: Points, scale: float, to_field: torch.Tensor | None
) -> torch.Tensor:
    """``scale`` times the sum of squared differences from the sampled image, and its derivative with respect to the field."""
    batch, channels, nz, ny, nx = fixed.shape
    field, rule = points.voxels if to_field is None else Voxels(to_field, points.voxels.shape), points.rule
    rows = run(
        kernels.squares_of_samples, (batch * nz, ny, nx), nz, image.shape[2], channels, rule.mode, rule.beyond,
        to_field is not None, 2.0 * scale, *rule.scales(image.shape), points.voxels, points.matrix, planes(image), planes(fixed),
        field, like=image,
    )  # fmt: skip
    assert rows is not None
    return total(rows, (), scale)
