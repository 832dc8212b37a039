"""Runs made by hand: an oblique, anisotropic fixed grid, a smooth warp, a general affine."""

import numpy as np

from daskreg.grid import Grid
from daskreg.storage import RunStore
from tests.phantoms import rotation, smooth_field

FIXED = Grid((30, 36, 41), (2.0, 1.5, 1.0), (-20.0, -25.0, 12.0), tuple(map(tuple, rotation((6, -11, 17)))), "mm", True)
MOVING = Grid((38, 33, 44), (1.5, 1.7, 1.2), (-21.0, -27.0, 6.0), tuple(map(tuple, rotation((-17, 6, 11)))), "mm", True)
FIELD = "transform/displacement"


def affine():
    """About the middle of the fixed grid, shift in world units."""
    m = np.eye(4)
    m[:3, :3] = rotation((3, 6, -5)) @ np.diag([1.05, 0.95, 1.0])
    m[:3, 3] = FIXED.center - m[:3, :3] @ FIXED.center + [1.3, -2.1, 0.7]
    return m


def displacement(grid=FIXED, voxels=2.5):
    """(3, Z, Y, X) float32, world units, about ``voxels`` at its most."""
    u = smooth_field(grid.shape, voxels, seed=3).field(grid.shape)
    return np.einsum("rc,czyx->rzyx", grid.index_to_world[:3, :3], u).astype(np.float32)


def make_run(path, matrix=None, field=None, fixed=FIXED, moving=MOVING, finish=True):
    run = RunStore.create(path, fixed=fixed, moving=moving)
    run.set_affine(np.eye(4) if matrix is None else matrix)
    if field is not None:
        run.create_image(FIELD, fixed, components=3)
        run.write(FIELD, fixed.region, field)
    if finish:
        run.finish({})
    return run


def trilinear_by_hand(image, at):
    """Float64 oracle, corners outside count 0; at: (..., 3) voxel indices."""
    low = np.floor(at).astype(int)
    total = np.zeros(at.shape[:-1])
    for corner in np.ndindex(2, 2, 2):
        k = low + corner
        inside = ((k >= 0) & (k < image.shape)).all(axis=-1)
        k = np.clip(k, 0, np.array(image.shape) - 1)
        total += np.where(inside, image[tuple(np.moveaxis(k, -1, 0))], 0) * np.prod(1 - np.abs(at - low - corner), axis=-1)
    return total
