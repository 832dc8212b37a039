"""Local correlation and its derivative."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from daskreg.errors import DaskregError
from daskreg.torch.kernels import correlation as kernels
from daskreg.torch.launch import DTYPES, Voxels, flat, launch, on_cpu, processors, total


class Windows(NamedTuple):
    """Weights of a window along z, y, x, and the constants of ``kernels.correlation``."""

    z: tuple[float, ...]
    y: tuple[float, ...]
    x: tuple[float, ...]
    floor: float
    additive: float
    epsilon: float
    numerator: float
    limit: float
    squared: bool
    counted: bool

    @property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """Along the three axes."""
        return self.z, self.y, self.x

    def constants(self, kind: Any) -> tuple[Any, ...]:
        """As kernels take them."""
        return *(kind(v) for v in self[3:8]), self.squared


def correlate(
    fixed: torch.Tensor, moved: torch.Tensor, windows: Windows, kinds: int, mapped: bool, per_volume: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``scale`` times the sum of the correlation of all windows (), or of each volume (B, C); the correlation of each window if
    ``mapped``, else (0,); ``kinds`` factors for the derivative, (kinds, *shape) or (0,).
    """
    n, shape = prod(fixed.shape[:2]), fixed.shape
    correlation = fixed.new_empty(shape if mapped else 0)
    factors = fixed.new_empty((kinds, *shape) if kinds else 0)
    volumes = (n, *shape[2:])
    if fixed.is_cuda:
        partials = _on_device(fixed, moved, windows, kinds, mapped, correlation, factors)
    else:
        partials = fixed.new_zeros((n, shape[3]))
        on_cpu(
            kernels.correlation_rows, *_arrays(windows, fixed), windows.constants(DTYPES[fixed.dtype]), windows.counted,
            Voxels(fixed, volumes), Voxels(moved, volumes), Voxels(partials, (n, shape[3])),
            Voxels(correlation, volumes if mapped else (0, 0, 0, 0)),
            Voxels(factors, (kinds, *volumes) if kinds else (0, 0, 0, 0, 0)), dtype=fixed.dtype,
        )  # fmt: skip
    return total(partials, shape[:2] if per_volume else (), scale), correlation, factors


def gradient(
    given: torch.Tensor,
    weight: torch.Tensor,
    factors: torch.Tensor,
    kinds: tuple[int, int, int],
    fixed: torch.Tensor,
    moved: torch.Tensor,
    windows: Windows,
    scale: float,
) -> torch.Tensor:
    """``scale given`` times the derivative of the sum with respect to ``moved``; ``weight``: of each window, or (0,)."""
    n, shape, out = prod(fixed.shape[:2]), fixed.shape, torch.empty_like(moved)
    volumes, mapped = (n, *shape[2:]), weight.numel() > 0
    if fixed.is_cuda:
        _gradient_on_device(given, weight, factors, kinds, fixed, moved, windows, scale, out)
        return out
    on_cpu(
        kernels.correlation_gradient_rows, *_arrays(windows, fixed), kinds, float(scale), flat(given),
        Voxels(weight, volumes if mapped else (0, 0, 0, 0)), Voxels(factors, (factors.shape[0], *volumes)),
        Voxels(fixed, volumes), Voxels(moved, volumes), Voxels(out, volumes), dtype=fixed.dtype,
    )  # fmt: skip
    return out


def _arrays(windows: Windows, like: torch.Tensor) -> tuple[Any, ...]:
    return tuple(np.array(w, DTYPES[like.dtype]) for w in windows.weights)


def _on_device(
    fixed: torch.Tensor,
    moved: torch.Tensor,
    windows: Windows,
    kinds: int,
    mapped: bool,
    correlation: torch.Tensor,
    factors: torch.Tensor,
) -> torch.Tensor:
    from daskreg.torch.kernels.correlation_cuda import correlation_tiled
    from daskreg.torch.kernels.window_sums import summing_tiles

    blocks, threads, depth, sizes = _grid(fixed, windows, summing_tiles(windows.z, windows.y))
    partials, one = fixed.new_empty(blocks[0] * blocks[1]), fixed.new_empty(1)
    form = correlation_tiled.form(*windows.weights, kinds, windows.counted, mapped)
    launch(
        form, blocks, (threads, 1, 1), *sizes, depth, *map(float, windows[3:8]), windows.squared, np.uint64(fixed.numel()),
        flat(fixed), flat(moved), flat(partials), flat(correlation if mapped else one), flat(factors if kinds else one),
        like=fixed,
    )  # fmt: skip
    return partials


def _gradient_on_device(
    given: torch.Tensor,
    weight: torch.Tensor,
    factors: torch.Tensor,
    kinds: tuple[int, int, int],
    fixed: torch.Tensor,
    moved: torch.Tensor,
    windows: Windows,
    scale: float,
    out: torch.Tensor,
) -> None:
    from daskreg.torch.kernels.correlation_cuda import correlation_gradient_tiled
    from daskreg.torch.kernels.window_sums import gradient_tiles

    blocks, threads, depth, sizes = _grid(fixed, windows, gradient_tiles(windows.z, windows.y))
    mapped = weight.numel() > 0
    starts = [np.uint64(k * fixed.numel()) for k in kinds]
    form = correlation_gradient_tiled.form(*windows.weights, mapped)
    launch(
        form, blocks, (threads, 1, 1), *sizes, depth, *starts, float(scale), np.uint32(given.numel() > 1), flat(given),
        flat(weight if mapped else given), flat(factors), flat(fixed), flat(moved), flat(out), like=fixed,
    )  # fmt: skip


def _grid(fixed: torch.Tensor, windows: Windows, tiles: Any) -> tuple[tuple[int, int, int], int, int, tuple[int, int, int]]:
    """Blocks, threads, planes per block and the voxels along z, y, x, for ``window_sums.Tiles``."""
    from daskreg.torch.kernels import window_sums

    longest = max(map(len, windows.weights))
    if longest > 2 * window_sums.MAX_RADIUS + 1:
        raise DaskregError(f"a window has {longest} voxels; at most {2 * window_sums.MAX_RADIUS + 1} were expected on a GPU.")
    n, (nz, ny, nx) = prod(fixed.shape[:2]), fixed.shape[2:]
    reach, processing = len(windows.z) // 2, processors(fixed.device.index)
    depth = window_sums.planes_per_block(tiles, reach, n, nz, ny, nx, processing)
    return window_sums.blocks(tiles, n, nz, ny, nx, depth), tiles.threads, depth, (nz, ny, nx)
