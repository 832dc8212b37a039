"""One formula, two devices: a body ``f(z, y, x, *arguments)`` becomes a CPU loop (``prange``) and a CUDA kernel (``cuda.grid``).

A body is written once, in terms of ``index`` (the unsigned integer that addresses arrays: 64 bits on the CPU, which vectorises,
32 on a GPU, where it saves registers) and of other formulas. The two launchers are generated as source, at module level, because
that is what Numba can compile. Compiled code is kept on disk by the digest of what the compiler was given (``compiler/``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import CellType, FunctionType
from typing import Any

import numba
import numpy as np
from numba import njit, uint32, uint64
from numba.core import config as settings

from daskreg.kernels import cubins
from daskreg.kernels.compiler.cache import keep
from daskreg.kernels.compiler.digest import digest

DISABLED = bool(vars(settings)["DISABLE_JIT"])  # the CUDA simulator runs bodies as plain Python
KERNELS: dict[str, Kernel] = {}
SWEEPS: dict[str, Sweep] = {}
INLINED: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True}
LAUNCHED: dict[str, Any] = {"nogil": True, "error_model": "numpy", "parallel": True}
MODULE = "daskreg.kernels"  # of all that is compiled for a CPU: where compiled code is loaded, this is imported
CPU, CUDA = 0, 1
OVERHEAD = 2  # what a block costs before it marches, in planes
ALONG = 4 if DISABLED else 128  # threads of a GPU that share a row of which sums are wanted
STATIC_SHARED = 48 * 1024  # bytes a block may use without asking
_ALLOWED: dict[tuple[Any, int], int] = {}  # dynamic shared memory asked for, by kernel and device
LEAST = -3.0e38  # what row maxima begin with
Shape = tuple[int | range, int, int]
_INDEX = (int, int) if DISABLED else (uint64, uint32)


def box(shape: Shape) -> tuple[int, int, int, int]:
    """First plane, planes, rows and columns of what a kernel is asked to do."""
    z, ny, nx = shape
    planes = z if isinstance(z, range) else range(int(z))
    return planes.start, len(planes), int(ny), int(nx)


class Formula:
    """A scalar function that bodies may call, with one compiled form a device."""

    def __init__(self, function: Callable[..., Any], native: str = "") -> None:
        self.name, self.function = function.__name__, function
        self._on_cuda: Callable[[], Callable[..., Any]] | None = None
        self._native = native
        self.__doc__ = function.__doc__
        self._forms: list[Any] = [None, None]

    def on_cuda(self, factory: Callable[[], Callable[..., Any]]) -> Formula:
        """Use what ``factory`` makes on CUDA, where the operation itself differs (atomics); made only when it is needed."""
        self._on_cuda = factory
        return self

    def form(self, device: int) -> Any:
        """The function compiled for a device, on first use."""
        if device == CUDA and self._native and not DISABLED:
            from numba.cuda import libdevice

            return getattr(libdevice, self._native)
        if self._forms[device] is None:
            function = self._on_cuda() if device == CUDA and self._on_cuda else self.function
            self._forms[device] = njit(**INLINED)(specialise(function, device))
        return self._forms[device]


def formula(function: Callable[..., Any]) -> Formula:
    """Let bodies call ``function``."""
    return Formula(function)


def native(name: str) -> Callable[[Callable[..., Any]], Formula]:
    """Let bodies call a function that is one operation of CUDA's device library on CUDA."""
    return lambda function: Formula(function, name)


def specialise(function: Callable[..., Any], device: int) -> FunctionType:
    """A copy whose ``index`` and formulas are those of the device."""
    assert isinstance(function, FunctionType)
    scope = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(scope.get(name), Formula):
            scope[name] = scope[name].form(device)
    scope["index"] = _INDEX[device]
    if device == CUDA:
        from numba import cuda

        scope["cuda"] = cuda
    made = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    return _identified(made, INLINED) if device == CPU and not DISABLED else made


def _identified(function: FunctionType, options: dict[str, Any]) -> FunctionType:
    """Let a function's name say what it is: code that other processes compiled holds functions of the same names."""
    function.__name__ = function.__qualname__ = f"{function.__name__}_{digest(function, sorted(options.items()))[:16]}"
    function.__module__ = function.__globals__["__name__"] = MODULE
    return function


