"""The displacement that a registration with an initial transform starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import Grid, Region, Span
from daskreg.lazy.transform import Transform
from daskreg.transforms.link import Link

if TYPE_CHECKING:
    from daskreg.kernels import vectors
else:
    vectors = DeferredModule("daskreg.kernels.vectors")

DEPTH = 16  # planes computed together


class InitialDisplacement:
    """The displacement u of a level with ``W (x + u(x)) = phi(x)``, phi the initial transform; sent to every rank."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, grid: Grid, planes: Span, world: NDArray[np.float64]) -> NDArray[np.float32]:
        """U at ``planes`` of a level's grid, (3, planes, Y, X), in its voxels; world: W, (4, 4)."""
        back = Transform((*self.transform.links, Link(np.asarray(np.linalg.inv(world)))), grid.unit, grid)
        u = np.empty((3, len(planes), *grid.shape[1:]), np.float32)
        for z in range(planes.start, planes.stop, DEPTH):
            box = Region((z, 0, 0), (min(z + DEPTH, planes.stop), *grid.shape[1:]))
            d = back.field(box)
            u[:, z - planes.start : box.stop[0] - planes.start] = vectors.apply_matrix(grid.world_to_index[:3, :3], d)
        return u
