"""Copies of planes within a CPU's memory, by all threads of a launch: meanwhile these have nothing else to do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from daskreg.kernels.compiler.host_launch import thread_count
from daskreg.kernels.compiler.launch import on_device

LEAST_BYTES = 1 << 20  # of a copy: another thread takes longer to wake up than less takes


def copy_planes(source: Any, target: Any) -> None:
    """Between arrays (.., planes, Y, X) of one device that do not overlap."""
    if on_device(target):
        target[...] = source
    else:
        _share(target, lambda rows: _assign(target[..., rows, :], source[..., rows, :]))


def move_planes(source: Any, target: Any) -> None:
    """The same in a CPU's memory where they may overlap: both are whole planes of one buffer, which are contiguous."""
    _share(target, lambda rows: _move_rows(source, target, rows))


def _assign(target: Any, source: Any) -> None:
    target[...] = source


def _share(target: Any, work: Callable[[slice], None]) -> None:
    """Rows of every plane for each thread: what one overwrites is nothing that another reads."""
    rows, threads = target.shape[-2], thread_count() if target.nbytes >= LEAST_BYTES else 1
    parts = [slice(rows * k // threads, rows * (k + 1) // threads) for k in range(threads)]
    others = [_pool(threads - 1).submit(work, part) for part in parts[1:]]
    work(parts[0])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "daskreg-copy")


def _move_rows(source: Any, target: Any, rows: slice) -> None:
    plane, row = source.strides[-3:-1]
    first, count = rows.start * row, (rows.stop - rows.start) * row
    for there, here in _in_order(source, target, plane):
        ctypes.memmove(there + first, here + first, count)


def _in_order(source: Any, target: Any, plane: int) -> Iterator[tuple[int, int]]:
    """Addresses of planes, none of which is overwritten before it has moved;  plane: bytes.

    Planes move down; components move up where there are more planes now, and down else.
    """
    components = list(np.ndindex(source.shape[:-3]))
    if target.strides[0] > source.strides[0]:
        components.reverse()
    for component in components:
        there, here = target[component].ctypes.data, source[component].ctypes.data
        planes = range(source.shape[-3])
        for z in reversed(planes) if there > here else planes:
            yield there + z * plane, here + z * plane
