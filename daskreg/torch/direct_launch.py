"""Launches of compiled kernels by CUDA's driver, on PyTorch's current stream.

Numba's own launch takes 60 to 160 microseconds. Here all that the driver reads is in one buffer that is kept: a launch writes
what changes, scalars and addresses, and calls the driver.
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

CONFIGURATION = "IIIIIIIPPI"  # CUlaunchConfig: blocks, threads, dynamic shared memory, stream, attributes and their number
STREAM = struct.calcsize("@7I0P")  # where the stream is in it
NO_CONTEXT = 201  # of the driver, in a thread that has called nothing else of CUDA yet
MOST_LAUNCHES = 4096  # that are kept; training on volumes of many shapes would fill the memory
_LAUNCHES: dict[tuple[Any, ...], DirectLaunch] = {}
_FUNCTIONS: dict[tuple[Any, ...], Function] = {}
current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)  # PyTorch for CPUs has neither of them
_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
Blocks = tuple[int, int, int]


class Voxels(NamedTuple):
    """A contiguous tensor as a kernel takes it."""

    tensor: torch.Tensor
    shape: tuple[int, ...]


class Array(NamedTuple):
    """What a kernel takes for a contiguous tensor that each call of a ``KeptLaunch`` gives."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


def launch(form: Any, blocks: Blocks, threads: Blocks, *arguments: Any, like: torch.Tensor, shared: int = 0) -> None:
    """Launch a compiled CUDA kernel on the device of ``like``, on PyTorch's current stream."""
    index = like.get_device()
    if current_device() != index:
        on_device(index, lambda: launch(form, blocks, threads, *arguments, like=like, shared=shared))
        return
    if 0 in blocks:
        return
    kinds, scalars, addresses = packed(arguments)
    key = id(form), index, kinds
    direct = _LAUNCHES.get(key)
    if direct is None:
        if len(_LAUNCHES) >= MOST_LAUNCHES:
            _LAUNCHES.clear()
        direct = _LAUNCHES[key] = DirectLaunch(function(form, index, kinds), kinds)
    direct(blocks, threads, shared, _current_stream(index), scalars, addresses)


class KeptLaunch:
    """A launch whose device, blocks, shapes and scalars stay; a call gives tensors, in the order of the ``Array`` arguments."""

    def __init__(self, form: Any, blocks: Blocks, threads: Blocks, *arguments: Any, index: int, shared: int = 0) -> None:
        kinds, scalars, _ = packed(arguments)
        self.kinds, self.index, self.nothing = kinds, index, 0 in blocks
        self.direct = DirectLaunch(on_device(index, lambda: function(form, index, kinds)), kinds)
        self.direct.write(blocks, threads, shared, scalars)

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Launch on PyTorch's current stream; raises DaskregError where the driver refuses."""
        if self.nothing:
            return
        index = self.index
        if current_device() != index:
            on_device(index, lambda: self(*tensors))
            return
        self.direct.again(_current_stream(index), [t.data_ptr() for t in tensors])


class LaunchSequence:
    """Kept launches one after the other, on the current device; a call writes the address of each tensor once."""

    def __init__(self, *launches: tuple[KeptLaunch, Sequence[int]], cleared: int = 0) -> None:
        """launches: each with the places of its tensors among the addresses;  cleared: bytes at the first that are zero before"""
        most = 1 + max(place for _, places in launches for place in places)
        self.lock, self.pointers, self.cleared = threading.Lock(), struct.Struct(f"{most}Q"), cleared
        self.buffer = ctypes.create_string_buffer(self.pointers.size)
        self.index, start = launches[0][0].index, ctypes.addressof(self.buffer)
        self.directs = [
            kept.direct.reading([start + 8 * k for k in places], kept.kinds) for kept, places in launches if not kept.nothing
        ]
        self.steps = [(d.configuration, d.compiled.handle, d.places, None) for d in self.directs]
        self.stream, self.driver, self.clear = 0, _launcher(), _clearer() if cleared else None

    def __call__(self, *addresses: int) -> None:
        """Launch on PyTorch's current stream; raises DaskregError where the driver refuses."""
        stream, driver = _current_stream(self.index), self.driver
        with self.lock:
            if stream != self.stream:
                self._follow(stream)
            self.pointers.pack_into(self.buffer, 0, *addresses)
            if self.clear is not None and (status := self.clear(addresses[0], 0, self.cleared, stream)):
                _retry(status, self.clear, addresses[0], 0, self.cleared, stream)
            for step in self.steps:
                if status := driver(*step):
                    _retry(status, driver, *step)

    def _follow(self, stream: int) -> None:
        for direct in self.directs:
            direct.follow(stream)
        self.stream = stream


def on_device(index: int, call: Any) -> Any:
    """The result of a call while a device is the current one."""
    if current_device() == index:
        return call()
    with torch.cuda.device(index):
        return call()


def _current_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream if _stream is None else _stream(index))


def packed(arguments: Sequence[Any]) -> tuple[tuple[Any, ...], list[Any], list[int]]:
    """The kinds of arguments, with the shapes of arrays, and what a launch writes: scalars, and addresses of arrays."""
    kinds: list[Any] = []
    scalars: list[Any] = []
    addresses: list[int] = []
    for argument in arguments:
        kind = type(argument)
        if kind is Voxels:
            tensor, shape = argument
            kinds.append((tensor.dtype, shape))
            addresses.append(tensor.data_ptr())
        elif kind is Array:
            kinds.append((argument.dtype, argument.shape))
        elif kind is tuple:
            kinds.append((kind, len(argument)))
            scalars += argument
        else:
            kinds.append(kind)
            scalars.append(argument)
    return tuple(kinds), scalars, addresses


