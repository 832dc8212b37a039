"""Mutual information and its derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from daskreg.errors import DaskregError
from daskreg.torch.compute.prepared_loss import PreparedLoss
from daskreg.torch.direct_launch import MOST_LAUNCHES, Array, KeptLaunch, LaunchSequence, Voxels
from daskreg.torch.kernels import information as kernels
from daskreg.torch.kernels.information import CHUNKS, ParzenWindow
from daskreg.torch.launch import allocator, empty, flat, on_cpu, processors

Smoothing = tuple[float, float, float]  # numerator, denominator, additive


def empty_histogram(like: torch.Tensor, window: ParzenWindow) -> torch.Tensor:
    """The joint histogram of each batch element without counts."""
    batch, edge = like.shape[0], window.edge
    if like.is_cuda:
        return empty((batch, edge, edge), like, torch.int64).zero_()
    return torch.zeros((batch, CHUNKS, edge, edge), dtype=torch.float64)


def count(fixed: torch.Tensor, moved: torch.Tensor, window: ParzenWindow, counts: torch.Tensor) -> None:
    """Add the voxels of all channels to the histograms; fixed, moved: (B, C, Z, Y, X)."""
    batch = fixed.shape[0]
    n = fixed.numel() // batch
    if not fixed.is_cuda:
        shape = (batch, n)
        on_cpu(kernels.joint_rows, window, Voxels(fixed, shape), Voxels(moved, shape), Voxels(counts, tuple(counts.shape)),
               dtype=fixed.dtype)  # fmt: skip
        return
    _counting(window, batch, n, fixed.get_device())(fixed, moved, counts)


@lru_cache(MOST_LAUNCHES)
def _counting(window: ParzenWindow, batch: int, n: int, device: int) -> KeptLaunch:
    from daskreg.torch.kernels.information_cuda import joint_histograms

    arrays = Array((batch * n,)), Array((batch * n,)), Array((batch * window.edge**2,), torch.int64)
    return _in_shared_memory(joint_histograms, window, batch, n, device, *arrays)


def _in_shared_memory(kernel: Any, window: ParzenWindow, batch: int, n: int, device: int, *arguments: Any) -> KeptLaunch:
    """The launch of a kernel that keeps copies of a table in shared memory: a block a multiprocessor; arguments: its last."""
    from daskreg.torch.kernels.information_cuda import THREADS, copies_within, shared_bytes

    memory, edge = block_memory(device), window.edge
    if 4 * edge**2 > memory:
        most = math.isqrt(memory // 4) - 2 * window.pad
        raise DaskregError(
            f"{window.bins} bins were given; at most {most} were expected, whose table fits into a block's memory."
        )
    copies, blocks = copies_within(edge, memory), max(1, min(-(-n // THREADS), processors(device)))
    form = kernel.form(window.kind, window.bins, window.taps, window.pad, copies)
    return KeptLaunch(form, (blocks, batch, 1), (THREADS, 1, 1), np.uint64(n), *_intensities(window), *arguments, index=device,
                      shared=shared_bytes(edge, copies))  # fmt: skip


@cache
def block_memory(device: int) -> int:
    """Bytes of shared memory that a block can have."""
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def tables(
    counts: torch.Tensor, window: ParzenWindow, smoothing: Smoothing, scale: float, dtype: torch.dtype, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``scale`` MI of each batch element, and the tables for the derivatives with respect to moved and fixed.

    shape: of the values, (B,), or () of one; not a view, so that callers may add to it in place
    """
    batch, edge = counts.shape[0], window.edge
    if not counts.is_cuda:
        value, *found = kernels.information_tables(counts.numpy().sum(1), *smoothing)
        to_moved, to_fixed = (torch.from_numpy(t).to(dtype) for t in found)
        return torch.from_numpy((scale * value).reshape(tuple(shape))).to(dtype), to_moved, to_fixed
    value, to_moved, to_fixed = (empty(s, counts, dtype) for s in (shape, (batch, edge, edge), (batch, edge, edge)))
    _tabulating(edge, batch, smoothing, float(scale), counts.get_device())(counts, value, to_moved, to_fixed)
    return value, to_moved, to_fixed


