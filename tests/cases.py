"""Arguments for every kernel, on volumes awkward enough to matter: odd sizes, halo planes, far indices, points out of the image.

``CASES[name]()`` is ``(shape, *arguments)``, made afresh because kernels write to their arguments; a name is the kernel's, or
that, a space and what is special. The parity tests and the check that all kernels compile for a GPU go through this table, so a
kernel without a case fails both.
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
INNER = (range(HALO, HALO + SHAPE[0]), *SHAPE[1:])  # the block's planes in arrays of the shape TALL
SHARD = range(2, 5)  # planes of the moving image that another rank sends
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


def kernel_of(name: str) -> Kernel:
    """The kernel that a case is for."""
    return kernels()[name.partition(" ")[0]]


def place(halo: int = 0) -> tuple[Any, ...]:
    """first, affine, linear of a block far up the z axis, whose points still meet the image; its arrays begin with a halo."""
    matrix = MATRIX.copy()
    matrix[:3, 3] -= matrix[:3, 0] * FIRST
    return FIRST - halo, fixed_point(matrix), linear_part(matrix)


def tall() -> tuple[Any, ...]:
    """The same points with the block's first plane behind a halo; displacements that are NaN where nothing may read them."""
    u = vectors(*TALL, size=3)
    u[:, :HALO] = u[:, -HALO:] = np.nan
    return *place(HALO), u


def shard(whole: NDArray[Any]) -> tuple[int, NDArray[Any]]:
    """Number of the first plane and the planes of a part of the moving image."""
    return SHARD.start, np.ascontiguousarray(whole[SHARD.start : SHARD.stop])


# --- sampling ---------------------------------------------------------------------------------------------------------


@case
def sample() -> Case:
    return INNER, *tall(), 0, OTHER[0], image(*OTHER), empty(*TALL)


@case
def sample_nearest() -> Case:
    return SHAPE, *place(), vectors(*SHAPE, size=3), image(*OTHER), empty(*SHAPE)


@case
def sample_label() -> Case:
    labels = (image(*OTHER) * 4).astype(np.uint16)
    return SHAPE, *place(), vectors(*SHAPE, size=3), labels, np.zeros(SHAPE, np.uint16)


@case
def weigh() -> Case:
    return INNER, *tall(), 0, weights(*TALL), weights(*OTHER), empty(*TALL)


@case
def pull_back() -> Case:
    return INNER, *tall(), 0, image(*OTHER), image(*TALL, seed=5) - np.float32(0.5), empty(3, *TALL)


@case
def affine_sums() -> Case:
    return INNER, *tall(), 0, image(*OTHER), image(*TALL, seed=5) - np.float32(0.5)


@case
def outline() -> Case:
    return INNER, *tall(), OTHER[0], image(*OTHER), empty(*TALL)


@case
def add_value() -> Case:
    return INNER, *tall(), *shard(image(*OTHER)), moved(*TALL)


@case
def add_value_and_gradient() -> Case:
    return INNER, *tall(), *shard(image(*OTHER)), moved(*TALL), vectors(*TALL, seed=10)


@case
def turn() -> Case:
    return INNER, linear_part(MATRIX), image(*TALL, seed=5) - np.float32(0.5), vectors(*TALL)


@case
def gradient_sums() -> Case:
    return INNER, image(*TALL, seed=5) - np.float32(0.5), vectors(*TALL)


@case
def span() -> Case:
    return INNER, *tall()


def at_rest(name: str, u: int = 4) -> Callable[[], Case]:
    """The case of a sampling kernel without displacement: None at argument ``u``."""
    return lambda: (lambda made: (*made[:u], None, *made[u + 1 :]))(CASES[name]())


RESTING = ("sample", "weigh", "affine_sums", "outline", "add_value", "add_value_and_gradient", "span")
CASES |= {f"{name} at rest": at_rest(name) for name in RESTING}


