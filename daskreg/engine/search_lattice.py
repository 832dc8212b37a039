"""The lattice of a global search over a set of rotations: band-passed images on it, the moving one in every rotation, and their
correlation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.config import Search
from daskreg.engine.edge_images import lattice_around, part_of, sampled
from daskreg.engine.images import Image
from daskreg.engine.report import Watch
from daskreg.engine.threads import in_threads
from daskreg.errors import NoOverlap
from daskreg.grid import Grid
from daskreg.kernels.compiler.host_launch import thread_count
from daskreg.transforms.linear import linear_about, translation
from daskreg.transforms.rotations import candidate_rotations, scales
from daskreg.transforms.search import Candidate, Correlator, band_pass

Matrix = NDArray[np.float64]


def search_voxel(stage: Search, images: tuple[Image, Image]) -> float:
    """Edge of a voxel of the search, in the fixed image's world."""
    return max(float(i.grid.extent.max()) for i in images) / stage.size


def nothing_found(stage: Search, images: tuple[Image, Image]) -> NoOverlap:
    """The error of a search that no candidate survives."""
    z, y, x = min((i.grid.shape for i in images), key=math.prod)
    return NoOverlap(
        f"the global search found no shift at which {stage.overlap:.0%} of the smaller image ({z} x {y} x {x} voxels) is covered "
        "and alike; check that both show the same thing and have enough voxels to show it, or lower 'overlap'."
    )


class SearchLattice:
    """Both images on one isotropic lattice along the fixed image's axes, the moving one rotated about its centre."""

    def __init__(self, stage: Search, images: tuple[Image, Image], world: Matrix) -> None:
        self.stage, self.images, self.linear = stage, images, world[:3, :3]
        self.voxel = search_voxel(stage, images)
        self.grids = [i.grid for i in images]
        self.frame = np.asarray(self.grids[0].direction)
        self.parts = [part_of(i, self.voxel) for i in images]

    def tasks(self) -> list[Matrix]:
        """The rotations, at every scale: a correlation over all shifts each."""
        return [s * r for s in scales(self.stage.scale) for r in candidate_rotations(self.stage.rotations, self.stage.flips)]

    @cached_property
    def fixed_lattice(self) -> Grid:
        """A lattice that holds the fixed image."""
        return self._lattice(self.grids[0].extent)

    @cached_property
    def _correlator(self) -> Correlator:
        channels, inside = sampled((self.parts[0].voxels,), self.parts[0], self.fixed_lattice, np.eye(4))
        return Correlator(self._band(channels, inside), inside, self.moving_lattice.shape, self.stage.overlap, thread_count())

    def correlate(self, tasks: Sequence[Matrix], peaks: int, watch: Watch) -> list[list[Candidate]]:
        """The best shifts of every task. Raises Stopped."""
        correlator = self._correlator  # made before threads read it
        return in_threads(lambda task: correlator.best(*self._moving(task), peaks), tasks, self.images[0].device, watch)

    def _lattice(self, size: NDArray[np.float64]) -> Grid:
        """Voxels of the search around the fixed image's centre."""
        return lattice_around(self.grids[0].center, size, self.voxel, self.frame)

    @cached_property
    def moving_lattice(self) -> Grid:
        """A lattice that holds the moving image in every rotation."""
        grid = self.grids[1]
        turns = [np.abs(np.linalg.inv(self.linear @ r @ self.frame) @ np.asarray(grid.direction)) for r in self.tasks()]
        return self._lattice(np.max([turn @ grid.extent for turn in turns], axis=0))

    def _moving(self, task: Matrix) -> tuple[Any, Any]:
        """The moving image's band under a rotation about both centres."""
        channels, inside = sampled((self.parts[1].voxels,), self.parts[1], self.moving_lattice, self._about(task))
        return self._band(channels, inside), inside

    def _about(self, linear: Matrix) -> Matrix:
        return translation(self.grids[1].center - self.grids[0].center) @ linear_about(self.grids[0].center, self.linear @ linear)

    def _band(self, channels: Any, inside: Any) -> Any:
        return band_pass(channels[0], inside, self.stage.contrast == "any")

    def world(self, task: Matrix, found: Candidate) -> Matrix:
        """The map from fixed to moving points of a candidate."""
        n = np.asarray(self.fixed_lattice.shape)
        shift = (found.shift + (np.asarray(self.moving_lattice.shape) - 1) / 2 - (n - 1) / 2) * self.voxel
        return self._about(task) @ translation(-self.frame @ shift)