@lru_cache(MOST_LAUNCHES)
def _tabulating(edge: int, batch: int, smoothing: Smoothing, scale: float, device: int) -> KeptLaunch:
    from daskreg.torch.kernels.information_tables_cuda import THREADS, information_tables_of_batch

    table = Array((batch * edge**2,))
    arrays = table._replace(dtype=torch.int64), Array((batch,)), table, table
    form = information_tables_of_batch.form(edge)
    return KeptLaunch(form, (batch, 1, 1), (THREADS, 1, 1), *map(float, smoothing), scale, *arrays, index=device)


def gradient(
    given: torch.Tensor, table: torch.Tensor, fixed: torch.Tensor, moved: torch.Tensor, window: ParzenWindow, factor: float
) -> torch.Tensor:
    """``factor given`` times the derivative of MI, times the number of voxels, with respect to ``moved``."""
    batch, out = fixed.shape[0], empty(moved.shape, moved)
    n = fixed.numel() // batch
    if not fixed.is_cuda:
        shape = (batch, n)
        on_cpu(
            kernels.information_gradient_rows, window, float(factor), flat(given), Voxels(table, tuple(table.shape)),
            Voxels(fixed, shape), Voxels(moved, shape), Voxels(out, shape), dtype=fixed.dtype,
        )  # fmt: skip
        return out
    _sloping(window, batch, n, given.numel(), float(factor), fixed.get_device())(given, table, fixed, moved, out)
    return out


@lru_cache(MOST_LAUNCHES)
def _sloping(window: ParzenWindow, batch: int, n: int, given: int, factor: float, device: int) -> KeptLaunch:
    from daskreg.torch.kernels.information_cuda import information_gradients

    arrays = Array((given,)), Array((batch * window.edge**2,)), *(Array((batch * n,)),) * 3
    return _in_shared_memory(information_gradients, window, batch, n, device, factor, np.uint32(given > 1), *arrays)


class PreparedInformation(PreparedLoss):
    """``count``, ``tables`` and ``gradient`` of contiguous CUDA tensors of one shape; summed: the sum over the batch, ()."""

    def __init__(
        self, window: ParzenWindow, smoothing: Smoothing, scale: float, summed: bool, shape: torch.Size, device: int
    ) -> None:
        batch, words = shape[0], shape[0] * window.edge**2
        n = shape.numel() // batch
        self.added = summed and batch > 1
        counting, tabulating = _counting(window, batch, n, device), _tabulating(window.edge, batch, smoothing, scale, device)
        self.launches = LaunchSequence((counting, (1, 2, 0)), (tabulating, (0, 3, 4, 5)), cleared=8 * words)
        self.counts, self.second = allocator((words,), device, torch.int64), 4 * words
        self.value = allocator(() if summed and batch == 1 else (batch,), device)
        self.tables, self.out = allocator((2, batch, window.edge, window.edge), device), allocator(shape, device)
        self.sloping = window, batch, n, 1 if summed else batch, scale * batch / shape.numel(), device

    def forward(self, fixed: torch.Tensor, moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The value, and the tables of the derivatives with respect to moved and fixed."""
        counts, value, tables = self.counts(), self.value(), self.tables()
        at = tables.data_ptr()
        self.launches(counts.data_ptr(), fixed.data_ptr(), moved.data_ptr(), value.data_ptr(), at, at + self.second)
        return value.sum() if self.added else value, tables

    @cached_property
    def slopes(self) -> LaunchSequence:
        """See ``PreparedLoss``."""
        return LaunchSequence((_sloping(*self.sloping), (0, 1, 2, 3, 4)))


def _intensities(window: ParzenWindow) -> tuple[float, ...]:
    return tuple(float(v) for v in window[4:])
