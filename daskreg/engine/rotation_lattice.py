"""Correlation over all shifts and rotations: 27 small rotations are sampled, each counts for all right-angle rotations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daskreg.config import Search
from daskreg.engine.edge_images import ComparedPart, lattice_around, sampled
from daskreg.engine.report import Watch
from daskreg.engine.threads import in_threads
from daskreg.kernels.device import Device
from daskreg.transforms.cube_search import CubeCorrelator, CubePeaks
from daskreg.transforms.linear import linear_about, translation
from daskreg.transforms.orientation import rotated
from daskreg.transforms.rotations import MIRROR, local_rotations, right_angle_rotations, scales

Matrix = NDArray[np.float64]
IDENTITY = np.eye(3)
# Of the correlation that are kept for a rotation: where images share half of a tissue, other shifts agree better in the right one
PEAKS = 12
ROW = 18  # score, overlap and the map of a candidate


def right_angles(flips: bool) -> list[Matrix]:
    """The right-angle rotations, with ``flips`` also their mirror images."""
    found = right_angle_rotations()
    return found + [r @ MIRROR for r in found] if flips else found


def scaled_rotations(largest: float) -> list[Matrix]:
    """The small rotations (3, 3) at every scale that is tried."""
    return [scale * rotation for scale in scales(largest) for rotation in local_rotations()]


def _odd(edges: Matrix, voxel: float) -> Matrix:
    """Edges of a box of an odd number of voxels: its middle, where a thin image may be alone, is at voxels' centres."""
    n = np.maximum(1, np.ceil(edges / voxel - 1e-6))
    return np.asarray((n + 1 - n % 2) * voxel)


class RotationLattice:
    """Edges of both images on one lattice along the fixed image's axes, the moving ones turned about the middle of their box.

    parts: of both images;  linear: (3, 3) of the first map;  voxel: edge of the lattice's voxels;  offset: the rotation before
    all small ones
    """

    def __init__(
        self, stage: Search, parts: tuple[ComparedPart, ComparedPart], linear: Matrix, voxel: float, offset: Matrix = IDENTITY
    ) -> None:
        self.linear, self.voxel, self.part = linear, voxel, parts[1]
        self.frame = np.asarray(parts[0].grid.direction)
        self.turns, self.cubes = [turn @ offset for turn in scaled_rotations(stage.scale)], right_angles(stage.flips)
        self.center, edges = parts[0].box(self.frame)
        self.target, _ = parts[1].box(np.asarray(parts[1].grid.direction))
        fixed, self.moving = (lattice_around(self.center, _odd(e, voxel), voxel, self.frame) for e in (edges, self._reach()))
        tensors = [part.tensors(voxel) for part in parts]
        seen, inside = sampled(tensors[0], parts[0], fixed, np.eye(4))
        self.correlator = CubeCorrelator(rotated(seen, self.frame), inside, self.moving.shape, self.cubes, stage.overlap)
        self.tensors = tensors[1]

    @property
    def candidates(self) -> int:
        """Rows of a small rotation."""
        return PEAKS * len(self.cubes)

    def _reach(self) -> Matrix:
        """Edges of a box that holds the compared moving voxels in every small rotation."""
        apart = self.part.ends() - self.target
        turned = (apart @ np.linalg.inv(self.linear @ self.frame @ turn).T for turn in self.turns)
        return np.asarray(np.max([2 * np.abs(points).max(axis=0) for points in turned], axis=0) + self.voxel)

    def correlate(self, turns: Sequence[Matrix], device: Device, watch: Watch) -> list[Matrix]:
        """Of every small rotation the rows of its candidates, with score 0 where there is none. Raises Stopped."""
        return in_threads(self._rows, turns, device, watch)

    def _rows(self, turn: Matrix) -> Matrix:
        seen, inside = sampled(self.tensors, self.part, self.moving, self._about(turn))
        found = self.correlator.best(rotated(seen, self.linear @ self.frame @ turn), inside, PEAKS)
        rows, count = np.zeros((self.candidates, ROW)), len(found.cube)
        rows[:count, 0], rows[:count, 1], rows[:count, 2:] = found.score, found.overlap, self._worlds(turn, found).reshape(-1, 16)
        return rows

    def _about(self, turn: Matrix) -> Matrix:
        """The map that turns about the middles of both boxes."""
        linear = self.linear @ self.frame @ turn @ self.frame.T
        return np.asarray(translation(self.target - self.center) @ linear_about(self.center, linear))

    def _worlds(self, turn: Matrix, peaks: CubePeaks) -> Matrix:
        """Of candidates, the maps (K, 4, 4) from fixed to moving points: a shift, the right-angle rotation, then the turn."""
        cubes = np.array(self.cubes)[peaks.cube]
        moved = (self.frame @ cubes.swapaxes(1, 2) @ peaks.shift[..., None]) * self.voxel
        worlds = np.tile(np.eye(4), (len(cubes), 1, 1))
        worlds[:, :3, :3] = self.linear @ self.frame @ turn @ cubes @ self.frame.T
        worlds[:, :3, 3:] = self.target[:, None] - worlds[:, :3, :3] @ (self.center[:, None] + moved)
        return worlds
