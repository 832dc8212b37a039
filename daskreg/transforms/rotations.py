"""Sets of rotations and scales that a global search tries."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

GRID_SPACING = 0.168  # Rodrigues parameter: with it the grid's covering radius is least, 20.9 degrees
MIRROR = np.diag([1.0, 1.0, -1.0])
Matrix = NDArray[np.float64]


def candidate_rotations(choice: str, flips: bool) -> list[Matrix]:
    """The rotations (3, 3) of a choice of ``Search.rotations``, the identity first; with mirror images twice as many."""
    found = {"none": _identity, "right-angles": right_angle_rotations, "fine": rotation_grid}[choice]()
    return found + [r @ MIRROR for r in found] if flips else found


def _identity() -> list[Matrix]:
    return [np.eye(3)]


def right_angle_rotations() -> list[Matrix]:
    """The 24 rotations of a cube, exactly, the identity first."""
    signed = [
        np.diag(s) @ np.eye(3)[list(p)]
        for p in itertools.permutations(range(3))
        for s in itertools.product((1.0, -1.0), repeat=3)
    ]
    return sorted((m for m in signed if np.linalg.det(m) > 0), key=lambda m: -float(np.trace(m)))


def rotation_grid() -> list[Matrix]:
    """648 rotations such that none is further than 21 degrees from one of them; the 24 right-angle rotations come first.

    Each right-angle rotation is followed by one of the 27 points of a body-centred cubic lattice of Rodrigues vectors around the
    identity, after Karney, *Quaternions in molecular modeling*, J. Mol. Graph. Model. 25 (2007), arXiv
    physics/0506177. Balls of a radius of 17.6 degrees around 648 rotations have the volume of the whole group, so no set of
    this size can do with less.
    """
    return list(_rotation_grid())


@cache
def _rotation_grid() -> tuple[Matrix, ...]:
    cubes = right_angle_rotations()
    return tuple(local @ cube for local in local_rotations() for cube in cubes)


def local_rotations() -> list[Matrix]:
    """The 27 rotations of the lattice points within the cell of the identity, nearest first."""
    lattice = [k for k in itertools.product(range(-2, 3), repeat=3) if len({v % 2 for v in k}) == 1 and sum(map(abs, k)) < 6]
    lattice.sort(key=lambda k: sum(v * v for v in k))
    return [np.asarray(Rotation.from_quat([*(GRID_SPACING * np.array(k)), 1.0]).as_matrix()) for k in lattice]


def between_rotations() -> Matrix:
    """The rotation that moves the points of the lattice of ``local_rotations`` to the middles of its holes."""
    hole = GRID_SPACING * np.array([1.0, 0.5, 0.0])
    return np.asarray(Rotation.from_quat([*hole, 1.0]).as_matrix())


def scales(largest: float) -> list[float]:
    """Sizes to try so that none up to ``largest`` times larger or smaller is further than about 15 % from one; 1 first."""
    steps = math.ceil(math.log(largest) / math.log(1.45))
    step = largest ** (0.85 / max(steps, 1))
    return [1.0, *itertools.chain.from_iterable((step**k, step**-k) for k in range(1, steps + 1))]
