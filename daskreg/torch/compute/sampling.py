"""Sampling of images and its derivatives."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch

from daskreg.torch.kernels import sampling as kernels
from daskreg.torch.kernels.sampling import AFFINE_ALONE, GRID, REFLECT_CENTERS, REFLECT_EDGES
from daskreg.torch.launch import Voxels, empty, flat, launch, on_cpu, planes, processors, run, total

MAX_OFFSET = 2**32  # voxels of a volume whose offsets have 32 bits


class Points(NamedTuple):
    """Where an image is sampled: the points of ``kernels.sampling``, with their displacement or grid and affine map."""

    mode: int
    border: int
    nearest: bool
    plus: bool
    align: bool
    field: torch.Tensor
    affine: torch.Tensor

    def shape(self, size: list[int]) -> tuple[int, int, int]:
        """Voxels of the result along z, y, x."""
        if self.mode == AFFINE_ALONE:
            return size[0], size[1], size[2]
        first = 1 if self.mode == GRID else 2
        a, b, c = self.field.shape[first : first + 3]
        return a, b, c

    def scales(self, image: torch.Tensor) -> tuple[float, ...]:
        """Voxels per unit of a grid, along z, y, x."""
        return tuple(float(n - 1 if self.align else n) / 2 for n in image.shape[2:])

    @property
    def rule(self) -> int:
        """The border; what a reflection is about depends on ``align`` for grids, else it is the centres of voxels."""
        if self.border == REFLECT_CENTERS and self.mode == GRID and not self.align:
            return REFLECT_EDGES
        return self.border

    @property
    def voxels(self) -> Voxels:
        """The displacement or grid as kernels take it."""
        if self.mode != GRID:
            return planes(self.field) if self.mode != AFFINE_ALONE else Voxels(self.affine, (1, 1, self.affine.numel()))
        b, z, y, x, _ = self.field.shape
        return Voxels(self.field, (b * z, y, 3 * x))

    @property
    def matrix(self) -> Voxels:
        """The affine map as kernels take it."""
        return Voxels(self.affine, (self.affine.numel() // 12, 12))


def sample(image: torch.Tensor, points: Points, size: list[int], first: int = 0, last: int | None = None) -> torch.Tensor:
    """The image at the points, for some of the channels: (B, last - first, Z, Y, X)."""
    batch, channels, depth = image.shape[:3]
    last = channels if last is None else last
    nz, ny, nx = points.shape(size)
    moved = empty((batch, last - first, nz, ny, nx), image)
    if in_tiles(image, moved):
        from daskreg.torch.kernels.blocks import TILE_Y
        from daskreg.torch.kernels.sampling_cuda import sample_tiled

        form = sample_tiled.form(points.mode, points.rule, points.nearest, points.plus)
        run_tiled(form, TILE_Y, image, moved, points, first, image, moved)
        return moved
    run(
        kernels.sample_batch, (batch * nz, ny, nx), nz, depth, channels, first, last, points.mode, points.rule, points.nearest,
        points.plus, *points.scales(image), points.voxels, points.matrix, planes(image), planes(moved), like=image,
    )  # fmt: skip
    return moved


def scatter(slope: torch.Tensor, image: torch.Tensor, points: Points, out: torch.Tensor, first: int, last: int) -> None:
    """Add the derivative with respect to an image on a CPU."""
    batch, channels, depth = image.shape[:3]
    nz, ny, nx = slope.shape[2:]
    on_cpu(
        kernels.scatter_rows, batch, nz, ny, nx, depth, channels, first, last, points.mode, points.rule, points.nearest,
        *points.scales(image), points.voxels, points.matrix, planes(slope), planes(out), dtype=image.dtype,
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
    nz, ny, nx = slope.shape[2:]
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
        kernels.sample_batch_backward, (batch * nz, ny, nx), nz, depth, channels, first, last, points.mode, points.rule,
        points.nearest, points.plus, accumulate, to_field is not None, to_image is not None, *points.scales(image),
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
    from daskreg.torch.kernels.blocks import TILE_Y
    from daskreg.torch.kernels.sampling_cuda import pull_back_tiled
    from daskreg.torch.kernels.scattering_cuda import SCATTER_Y, scatter_tiled

    if to_field is not None and points.nearest and not accumulate:
        to_field.zero_()
    elif to_field is not None and not points.nearest:
        form = pull_back_tiled.form(points.mode, points.rule, points.plus, accumulate)
        run_tiled(form, TILE_Y, image, slope, points, first, image, slope, to_field)
    if to_image is not None:
        form, room = scatter_tiled.form(points.mode, points.rule, points.nearest), window_size(image.get_device())
        run_tiled(form, SCATTER_Y, image, slope, points, first, slope, to_image, room=room)


def in_tiles(image: torch.Tensor, moved: torch.Tensor) -> bool:
    """Whether the kernels of ``sampling_cuda`` and ``scattering_cuda`` can be used."""
    return image.is_cuda and max(prod(image.shape[2:]), prod(moved.shape[2:])) < MAX_OFFSET


def run_tiled(
    form: Any,
    height: int,
    image: torch.Tensor,
    moved: torch.Tensor,
    points: Points,
    first: int,
    *tensors: torch.Tensor,
    room: int = 0,
) -> None:
    """Launch a kernel of ``sampling_cuda``.

    height: rows of a block;  moved: what has the shape of the moved image;  tensors: after u and the affine map;  room: voxels of
    a window in shared memory
    """
    from daskreg.torch.kernels.blocks import TILE_X, block_depth, blocks

    batch, count, nz, ny, nx = moved.shape
    shape, tile = (nz, ny, nx), (height, TILE_X)
    depth = block_depth(batch, shape, tile, processors(image.get_device()))
    n = (*shape, *image.shape[2:], depth, image.shape[1], first, count, room)
    launch(form, blocks(batch, shape, tile, depth), (TILE_X, height, 1), n, *points.scales(image), flat(points.field),
           points.matrix, *map(flat, tensors), like=image, shared=4 * room)  # fmt: skip


@cache
def window_size(index: int) -> int:
    """Voxels of the image that a block of ``scatter_tiled`` keeps in the shared memory of a device."""
    from daskreg.torch.kernels.scattering_cuda import BLOCK_MEMORY, MAX_WINDOW

    memory = torch.cuda.get_device_properties(index).shared_memory_per_multiprocessor // BLOCK_MEMORY
    return min(MAX_WINDOW, (memory - 2048) // 4)  # 1 KiB of a block is the driver's


def affine_sums(
    slope: torch.Tensor, image: torch.Tensor, points: Points, first: int = 0, last: int | None = None
) -> torch.Tensor:
    """The derivative with respect to the affine map: (B, 3, 4)."""
    batch, channels, depth = image.shape[:3]
    last = channels if last is None else last
    nz, ny, nx = slope.shape[2:]
    rows = run(
        kernels.affine_sums_batch, (batch * nz, ny, nx), nz, depth, channels, first, last, points.mode, points.rule,
        *points.scales(image), points.voxels, points.matrix, planes(image), planes(slope), like=image,
    )  # fmt: skip
    assert rows is not None
    return total(rows, (12 * batch,), 1.0).reshape(3, 4, batch).permute(2, 0, 1).contiguous()


def squares(
    fixed: torch.Tensor, image: torch.Tensor, points: Points, scale: float, to_field: torch.Tensor | None
) -> torch.Tensor:
    """``scale`` times the sum of squared differences from the sampled image, and its derivative with respect to the field."""
    batch, channels, nz, ny, nx = fixed.shape
    field = points.voxels if to_field is None else Voxels(to_field, points.voxels.shape)
    rows = run(
        kernels.squares_of_samples, (batch * nz, ny, nx), nz, image.shape[2], channels, points.mode, points.rule,
        to_field is not None, 2.0 * scale, *points.scales(image), points.voxels, points.matrix, planes(image), planes(fixed),
        field, like=image,
    )  # fmt: skip
    assert rows is not None
    return total(rows, (), scale)
