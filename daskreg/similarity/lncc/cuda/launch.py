"""Local correlation of arrays (Z, Y, X) on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskreg.kernels.compiler.configuration import planes_per_block
from daskreg.kernels.intrinsics.half import half_constants
from daskreg.similarity.lncc.cuda.factors import lncc_center_tiled, lncc_factors_tiled
from daskreg.similarity.lncc.cuda.gradient import GRADIENT_THREADS, gradient_blocks, gradient_bounds, lncc_gradient_tiled
from daskreg.similarity.lncc.cuda.windows import window_blocks, window_bounds, window_threads


def _launch_sizes(box: tuple[int, int, int, int], held: int, origin: int, depth: int) -> tuple[Any, ...]:
    return tuple(np.int32(v) for v in (*box, held, origin, depth))


def compute_factors(
    box: tuple[int, int, int, int], origin: int, own: tuple[int, int], radius: int, epsilon: Any, variances: Any, fixed: Any,
    weight: Any, moved: Any, out: Any, totals: Any
) -> None:  # fmt: skip
    """Window sums of a box: ``out`` (3, Z, Y, X) receives the factors, (Z, Y, X) the centre-window gradient.

    origin: global plane at the first plane of the arrays;  own: the planes of the arrays that count for totals (2,) int64
    """
    _, planes, ny, nx = box
    if planes:
        kernel = lncc_factors_tiled if out.ndim == 4 else lncc_center_tiled
        flat_out = out.reshape(3, -1) if out.ndim == 4 else out.reshape(-1)
        fields = fixed.reshape(-1), weight.reshape(-1), moved.reshape(-1), flat_out, totals
        span = np.int32(own[0]), np.int32(own[1])
        across, down, _ = window_blocks(radius, planes, ny, nx, planes)
        depth = planes_per_block(planes, across * down, window_bounds(radius, False)[1], radius)
        blocks, threads = window_blocks(radius, planes, ny, nx, depth), (window_threads(radius), 1, 1)
        kernel(
            (radius, weight.size > 0, *half_constants(fixed)),
            blocks,
            threads,
            *_launch_sizes(box, moved.shape[0], origin, depth),
            span,
            epsilon,
            variances,
            *fields,
        )


def compute_gradient(
    box: tuple[int, int, int, int], origin: int, radius: int, dkc: Any, fixed: Any, weight: Any, moved: Any
) -> None:
    """Replace ``moved`` by the exact gradient from the factors."""
    _, planes, ny, nx = box
    if planes:
        fields = dkc.reshape(3, -1), fixed.reshape(-1), weight.reshape(-1), moved.reshape(-1)
        across, down, _ = gradient_blocks(planes, ny, nx, planes)
        depth = planes_per_block(planes, across * down, gradient_bounds(radius, False)[1], radius)
        blocks, sizes = gradient_blocks(planes, ny, nx, depth), _launch_sizes(box, moved.shape[0], origin, depth)
        lncc_gradient_tiled((radius, weight.size > 0, *half_constants(fixed)), blocks, (GRADIENT_THREADS, 1, 1), *sizes, *fields)
