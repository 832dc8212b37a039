"""Scalar functions that kernels call, compiled for each device."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from numba import njit, uint32, uint64

from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.digest import digest

FUNCTION_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True}
# a caller holds the arrays: references to them are not counted, which Numba else does at every voxel
UNCOUNTED = {"_nrt": False}
INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
MODULE = "daskreg.kernels"  # module of all functions compiled for a CPU; it is imported when compiled code is loaded
CPU, CUDA = 0, 1
INDEX = (int, int) if SIMULATED else (uint64, uint32)


class Formula:
    """A scalar function that bodies may call, with one compiled function per device."""

    def __init__(self, function: Callable[..., Any], native: str = "") -> None:
        self.name, self.function = function.__name__, function
        self._factories: list[Callable[[], Callable[..., Any]] | None] = [None, None]
        self._native = native
        self.__doc__ = function.__doc__
        self._forms: list[Any] = [None, None]

    def on_cuda(self, factory: Callable[[], Callable[..., Any]]) -> Formula:
        """Use what ``factory`` returns on CUDA, where the operation itself differs (atomics); called when it is needed."""
        self._factories[CUDA] = factory
        return self

    def on_cpu(self, factory: Callable[[], Callable[..., Any]]) -> Formula:
        """The same for a CPU, for what its compiler does not find by itself; where nothing is compiled, the function itself."""
        self._factories[CPU] = None if SIMULATED else factory
        return self

    def intrinsic(self, factory: Callable[[], Callable[..., Any]]) -> Formula:
        """As ``on_cuda``, for instructions that the simulator lacks: it uses the function itself."""
        return self if SIMULATED else self.on_cuda(factory)

    def form(self, device: int) -> Any:
        """The compiled function for a device."""
        if device == CUDA and self._native and not SIMULATED:
            from numba.cuda import libdevice

            return getattr(libdevice, self._native)
        if self._forms[device] is None:
            factory = self._factories[device]
            function = self.function if factory is None else factory()
            self._forms[device] = inlined(function, device)
        return self._forms[device]


def formula(function: Callable[..., Any]) -> Formula:
    """Let bodies call ``function``."""
    return Formula(function)


def native(name: str) -> Callable[[Callable[..., Any]], Formula]:
    """Let bodies call a function that is an operation of CUDA's libdevice on CUDA."""
    return lambda function: Formula(function, name)


def specialise(function: Callable[..., Any], device: int) -> FunctionType:
    """A copy of a function whose ``index`` and formulas are those of the device."""
    assert isinstance(function, FunctionType)
    scope = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(scope.get(name), Formula):
            scope[name] = scope[name].form(device)
    scope["index"] = INDEX[device]
    if device == CUDA:
        from numba import cuda

        scope["cuda"] = cuda
    made = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    return identified(made, FUNCTION_OPTIONS) if device == CPU and not SIMULATED else made


def inlined(function: Callable[..., Any], device: int) -> Any:
    """A function compiled for a device, into those that call it."""
    options = FUNCTION_OPTIONS if device == CUDA or SIMULATED else FUNCTION_OPTIONS | UNCOUNTED | INNER
    return njit(**options)(specialise(function, device))


def identified(function: FunctionType, options: dict[str, Any]) -> FunctionType:
    """Append the digest to the function's name: code compiled by other processes contains functions of the same names."""
    function.__name__ = function.__qualname__ = f"{function.__name__}_{digest(function, sorted(options.items()))[:16]}"
    function.__module__ = function.__globals__["__name__"] = MODULE
    return function
