"""The gradient from the table of logarithms, which every block keeps in shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, uint32

from daskreg.kernels.compiler.configuration import OFFSET, block_size, multiprocessors
from daskreg.kernels.compiler.cooperative import STATIC_SHARED, cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import Shape, box, offsets
from daskreg.kernels.intrinsics.half import as_float32, half_constants, storage_type
from daskreg.similarity.mutual_information.cpu import bin_coordinate, spline, spline_derivative
from daskreg.similarity.mutual_information.cuda.histogram import VOXELS_PER_LOAD, load_voxels

ONE, ZERO = float32(1), float32(0)
GRADIENT_THREADS = block_size(512)
BLOCKS_PER_MULTIPROCESSOR = 4  # of ``information_gradient_shared``
MAX_TABLE_COPIES = 8  # as far as they fit into static shared memory


@formula
def gradient_at(table, start, bins, copies, moved_value, fixed_value, w):
    """``-w sum_ij T_ij w'_i(moved) w_j(fixed)``, see ``information_gradient``; 0 where w is 0, outside the domain, and where
    clamped.

        table: flat, T_ij at ``start + (i B + j) copies``.
    """
    result = ZERO
    if w > ZERO and ZERO < moved_value < ONE:
        i, moved_fraction = bin_coordinate(moved_value, bins)
        j, fixed_fraction = bin_coordinate(fixed_value, bins)
        moved_weights, fixed_weights = spline_derivative(moved_fraction), spline(fixed_fraction)
        first, total = OFFSET(start + uint32(uint32(uint32(i) * uint32(bins) + uint32(j)) * uint32(copies))), ZERO
        for p in range(4):
            near = (
                table[OFFSET(first + OFFSET(p * bins * copies))] * fixed_weights[0]
                + table[OFFSET(first + OFFSET((p * bins + 1) * copies))] * fixed_weights[1]
            )
            far = (
                table[OFFSET(first + OFFSET((p * bins + 2) * copies))] * fixed_weights[2]
                + table[OFFSET(first + OFFSET((p * bins + 3) * copies))] * fixed_weights[3]
            )
            total += moved_weights[p] * (near + far)
        result = -w * total * float32(bins - 5)
    return result


@formula
def copy_table(shared_table, table, t, threads, size, copies):
    """Fill shared memory with copies of each entry of the table, one behind the other; each lane starts with another bank."""
    entry = t
    while entry < uint32(size):
        value = table[entry]
        for c in range(copies):
            place = uint32(uint32(entry * uint32(copies)) + uint32(uint32(t + uint32(c)) & uint32(copies - 1)))
            shared_table[place] = value
        entry = uint32(entry + uint32(threads))


def table_bytes(bins: int, copies: int) -> int:
    """Dynamic shared memory of a kernel that keeps copies of the table, in bytes."""
    return 4 * bins * bins * copies


@cooperative_kernel(launch_bounds=lambda bins, masked, copies, half=False: GRADIENT_THREADS)
def information_gradient_shared(bins: int, masked: bool, copies: int, half: bool = False) -> Callable[..., None]:
    """``information_gradient`` with the table in shared memory, in ``copies`` (1, 2, .. 32) for fewer bank conflicts.

    Launch with as many blocks along x as the device runs at once, ``GRADIENT_THREADS`` threads and
    ``shared=table_bytes(bins, copies)``. begin, end: uint64, the voxels;  table: (B B,) float32;  out: (N,) float32,
    may be ``moved``;  other arguments as in ``joint_histogram_shared``.
    """
    size = bins * bins
    kind, none = storage_type(half)

    def body(begin, end, table, fixed, weight, moved, out):
        shared_table = cuda.shared.array(0, float32)
        moved_values = cuda.local.array(VOXELS_PER_LOAD, float32)
        fixed_values = cuda.local.array(VOXELS_PER_LOAD, kind)
        w = cuda.local.array(VOXELS_PER_LOAD, float32)
        t = uint32(cuda.threadIdx.x)
        start = uint32(t & uint32(copies - 1))
        copy_table(shared_table, table, t, GRADIENT_THREADS, size, copies)
        cuda.syncthreads()
        round_size = OFFSET(GRADIENT_THREADS * VOXELS_PER_LOAD)
        base = OFFSET(begin + OFFSET(cuda.blockIdx.x) * round_size)
        while base < end:
            load_voxels(base, end, t, GRADIENT_THREADS, masked, none, fixed, weight, moved, fixed_values, w, moved_values)
            for s in range(VOXELS_PER_LOAD):
                voxel = OFFSET(base + OFFSET(uint32(t + uint32(s * GRADIENT_THREADS))))
                if voxel < end:
                    out[voxel] = gradient_at(
                        shared_table, start, bins, copies, moved_values[s], as_float32(fixed_values[s]), w[s]
                    )
            base = OFFSET(base + OFFSET(cuda.gridDim.x) * round_size)

    return body


def compute_gradient(shape: Shape, bins: int, table: Any, fixed: Any, weight: Any, moved: Any) -> None:
    """Replace ``moved`` by N times the gradient."""
    copies = max(1, min(MAX_TABLE_COPIES, 1 << (STATIC_SHARED // (4 * bins * bins)).bit_length() - 1)) if bins <= 110 else 1
    flat = moved.reshape(-1)
    fields = table, fixed.reshape(-1), weight.reshape(-1), flat, flat
    blocks, threads = (BLOCKS_PER_MULTIPROCESSOR * multiprocessors(), 1, 1), (GRADIENT_THREADS, 1, 1)
    shared = table_bytes(bins, copies)
    constants = bins, weight.size > 0, copies, *half_constants(fixed)
    information_gradient_shared(constants, blocks, threads, *offsets(box(shape)), *fields, shared=shared)
