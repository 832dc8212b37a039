"""The gradient of mutual information in one pass with the sampling that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, uint32

from daskreg.kernels.compiler.configuration import block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.intrinsics.half import as_float32, half_constants
from daskreg.kernels.sampling.cuda import (
    flat_corners,
    gradient_store,
    in_domain,
    interpolate_gradient,
    is_interior,
    launch_tiles,
    tiles_body,
)
from daskreg.similarity.base import Sampling
from daskreg.similarity.mutual_information.cuda.gradient import copy_table, gradient_at, table_bytes
from daskreg.similarity.mutual_information.cuda.histogram import histogram_copies

ONE, ZERO = float32(1), float32(0)
TILE = block_size(16, least=2), block_size(64, least=16)  # threads along y and x: as many as 64 registers each allow


@cooperative_kernel(launch_bounds=(TILE[0] * TILE[1], 1))
def information_gradient_columns(bins: int, masked: bool, mixed: bool = False) -> Callable[..., None]:
    """``information_gradient_shared``, then ``pull_back_columns``, of values sampled anew: 32 bytes per voxel, 22 if ``mixed``.

    Launch with ``launch_tiles``. arrays: table (B B,) float32, fixed, weight or empty, g (3, N), the gradient of the displacement
    """
    threads, copies, turn_into = TILE[0] * TILE[1], histogram_copies(bins), gradient_store(mixed)

    @formula
    def begin(arrays, t):
        table, fixed, weight, g = arrays
        shared_table = cuda.shared.array(0, float32)
        copy_table(shared_table, table, t, threads, bins * bins, copies)
        cuda.syncthreads()
        return shared_table, uint32(t & uint32(copies - 1)), fixed, weight, g

    @formula
    def gradient_of(at, point, linear, size, image, fields, a, b):
        k, j, i, wz, wy, wx = point
        table, start, fixed, weight, g = fields
        fixed_value, w = as_float32(fixed[at]), weight[at] if masked else ONE
        r, dz, dy, dx = ZERO, ZERO, ZERO, ZERO
        if is_interior(size[2], size[3], size[4], k - size[1], j, i) or in_domain(size, point):
            value, dz, dy, dx = interpolate_gradient(flat_corners(image, size, k, j, i), wz, wy, wx)
            r = gradient_at(table, start, bins, copies, value, fixed_value, w)
            if r == ZERO:
                dz, dy, dx = ZERO, ZERO, ZERO
        turn_into(g, at, linear, r, dz, dy, dx)
        return a, b

    body: Callable[..., None] = tiles_body(gradient_of, TILE, begin)
    return body


def sample_and_differentiate(
    box: Shape, sampling: Sampling, gradient: Any, bins: int, table: Any, fixed: Any, weight: Any
) -> None:
    """N dC/du of a box from the table of logarithms."""
    arrays = table, fixed.reshape(-1), weight.reshape(-1), gradient.reshape(3, -1)
    constants, shared = (bins, weight.size > 0, *half_constants(gradient)), table_bytes(bins, histogram_copies(bins))
    launch_tiles(information_gradient_columns, constants, box, sampling, TILE, arrays, shared)
