"""Mean squared difference on a GPU: in one pass with the sampler, or of sampled values."""

from typing import Any

import numpy as np
from numba import float32, int64, uint32, uint64

from daskreg.kernels.compiler.configuration import block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import Shape, box
from daskreg.kernels.intrinsics.arithmetic import round_int64, rounded_product
from daskreg.kernels.intrinsics.half import as_float32, half_constants
from daskreg.kernels.sampling.cuda import (
    block_sum,
    column_body,
    flat_corners,
    gradient_store,
    in_domain,
    interpolate_gradient,
    is_interior,
    launch_columns,
)
from daskreg.kernels.weights import FIXED_POINT_SCALE

ONE, ZERO, TWO = float32(1), float32(0), float32(2)
THREADS = block_size(256)  # threads of a block of ``mse_of_values``


def difference_visitor(mixed):
    """Returns the visitor of ``mse_columns``."""
    turn_into = gradient_store(mixed)

    @formula
    def difference_at(at, point, linear, size, image, fields, a, b):
        k, j, i, wz, wy, wx = point
        fixed, weight, g = fields
        r, dz, dy, dx = ZERO, ZERO, ZERO, ZERO
        if is_interior(size[2], size[3], size[4], k - size[1], j, i) or in_domain(size, point):
            value, dz, dy, dx = interpolate_gradient(flat_corners(image, size, k, j, i), wz, wy, wx)
            w = weight[at] if weight.shape[0] > 0 else ONE
            error = value - as_float32(fixed[at])
            r = w * error
            a += round_int64(r * error * float32(FIXED_POINT_SCALE))
            b += round_int64(w * float32(FIXED_POINT_SCALE))
        turn_into(g, at, linear, TWO * r, dz, dy, dx)
        return a, b

    return difference_at


@cooperative_kernel(launch_bounds=lambda mixed=False: (256, 4))
def mse_columns(mixed=False):
    """Sum of squared differences and its gradient g; 32 bytes per voxel, 22 if ``mixed``.

    fields: fixed, weight or empty, g.
    """
    return column_body(difference_visitor(mixed), True, True)


@cooperative_kernel()
def mse_of_values():
    """Replace ``moved`` by the gradient, add up squared differences and weights: ``mse_columns`` for sampled values.

    Arguments: start, stop (offsets; uint64), fixed, weight (or empty), moved (N,), relation (gain, offset), totals (2,) int64.
    """
    threads, tally = THREADS, block_sum(THREADS)

    def body(start, stop, fixed, weight, moved, relation, totals):
        t = uint32(cuda.threadIdx.x)
        at = start + uint64(cuda.blockIdx.x) * uint64(threads) + uint64(t)
        a, b = int64(0), int64(0)
        if at < stop:
            value, r = moved[at], ZERO
            if value == value:
                w = weight[at] if weight.shape[0] > 0 else ONE
                error = rounded_product(relation[0], value) + relation[1] - as_float32(fixed[at])
                r = w * error
                a, b = round_int64(r * error * float32(FIXED_POINT_SCALE)), round_int64(w * float32(FIXED_POINT_SCALE))
            moved[at] = TWO * r * relation[0]
        tally(cuda.shared.array((2, threads), int64), a, b, totals)

    return body


def fixed_value_on_cuda(fixed, z, y, x):
    """``mse.cpu.fixed_value``; fixed may hold the bits of float16."""
    return as_float32(fixed[z, y, x])


def sample_and_compare(
    shape: Shape, first: int, affine: Any, linear: Any, u: Any, origin: int, planes: int, image: Any, fixed: Any, weight: Any,
    g: Any, totals: Any
) -> None:  # fmt: skip
    """Sampling, squared difference and gradient: adds to totals (2,) int64, writes g."""
    place, fields = (first, affine, linear), (fixed.reshape(-1), weight.reshape(-1), g.reshape(3, -1))
    launch_columns(mse_columns, half_constants(g), box(shape), place, u, image, origin, planes, fields, totals)


def compare(shape: Shape, fixed: Any, weight: Any, moved: Any, relation: Any, totals: Any) -> None:
    """Squared difference of sampled values: ``moved`` becomes the gradient, the sums are added to totals (2,) int64.

    relation: gain and offset of the moving intensities, (2,) float32.
    """
    first, planes, ny, nx = box(shape)
    start, stop = first * ny * nx, (first + planes) * ny * nx
    if stop > start:
        blocks, flat = (-(-(stop - start) // THREADS),), [a.reshape(-1) for a in (fixed, weight, moved)]
        mse_of_values((), blocks, (THREADS,), np.uint64(start), np.uint64(stop), *flat, relation, totals)
