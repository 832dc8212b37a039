"""Kernels on tensors: in place, on the CPU through NumPy's view of a tensor, on a GPU on PyTorch's current stream.

Numba's own launch takes 60 to 160 microseconds. Here the arguments of a compiled kernel are packed into one buffer and handed to
the driver, which takes a few. Nothing waits for the device, and all memory is PyTorch's.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from daskreg.errors import DaskregError
from daskreg.kernels.compiler.formula import CPU
from daskreg.kernels.compiler.launch import Kernel
from daskreg.kernels.compiler.source import ROW_THREADS

MAX_GRID = 65535  # blocks along y and z
VOXEL_THREADS = (64, 4, 1)
STATIC_SHARED = 48 * 1024  # bytes per block that need no attribute
DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}
_LOCK = threading.Lock()  # of the buffers of arguments; the driver copies them before it returns
_LAUNCHES: dict[tuple[Any, ...], DirectLaunch] = {}


class Voxels(NamedTuple):
    """A contiguous tensor as a kernel takes it."""

    tensor: torch.Tensor
    shape: tuple[int, ...]


def flat(tensor: torch.Tensor) -> Voxels:
    """A tensor as a one-dimensional array."""
    return Voxels(tensor, (tensor.numel(),))


def planes(tensor: torch.Tensor) -> Voxels:
    """A tensor (..., Z, Y, X) as (planes, Y, X)."""
    shape = tensor.shape
    return Voxels(tensor, (prod(shape[:-2]), shape[-2], shape[-1]))


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


def run(kernel: Kernel, shape: tuple[int, int, int], *arguments: Any, like: torch.Tensor) -> torch.Tensor | None:
    """A voxelwise kernel at all voxels (planes, Y, X); returns the row sums (k, planes, Y) of one that has any."""
    count, ny, nx = shape
    rows = like.new_empty((kernel.sums, count, ny)) if kernel.sums else None
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


def _run_on_device(
    kernel: Kernel, box: tuple[int, int, int, int], rows: torch.Tensor | None, count: int, arguments: Any, like: torch.Tensor
) -> None:
    first, part, ny, nx = box
    n = tuple(np.uint32(v) for v in box)
    form = kernel.without(frozenset())
    if rows is None:
        x, y, _ = VOXEL_THREADS
        launch(form, (-(-nx // x), -(-ny // y), part), VOXEL_THREADS, n, *arguments, like=like)
        return
    mine = rows if part == count else rows.new_empty((kernel.sums, part, ny))
    launch(form, (ny, part, 1), (ROW_THREADS, 1, 1), n, Voxels(mine, tuple(mine.shape)), *arguments, like=like)
    if mine is not rows:
        rows[:, first : first + part].copy_(mine)


def launch(
    form: Any,
    blocks: tuple[int, int, int],
    threads: tuple[int, int, int],
    *arguments: Any,
    like: torch.Tensor,
    shared: int = 0,
) -> None:
    """Launch a compiled CUDA kernel on the device of ``like``, on PyTorch's current stream."""
    index = like.device.index
    if torch.cuda.current_device() != index:
        with torch.cuda.device(index):
            launch(form, blocks, threads, *arguments, like=like, shared=shared)
        return
    if min(blocks) == 0:
        return
    values: list[Any] = []
    kinds = tuple([_pack(a, values) for a in arguments])
    key = id(form), kinds, index
    direct = _LAUNCHES.get(key)
    if direct is None:
        direct = _LAUNCHES[key] = DirectLaunch(form, kinds)
    direct(blocks, threads, shared, torch.cuda.current_stream(index).cuda_stream, values)


def _pack(argument: Any, values: list[Any]) -> Any:
    """Append an argument as the driver takes it; returns its kind."""
    kind = type(argument)
    if kind is Voxels:
        tensor, shape = argument
        size = tensor.element_size()
        values += (0, 0, prod(shape), size, tensor.data_ptr(), *shape, *_strides(shape, size))
        return tensor.dtype, len(shape)
    if kind is tuple:
        values += argument
        return kind, len(argument)
    values.append(argument)
    return kind


