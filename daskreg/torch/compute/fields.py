"""Differences and filters of fields, and squared differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from daskreg.torch.compute.prepared_loss import PreparedLoss
from daskreg.torch.direct_launch import MOST_LAUNCHES, Array, KeptLaunch, LaunchSequence, launch
from daskreg.torch.kernels import elementwise as kernels
from daskreg.torch.launch import MAX_GRID, allocator, empty, flat, planes, processors, run, stack, total, totalling, voxelwise

MAX_OFFSET = 2**32  # voxels of a volume whose offsets have 32 bits
MOST_TABLES = 4096  # that are kept; filters of other widths at each step would fill the memory
UNROLLED = 12  # the radius of filters up to which kernels are made for it

_TABLES: dict[tuple[object, ...], torch.Tensor] = {}  # weights of filters by their values, type and device


def in_tiles(tensor: torch.Tensor) -> bool:
    """Whether the kernels of ``elementwise_cuda`` can be used."""
    return tensor.is_cuda and tensor.shape[2] * tensor.shape[3] * tensor.shape[4] < MAX_OFFSET


def tiles(
    like: torch.Tensor, volumes: int, height: int, overlap: int = 0
) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, ...]]:
    """Blocks, threads, and extents with planes per block, for so many volumes; ``overlap``: rows and columns that others own."""
    from daskreg.torch.kernels.blocks import TILE_X, block_depth, blocks

    nz, ny, nx = like.shape[2:]
    tile = height - overlap, TILE_X - overlap
    depth = block_depth(volumes, (nz, ny, nx), tile, processors(like.get_device()))
    return blocks(volumes, (nz, ny, nx), tile, depth), (TILE_X, height, 1), (nz, ny, nx, depth)


def run_tiled(form: Any, like: torch.Tensor, volumes: int, *arguments: Any) -> None:
    """Launch a kernel of ``elementwise_cuda`` for so many volumes of the extents of ``like``, (B, C, Z, Y, X)."""
    from daskreg.torch.kernels.blocks import TILE_Y

    grid, threads, n = tiles(like, volumes, TILE_Y)
    launch(form, grid, threads, (*n, like.shape[1]), *arguments, like=like)


def summed(form: Any, u: torch.Tensor, factors: tuple[float, ...], scale: float) -> torch.Tensor:
    """``scale`` times the sum that a kernel of ``elementwise_cuda`` makes per block: ()."""
    from daskreg.torch.kernels.blocks import TILE_Y

    grid, threads, n = tiles(u, u.shape[0] * u.shape[1], TILE_Y)
    partials = empty((grid[0] * grid[1],), u)
    launch(form, grid, threads, (*n, u.shape[1]), *factors, flat(u), flat(partials), like=u)
    return total(partials, (), scale)


def squared_difference(fixed: torch.Tensor, moved: torch.Tensor, scale: float) -> torch.Tensor:
    """``scale`` times the sum of squared differences: ()."""
    shape = stack(fixed.shape)
    if fixed.is_cuda and shape[0] <= MAX_GRID:
        rows: torch.Tensor | None = empty(shape[:2], fixed)
        _squaring(shape, fixed.get_device())(rows, fixed, moved)
    else:
        rows = run(kernels.squared_difference_batch, shape, planes(fixed), planes(moved), like=fixed)
    assert rows is not None
    return total(rows, (), scale)


@lru_cache(MOST_LAUNCHES)
def _squaring(shape: tuple[int, int, int], index: int) -> KeptLaunch:
    arrays = Array((1, *shape[:2])), Array(shape), Array(shape)
    return KeptLaunch(*voxelwise(kernels.squared_difference_batch, (0, *shape)), *arrays, index=index)


def squared_difference_gradient(given: torch.Tensor, fixed: torch.Tensor, moved: torch.Tensor, scale: float) -> torch.Tensor:
    """Its derivative with respect to ``moved``, times ``given``."""
    out, shape = empty(moved.shape, moved), stack(fixed.shape)
    if fixed.is_cuda and shape[0] <= MAX_GRID:
        _squares_sloping(shape, 2.0 * scale, fixed.get_device())(given, fixed, moved, out)
        return out
    run(kernels.squared_difference_batch_backward, shape, 2.0 * scale, flat(given), *map(planes, (fixed, moved, out)), like=fixed)
    return out


@lru_cache(MOST_LAUNCHES)
def _squares_sloping(shape: tuple[int, int, int], factor: float, index: int) -> KeptLaunch:
    arrays = Array((1,)), *(Array(shape),) * 3
    return KeptLaunch(*voxelwise(kernels.squared_difference_batch_backward, (0, *shape)), factor, *arrays, index=index)


class PreparedDifference(PreparedLoss):
    """The mean squared difference of contiguous CUDA tensors of one shape, whose (Z, Y) planes are at most ``MAX_GRID``."""

    def __init__(self, shape: torch.Size, device: int) -> None:
        self.stack, self.scale, self.device = stack(shape), 1 / shape.numel(), device
        rows = self.stack[:2]
        total_of = totalling(1, rows[0] * rows[1], self.scale, 0.0, device)
        self.launches = LaunchSequence((_squaring(self.stack, device), (0, 1, 2)), (total_of, (0, 3)))
        self.rows, self.value, self.out = allocator(rows, device), allocator((), device), allocator(shape, device)

    def forward(self, fixed: torch.Tensor, moved: torch.Tensor) -> tuple[torch.Tensor]:
        """The mean."""
        rows, value = self.rows(), self.value()
        self.launches(rows.data_ptr(), fixed.data_ptr(), moved.data_ptr(), value.data_ptr())
        return (value,)

    @cached_property
    def slopes(self) -> LaunchSequence:
        """See ``PreparedLoss``."""
        return LaunchSequence((_squares_sloping(self.stack, 2.0 * self.scale, self.device), (0, 1, 2, 3)))


def axis_shares(u: torch.Tensor) -> tuple[float, ...]:
    """The mean over each axis' differences, then over the axes that have any."""
    used = [k for k in (2, 3, 4) if u.shape[k] > 1]
    return tuple(u.shape[k] / (u.numel() * (u.shape[k] - 1) * len(used)) if k in used else 0.0 for k in (2, 3, 4))


