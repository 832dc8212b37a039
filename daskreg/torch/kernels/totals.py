"""Sums of partial sums on a GPU, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, uint32

from daskreg.kernels.compiler.configuration import block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.torch.kernels.blocks import block_total

THREADS = block_size(512, least=32)


@cooperative_kernel()
def segment_totals() -> Callable[..., None]:
    """``out[s] = offset + scale sum of partials[s length : (s + 1) length]``, a block per segment.

    length: uint32;  scale, offset: float32;  partials: (S length,);  out: (S,) float32
    """
    add_terms = block_total(THREADS)

    def body(length, scale, offset, partials, out):
        terms = cuda.shared.array(THREADS, float32)
        t, segment = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        total, at = float32(0), t
        while at < length:
            total += partials[uint32(segment * length + at)]
            at = uint32(at + uint32(THREADS))
        terms[t] = total
        add_terms(terms, t)
        if t == uint32(0):
            out[segment] = offset + scale * terms[0]

    return body
