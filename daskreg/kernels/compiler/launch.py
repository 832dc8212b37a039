"""One formula, two devices: a body ``f(z, y, x, *arguments)`` becomes a CPU loop over rows and a CUDA kernel (``cuda.grid``).

A body is written once, in terms of ``index`` (the unsigned integer type of array indices: 64 bits on a CPU, which vectorises, 32
bits on a GPU, where it saves registers) and of formulas. Both launchers are generated as source code, because Numba compiles
functions. Compiled code is cached on disk by the digest of what the compiler gets.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, Protocol, TypeVar

import numba
import numpy as np
from numba import njit, uint32
from numba.core.compiler import Compiler

from daskreg.kernels.compiler import cubins
from daskreg.kernels.compiler.cache import attach_cache
from daskreg.kernels.compiler.configuration import SIMULATED, block_size, stream
from daskreg.kernels.compiler.digest import digest
from daskreg.kernels.compiler.formula import CPU, CUDA, INDEX, MODULE, UNCOUNTED, inlined, specialise
from daskreg.kernels.compiler.host_launch import launch
from daskreg.kernels.compiler.source import LOWEST, ROW_THREADS, cpu_source, cuda_source

KERNELS: dict[str, Kernel] = {}
LAUNCHER_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
Shape = tuple[int | range, int, int]


class DistinctArrays(Compiler):
    """Compiles functions whose arrays do not overlap where they are written, so that loops over several can be vectorised."""

    def define_pipelines(self) -> Any:
        """The passes of Numba."""
        self.state.flags.noalias = True
        return super().define_pipelines()


def extent(shape: Shape) -> tuple[np.uint32, ...]:
    """``box`` as cooperative kernels take it."""
    return tuple(np.uint32(v) for v in box(shape))


def box(shape: Shape) -> tuple[int, int, int, int]:
    """First plane, number of planes, rows and columns of a launch."""
    z, ny, nx = shape
    planes = z if isinstance(z, range) else range(int(z))
    return planes.start, len(planes), int(ny), int(nx)


class NamedKernel(Protocol):
    """A kernel of either kind: its name, and the module that defines it."""

    name: str
    module: str


K = TypeVar("K", bound=NamedKernel)


class Kernel:
    """One operation at every voxel of a box.

    Call as ``kernel((nz, ny, nx), *arguments)``, or with the planes ``(range(a, b), ny, nx)`` of larger arrays; outputs come
    last. ``sums=k``: the body returns a tuple of k float32 terms, and the call returns float32 row sums of shape (k, planes,
    ny), or row maxima with ``maxima=True``. The caller adds them up row by row and plane by plane, so the result does not
    depend on threads or on the partition. ``border=True``: the body takes ``inside`` after x, a constant in the hot loop; it is
    true where x is at least ``reach`` voxels (the first argument, an int) from both ends of the row. ``scatter=True``: the body
    adds to its first argument, a stack (tiles, ...) of integers, with atomic formulas. ``cooperative``: see ``voxelwise``.
    """

    def __init__(self, body: Callable[..., Any], sums: int, maxima: bool, border: bool, scatter: bool, cooperative: str) -> None:
        self.name, self.module, self.body, self.cooperative = body.__name__, body.__module__, body, cooperative
        self.sums, self.maxima = sums, maxima
        self.border, self.scatter = border, scatter
        self.__doc__ = body.__doc__
        self._launchers: dict[tuple[int, frozenset[str]], Any] = {}
        code = body.__code__
        first = 4 if border else 3
        self.parameters = code.co_varnames[first : code.co_argcount]

    def __call__(self, shape: Shape, *arguments: Any) -> Any:
        """Run where the arrays are: on the CPU, or on the current CUDA device."""
        if any(on_device(a) for a in arguments):
            return import_function(self.cooperative)(shape, *arguments) if self.cooperative else self._on_device(shape, arguments)
        n = box(shape)
        if self.sums:
            rows = np.full((self.sums, n[1], n[2]), LOWEST if self.maxima else 0, np.float32)
            self.launcher(CPU)(n, rows, *arguments)
            return rows
        self.launcher(CPU)(n, *arguments)
        return None

    def launcher(self, device: int, arguments: tuple[Any, ...] = ()) -> Any:
        """The CPU launcher or CUDA kernel; the CUDA kernel has no parameters for arguments that are None."""
        if device == CUDA:
            return self.without(frozenset(p for p, a in zip(self.parameters, arguments) if a is None))
        if (CPU, frozenset()) not in self._launchers:
            self._launchers[CPU, frozenset()] = _cpu_launcher(self)
        return self._launchers[CPU, frozenset()]

    def without(self, absent: frozenset[str]) -> Any:
        """The CUDA kernel without parameters for some arguments."""
        if (CUDA, absent) not in self._launchers:
            self._launchers[CUDA, absent] = _cuda_launcher(self, absent)
        return self._launchers[CUDA, absent]

    def _on_device(self, shape: Shape, arguments: tuple[Any, ...]) -> Any:
        import cupy

        rows = self.on_cuda(shape, *arguments)
        return None if rows is None else cupy.asarray(rows)

    def on_cuda(self, shape: Shape, *arguments: Any) -> Any:
        """Run the plain body on the current CUDA device or in the simulator; row sums are returned as a device array."""
        whole = box(shape)
        n = tuple(np.uint32(v) for v in whole)
        rows = (_zeros((self.sums, *whole[1:3])),) if self.sums else ()
        given = [a for a in arguments if a is not None]  # numba-cuda cannot pass None
        blocks, threads = _by_row(whole) if self.sums else _by_voxel(whole)
        if whole[1] * whole[2]:
            self.launcher(CUDA, arguments)[blocks, threads, stream()](n, *rows, *given)
        return rows[0] if rows else None


def _zeros(shape: tuple[int, ...]) -> Any:
    """An array on the current device, or in the simulator."""
    from numba import cuda

    if SIMULATED:
        return cuda.to_device(np.zeros(shape, np.float32))
    import cupy

    return cuda.as_cuda_array(cupy.zeros(shape, np.float32), sync=False)  # the kernel runs on the same stream


def _by_voxel(n: tuple[int, int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and threads, x first, for one thread per voxel."""
    threads = block_size(64), block_size(4, least=1), 1
    return tuple(max(1, -(-a // b)) for a, b in zip(n[:0:-1], threads, strict=True)), threads


def _by_row(n: tuple[int, int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and threads, x first, for one block per row."""
    return (n[2], n[1]), (ROW_THREADS,)


@cache
def import_function(path: str) -> Callable[..., Any]:
    """The function ``package.module.function`` of daskreg.kernels; imported on first use, so that a CPU does not import it."""
    module, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(f"daskreg.kernels.{module}"), name)
    return function


def on_device(array: Any) -> bool:
    """Whether an array is in a GPU's memory."""
    return hasattr(array, "__cuda_array_interface__")


def enter(kernels: dict[str, K], kernel: K) -> K:
    """Enter a kernel by its name, and return it. Raises ValueError where another module has one of that name."""
    there = kernels.get(kernel.name, kernel)
    if there.module != kernel.module:
        raise ValueError(
            f"{there.module} has a kernel named {kernel.name!r} already; give the one of {kernel.module} another name."
        )
    kernels[kernel.name] = kernel
    return kernel


def voxelwise(
    sums: int = 0, *, maxima: bool = False, border: bool = False, scatter: bool = False, cooperative: str = ""
) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a kernel of a body, see ``Kernel``.

    cooperative: "package.module.function" of daskreg.kernels, which is called instead of the plain body on a GPU
    Raises ValueError where another module has a kernel of that name: compiled ones are found by their names.
    """

    def register(body: Callable[..., Any]) -> Kernel:
        return enter(KERNELS, Kernel(body, sums, maxima, border, scatter, cooperative))

    return register


class CpuLauncher:
    """A compiled CPU kernel ``f(begin, end, *arguments)`` whose items are shared out among threads; cached like all of them.

    items: how many there are, of the arguments;  options: of Numba's compiler
    """

    def __init__(self, function: Callable[..., Any], name: str, items: Callable[..., int], options: dict[str, Any]) -> None:
        self.items = items
        self.compiled = _compiled(function, name, options)

    def __call__(self, *arguments: Any) -> None:
        """Run on the CPU."""
        launch(self.compiled, self.items(*arguments), _voxels(arguments), arguments)


def _voxels(arguments: tuple[Any, ...]) -> int:
    return max(a.size for a in arguments if isinstance(a, np.ndarray))


class RowKernel:
    """A CPU kernel written by hand, for operations in which a thread computes rows along z; see ``row_kernel``."""

    def __init__(self, function: Callable[..., Any], items: Callable[..., int]) -> None:
        self.function, self.items, self.__doc__ = function, items, function.__doc__
        self._launcher: CpuLauncher | None = None

    def __call__(self, *arguments: Any) -> None:
        """Run on the CPU."""
        self.launcher()(*arguments)

    def launcher(self) -> CpuLauncher:
        """Its launcher."""
        if self._launcher is None:
            self._launcher = CpuLauncher(specialise(self.function, CPU), self.function.__name__, self.items, LAUNCHER_OPTIONS)
        return self._launcher


def row_kernel(items: Callable[..., int]) -> Callable[[Callable[..., Any]], RowKernel]:
    """Make a kernel of a function ``f(begin, end, *arguments)`` that computes the items from ``begin`` to ``end``.

    items: how many there are, of the arguments. It is called as ``kernel(*arguments)``.
    """
    return lambda function: RowKernel(function, items)


def _define(source: str, name: str, body: Callable[..., Any], device: int) -> FunctionType:
    """The function that generated source defines. Raises ValueError where a parameter of the body has a name that it uses."""
    scope: dict[str, Any] = {"__name__": MODULE, "body": inlined(body, device), "float32": numba.float32,
                             "index": INDEX[device], "uint32": uint32}  # fmt: skip
    tree = ast.parse(source)
    used = {"cuda", *scope} | {v.id for v in ast.walk(tree) if isinstance(v, ast.Name) and isinstance(v.ctx, ast.Store)}
    if taken := used & {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}:
        raise ValueError(f"the kernel {body.__name__} has parameters with names of its launcher: {', '.join(sorted(taken))}.")
    exec(compile(source, f"<launcher of {body.__name__}>", "exec"), scope)
    function = scope[name]
    assert isinstance(function, FunctionType)
    return function


def _cpu_launcher(kernel: Kernel) -> CpuLauncher:
    function = _define(cpu_source(kernel, kernel.name), kernel.name, kernel.body, CPU)
    return CpuLauncher(function, kernel.name, _tiles if kernel.scatter else _rows, LAUNCHER_OPTIONS | UNCOUNTED)


def _rows(n: tuple[int, int, int, int], *_: Any) -> int:
    return n[1] * n[2]


def _tiles(_: Any, stack: Any, *__: Any) -> int:
    return len(stack)


def _compiled(function: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    """A CPU function, compiled when it is first called, or loaded from disk."""
    if SIMULATED:
        return njit(**options)(function)
    key = digest(function, sorted(options.items()), DistinctArrays.__name__)
    function.__name__ = function.__qualname__ = f"{name}_{key[:16]}"
    return attach_cache(njit(pipeline_class=DistinctArrays, **options)(function), name, key)


def _cuda_launcher(kernel: Kernel, absent: frozenset[str]) -> Any:
    from numba import cuda

    name = f"{kernel.name}_cuda"
    function = _define(cuda_source(kernel, name, absent), name, kernel.body, CUDA)
    function.__globals__["cuda"] = cuda
    made = cuda.jit(function)
    return made if SIMULATED else cubins.attach_cache(made, name, digest(function), sorted(absent))


def offsets(box: tuple[int, int, int, int]) -> tuple[Any, Any]:
    """Offsets in flat arrays of the first voxel of a box, and of the one after its last."""
    first, planes, ny, nx = box
    return np.uint64(first * ny * nx), np.uint64((first + planes) * ny * nx)
