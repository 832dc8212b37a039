"""Sampling of images and its derivatives."""

from __future__ import annotations

from typing import NamedTuple

import torch

from daskreg.torch.kernels import sampling as kernels
from daskreg.torch.kernels.sampling import AFFINE_ALONE, GRID, REFLECT_CENTERS, REFLECT_EDGES
from daskreg.torch.launch import Voxels, on_cpu, planes, run, total


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
            return planes(self.field) if self.field.numel() else Voxels(self.affine, (1, 1, self.affine.numel()))
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
    moved = image.new_empty((batch, last - first, nz, ny, nx))
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
    if to_field is None and to_image is None:
        return
    field = points.voxels if to_field is None else Voxels(to_field, points.voxels.shape)
    scattered = planes(image if to_image is None else to_image)
    run(
        kernels.sample_batch_backward, (batch * nz, ny, nx), nz, depth, channels, first, last, points.mode, points.rule,
        points.nearest, points.plus, accumulate, to_field is not None, to_image is not None, *points.scales(image),
        points.voxels, points.matrix, planes(image), planes(slope), field, scattered, like=image,
    )  # fmt: skip


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