def difference_penalty(u: torch.Tensor, squared: bool) -> torch.Tensor:
    """The mean penalty of forward differences, over the axes: ()."""
    if in_tiles(u):
        from daskreg.torch.kernels.elementwise_cuda import difference_penalty_tiled

        return summed(difference_penalty_tiled.form(squared), u, axis_shares(u), 1.0)
    rows = run(kernels.difference_penalty, stack(u.shape), u.shape[2], squared, *axis_shares(u), planes(u), like=u)
    assert rows is not None
    return total(rows, (), 1.0)


def difference_penalty_gradient(given: torch.Tensor, u: torch.Tensor, squared: bool) -> torch.Tensor:
    """Its derivative, times ``given``."""
    out = empty(u.shape, u)
    if in_tiles(u):
        from daskreg.torch.kernels.elementwise_cuda import difference_penalty_backward_tiled

        run_tiled(difference_penalty_backward_tiled.form(squared), u, u.shape[0] * u.shape[1], *axis_shares(u), flat(given),
                  flat(u), flat(out))  # fmt: skip
        return out
    run(kernels.difference_penalty_backward, stack(u.shape), u.shape[2], squared, *axis_shares(u), flat(given), planes(u),
        planes(out), like=u)  # fmt: skip
    return out


def bending_energy(u: torch.Tensor, normalized: bool, scale: float) -> torch.Tensor:
    """``scale`` times the sum of squared second differences: ()."""
    if in_tiles(u):
        from daskreg.torch.kernels.elementwise_cuda import bending_tiled

        return summed(bending_tiled.form(normalized), u, (1.0, 1.0, 1.0), scale)
    rows = run(kernels.bending, stack(u.shape), u.shape[2], u.shape[1], normalized, planes(u), like=u)
    assert rows is not None
    return total(rows, (), scale)