def sample_window() -> Case:
    """Points at planes 2.05 to 3.85 of the moving image, of which three planes are here."""
    matrix = MATRIX.copy()
    matrix[0] = 0.3, 0, 0, 2.05 - 0.3 * HALO
    origin, near = shard(image(*OTHER))
    return INNER, 0, fixed_point(matrix), linear_part(matrix), None, origin, OTHER[0], near, empty(*TALL)


CASES["sample of a window"] = sample_window


# --- whole transforms -------------------------------------------------------------------------------------------------


@case
def sample_cubic() -> Case:
    return SHAPE, *place(), vectors(*SHAPE, size=3), image(*OTHER), empty(*SHAPE)


@case
def sample_field() -> Case:
    return SHAPE, fixed_point(MATRIX), linear_part(MATRIX), vectors(*SHAPE, size=3), vectors(*OTHER, seed=6), empty(3, *SHAPE)


@case
def invert() -> Case:
    """The block's first voxel lies before the field's grid, and its last one beyond it."""
    u = vectors(*SHAPE, size=0.2)
    at, first, size = (np.array(v, np.int32) for v in ((-3, 9, 6), (0, 0, 0), SHAPE))
    return SHAPE, at, first, size, np.array([0], np.float32), 30, 2, u, empty(3, *SHAPE), empty(*SHAPE)


# --- similarities -----------------------------------------------------------------------------------------------------


@case
def difference() -> Case:
    return INNER, image(*TALL), weights(*TALL), moved(*TALL)


@case
def lncc_factors() -> Case:
    return INNER, 2, EPSILON, FLAT, image(*TALL), weights(*TALL), moved(*TALL), empty(3, *TALL)


@case
def lncc_slope() -> Case:
    return INNER, 2, vectors(*TALL), image(*TALL), weights(*TALL), moved(*TALL)


@case
def joint_histogram() -> Case:
    return INNER, np.zeros((1, BINS, BINS), np.int64), image(*TALL), weights(*TALL), moved(*TALL)


@case
def information_slope() -> Case:
    return INNER, image(BINS, BINS, seed=6) - np.float32(0.5), image(*TALL), weights(*TALL), moved(*TALL)


@case
def intensity_histogram() -> Case:
    return SHAPE, np.zeros((1, BINS), np.int64), np.float32(0.1), np.float32(0.8 / BINS), image(*SHAPE)


# --- filters ----------------------------------------------------------------------------------------------------------


@case
def smooth_z() -> Case:
    return INNER, gaussian_table(20, 1.0)[-TALL[0] :], gaussian_weights(1.0), vectors(*TALL), empty(3, *TALL)


@case
def smooth_y() -> Case:
    return INNER, gaussian_table(SHAPE[1], 1.0), gaussian_weights(1.0), vectors(*TALL), empty(3, *TALL)


@case
def smooth_x() -> Case:
    return INNER, 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), vectors(*TALL), empty(3, *TALL)


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
    moments = vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8))
    return (INNER, 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), rates(3), vectors(*TALL), *moments,
            empty(3, *TALL))  # fmt: skip


@case
def compose() -> Case:
    """Planes 4 to 10, the last, of a grid, with two planes before them and none behind."""
    shape = (HALO + SHAPE[0], *SHAPE[1:])
    u, d = vectors(*shape, size=4), vectors(*shape, seed=9)
    return INNER, 2, 11, np.array([0.9], np.float32), d, u, empty(3, *shape)


@case
def upsample() -> Case:
    """Planes 7 to 13, the last, of a grid whose coarse one has 7, of which the last four are here."""
    fine, coarse = np.array([1, 2, 1], np.int32), np.array([2, 3, 1], np.int32)
    return INNER, 5, 3, 7, fine, coarse, np.array([2, 1.5, 1], np.float32), vectors(4, 6, 9), empty(3, *TALL)


@case
def jacobian() -> Case:
    return SHAPE, HALO, vectors(*TALL, size=0.4), empty(*SHAPE)
