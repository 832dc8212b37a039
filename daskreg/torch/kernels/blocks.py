"""Blocks of threads that own a tile of the (y, x) plane and move along z: how many there are, where each is, and its sum."""

from __future__ import annotations

from numba import uint32

from daskreg.kernels.compiler.configuration import block_size
from daskreg.kernels.compiler.formula import Formula, formula

TILE_X, TILE_Y = block_size(32, least=4), block_size(8, least=2)  # threads of a block that gathers
MAX_DEPTH = 8  # planes of a block, at most
BLOCKS = 16  # per multiprocessor, at least, where there are that many


def block_depth(volumes: int, shape: tuple[int, int, int], tile: tuple[int, int], processors: int) -> int:
    """Planes of a block of a tile of rows and columns: few where there are few tiles."""
    planes, rows, columns = shape
    tiles = volumes * planes * -(-rows // tile[0]) * -(-columns // tile[1])
    return max(1, min(MAX_DEPTH, planes, tiles // (BLOCKS * processors)))


def blocks(volumes: int, shape: tuple[int, int, int], tile: tuple[int, int], depth: int) -> tuple[int, int, int]:
    """Blocks, x first; those of all planes and volumes are along x."""
    planes, rows, columns = shape
    return volumes * -(-planes // depth) * -(-columns // tile[1]), -(-rows // tile[0]), 1


@formula
def block_place(block, columns, planes, depth, width):
    """Volume, first plane and first column of a block."""
    tiles = uint32(uint32(columns + uint32(width - 1)) // uint32(width))
    parts = uint32(uint32(planes + uint32(depth - uint32(1))) // depth)
    column, rest = uint32(block % tiles), uint32(block // tiles)
    volume = uint32(rest // parts)
    return volume, uint32(uint32(rest - uint32(volume * parts)) * depth), uint32(column * uint32(width))


def block_total(count: int) -> Formula:
    """Part of a body: the sum of all threads' terms, in a fixed order, in ``terms[0]``; count: a power of two."""

    @formula
    def add_terms(terms, t):
        half = uint32(count // 2)
        while half > uint32(0):
            cuda.syncthreads()
            if t < half:
                terms[t] += terms[uint32(t + half)]
            half = uint32(half >> uint32(1))

    return add_terms
