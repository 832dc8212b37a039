"""Kernels on tensors: in place, on the CPU through NumPy's view of a tensor, on a GPU on PyTorch's current stream.

Numba's own launch takes 60 to 160 microseconds. Here a compiled kernel is looked up by the shapes of its arguments, with all of
its parameters in place other than scalars and addresses; a launch writes these, and calls the driver. Nothing waits for the
device, and all memory is PyTorch's.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
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
DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}
CONFIGURATION = "IIIIIIIPPI"  # CUlaunchConfig: blocks, threads, dynamic shared memory, stream, attributes and their number
NO_CONTEXT = 201  # of the driver, in a thread that has called nothing else of CUDA yet
MOST_LAUNCHES = 4096  # that are kept; training on volumes of many shapes would fill the memory
_LAUNCHES: dict[tuple[Any, ...], DirectLaunch] = {}
_FUNCTIONS: dict[tuple[Any, ...], Function] = {}
_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)  # PyTorch for CPUs has neither of the first
_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
_guards: Any = torch._C._dynamo.guards
_allocate = getattr(_guards, "_empty_strided_cuda", None)


class Voxels(NamedTuple):
    """A contiguous tensor as a kernel takes it."""

    tensor: torch.Tensor
    shape: tuple[int, ...]


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
    if like.is_cpu or _allocate is None or like.get_device() != _device():
        return like.new_empty(shape, dtype=dtype)
    made: torch.Tensor = _allocate(shape, _strides(shape, 1), dtype)
    return made


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


def _run_on_device(
    kernel: Kernel, box: tuple[int, int, int, int], rows: torch.Tensor | None, count: int, arguments: Any, like: torch.Tensor
) -> None:
    first, part, ny, nx = box
    form = kernel.without(_NONE)
    if rows is None:
        x, y, _ = VOXEL_THREADS
        launch(form, (-(-nx // x), -(-ny // y), part), VOXEL_THREADS, _extent(box), *arguments, like=like)
        return
    mine = rows if part == count else rows.new_empty((kernel.sums, part, ny))
    launch(form, (ny, part, 1), (ROW_THREADS, 1, 1), _extent(box), Voxels(mine, (kernel.sums, part, ny)), *arguments, like=like)
    if mine is not rows:
        rows[:, first : first + part].copy_(mine)


_NONE: frozenset[str] = frozenset()


@lru_cache(MOST_LAUNCHES)
def _extent(box: tuple[int, int, int, int]) -> tuple[np.uint32, ...]:
    return tuple(np.uint32(v) for v in box)


def launch(
    form: Any,
    blocks: tuple[int, int, int],
    threads: tuple[int, int, int],
    *arguments: Any,
    like: torch.Tensor,
    shared: int = 0,
) -> None:
    """Launch a compiled CUDA kernel on the device of ``like``, on PyTorch's current stream."""
    index = like.get_device()
    if _device() != index:
        with torch.cuda.device(index):
            launch(form, blocks, threads, *arguments, like=like, shared=shared)
        return
    if 0 in blocks:
        return
    kinds, values = packed(arguments)
    key = id(form), index, kinds
    direct = _LAUNCHES.get(key)
    if direct is None:
        if len(_LAUNCHES) >= MOST_LAUNCHES:
            _LAUNCHES.clear()
        direct = _LAUNCHES[key] = DirectLaunch(function(form, index, kinds), kinds)
    direct(blocks, threads, shared, _current_stream(index), values)


def _current_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream if _stream is None else _stream(index))