@lru_cache(MOST_LAUNCHES)
def strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
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

    Everything that the driver reads is in one buffer: the configuration and scalars, the addresses of arrays, and their other
    numbers, which stay.
    """

    def __init__(self, compiled: Function, kinds: Sequence[Any], addresses: Sequence[int] | None = None) -> None:
        """addresses: where the driver finds those of the arrays, if not in this buffer"""
        self.compiled = compiled
        self.lock = threading.Lock()  # of the buffer; the driver copies from it before it returns
        letters = CONFIGURATION + "".join(map(_letters, kinds))
        constants = [number for kind in kinds for number in _constants(kind)]
        self.packing = struct.Struct("@" + letters + "0q")  # ends where an 8-byte number may follow
        self.pointers = struct.Struct(f"{sum(map(_is_array, kinds))}Q")
        self.buffer = ctypes.create_string_buffer(self.packing.size + self.pointers.size + 8 * len(constants))
        struct.pack_into(f"@{len(constants)}q", self.buffer, self.packing.size + self.pointers.size, *constants)
        self.parameters = self._parameters(letters, kinds, addresses)
        self.configuration, self.places = ctypes.addressof(self.buffer), ctypes.addressof(self.parameters)
        self.stream, self.driver = 0, _launcher()

    def _parameters(self, letters: str, kinds: Sequence[Any], addresses: Sequence[int] | None) -> Any:
        """The address of each parameter's value."""
        start, end = ctypes.addressof(self.buffer), ctypes.addressof(self.buffer) + len(self.buffer)
        arrays = start + self.packing.size
        after = {
            "scalar": iter([start + place for place in _places(letters)[len(CONFIGURATION) :]]),
            "address": iter(range(arrays, arrays + self.pointers.size, 8) if addresses is None else addresses),
            "constant": iter(range(arrays + self.pointers.size, end, 8)),
        }
        places = [next(after[part]) for kind in kinds for part in _parts(kind)]
        return (ctypes.c_void_p * len(places))(*places)

    def reading(self, addresses: Sequence[int], kinds: Sequence[Any]) -> DirectLaunch:
        """What was written last as a launch of its own, for which the driver finds the addresses of arrays elsewhere."""
        other = DirectLaunch(self.compiled, kinds, addresses)
        ctypes.memmove(other.buffer, self.buffer, self.packing.size)
        other.follow(0)
        return other

    def __call__(self, blocks: Blocks, threads: Blocks, shared: int, stream: int, scalars: Any, addresses: list[int]) -> None:
        """Launch; raises DaskregError where the driver refuses."""
        with self.lock:
            self.write(blocks, threads, shared, scalars)
            self._launch(stream, addresses)

    def write(self, blocks: Blocks, threads: Blocks, shared: int, scalars: Sequence[Any]) -> None:
        """Write all but the stream and addresses."""
        if shared > self.compiled.shared:
            self.compiled.allow(shared)
        self.packing.pack_into(self.buffer, 0, *blocks, *threads, shared, self.stream, 0, 0, *scalars)

    def again(self, stream: int, addresses: list[int]) -> None:
        """Launch with what was written last."""
        with self.lock:
            self._launch(stream, addresses)

    def _launch(self, stream: int, addresses: list[int]) -> None:
        if stream != self.stream:
            self.follow(stream)
        self.pointers.pack_into(self.buffer, self.packing.size, *addresses)
        handle = self.compiled.handle
        if status := self.driver(self.configuration, handle, self.places, None):
            _retry(status, self.driver, self.configuration, handle, self.places, None)

    def follow(self, stream: int) -> None:
        """Launch on a stream from now on."""
        struct.pack_into("@P", self.buffer, STREAM, stream)
        self.stream = stream


def _retry(status: int, call: Any, *arguments: Any) -> None:
    """Call the driver again where a thread had no context; raises DaskregError for any other error."""
    if status == NO_CONTEXT:
        torch.cuda.mem_get_info()  # a call of the CUDA runtime makes its context current in a thread
        status = call(*arguments)
    if status:
        raise DaskregError(f"a kernel was not launched: the CUDA driver returned error {status}.")


def _is_array(kind: Any) -> bool:
    return isinstance(kind, tuple) and kind[0] is not tuple


def _letters(kind: Any) -> str:
    """What a launch writes of a scalar or several, for ``struct``; nothing of an array."""
    if isinstance(kind, tuple):
        return "" if _is_array(kind) else "I" * kind[1]
    return {int: "i", bool: "i", float: "f", np.uint32: "I", np.uint64: "Q"}[kind]


def _constants(kind: Any) -> tuple[int, ...]:
    """What stays of an array as Numba passes it: its owner, size, bytes of an element, shape and strides in bytes."""
    if not _is_array(kind):
        return ()
    dtype, shape = kind
    size = dtype.itemsize
    return 0, 0, prod(shape), size, *shape, *strides(shape, size)


def _parts(kind: Any) -> tuple[str, ...]:
    """Of each parameter of an argument, in which part of the buffer it is."""
    if _is_array(kind):
        return *("constant",) * 4, "address", *("constant",) * 2 * len(kind[1])
    return ("scalar",) * (kind[1] if isinstance(kind, tuple) else 1)


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
def _clearer() -> Any:
    """The driver's function that fills memory on a stream: address, byte, bytes, stream."""
    found = ctypes.CDLL("libcuda.so.1").cuMemsetD8Async
    found.argtypes = [ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p]
    return found