def bending_energy_gradient(given: torch.Tensor, u: torch.Tensor, normalized: bool, scale: float) -> torch.Tensor:
    """Its derivative, times ``given``."""
    out = empty(u.shape, u)
    if in_tiles(u):
        from daskreg.torch.kernels.elementwise_cuda import bending_backward_tiled

        run_tiled(bending_backward_tiled.form(normalized), u, u.shape[0] * u.shape[1], 2.0 * scale, flat(given), flat(u),
                  planes(u), flat(out))  # fmt: skip
        return out
    run(kernels.bending_backward, stack(u.shape), u.shape[2], u.shape[1], normalized, 2.0 * scale, flat(given), planes(u),
        planes(out), like=u)  # fmt: skip
    return out


def determinant(u: torch.Tensor) -> torch.Tensor:
    """det(I + Du): (B, 1, Z, Y, X)."""
    out = empty((u.shape[0], 1, *u.shape[2:]), u)
    if in_tiles(u):
        from daskreg.torch.kernels.elementwise_cuda import determinant_tiled

        run_tiled(determinant_tiled.form(), u, u.shape[0], flat(u), flat(out))
        return out
    run(kernels.determinant, stack(out.shape), u.shape[2], planes(u), planes(out), like=u)
    return out


def determinant_gradient(slope: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The derivative with respect to u from that with respect to the determinant."""
    out = empty(u.shape, u)
    if in_tiles(u):
        from daskreg.torch.kernels.elementwise_cuda import GRADIENT_Y, determinant_backward_tiled

        grid, threads, n = tiles(u, u.shape[0], GRADIENT_Y, overlap=2)
        launch(determinant_backward_tiled.form(), grid, threads, n, flat(u), flat(slope), flat(out), like=u)
        return out
    run(kernels.determinant_backward, stack(u.shape), u.shape[2], planes(u), planes(slope), planes(out), like=u)
    return out


def filtered(source: torch.Tensor, weights: Sequence[Sequence[float]], renormalized: bool, transposed: bool) -> torch.Tensor:
    """Symmetric filters along z, y, x; ``renormalized``: at the faces divided by the sum of the weights inside."""
    for axis, taps in enumerate(weights):
        if len(taps) == 1:
            source = source * taps[0] if taps[0] != 1 else source
            continue
        out = empty(source.shape, source)
        norms = _inverse_sums(taps, source.shape[axis + 2]) if renormalized else (1.0,) * source.shape[axis + 2]
        radius = len(taps) // 2
        if in_tiles(source) and radius <= UNROLLED and min(taps) >= 0:
            from daskreg.torch.kernels.filters_cuda import filter_tiled

            run_tiled(filter_tiled.form(axis, radius, transposed), source, source.shape[0] * source.shape[1], _bits(tuple(taps)),
                      flat(_table(norms, source)), flat(source), flat(out))  # fmt: skip
            source = out
            continue
        run(kernels.filter_axis, stack(source.shape), axis, source.shape[2], transposed, flat(_table(tuple(taps), source)),
            flat(_table(norms, source)), planes(source), planes(out), like=source)  # fmt: skip
        source = out
    return source


def _inverse_sums(taps: Sequence[float], n: int) -> tuple[float, ...]:
    """1 / the sum of the weights inside an axis, at each voxel."""
    r, w = len(taps) // 2, np.asarray(taps)
    at = np.arange(n)[:, None] + np.arange(-r, r + 1)
    return tuple(1 / np.where((at >= 0) & (at < n), w, 0).sum(1))


@lru_cache(MOST_TABLES)
def _bits(values: tuple[float, ...]) -> tuple[int, ...]:
    """The bits of positive values as float32: kernels take tuples of unsigned integers."""
    return tuple(int(v) for v in np.asarray(values, np.float32).view(np.uint32))


def _table(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    """Values on the device of a tensor, copied there once; none that is kept is ever freed, as CUDA graphs may read it."""
    key = values, like.dtype, like.device
    found = _TABLES.get(key)
    if found is None:
        found = torch.tensor(values, dtype=like.dtype, device=like.device)
        if len(_TABLES) < MOST_TABLES:
            _TABLES[key] = found
    return found


def gaussian_taps(sigma: float, truncate: float) -> tuple[float, ...]:
    """Normalised weights up to ``truncate`` sigma; one for sigma 0."""
    r = math.ceil(truncate * sigma)
    taps = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-r, r + 1)] if r else [1.0]
    return tuple(t / sum(taps) for t in taps)