def packed(arguments: Sequence[Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """The kinds of arguments, with the shapes of arrays, and what a launch writes: scalars, and addresses of arrays."""
    kinds: list[Any] = []
    values: list[Any] = []
    for argument in arguments:
        kind = type(argument)
        if kind is Voxels:
            tensor, shape = argument
            kinds.append((tensor.dtype, shape))
            values.append(tensor.data_ptr())
        elif kind is tuple:
            kinds.append((kind, len(argument)))
            values += argument
        else:
            kinds.append(kind)
            values.append(argument)
    return tuple(kinds), values


@lru_cache(MOST_LAUNCHES)
def _strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Between neighbours along each axis of a contiguous array of elements of some size."""
    return tuple(size * prod(shape[k + 1 :]) for k in range(len(shape)))


class Function:
    """A compiled kernel on a device."""

    def __init__(self, form: Any, types: tuple[Any, ...]) -> None:
        self.form = form  # kept, so that its identity stays its own
        self.types = types
        self.found = form.compile(types)._codelibrary.get_cufunc()
        self.handle = int(self.found.handle)
        self.shared = 0  # the driver allows 48 KiB, less what is static; each kernel asks for what it takes

    def allow(self, shared: int) -> None:
        """Raise the limit of dynamic shared memory."""
        from numba.cuda.cudadrv import driver as driving

        attribute = vars(driving)["binding"].CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driving.driver.cuKernelSetAttribute(attribute, shared, self.found.handle, self.found.device.id)
        self.shared = shared


def function(form: Any, index: int, kinds: tuple[Any, ...]) -> Function:
    """A kernel, compiled for the kinds of its arguments at its first launch with them."""
    types = tuple(map(_type, kinds))
    key = id(form), index, types
    if key not in _FUNCTIONS:
        _FUNCTIONS[key] = Function(form, types)
    return _FUNCTIONS[key]


class DirectLaunch:
    """Launches of a compiled kernel with arguments of some kinds and shapes, each with other values.

    Everything that the driver reads is in one buffer: the configuration, the values, and the numbers of arrays that stay.
    """

    def __init__(self, compiled: Function, kinds: Sequence[Any]) -> None:
        self.compiled = compiled
        self.lock = threading.Lock()  # of the buffer; the driver copies from it before it returns
        letters = CONFIGURATION + "".join(map(_letters, kinds))
        constants = [number for kind in kinds for number in _constants(kind)]
        self.packing = struct.Struct("@" + letters + "0q")  # ends where an 8-byte number may follow
        self.buffer = ctypes.create_string_buffer(self.packing.size + 8 * len(constants))
        struct.pack_into(f"@{len(constants)}q", self.buffer, self.packing.size, *constants)
        start = ctypes.addressof(self.buffer)
        values = iter(_places(letters)[len(CONFIGURATION) :])
        stay = iter(range(self.packing.size, len(self.buffer), 8))
        places = [start + next(values if changes else stay) for kind in kinds for changes in _changing(kind)]
        self.parameters = (ctypes.c_void_p * len(places))(*places)
        self.configuration, self.places = start, ctypes.addressof(self.parameters)
        self.driver = _launcher()

    def __call__(self, blocks: Any, threads: Any, shared: int, stream: int, values: list[Any]) -> None:
        """Launch; raises DaskregError where the driver refuses."""
        compiled = self.compiled
        if shared > compiled.shared:
            compiled.allow(shared)
        with self.lock:
            self.packing.pack_into(self.buffer, 0, *blocks, *threads, shared, stream, 0, 0, *values)
            status = self.driver(self.configuration, compiled.handle, self.places, None)
            if status == NO_CONTEXT:
                torch.cuda.mem_get_info()  # a call of the CUDA runtime makes its context current in a thread
                status = self.driver(self.configuration, compiled.handle, self.places, None)
        if status:
            raise DaskregError(f"a kernel was not launched: the CUDA driver returned error {status}.")


def _is_array(kind: Any) -> bool:
    return isinstance(kind, tuple) and kind[0] is not tuple


def _letters(kind: Any) -> str:
    """What a launch writes of an argument, for ``struct``."""
    if isinstance(kind, tuple):
        return "P" if _is_array(kind) else "I" * kind[1]
    return {int: "i", bool: "i", float: "f", np.uint32: "I", np.uint64: "Q"}[kind]


def _constants(kind: Any) -> tuple[int, ...]:
    """What stays of an array as Numba passes it: its owner, size, bytes of an element, shape and strides in bytes."""
    if not _is_array(kind):
        return ()
    dtype, shape = kind
    size = dtype.itemsize
    return 0, 0, prod(shape), size, *shape, *_strides(shape, size)


def _changing(kind: Any) -> tuple[bool, ...]:
    """Of each parameter of an argument, whether a launch writes it."""
    if _is_array(kind):
        return *(False,) * 4, True, *(False,) * 2 * len(kind[1])
    return (True,) * (kind[1] if isinstance(kind, tuple) else 1)


def _places(letters: str) -> list[int]:
    """Offsets of the values of a structure, aligned as in C."""
    return [struct.calcsize("@" + letters[: k + 1]) - struct.calcsize(letter) for k, letter in enumerate(letters)]


def _type(kind: Any) -> Any:
    """Numba's type of an argument of some kind."""
    from numba import types

    if isinstance(kind, tuple) and kind[0] is tuple:
        return types.UniTuple(types.uint32, kind[1])
    if isinstance(kind, tuple):
        of = {torch.float32: types.float32, torch.int64: types.int64}.get(kind[0])
        if of is None:
            raise DaskregError(f"a CUDA tensor is {kind[0]}; float32, float16 or bfloat16 was expected (float64 on a CPU).")
        return types.Array(of, len(kind[1]), "C")
    plain = {int: types.int32, bool: types.int32, float: types.float32, np.uint32: types.uint32, np.uint64: types.uint64}
    return plain[kind]


@cache
def _launcher() -> Any:
    """The driver's function that launches a kernel: its configuration, function, parameters, and more, which is not used."""
    pointer = ctypes.c_void_p
    found = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    found.argtypes = [pointer] * 4
    return found


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
    form, threads = _segment_totals()
    out = empty(shape, partials)
    launch(form, (segments, 1, 1), threads, np.uint32(length), float(scale), float(offset), flat(partials),
           Voxels(out, (segments,)), like=partials)  # fmt: skip
    return out


@cache
def _segment_totals() -> tuple[Any, tuple[int, int, int]]:
    from daskreg.torch.kernels.totals import THREADS, segment_totals

    return segment_totals.form(), (THREADS, 1, 1)
