"""Mutual information and its derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from daskreg.errors import DaskregError
from daskreg.torch.direct_launch import MOST_LAUNCHES, Array, KeptLaunch, Voxels
from daskreg.torch.kernels import information as kernels
from daskreg.torch.kernels.information import CHUNKS, ParzenWindow
from daskreg.torch.launch import empty, flat, on_cpu, processors

MOST_TABLE = 48 * 1024 // 4  # entries of a table in the static shared memory of a block
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
    from daskreg.torch.kernels.information_cuda import THREADS, histogram_bytes, joint_histograms

    blocks = max(1, min(-(-n // THREADS), processors(device)))
    form = joint_histograms.form(window.kind, window.bins, window.taps, window.pad)
    arrays = Array((batch * n,)), Array((batch * n,)), Array((batch * window.edge**2,), torch.int64)
    return KeptLaunch(form, (blocks, batch, 1), (THREADS, 1, 1), np.uint64(n), *_intensities(window), *arrays, index=device,
                      shared=histogram_bytes(window.edge))  # fmt: skip


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
    from daskreg.torch.kernels.information_cuda import TABLE_THREADS, information_tables_of_batch

    table = Array((batch * edge**2,))
    arrays = table._replace(dtype=torch.int64), Array((batch,)), table, table
    form = information_tables_of_batch.form(edge)
    return KeptLaunch(form, (batch, 1, 1), (TABLE_THREADS, 1, 1), *map(float, smoothing), scale, *arrays, index=device)


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
    from daskreg.torch.kernels.information_cuda import GRADIENT_BLOCKS, GRADIENT_THREADS, information_gradients

    if window.edge**2 > MOST_TABLE:
        most = math.isqrt(MOST_TABLE) - 2 * window.pad
        raise DaskregError(f"{window.bins} bins were given; at most {most} were expected for derivatives on a GPU.")
    blocks = max(1, min(-(-n // GRADIENT_THREADS), GRADIENT_BLOCKS * processors(device)))
    form = information_gradients.form(window.kind, window.bins, window.taps, window.pad)
    arrays = Array((given,)), Array((batch * window.edge**2,)), *(Array((batch * n,)),) * 3
    return KeptLaunch(form, (blocks, batch, 1), (GRADIENT_THREADS, 1, 1), np.uint64(n), *_intensities(window), factor,
                      np.uint32(given > 1), *arrays, index=device)  # fmt: skip


def _intensities(window: ParzenWindow) -> tuple[float, ...]:
    return tuple(float(v) for v in window[4:])
