"""CUDA kernels written by hand, in which the threads of a block cooperate."""

from __future__ import annotations

from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

from numba import njit

from daskreg.kernels.compiler import cubins
from daskreg.kernels.compiler.configuration import SIMULATED, stream
from daskreg.kernels.compiler.digest import digest
from daskreg.kernels.compiler.formula import CUDA, FUNCTION_OPTIONS, Formula, specialise
from daskreg.kernels.compiler.launch import enter

COOPERATIVE_KERNELS: dict[str, CooperativeKernel] = {}
STATIC_SHARED = 48 * 1024  # bytes per block that need no attribute
_SHARED_LIMITS: dict[tuple[Any, int], int] = {}  # dynamic shared memory allowed, by kernel and device


class CooperativeKernel:
    """A CUDA kernel written by hand, in which threads cooperate; tests compare it with plain kernels.

    ``factory(*constants)`` returns the body. The constants (a radius, a number of bins) are literals for the compiler, which
    unrolls loops over them and keeps small local arrays in registers. Formulas that the factory defines are parts of the body.
    Scalar fields are flat, (N,), vector fields (3, N), so one 64-bit offset per voxel addresses them all. ``options`` are
    passed to ``cuda.jit``; an option that is a function is called with the constants.
    """

    def __init__(self, factory: Callable[..., Callable[..., Any]], options: dict[str, Any]) -> None:
        self.name, self.module, self.__doc__ = factory.__name__, factory.__module__, factory.__doc__
        self.factory, self.options = factory, options
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def form(self, *constants: Any) -> Any:
        """The CUDA kernel for some constants; compiled for the types of its arguments at its first launch."""
        if constants not in self._compiled:
            from numba import cuda

            body = specialise_body(self.factory(*constants), {"cuda": cuda})
            options = {name: v(*constants) if callable(v) else v for name, v in self.options.items()}
            made = cuda.jit(body, **({} if SIMULATED else options))
            self._compiled[constants] = made if SIMULATED else cubins.attach_cache(made, self.name, digest(body), constants)
        return self._compiled[constants]

    def __call__(
        self, constants: tuple[Any, ...], blocks: tuple[int, ...], threads: tuple[int, ...], *arguments: Any, shared: int = 0
    ) -> None:
        """Launch on the current stream, unless there are no blocks; blocks and threads x first;  shared: dynamic shared memory
        per block in bytes.
        """
        if 0 in blocks:  # a box without planes, which the driver would refuse
            return
        configured = self.form(*constants)[blocks, threads, stream(), shared]
        if shared > STATIC_SHARED and not SIMULATED and _allow_shared not in configured.pre_launch_callbacks:
            configured.pre_launch_callbacks.append(_allow_shared)
        configured(*arguments)


def _allow_shared(kernel: Any, configured: Any) -> None:
    """Raise a kernel's limit of dynamic shared memory, once per device; numba-cuda has no option for it."""
    from numba.cuda.cudadrv import driver as driving

    function = kernel._codelibrary.get_cufunc()
    key = kernel, function.device.id
    if _SHARED_LIMITS.get(key, 0) < configured.sharedmem:
        attribute = vars(driving)["binding"].CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driving.driver.cuKernelSetAttribute(attribute, configured.sharedmem, function.handle, function.device.id)
        _SHARED_LIMITS[key] = configured.sharedmem


def specialise_body(function: Callable[..., Any], scope: dict[str, Any]) -> FunctionType:
    """``specialise`` for CUDA, including formulas that a factory defined: they are parts of its body and share its globals."""
    made = specialise(function, CUDA)
    scope.update((name, made.__globals__[name]) for name in made.__code__.co_names if name in made.__globals__ and name != "cuda")

    def part(value: Any) -> Any:
        if isinstance(value, Formula) and "<locals>" in value.function.__qualname__:
            return njit(**FUNCTION_OPTIONS)(specialise_body(value.function, scope))
        return value.form(CUDA) if isinstance(value, Formula) else value

    cells = tuple(CellType(part(c.cell_contents)) for c in made.__closure__ or ())
    return FunctionType(made.__code__, scope, made.__name__, made.__defaults__, cells)


def cooperative_kernel(**options: Any) -> Callable[[Callable[..., Callable[..., Any]]], CooperativeKernel]:
    """Make a kernel of a factory, see ``CooperativeKernel``."""

    def register(factory: Callable[..., Callable[..., Any]]) -> CooperativeKernel:
        return enter(COOPERATIVE_KERNELS, CooperativeKernel(factory, options))

    return register
