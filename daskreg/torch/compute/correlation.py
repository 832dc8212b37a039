"""Local correlation and its derivative."""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from daskreg.errors import DaskregError
from daskreg.torch.compute.prepared_loss import PreparedLoss
from daskreg.torch.direct_launch import MOST_LAUNCHES, Array, KeptLaunch, LaunchSequence, Voxels
from daskreg.torch.kernels import correlation as kernels
from daskreg.torch.launch import DTYPES, allocator, empty, flat, on_cpu, processors, total, totalling

Weights = tuple[tuple[float, ...], ...]


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
    def weights(self) -> Weights:
        """Along the three axes."""
        return self.z, self.y, self.x

    def constants(self, kind: Any) -> tuple[Any, ...]:
        """As kernels take them."""
        return *(kind(v) for v in self[3:8]), self.squared


def correlate(
    fixed: torch.Tensor, moved: torch.Tensor, windows: Windows, kinds: int, mapped: bool, per_volume: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """``scale`` times the sum of the correlation of all windows (), or of each volume (B, C); the correlation of each window if
    ``mapped``, else None; ``kinds`` factors for the derivative, (kinds, *shape), or None of none.
    """
    n, shape = prod(fixed.shape[:2]), fixed.shape
    correlation = empty(shape, fixed) if mapped else None
    factors = empty((kinds, *shape), fixed) if kinds else None
    volumes = (n, *shape[2:])
    if fixed.is_cuda:
        partials = _on_device(fixed, moved, windows, kinds, correlation, factors)
    else:
        partials = fixed.new_zeros((n, shape[3]))
        on_cpu(
            kernels.correlation_rows, *_arrays(windows, fixed), windows.constants(DTYPES[fixed.dtype]), windows.counted,
            Voxels(fixed, volumes), Voxels(moved, volumes), Voxels(partials, (n, shape[3])),
            _or_none(correlation, volumes, fixed), _or_none(factors, (kinds, *volumes), fixed), dtype=fixed.dtype,
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
    """``scale given`` times the derivative of the sum with respect to ``moved``; ``weight``: of each window, or not of 5 axes."""
    n, shape, out = prod(fixed.shape[:2]), fixed.shape, empty(moved.shape, moved)
    volumes, mapped = (n, *shape[2:]), weight.ndim == 5
    if fixed.is_cuda:
        _gradient_on_device(given, weight, factors, kinds, fixed, moved, windows, scale, out)
        return out
    on_cpu(
        kernels.correlation_gradient_rows, *_arrays(windows, fixed), kinds, float(scale), flat(given),
        _or_none(weight if mapped else None, volumes, fixed), Voxels(factors, (factors.shape[0], *volumes)),
        Voxels(fixed, volumes), Voxels(moved, volumes), Voxels(out, volumes), dtype=fixed.dtype,
    )  # fmt: skip
    return out


class PreparedCorrelation(PreparedLoss):
    """``correlate``, without the map, and ``gradient`` of contiguous CUDA tensors of one shape; kinds: 0, 3 or 5."""

    def __init__(self, windows: Windows, kinds: int, shape: torch.Size, per_volume: bool, scale: float, device: int) -> None:
        self.windows, self.kinds, self.shape, self.scale, self.device = windows, kinds, shape, float(scale), device
        values = shape[:2] if per_volume else ()
        self.values = prod(values)
        summing, count = _summing(windows, kinds, False, shape, device)
        total_of = totalling(self.values, count // self.values, self.scale, 0.0, device)
        self.launches = LaunchSequence((summing, (0, 1, 2, 0, 3)), (total_of, (2, 4)))
        self.partials, self.value = allocator((count,), device), allocator(values, device)
        self.factors, self.out = allocator((kinds, *shape), device), allocator(shape, device)

    def forward(self, fixed: torch.Tensor, moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The sum, and the factors if there are any."""
        partials, value, of_fixed = self.partials(), self.value(), fixed.data_ptr()
        if not self.kinds:
            self.launches(of_fixed, moved.data_ptr(), partials.data_ptr(), of_fixed, value.data_ptr())
            return (value,)
        factors = self.factors()
        self.launches(of_fixed, moved.data_ptr(), partials.data_ptr(), factors.data_ptr(), value.data_ptr())
        return value, factors

    @cached_property
    def slopes(self) -> LaunchSequence:
        """See ``PreparedLoss``."""
        of = self.windows.weights, (0, 1, 2), False, self.values, self.kinds, self.scale, self.shape, self.device
        return LaunchSequence((_sloping(*of), (0, 0, 1, 2, 3, 4)))


def _or_none(tensor: torch.Tensor | None, shape: tuple[int, ...], like: torch.Tensor) -> Voxels:
    """A tensor as a CPU kernel takes it; an array without elements says that there is none."""
    return Voxels(like.new_empty(0), (0,) * len(shape)) if tensor is None else Voxels(tensor, shape)


def _arrays(windows: Windows, like: torch.Tensor) -> tuple[Any, ...]:
    return tuple(np.array(w, DTYPES[like.dtype]) for w in windows.weights)


def _on_device(
    fixed: torch.Tensor,
    moved: torch.Tensor,
    windows: Windows,
    kinds: int,
    correlation: torch.Tensor | None,
    factors: torch.Tensor | None,
) -> torch.Tensor:
    summing, blocks = _summing(windows, kinds, correlation is not None, fixed.shape, fixed.get_device())
    partials = empty((blocks,), fixed)
    summing(fixed, moved, partials, fixed if correlation is None else correlation, fixed if factors is None else factors)
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
    mapped, index = weight.ndim == 5, fixed.get_device()
    sloping = _sloping(windows.weights, kinds, mapped, given.numel(), factors.shape[0], scale, fixed.shape, index)
    sloping(given, weight if mapped else given, factors, fixed, moved, out)


@lru_cache(MOST_LAUNCHES)
def _summing(windows: Windows, kinds: int, mapped: bool, shape: torch.Size, device: int) -> tuple[KeptLaunch, int]:
    """``correlation_tiled``, and its blocks: fixed, moved, partials, correlation, factors, the last two only if there are any."""
    from daskreg.torch.kernels.correlation_cuda import correlation_tiled
    from daskreg.torch.kernels.window_sums import summing_tiles

    weights, n = windows.weights, prod(shape)
    blocks, threads, sizes = _grid(shape, weights, summing_tiles(weights[0], weights[1]), device)
    count, numbers = blocks[0] * blocks[1], map(float, windows[3:8])
    arrays = Array((n,)), Array((n,)), Array((count,)), Array((n,)), Array((n * max(1, kinds),))
    form = correlation_tiled.form(*weights, kinds, windows.counted, mapped)
    launch = KeptLaunch(form, blocks, threads, *sizes, *numbers, windows.squared, np.uint64(n), *arrays, index=device)
    return launch, count


@lru_cache(MOST_LAUNCHES)
def _sloping(
    weights: Weights, kinds: tuple[int, ...], mapped: bool, given: int, made: int, scale: float, shape: torch.Size, device: int
) -> KeptLaunch:
    """``correlation_gradient_tiled``: given, weight, factors, fixed, moved, out.  given: its values;  made: kinds of factors"""
    from daskreg.torch.kernels.correlation_cuda import correlation_gradient_tiled
    from daskreg.torch.kernels.window_sums import gradient_tiles

    blocks, threads, sizes = _grid(shape, weights, gradient_tiles(weights[0], weights[1]), device)
    n, starts = prod(shape), [np.uint64(k * prod(shape)) for k in kinds]
    arrays = Array((given,)), Array((n if mapped else given,)), Array((made * n,)), *(Array((n,)),) * 3
    form = correlation_gradient_tiled.form(*weights, mapped)
    return KeptLaunch(form, blocks, threads, *sizes, *starts, float(scale), np.uint32(given > 1), *arrays, index=device)


def _grid(shape: torch.Size, weights: Weights, tiles: Any, device: int) -> Any:
    from daskreg.torch.kernels import window_sums
    from daskreg.torch.kernels.blocks import blocks

    longest = max(map(len, weights))
    if longest > 2 * window_sums.MAX_RADIUS + 1:
        raise DaskregError(f"a window has {longest} voxels; at most {2 * window_sums.MAX_RADIUS + 1} were expected on a GPU.")
    n, (nz, ny, nx) = prod(shape[:2]), shape[2:]
    depth = window_sums.planes_per_block(tiles, len(weights[0]) // 2, n, nz, ny, nx, processors(device))
    return blocks(n, (nz, ny, nx), tiles.extent, depth), (tiles.threads, 1, 1), (nz, ny, nx, depth)