class Kernel:
    """One operation at every voxel of a box.

    Called as ``kernel((nz, ny, nx), *arguments)``, or with the planes ``(range(a, b), ny, nx)`` of larger arrays; outputs last.
    With ``sums=k`` the body returns a tuple of k float32 terms, and the call returns float32 row sums of shape (k, planes, ny):
    whoever adds them up does so row by row, plane by plane, and the result does not depend on threads or on the partition
    (``peak=True``: row maxima instead). ``rim=True`` bodies take
    ``inside``, constant in the hot loop, after x: it is true where x is at least ``reach`` voxels (the first argument, an int)
    from both ends of the row. ``scatter=True`` bodies write to their first argument, a stack (tiles, ...) of integers, by
    atomic formulas.
    """

    def __init__(self, body: Callable[..., Any], sums: int, peak: bool, rim: bool, scatter: bool, together: str) -> None:
        self.name, self.body, self.sums, self.peak, self.together = body.__name__, body, sums, peak, together
        self.rim, self.scatter = rim, scatter
        self.__doc__ = body.__doc__
        self._launchers: dict[tuple[int, frozenset[str]], Any] = {}
        code = body.__code__
        first = 4 if rim else 3
        self.parameters = code.co_varnames[first : code.co_argcount]

    def __call__(self, shape: Shape, *arguments: Any) -> Any:
        """Run where the arrays are: on the CPU, or on the current CUDA device."""
        if any(on_device(a) for a in arguments):
            return named(self.together)(shape, *arguments) if self.together else self._on_device(shape, arguments)
        n = box(shape)
        if self.sums:
            rows = np.full((self.sums, n[1], n[2]), LEAST if self.peak else 0, np.float32)
            self.launcher(CPU)(n, rows, *arguments)
            return rows
        self.launcher(CPU)(n, *arguments)
        return None

    def launcher(self, device: int, arguments: tuple[Any, ...] = ()) -> Any:
        """The CPU function or the CUDA kernel, made on first use; on CUDA one that has no place for arguments that are None."""
        if device == CUDA:
            return self.without(frozenset(p for p, a in zip(self.parameters, arguments) if a is None))
        if (CPU, frozenset()) not in self._launchers:
            self._launchers[CPU, frozenset()] = _cpu_launcher(self)
        return self._launchers[CPU, frozenset()]

    def without(self, absent: frozenset[str]) -> Any:
        """The CUDA kernel that has no place for some arguments, made on first use."""
        if (CUDA, absent) not in self._launchers:
            self._launchers[CUDA, absent] = _cuda_launcher(self, absent)
        return self._launchers[CUDA, absent]

    def _on_device(self, shape: Shape, arguments: tuple[Any, ...]) -> Any:
        import cupy

        rows = self.on_cuda(shape, *arguments)
        return None if rows is None else cupy.asarray(rows)

    def on_cuda(self, shape: Shape, *arguments: Any) -> Any:
        """Run the plain body on the current CUDA device or its simulator; row sums are a device array."""
        whole = box(shape)
        n = tuple(np.uint32(v) for v in whole)
        rows = (_zeros((self.sums, *whole[1:3])),) if self.sums else ()
        given = [a for a in arguments if a is not None]  # numba-cuda hands no None to a device
        blocks, threads = _by_row(whole) if self.sums else _by_voxel(whole)
        if whole[1] * whole[2]:
            self.launcher(CUDA, arguments)[blocks, threads, stream()](n, *rows, *given)
        return rows[0] if rows else None


def _zeros(shape: tuple[int, ...]) -> Any:
    """On the current device, made there, or as the simulator has it."""
    from numba import cuda

    if DISABLED:
        return cuda.to_device(np.zeros(shape, np.float32))
    import cupy

    return cuda.as_cuda_array(cupy.zeros(shape, np.float32), sync=False)  # the kernel comes on the same stream


