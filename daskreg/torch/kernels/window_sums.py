"""Sums over windows on a GPU: a block of threads owns a tile of the (y, x) plane and moves along z.

A plane is loaded into shared memory with the border that a window needs, summed along x (four neighbours per thread), then along
y. Along z a thread keeps what is needed of earlier planes in registers. Where all weights along an axis are 1, neighbouring
windows share partial sums (``similarity.lncc.cuda.windows``); any other weights cost one multiplication per voxel of a window
and axis. Every loop has constant bounds and a body of a few instructions: others would not be unrolled, and then arrays would
be in memory and not in registers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from numba import float32, int32, uint32

from daskreg.kernels.compiler import configuration
from daskreg.kernels.compiler.formula import Formula, formula
from daskreg.kernels.intrinsics.memory import store_vector
from daskreg.similarity.lncc.cuda.windows import GROUP, TILE_X, push_any, push_plane, sum_x, sum_y
from daskreg.torch.kernels.blocks import block_place

ZERO = float32(0)
MAX_RADIUS = 12  # shared memory holds the planes of wider windows no more
MAX_RING = 17  # voxels along z of a window whose planes are kept by ``box_push``
Weights = tuple[float, ...]


class Tiles(NamedTuple):
    """How threads share a tile.  height: rows of a tile;  rows: of them per thread;  resident: blocks per multiprocessor."""

    height: int
    rows: int
    resident: int

    @property
    def threads(self) -> int:
        """Per block."""
        return TILE_X * self.height // self.rows

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return self.height, TILE_X


def summing_tiles(wz: Weights, wy: Weights) -> Tiles:
    """Tiles of ``correlation_tiled``, which sums five fields."""
    return _tiles(wz, wy, 5, 2 if len(wz) <= 7 else 1)


def gradient_tiles(wz: Weights, wy: Weights) -> Tiles:
    """Tiles of ``correlation_gradient_tiled``, which sums three."""
    return _tiles(wz, wy, 3, 3 if len(wz) <= 5 else (2 if len(wz) <= 11 else 1))


def _tiles(wz: Weights, wy: Weights, fields: int, resident: int) -> Tiles:
    """The largest tiles whose threads can hold the sums of incomplete windows, and are enough to sum along x at once."""
    for made, most in ((Tiles(16, 2, resident), 75), (Tiles(16, 1, 1), 55)):  # registers for incomplete windows, of 128
        enough = (made.height + len(wy) - 1) * (TILE_X // GROUP) <= made.threads
        if enough and fields * made.rows * len(wz) <= most:
            return made
    return Tiles(8, 1, 1)


@lru_cache(4096)  # shapes
def planes_per_block(tiles: Tiles, reach: int, batches: int, nz: int, ny: int, nx: int, processors: int) -> int:
    """Planes of a block, so that blocks fill the device evenly; ``reach``: planes that a window needs on each side."""
    across = batches * -(-ny // tiles.height) * -(-nx // TILE_X)
    return configuration.planes_per_block(nz, across, tiles.resident, reach, processors)


@formula
def place(block, nx, nz, depth):
    """``block_place`` for tiles of windows, as int32."""
    volume, start, left = block_place(block, uint32(nx), uint32(nz), uint32(depth), TILE_X)
    return volume, int32(start), int32(left)


@formula
def weighted_x(values, first, weights, mid, to):
    """Weighted sums along x of four neighbouring windows from ``values[first]`` on."""
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    for t in range(len(weights)):
        w = weights[t]
        a += w * values[first + t]
        b += w * values[first + t + 1]
        c += w * values[first + t + 2]
        d += w * values[first + t + 3]
    store_vector(mid, to, a, b, c, d)


@formula
def weighted_y(mid, at, field, height, weights, rows, sums):
    """Weighted sums along y of a field for the rows of a thread."""
    start = field * height * TILE_X
    v = mid[uint32(at + uint32(start))]
    first, second = weights[0] * v, ZERO
    for t in range(1, len(weights)):
        v = mid[uint32(at + uint32(start + t * TILE_X))]
        first += weights[t] * v
        if rows == 2:
            second += weights[t - 1] * v
    sums[field * rows] = first
    if rows == 2:
        v = mid[uint32(at + uint32(start + len(weights) * TILE_X))]
        sums[2 * field + 1] = second + weights[len(weights) - 1] * v


@formula
def weighted_push(pending, prefix, sums, slot, weights):
    """Add a plane to the windows that it is in; ``sums`` becomes those of the window that is complete."""
    k = len(weights)
    for q in range(len(sums)):
        s = sums[q]
        sums[q] = weights[k - 1] * s
        if k > 1:
            sums[q] += pending[q * k]
            for j in range(k - 2):
                pending[q * k + j] = pending[q * k + j + 1] + weights[k - 2 - j] * s
            pending[q * k + k - 2] = weights[0] * s


@formula
def box_push(ring, prefix, sums, slot, k):
    """Add a plane to sums over k planes."""
    push_any(push_plane, ring, prefix, sums, slot, k, ())


def all_one(weights: Weights) -> bool:
    """Whether a window is a plain sum along an axis, of more than one voxel."""
    return len(weights) > 1 and all(w == 1 for w in weights)


def along_x(weights: Weights) -> tuple[Formula, Any]:
    """The formula that sums along x, and its argument: a radius or weights."""
    return (sum_x, len(weights) // 2) if all_one(weights) else (weighted_x, rounded(weights))


def along_y(weights: Weights) -> tuple[Formula, Any]:
    """The formula that sums along y, and its argument."""
    return (sum_y, len(weights) // 2) if all_one(weights) else (weighted_y, rounded(weights))


def along_z(weights: Weights) -> tuple[Formula, Any]:
    """The formula that adds a plane, and its argument: planes of a window or weights."""
    if all_one(weights) and len(weights) <= MAX_RING:
        return box_push, len(weights)
    return weighted_push, rounded(weights)


@formula
def inside_weight(at, n, weights):
    """The sum of the weights of a window around ``at`` that are on the axis."""
    total = ZERO
    for t in range(len(weights)):
        q = int32(at + int32(t - len(weights) // 2))
        total += weights[t] if int32(0) <= q < n else ZERO
    return total


def rounded(weights: Weights) -> tuple[Any, ...]:
    """Weights in the kernels' type."""
    return tuple(float32(w) for w in weights)