@cache
def _strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Bytes between neighbours along each axis of a contiguous array."""
    return tuple(size * prod(shape[k + 1 :]) for k in range(len(shape)))


class DirectLaunch:
    """A compiled kernel for arguments of some kinds."""

    def __init__(self, form: Any, kinds: Sequence[Any]) -> None:
        types, formats = zip(*map(_kind, kinds))
        compiled = form.compile(tuple(types))
        self.form = form  # kept, so that its identity stays its own
        self.function = compiled._codelibrary.get_cufunc()
        self.handle = int(self.function.handle)
        self.packing = struct.Struct("@" + "".join(formats))
        self.buffer = ctypes.create_string_buffer(self.packing.size)
        letters = "".join(formats)
        ends = [struct.calcsize("@" + letters[: k + 1]) for k in range(len(letters))]
        start = ctypes.addressof(self.buffer)
        places = [start + end - struct.calcsize(letter) for end, letter in zip(ends, letters)]
        self.places = (ctypes.c_void_p * len(places))(*places)
        self.shared = 0

    def __call__(self, blocks: Any, threads: Any, shared: int, stream: int, values: list[Any]) -> None:
        """Launch; raises DaskregError where the driver refuses."""
        if shared > max(self.shared, STATIC_SHARED):
            self._allow(shared)
        with _LOCK:
            self.packing.pack_into(self.buffer, 0, *values)
            status = _launcher()(self.handle, *blocks, *threads, shared, stream, self.places, None)
        if status:
            raise DaskregError(f"a kernel was not launched: the CUDA driver returned error {status}.")

    def _allow(self, shared: int) -> None:
        from numba.cuda.cudadrv import driver as driving

        attribute = vars(driving)["binding"].CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driving.driver.cuKernelSetAttribute(attribute, shared, self.function.handle, self.function.device.id)
        self.shared = shared


def _kind(kind: Any) -> tuple[Any, str]:
    """Numba's type of an argument of some kind, and its letters for ``struct``."""
    from numba import types

    plain = {int: (types.int32, "i"), bool: (types.int32, "i"), float: (types.float32, "f"), np.uint32: (types.uint32, "I"),
             np.uint64: (types.uint64, "Q")}  # fmt: skip
    if isinstance(kind, tuple) and kind[0] is tuple:
        return types.UniTuple(types.uint32, kind[1]), "I" * kind[1]
    if isinstance(kind, tuple):
        of = {torch.float32: types.float32, torch.int64: types.int64}.get(kind[0])
        if of is None:
            raise DaskregError(f"a CUDA tensor is {kind[0]}; float32, float16 or bfloat16 was expected (float64 on a CPU).")
        return types.Array(of, kind[1], "C"), "QQqqQ" + "q" * 2 * kind[1]
    return plain[kind]


@cache
def _launcher() -> Any:
    """The driver's function that launches a kernel."""
    function = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
    number, pointer = ctypes.c_uint, ctypes.c_void_p
    function.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
    return function


@cache
def processors(index: int) -> int:
    """Multiprocessors of a device."""
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def total(partials: torch.Tensor, segments: int, scale: float, offset: float = 0.0) -> torch.Tensor:
    """``offset + scale`` times the sum of each of so many equal parts of a tensor, in a fixed order: (segments,)."""
    length = partials.numel() // segments
    if not partials.is_cuda:
        return (partials.reshape(segments, length).sum(1, dtype=torch.float64) * scale + offset).to(partials.dtype)
    from daskreg.torch.kernels.totals import THREADS, segment_totals

    out = partials.new_empty(segments)
    launch(segment_totals.form(), (segments, 1, 1), (THREADS, 1, 1), np.uint32(length), float(scale), float(offset),
           flat(partials), flat(out), like=partials)  # fmt: skip
    return out
