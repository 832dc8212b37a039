"""Filters along one axis on a GPU, with as many taps as the kernel is made for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import Formula, formula, native
from daskreg.kernels.intrinsics.memory import address, beyond, load, store
from daskreg.torch.kernels.blocks import TILE_X, TILE_Y, block_place

ZERO = float32(0)


@native("int_as_float")
def float_of(bits):
    """The float32 of 32 bits."""
    return bits.view(np.float32)


def symmetric_taps(radius: int, k: int) -> Formula:
    """A formula for the sum of the inner 2 k + 1 of 2 radius + 1 taps; ``where``: the address of the first of all."""
    first, last = radius - k, radius + k
    if k == 0:

        @formula
        def taps(weights, where, stride):
            return float_of(int32(weights[first])) * load(where, uint32(stride * uint32(first)))

        return taps
    inner_taps = symmetric_taps(radius, k - 1)

    @formula
    def more_taps(weights, where, stride):
        pair = load(where, uint32(stride * uint32(first))) + load(where, uint32(stride * uint32(last)))
        return inner_taps(weights, where, stride) + float_of(int32(weights[first])) * pair

    return more_taps


@cooperative_kernel()
def filter_tiled(axis: int, radius: int, transposed: bool) -> Callable[..., None]:
    """``filter_axis``.  n: Z, Y, X, planes per block, channels; uint32;  weights: the bits of float32;  source, out: flat"""
    taps, margin = symmetric_taps(radius, radius), 2 * radius if transposed else radius

    @formula
    def near_faces(weights, norms, where, at, stride, q, extent):
        total, t, start = ZERO, max(-int32(radius), -q), uint32(at - uint32(stride * uint32(q)))
        while t <= min(int32(radius), extent - int32(1) - q):
            value = float_of(int32(weights[t + int32(radius)])) * load(where, uint32(start + uint32(stride * uint32(q + t))))
            total += value * norms[uint32(q + t)] if transposed else value
            t = int32(t + int32(1))
        return total if transposed else total * norms[uint32(q)]

    def body(n, weights, norms, source, out):
        v, z, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[3], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(TILE_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        if y >= n[1] or x >= n[2]:
            return
        stop, plane = min(uint32(z + n[3]), n[0]), uint32(n[1] * n[2])
        first = OFFSET(v) * OFFSET(n[0]) * OFFSET(plane)
        where, to = address(source, first), address(out, first)
        stride = plane if axis == 0 else (n[2] if axis == 1 else uint32(1))
        at, extent = uint32(uint32(z * n[1] + y) * n[2] + x), int32(n[axis])
        while z < stop:
            q = int32(z if axis == 0 else (y if axis == 1 else x))
            if (q >= int32(margin)) & (q < extent - int32(margin)):
                start = beyond(where, uint32(at - uint32(stride * uint32(radius))))
                total = taps(weights, start, stride) * norms[uint32(q)]
            else:
                total = near_faces(weights, norms, where, at, stride, q, extent)
            store(to, at, total)
            z, at = uint32(z + uint32(1)), uint32(at + plane)

    return body
