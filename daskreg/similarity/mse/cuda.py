# ruff: noqa: F821  (``cuda`` is given to a kernel when it is made, so that a CPU never imports it)
"""Mean squared difference on a GPU: in one pass with the sampler, or from values."""

from typing import Any

import numpy as np
from numba import float32, int64, uint32, uint64

from daskreg.kernels.compiler.configuration import block_size
from daskreg.kernels.compiler.cooperative import sweep
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import Shape, box
from daskreg.kernels.intrinsics.arithmetic import counted
from daskreg.kernels.intrinsics.half import halved, pixel
from daskreg.kernels.sampling.cuda import around, inclined, interior, launch, march_along_z, tally_of, touching, turn_into_field
from daskreg.kernels.weights import COUNT

ONE, NIL, TWO = float32(1), float32(0), float32(2)
WIDE = block_size(256)  # threads of a block that takes voxels as they come


def _difference_at(mixed):
    """Squared difference and weight, counted; g in the same look."""
    turn_into = turn_into_field(mixed)

    @formula
    def difference_at(at, point, linear, size, image, fields, a, b):
        k, j, i, wz, wy, wx = point
        fixed, weight, g = fields
        r, dz, dy, dx, here = NIL, NIL, NIL, NIL, k - size[1]
        if interior(size[2], size[3], size[4], here, j, i) or touching(size[0], size[3], size[4], k, j, i):
            value, dz, dy, dx = inclined(around(image, size[2], size[3], size[4], here, j, i), wz, wy, wx)
            w = weight[at] if weight.shape[0] > 0 else ONE
            error = value - pixel(fixed[at])
            r = w * error
            a += counted(r * error * float32(COUNT))
            b += counted(w * float32(COUNT))
        turn_into(g, at, linear, TWO * r, dz, dy, dx)
        return a, b

    return difference_at


@sweep(launch_bounds=lambda mixed=False: (256, 4))
def sample_difference(mixed=False):
    """Squared difference, counted, with its gradient g; fields (fixed, weight or empty, g); 32 bytes a voxel, 22 ``mixed``."""
    return march_along_z(_difference_at(mixed), True, True)


@sweep()
def difference_march():
    """Replace ``moved`` by ``2 w (moved - fixed)``, count squared difference and weight: what ``sample_difference`` does, from
    values.

    Arguments: start, stop (offsets; uint64), fixed, weight (or empty), moved (N,), totals (2,) int64.
    """
    threads, tally = WIDE, tally_of(WIDE)

    def body(start, stop, fixed, weight, moved, totals):
        t = uint32(cuda.threadIdx.x)
        at = start + uint64(cuda.blockIdx.x) * uint64(threads) + uint64(t)
        a, b = int64(0), int64(0)
        if at < stop:
            value, r = moved[at], NIL
            if value == value:
                w = weight[at] if weight.shape[0] > 0 else ONE
                error = value - pixel(fixed[at])
                r = w * error
                a, b = counted(r * error * float32(COUNT)), counted(w * float32(COUNT))
            moved[at] = TWO * r
        tally(cuda.shared.array((2, threads), int64), a, b, totals)

    return body


def difference(
    shape: Shape, first: int, affine: Any, linear: Any, u: Any, origin: int, planes: int, image: Any, fixed: Any, weight: Any,
    g: Any, totals: Any
) -> None:  # fmt: skip
    """Sampling, squared difference and gradient: adds to totals (2,) int64, fills g."""
    place, fields = (first, affine, linear), (fixed.reshape(-1), weight.reshape(-1), g.reshape(3, -1))
    launch(sample_difference, halved(g), box(shape), place, u, image, origin, planes, fields, totals)


def difference_of(shape: Shape, fixed: Any, weight: Any, moved: Any, totals: Any) -> None:
    """Difference of values: ``moved`` becomes the gradient, totals (2,) int64 are added to."""
    first, planes, ny, nx = box(shape)
    start, stop = first * ny * nx, (first + planes) * ny * nx
    if stop > start:
        flat = [a.reshape(-1) for a in (fixed, weight, moved)]
        difference_march((), (-(-(stop - start) // WIDE),), (WIDE,), np.uint64(start), np.uint64(stop), *flat, totals)
