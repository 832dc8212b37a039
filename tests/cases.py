"""Arguments for every kernel, on volumes awkward enough to matter: odd sizes, halo planes, far indices, points out of the image.

``CASES[name]()`` is ``(shape, *arguments)``, made afresh because kernels write to their arguments. The parity tests and the check
that all kernels compile for a GPU go through this table, so a kernel without a case fails both.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import daskreg.kernels
from daskreg.kernels.gaussian import gaussian_table, gaussian_weights, shrink_table
from daskreg.kernels.launch import KERNELS, Kernel
from daskreg.transforms.linear import fixed_point, linear_part

Array = NDArray[np.float32]
Case = tuple[Any, ...]

SHAPE = (7, 8, 9)
OTHER = (6, 9, 8)  # the moving image's
HALO = 2  # planes before and behind the block
TALL = (SHAPE[0] + 2 * HALO, *SHAPE[1:])
FIRST = 30_000  # global plane of the block's first, where the sampler must still be exact
BINS = 16
EPSILON, FLAT = np.float32(1e-5), np.float32(0.08)  # of local correlation; noise has variance 1/12, so some windows are flat
# no point falls on a plane of voxels, where the gradient jumps
MATRIX = np.array(
    [[0.9137, 0.1071, -0.2113, 0.8171], [0.1533, 1.1019, 0.0517, -1.3391], [-0.1097, 0.2039, 0.8513, 0.4177], [0, 0, 0, 1]]
)

CASES: dict[str, Callable[[], Case]] = {}


def kernels() -> dict[str, Kernel]:
    """Every kernel of the package, by name: importing the modules registers them."""
    for module in pkgutil.iter_modules(daskreg.kernels.__path__):
        importlib.import_module(f"daskreg.kernels.{module.name}")
    return dict(KERNELS)


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    """Enter the case of the kernel that has the function's name."""
    CASES[function.__name__] = function
    return function


def image(*shape: int, seed: int = 0) -> Array:
    """Intensities in [0, 1)."""
    return np.random.default_rng(seed).random(shape, np.float32)


def moved(*shape: int) -> Array:
    """Intensities, one voxel in eight out of domain."""
    values = image(*shape, seed=1)
    values[image(*shape, seed=2) < 0.125] = np.nan
    return values


def weights(*shape: int) -> Array:
    """A soft mask, a quarter of it zero."""
    return np.clip(image(*shape, seed=3) * 4 / 3 - 1 / 3, 0, 1)


def vectors(*shape: int, size: float = 1.0, seed: int = 4) -> Array:
    """A field (3, Z, Y, X) with components within ``size``."""
    return (image(3, *shape, seed=seed) * 2 - 1) * np.float32(size)


def empty(*shape: int) -> Array:
    """An output."""
    return np.zeros(shape, np.float32)


def rates(t: int, epsilon: float = 1e-8) -> Array:
    """Adam's decays 0.9 and 0.99, their bias corrections in step t, and epsilon."""
    return np.array([0.9, 0.99, 1 / (1 - 0.9**t), 1 / (1 - 0.99**t), epsilon], np.float32)


def place() -> tuple[Any, ...]:
    """first, affine, linear of a block far up the z axis, whose points still meet the image."""
    matrix = MATRIX.copy()
    matrix[:3, 3] -= matrix[:3, 0] * FIRST
    return FIRST, fixed_point(matrix), linear_part(matrix)


# --- sampling ---------------------------------------------------------------------------------------------------------


@case
def sample() -> Case:
    return SHAPE, *place(), vectors(*SHAPE, size=3), image(*OTHER), empty(*SHAPE)


@case
def sample_nearest() -> Case:
    return SHAPE, *place(), vectors(*SHAPE, size=3), image(*OTHER), empty(*SHAPE)


@case
def sample_label() -> Case:
    labels = (image(*OTHER) * 4).astype(np.uint16)
    return SHAPE, *place(), vectors(*SHAPE, size=3), labels, np.zeros(SHAPE, np.uint16)


@case
def weigh() -> Case:
    return SHAPE, *place(), vectors(*SHAPE, size=3), weights(*SHAPE), weights(*OTHER), empty(*SHAPE)


