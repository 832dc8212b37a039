"""Kernels on tensors: in place, on the CPU through NumPy's view of a tensor, on a GPU on PyTorch's current stream.

Nothing waits for the device, and all memory is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from math import prod
from typing import Any

import numpy as np
import torch

from daskreg.kernels.compiler.formula import CPU
from daskreg.kernels.compiler.launch import Kernel
from daskreg.kernels.compiler.source import ROW_THREADS
from daskreg.torch.direct_launch import MOST_LAUNCHES, Array, KeptLaunch, Voxels, current_device, launch, strides

MAX_GRID = 65535  # blocks along y and z
VOXEL_THREADS = (64, 4, 1)
Box = tuple[int, int, int, int]
DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}
_guards: Any = torch._C._dynamo.guards
_allocate = getattr(_guards, "_empty_strided_cuda", None)


def flat(tensor: torch.Tensor) -> Voxels:
    """A tensor as a one-dimensional array."""
    return Voxels(tensor, (tensor.numel(),))


def planes(tensor: torch.Tensor) -> Voxels:
    """A tensor (..., Z, Y, X) as (planes, Y, X)."""
    return Voxels(tensor, stack(tensor.shape))


@lru_cache(MOST_LAUNCHES)
def stack(shape: torch.Size) -> tuple[int, int, int]:
    """Planes, rows and columns of a shape (..., Z, Y, X)."""
    return prod(shape[:-2]), shape[-2], shape[-1]


def view(voxels: Voxels) -> Any:
    """NumPy's view of a tensor on the CPU."""
    return voxels.tensor.detach().numpy().reshape(voxels.shape)


def on_cpu(kernel: Any, *arguments: Any, dtype: torch.dtype = torch.float32) -> None:
    """Call a CPU kernel; floating-point scalars become values of the tensors' type, so that nothing is computed in another."""
    kernel(*(_host(a, DTYPES[dtype]) for a in arguments))


def _host(argument: Any, kind: Any) -> Any:
    if isinstance(argument, Voxels):
        return view(argument)
    return kind(argument) if isinstance(argument, float) else argument


def empty(shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A contiguous tensor on the device of another, by default of its type: ``new_empty`` in a third of its time on a GPU."""
    shape, dtype = tuple(shape), dtype or like.dtype
    if like.is_cpu or _allocate is None or like.get_device() != current_device():
        return like.new_empty(shape, dtype=dtype)
    made: torch.Tensor = _allocate(shape, strides(shape, 1), dtype)
    return made


def allocator(shape: Sequence[int], index: int, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    """What makes contiguous tensors of a shape and type on a device, which must be the current one."""
    if _allocate is None or index < 0:
        return partial(torch.empty, tuple(shape), dtype=dtype, device=index if index >= 0 else "cpu")
    return partial(_allocate, tuple(shape), strides(tuple(shape), 1), dtype)


def run(kernel: Kernel, shape: tuple[int, int, int], *arguments: Any, like: torch.Tensor) -> torch.Tensor | None:
    """A voxelwise kernel at all voxels (planes, Y, X); returns the row sums (k, planes, Y) of one that has any."""
    count, ny, nx = shape
    rows = empty((kernel.sums, count, ny), like) if kernel.sums else None
    if not like.is_cuda:
        if rows is not None:
            rows.zero_()
        extra = () if rows is None else (Voxels(rows, tuple(rows.shape)),)
        on_cpu(kernel.launcher(CPU), (0, count, ny, nx), *extra, *arguments, dtype=like.dtype)
        return rows
    for first in range(0, count, MAX_GRID):
        part = min(MAX_GRID, count - first)
        _run_on_device(kernel, (first, part, ny, nx), rows, count, arguments, like)
    return rows


def _run_on_device(kernel: Kernel, box: Box, rows: torch.Tensor | None, count: int, arguments: Any, like: torch.Tensor) -> None:
    first, part, ny, _ = box
    if rows is None:
        launch(*voxelwise(kernel, box), *arguments, like=like)
        return
    mine = rows if part == count else rows.new_empty((kernel.sums, part, ny))
    launch(*voxelwise(kernel, box), Voxels(mine, (kernel.sums, part, ny)), *arguments, like=like)
    if mine is not rows:
        rows[:, first : first + part].copy_(mine)


@lru_cache(MOST_LAUNCHES)
def voxelwise(kernel: Kernel, box: Box) -> tuple[Any, ...]:
    """A voxelwise kernel, its blocks and threads, and its first argument, for a box: first plane, planes, rows and columns."""
    _, part, ny, nx = box
    (x, y, _), extent = VOXEL_THREADS, tuple(np.uint32(v) for v in box)
    if kernel.sums:
        return kernel.without(_NONE), (ny, part, 1), (ROW_THREADS, 1, 1), extent
    return kernel.without(_NONE), (-(-nx // x), -(-ny // y), part), VOXEL_THREADS, extent


_NONE: frozenset[str] = frozenset()


@cache
def processors(index: int) -> int:
    """Multiprocessors of a device."""
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def total(partials: torch.Tensor, shape: Sequence[int], scale: float, offset: float = 0.0) -> torch.Tensor:
    """``offset + scale`` times sums of equal parts of a tensor, in a fixed order: as many as a tensor of some shape holds."""
    segments = prod(shape)
    length = partials.numel() // segments
    if not partials.is_cuda:
        sums = partials.reshape(segments, length).sum(1, dtype=torch.float64) * scale + offset
        return sums.reshape(tuple(shape)).to(partials.dtype, copy=True)  # no view: callers add to it in place
    out = empty(shape, partials)
    totalling(segments, length, float(scale), float(offset), partials.get_device())(partials, out)
    return out


@lru_cache(MOST_LAUNCHES)
def totalling(segments: int, length: int, scale: float, offset: float, index: int) -> KeptLaunch:
    """The launch of ``segment_totals``: of parts of some length, in a tensor on a device."""
    from daskreg.torch.kernels.totals import THREADS, segment_totals

    arrays, form = (Array((segments * length,)), Array((segments,))), segment_totals.form()
    return KeptLaunch(form, (segments, 1, 1), (THREADS, 1, 1), np.uint32(length), scale, offset, *arrays, index=index)