def _by_voxel(n: tuple[int, int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and threads, x first: a thread a voxel."""
    threads = (4, 1, 1) if DISABLED else (64, 4, 1)
    return tuple(max(1, -(-a // b)) for a, b in zip(n[:0:-1], threads, strict=True)), threads


def _by_row(n: tuple[int, int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and threads, x first: a block a row."""
    return (n[2], n[1]), (ALONG,)


@cache
def named(path: str) -> Callable[..., Any]:
    """What ``module.function`` of this package is; imported when it is wanted, so that a CPU never needs it."""
    module, _, name = path.partition(".")
    return getattr(importlib.import_module(f"daskreg.kernels.{module}"), name)  # type: ignore[no-any-return]


def on_device(array: Any) -> bool:
    """Whether an array lies in a GPU's memory."""
    return hasattr(array, "__cuda_array_interface__")


def voxelwise(
    sums: int = 0, *, peak: bool = False, rim: bool = False, scatter: bool = False, together: str = ""
) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a kernel of a body, see ``Kernel``; ``together``: "module.function" here that takes its arguments on a GPU."""

    def register(body: Callable[..., Any]) -> Kernel:
        kernel = KERNELS[body.__name__] = Kernel(body, sums, peak, rim, scatter, together)
        return kernel

    return register


def threads() -> int:
    """How many threads a CPU launch may use now."""
    return int(numba.get_num_threads())


def use_threads(n: int) -> None:
    """Let CPU launches from this thread use ``n`` threads (never more than the machine has)."""
    numba.set_num_threads(max(1, min(n, vars(settings)["NUMBA_NUM_THREADS"])))


class RowKernel:
    """A CPU launcher written by hand, for an operation whose threads march along rows; cached like the generated ones."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.__doc__ = function, function.__doc__
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Run on the CPU."""
        if self._compiled is None:
            self._compiled = _launched(specialise(self.function, CPU), self.function.__name__)
        return self._compiled(*arguments)


class Sweep:
    """A CUDA kernel written by hand, whose threads work together; checked against the plain kernels.

    ``factory(*constants)`` returns its body: the compiler takes the constants (a radius, a number of bins) for literals, unrolls
    loops over them, and keeps small local arrays in registers. Formulas that the factory makes are parts of the body. Scalar
    fields are flat, (N,), vector fields (3, N): one 64-bit offset a voxel serves them all. ``options`` go to ``cuda.jit``; one
    that is a function is asked for the constants' option.
    """

    def __init__(self, factory: Callable[..., Callable[..., Any]], options: dict[str, Any]) -> None:
        self.name, self.factory, self.options, self.__doc__ = factory.__name__, factory, options, factory.__doc__
        self._forms: dict[tuple[Any, ...], Any] = {}

    def form(self, *constants: Any) -> Any:
        """What ``cuda.jit`` makes of it for some constants; compiled for the types of its arguments when it is first launched."""
        if constants not in self._forms:
            from numba import cuda

            body = _whole(self.factory(*constants), {"cuda": cuda})
            options = {name: v(*constants) if callable(v) else v for name, v in self.options.items()}
            made = cuda.jit(body, **({} if DISABLED else options))
            self._forms[constants] = made if DISABLED else cubins.keep(made, self.name, digest(body), constants)
        return self._forms[constants]

    def __call__(
        self, constants: tuple[Any, ...], blocks: tuple[int, ...], threads: tuple[int, ...], *arguments: Any, shared: int = 0
    ) -> None:
        """Launch on the current stream; blocks and threads with x first;  shared: bytes of dynamic shared memory a block."""
        configured = self.form(*constants)[blocks, threads, stream(), shared]
        if shared > STATIC_SHARED and not DISABLED and _allow_shared not in configured.pre_launch_callbacks:
            configured.pre_launch_callbacks.append(_allow_shared)
        configured(*arguments)


def _allow_shared(kernel: Any, configured: Any) -> None:
    """Raise a kernel's limit of dynamic shared memory, once a device; numba-cuda has no option for it."""
    from numba.cuda.cudadrv import driver as driving

    function = kernel._codelibrary.get_cufunc()
    key = kernel, function.device.id
    if _ALLOWED.get(key, 0) < configured.sharedmem:
        attribute = vars(driving)["binding"].CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driving.driver.cuKernelSetAttribute(attribute, configured.sharedmem, function.handle, function.device.id)
        _ALLOWED[key] = configured.sharedmem


def _whole(function: Callable[..., Any], scope: dict[str, Any]) -> FunctionType:
    """``specialise`` for CUDA, with the formulas that a factory made, too: they are parts of its body and share its globals."""
    made = specialise(function, CUDA)
    scope.update((name, made.__globals__[name]) for name in made.__code__.co_names if name in made.__globals__ and name != "cuda")

    def part(value: Any) -> Any:
        if isinstance(value, Formula) and "<locals>" in value.function.__qualname__:
            return njit(**INLINED)(_whole(value.function, scope))
        return value.form(CUDA) if isinstance(value, Formula) else value

    cells = tuple(CellType(part(c.cell_contents)) for c in made.__closure__ or ())
    return FunctionType(made.__code__, scope, made.__name__, made.__defaults__, cells)


def sweep(**options: Any) -> Callable[[Callable[..., Callable[..., Any]]], Sweep]:
    """Make a kernel of a factory, see ``Sweep``."""

    def register(factory: Callable[..., Callable[..., Any]]) -> Sweep:
        made = SWEEPS[factory.__name__] = Sweep(factory, options)
        return made

    return register


def deep(planes: int, tiles: int, resident: int, reach: int = 0) -> int:
    """Planes that a block marches through, so that blocks fill the device evenly; nothing of it shows in a result.

    tiles: blocks a plane;  resident: blocks that a multiprocessor runs at once;  reach: planes read before and behind.
    """
    at_once = resident * multiprocessors()
    candidates = {-(-planes // n) for n in range(1, planes + 1) if planes / n >= 4 or n == 1} or {1}
    turns = {d: -(-tiles * -(-planes // d) // at_once) * (d + 2 * reach + OVERHEAD) for d in candidates}
    return min(candidates, key=lambda d: (turns[d], -d))


@cache
def multiprocessors() -> int:
    """Of the current device; 2 in the simulator and where there is none."""
    return _of_device("MultiProcessorCount", 2)


@cache
def block_memory() -> int:
    """Bytes of shared memory that a block may ask for on the current device; those of an H100 where there is none."""
    return _of_device("MaxSharedMemoryPerBlockOptin", 227 * 1024)


def _of_device(attribute: str, otherwise: int) -> int:
    """What the current device has; in the simulator, and where there is none, what is given."""
    try:
        import cupy

        return otherwise if DISABLED else int(cupy.cuda.Device().attributes[attribute])
    except Exception:  # noqa: BLE001  # as in ``device.gpus``: all mean that there is no device
        return otherwise


def stream() -> Any:
    """CuPy's current stream, as Numba knows it; the default one in the simulator and where there is no CuPy."""
    if DISABLED:
        return 0
    try:
        import cupy
    except ImportError:
        return 0
    from numba import cuda

    return cuda.external_stream(cupy.cuda.get_current_stream().ptr)


def _define(source: str, name: str, body: Callable[..., Any], device: int) -> FunctionType:
    """The function that generated source defines."""
    kernel_body = njit(**INLINED)(specialise(body, device))
    scope: dict[str, Any] = {"__name__": MODULE, "body": kernel_body, "prange": numba.prange, "float32": numba.float32,
                             "index": _INDEX[device], "uint32": uint32}  # fmt: skip
    exec(compile(source, f"<launcher of {body.__name__}>", "exec"), scope)
    function = scope[name]
    assert isinstance(function, FunctionType)
    return function


def _cpu_launcher(kernel: Kernel) -> Any:
    return _launched(_define(_cpu_source(kernel, kernel.name), kernel.name, kernel.body, CPU), kernel.name)


def _launched(function: FunctionType, name: str) -> Any:
    """A CPU launcher, compiled when it is first called, or found on disk."""
    if DISABLED:
        return njit(**LAUNCHED)(function)
    key = digest(function, sorted(LAUNCHED.items()))
    function.__name__ = function.__qualname__ = f"{name}_{key[:16]}"
    return keep(njit(**LAUNCHED)(function), name, key)


def _cpu_source(kernel: Kernel, name: str) -> str:
    p = ", ".join(kernel.parameters)
    if kernel.scatter:
        return _scatter_source(kernel, name)
    rows = "rows, " if kernel.sums else ""
    lines = [
        f"def {name}(n, {rows}{p}):",
        "    z0, nz, ny, nx = n",
        "    for zy in prange(nz * ny):",
        "        row, y = index(zy // ny), index(zy % ny)",
        "        z = index(row + index(z0))",
        *(f"        s{k} = {_first(kernel)}" for k in range(kernel.sums)),
    ]
    if kernel.rim:
        low, high = f"min({kernel.parameters[0]}, nx)", f"max({kernel.parameters[0]}, nx - {kernel.parameters[0]})"
        parts = [("0", low, "False"), (low, f"nx - {kernel.parameters[0]}", "True"), (high, "nx", "False")]
    else:
        parts = [("0", "nx", "")]
    for a, b, inside in parts:
        lines.append(f"        for x in range({a}, {b}):")
        call = f"body(z, y, index(x), {inside + ', ' if inside else ''}{p})"
        lines.append(f"            {'t = ' if kernel.sums else ''}{call}")
        lines += [f"            {_gather(kernel, k)}" for k in range(kernel.sums)]
    lines += [f"        rows[{k}, row, y] = s{k}" for k in range(kernel.sums)]
    return "\n".join(lines) + "\n"


def _first(kernel: Kernel) -> str:
    """What a row begins with."""
    return f"float32({LEAST})" if kernel.peak else "float32(0)"


def _gather(kernel: Kernel, k: int, terms: str = "t") -> str:
    return f"s{k} = max(s{k}, {terms}[{k}])" if kernel.peak else f"s{k} += {terms}[{k}]"


def _merge(kernel: Kernel, k: int) -> str:
    """Two threads' parts."""
    a, b = f"shared[{k}, t]", f"shared[{k}, t + half]"
    return f"{a} = max({a}, {b})" if kernel.peak else f"{a} += {b}"


def _scatter_source(kernel: Kernel, name: str) -> str:
    first, rest = kernel.parameters[0], ", ".join(kernel.parameters[1:])
    return f"""
def {name}(n, {first}, {rest}):
    z0, nz, ny, nx = n
    tiles = {first}.shape[0]
    for tile in prange(tiles):
        mine = {first}[tile]
        for zy in range(tile * nz * ny // tiles, (tile + 1) * nz * ny // tiles):
            z, y = index(z0 + zy // ny), index(zy % ny)
            for x in range(nx):
                body(z, y, index(x), mine, {rest})
"""


def _cuda_launcher(kernel: Kernel, absent: frozenset[str]) -> Any:
    from numba import cuda

    name = f"{kernel.name}_cuda"
    function = _define(_cuda_source(kernel, name, absent), name, kernel.body, CUDA)
    function.__globals__["cuda"] = cuda
    made = cuda.jit(function)
    return made if DISABLED else cubins.keep(made, name, digest(function), sorted(absent))


def _cuda_source(kernel: Kernel, name: str, absent: frozenset[str]) -> str:
    p = ", ".join(a for a in kernel.parameters if a not in absent)
    passed = ["None" if a in absent else a for a in kernel.parameters]
    q = ", ".join([f"{passed[0]}[0]", *passed[1:]] if kernel.scatter else passed)
    inside = f"x >= uint32({kernel.parameters[0]}) and x + uint32({kernel.parameters[0]}) < n[3], " if kernel.rim else ""
    if not kernel.sums:
        return f"""
def {name}(n, {p}):
    x = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
    y = uint32(cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y)
    row = uint32(cuda.blockIdx.z * cuda.blockDim.z + cuda.threadIdx.z)
    if row < n[1] and y < n[2] and x < n[3]:
        body(uint32(row + n[0]), y, x, {inside}{q})
"""
    # a block a row: threads take every so many voxels, and what they have is brought together in one order
    merged = [_merge(kernel, k) for k in range(kernel.sums)]
    lines = [
        f"def {name}(n, rows, {p}):",
        f"    shared = cuda.shared.array(({kernel.sums}, {ALONG}), float32)",
        "    t, y, row = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)",
        "    z, x = uint32(row + n[0]), t",
        *(f"    s{k} = {_first(kernel)}" for k in range(kernel.sums)),
        "    while x < n[3]:",
        f"        terms = body(z, y, x, {inside}{q})",
        *(f"        {_gather(kernel, k, 'terms')}" for k in range(kernel.sums)),
        f"        x = uint32(x + uint32({ALONG}))",
        *(f"    shared[{k}, t] = s{k}" for k in range(kernel.sums)),
        "    cuda.syncthreads()",
        f"    half = uint32({ALONG // 2})",
        "    while half > uint32(0):",
        "        if t < half:",
        *(f"            {line}" for line in merged),
        "        cuda.syncthreads()",
        "        half = uint32(half >> uint32(1))",
        "    if t == uint32(0):",
        *(f"        rows[{k}, row, y] = shared[{k}, 0]" for k in range(kernel.sums)),
    ]
    return "\n".join(lines) + "\n"