@case
def pull_back() -> Case:
    return SHAPE, *place(), vectors(*SHAPE, size=3), image(*OTHER), image(*SHAPE, seed=5) - np.float32(0.5), empty(3, *SHAPE)


@case
def sample_affine() -> Case:
    return SHAPE, *place()[:2], image(*OTHER), empty(*SHAPE)


@case
def weigh_affine() -> Case:
    return SHAPE, *place()[:2], weights(*SHAPE), weights(*OTHER), empty(*SHAPE)


@case
def affine_sums() -> Case:
    return SHAPE, *place()[:2], image(*OTHER), image(*SHAPE, seed=5) - np.float32(0.5)


# --- similarities -----------------------------------------------------------------------------------------------------


@case
def difference() -> Case:
    return SHAPE, image(*SHAPE), weights(*SHAPE), moved(*SHAPE)


@case
def lncc_factors() -> Case:
    return SHAPE, HALO, 2, EPSILON, FLAT, image(*TALL), weights(*TALL), moved(*TALL), empty(3, *SHAPE)


@case
def lncc_slope() -> Case:
    return SHAPE, HALO, 2, vectors(*TALL), image(*SHAPE), weights(*SHAPE), moved(*SHAPE)


@case
def joint_histogram() -> Case:
    return SHAPE, np.zeros((1, BINS, BINS), np.int64), image(*SHAPE), weights(*SHAPE), moved(*SHAPE)


@case
def information_slope() -> Case:
    return SHAPE, image(BINS, BINS, seed=6) - np.float32(0.5), image(*SHAPE), weights(*SHAPE), moved(*SHAPE)


@case
def intensity_histogram() -> Case:
    return SHAPE, np.zeros((1, BINS), np.int64), np.float32(0.1), np.float32(0.8 / BINS), image(*SHAPE)


# --- filters ----------------------------------------------------------------------------------------------------------


@case
def smooth_z() -> Case:
    table = gaussian_table(TALL[0], 1.0)[HALO:-HALO]
    return SHAPE, HALO, table, gaussian_weights(1.0), vectors(*TALL), empty(3, *SHAPE)


@case
def smooth_y() -> Case:
    return SHAPE, gaussian_table(SHAPE[1], 1.0), gaussian_weights(1.0), vectors(*SHAPE), empty(3, *SHAPE)


@case
def smooth_x() -> Case:
    return SHAPE, 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), vectors(*SHAPE), empty(3, *SHAPE)


@case
def shrink_z() -> Case:
    return (4, 8, 9), 0, *shrink_table(7, 2), image(*SHAPE), empty(4, 8, 9)


@case
def shrink_y() -> Case:
    return (7, 4, 9), *shrink_table(8, 2), image(*SHAPE), empty(7, 4, 9)


@case
def shrink_x() -> Case:
    return (7, 8, 5), *shrink_table(9, 2), image(*SHAPE), empty(7, 8, 5)


# --- the deformable step ----------------------------------------------------------------------------------------------


@case
def adam() -> Case:
    moments = vectors(*SHAPE, seed=7), np.square(vectors(*SHAPE, seed=8))
    return (SHAPE, 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), rates(3), vectors(*SHAPE), *moments,
            empty(3, *SHAPE))  # fmt: skip


@case
def compose() -> Case:
    """A block whose first plane is 2 of a grid of 10, and u from plane 1 to the end."""
    u = vectors(SHAPE[0] + 2, *SHAPE[1:], size=4)
    return SHAPE, 2, SHAPE[0] + 3, 1, np.array([0.9], np.float32), vectors(*SHAPE, seed=9), u, empty(3, *SHAPE)


@case
def upsample() -> Case:
    fine, coarse = np.array([1, 2, 1], np.int32), np.array([2, 3, 1], np.int32)
    return SHAPE, 0, fine, coarse, np.array([2, 1.5, 1], np.float32), vectors(4, 6, 9), empty(3, *SHAPE)


@case
def jacobian() -> Case:
    return SHAPE, HALO, vectors(*TALL, size=0.4), empty(*SHAPE)
