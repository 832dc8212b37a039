"""Source code of generated launchers: loops over voxels around a body."""

from __future__ import annotations

from typing import Protocol

from daskreg.kernels.compiler.configuration import block_size

ROW_THREADS = block_size(128)  # threads of a block that sums a row
LOWEST = -3.0e38  # initial value of row maxima


class LauncherTraits(Protocol):
    """What of a kernel (``launch.Kernel``) decides the source of its launchers."""

    parameters: tuple[str, ...]
    sums: int
    maxima: bool
    border: bool
    scatter: bool


def cpu_source(kernel: LauncherTraits, name: str) -> str:
    """A function of that name that calls ``body`` at every voxel of the rows from ``begin`` to ``end``."""
    p = ", ".join(kernel.parameters)
    if kernel.scatter:
        return _scatter_source(kernel, name)
    rows = "rows, " if kernel.sums else ""
    lines = [
        f"def {name}(begin, end, n, {rows}{p}):",
        "    z0, nz, ny, nx = n",
        "    for zy in range(begin, end):",
        "        row, y = index(zy // ny), index(zy % ny)",
        "        z = index(row + index(z0))",
        *(f"        s{k} = {_initial(kernel)}" for k in range(kernel.sums)),
    ]
    if kernel.border:
        low, high = f"min({kernel.parameters[0]}, nx)", f"max({kernel.parameters[0]}, nx - {kernel.parameters[0]})"
        parts = [("0", low, "False"), (low, f"nx - {kernel.parameters[0]}", "True"), (high, "nx", "False")]
    else:
        parts = [("0", "nx", "")]
    for a, b, inside in parts:
        lines.append(f"        for x in range({a}, {b}):")
        call = f"body(z, y, index(x), {inside + ', ' if inside else ''}{p})"
        lines.append(f"            {'t = ' if kernel.sums else ''}{call}")
        lines += [f"            {_accumulate(kernel, k)}" for k in range(kernel.sums)]
    lines += [f"        rows[{k}, row, y] = s{k}" for k in range(kernel.sums)]
    return "\n".join(lines) + "\n"


def _initial(kernel: LauncherTraits) -> str:
    """Initial value of a row's sum or maximum."""
    return f"float32({LOWEST})" if kernel.maxima else "float32(0)"


def _accumulate(kernel: LauncherTraits, k: int, terms: str = "t") -> str:
    return f"s{k} = max(s{k}, {terms}[{k}])" if kernel.maxima else f"s{k} += {terms}[{k}]"


def _merge(kernel: LauncherTraits, k: int) -> str:
    """Combine the results of two threads."""
    a, b = f"shared[{k}, t]", f"shared[{k}, t + half]"
    return f"{a} = max({a}, {b})" if kernel.maxima else f"{a} += {b}"


def _scatter_source(kernel: LauncherTraits, name: str) -> str:
    first, rest = kernel.parameters[0], ", ".join(kernel.parameters[1:])
    return f"""
def {name}(begin, end, n, {first}, {rest}):
    z0, nz, ny, nx = n
    tiles = {first}.shape[0]
    for tile in range(begin, end):
        mine = {first}[tile]
        for zy in range(tile * nz * ny // tiles, (tile + 1) * nz * ny // tiles):
            z, y = index(z0 + zy // ny), index(zy % ny)
            for x in range(nx):
                body(z, y, index(x), mine, {rest})
"""


def cuda_source(kernel: LauncherTraits, name: str, absent: frozenset[str]) -> str:
    """A CUDA kernel of that name without the arguments ``absent``: one thread per voxel, or one block per row for sums."""
    p = ", ".join(a for a in kernel.parameters if a not in absent)
    passed = ["None" if a in absent else a for a in kernel.parameters]
    q = ", ".join([f"{passed[0]}[0]", *passed[1:]] if kernel.scatter else passed)
    inside = f"x >= uint32({kernel.parameters[0]}) and x + uint32({kernel.parameters[0]}) < n[3], " if kernel.border else ""
    if not kernel.sums:
        return f"""
def {name}(n, {p}):
    x = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
    y = uint32(cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y)
    row = uint32(cuda.blockIdx.z * cuda.blockDim.z + cuda.threadIdx.z)
    if row < n[1] and y < n[2] and x < n[3]:
        body(uint32(row + n[0]), y, x, {inside}{q})
"""
    # one block per row: each thread sums every n-th voxel, then the threads' sums are added in a fixed order
    merged = [_merge(kernel, k) for k in range(kernel.sums)]
    lines = [
        f"def {name}(n, rows, {p}):",
        f"    shared = cuda.shared.array(({kernel.sums}, {ROW_THREADS}), float32)",
        "    t, y, row = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)",
        "    z, x = uint32(row + n[0]), t",
        *(f"    s{k} = {_initial(kernel)}" for k in range(kernel.sums)),
        "    while x < n[3]:",
        f"        terms = body(z, y, x, {inside}{q})",
        *(f"        {_accumulate(kernel, k, 'terms')}" for k in range(kernel.sums)),
        f"        x = uint32(x + uint32({ROW_THREADS}))",
        *(f"    shared[{k}, t] = s{k}" for k in range(kernel.sums)),
        "    cuda.syncthreads()",
        f"    half = uint32({ROW_THREADS // 2})",
        "    while half > uint32(0):",
        "        if t < half:",
        *(f"            {line}" for line in merged),
        "        cuda.syncthreads()",
        "        half = uint32(half >> uint32(1))",
        "    if t == uint32(0):",
        *(f"        rows[{k}, row, y] = shared[{k}, 0]" for k in range(kernel.sums)),
    ]
    return "\n".join(lines) + "\n"
