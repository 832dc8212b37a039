"""Images whose true warp is known, because they are formulas and not arrays.

Points are (3, ...) voxel indices, order z, y, x; every warp maps *fixed* points to *moving* points.
"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from daskreg.grid import Grid

Array = NDArray[np.float64]
Image = NDArray[np.float32]
Labels = NDArray[np.uint16]
Shape = tuple[int, int, int]
Contrast = Callable[[Array], Array]

# --- textures ---------------------------------------------------------------------------------------------------------


def ellipsoid(points: Array, shape: Shape, fill: float = 0.9, rim: float = 0.25) -> Array:
    """A soft ellipsoid in the middle of the shape: 1 within, 0 outside, C2 across the rim; (...).

    fill: its half axes, as a part of half the shape;  rim: the part of the radius over which it falls to 0
    """
    center = (np.asarray(shape) - 1) / 2
    half = np.maximum(np.asarray(shape) / 2 * fill, 0.5)
    r = np.sqrt(sum(((points[a] - center[a]) / half[a]) ** 2 for a in range(3)))
    s = np.clip((1 - r) / rim, 0, 1)
    return s**3 * (10 - 15 * s + 6 * s * s)


def blobs(shape: Shape, seed: int = 0, finest: float = 1.5) -> Image:
    """Band-passed noise at three scales in an ellipsoid, float32 in [0, 1], background exactly 0, brightest voxel 1.

    finest: Gaussian sigma of the finest structures, voxels
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(shape)
    for sigma in finest * 2.0 ** np.arange(3):
        noise = rng.standard_normal(shape)
        band = gaussian_filter(noise, sigma) - gaussian_filter(noise, 1.6 * sigma)
        total += band / max(float(band.std()), 1e-12)
    body = ellipsoid(np.indices(shape).astype(float), shape) * np.clip(0.5 + 0.12 * total, 0.05, None)
    return np.asarray(body / max(float(body.max()), 1e-12), np.float32)


@dataclass(frozen=True)
class Texture:
    """``T(p) = ellipsoid(p) (1/2 + sum_k a_k cos(2 pi f_k . p + phase_k))``, in [0, 1] at any real point, 0 outside.

    shape: of the ellipsoid, voxels;  frequencies: (K, 3) cycles a voxel;  amplitudes, phases: (K,)
    """

    shape: Shape
    frequencies: Array
    amplitudes: Array
    phases: Array

    def __call__(self, points: Array) -> Array:
        """Values (...) at points (3, ...)."""
        flat = points.reshape(3, -1)
        out = np.empty(flat.shape[1])
        for start in range(0, out.size, 65536):  # a chunk of waves stays in the cache
            part = slice(start, start + 65536)
            waves = np.cos(2 * np.pi * (self.frequencies @ flat[:, part]) + self.phases[:, None])
            out[part] = self.amplitudes @ waves
        return ellipsoid(points, self.shape) * np.clip(0.5 + out.reshape(points.shape[1:]), 0, 1)


def texture(shape: Shape, seed: int = 0, waves: int = 48, finest: float = 8.0) -> Texture:
    """Waves in random directions, ``finest`` to half the longest axis long (voxels), the longer the stronger."""
    rng = np.random.default_rng(seed)
    lengths = np.geomspace(finest, max(finest, max(shape) / 2), waves)
    direction = rng.standard_normal((waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    weights = lengths**0.5
    # standard deviation 0.16 about 0.5: the clip to [0, 1] is met three sigma out, by one voxel in five hundred
    amplitudes = 0.16 * weights / math.sqrt(float((weights**2).sum()) / 2)
    return Texture(shape, direction / lengths[:, None], amplitudes, rng.uniform(0, 2 * np.pi, waves))


def non_monotonic(intensity: Array) -> Array:
    """Another modality: ``sin^2(1.2 pi I)``, 1 at 0.42, 0 again at 0.83. Background stays background, without a sharper rim."""
    return np.asarray(np.sin(1.2 * np.pi * intensity) ** 2)


# --- warps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Warp:
    """``phi(x) = x + sum_k a_k sin(k_k . x + phase_k)``, fixed to moving points, voxels: a diffeomorphism of all space.

    vectors: a_k (K, 3) voxels;  waves: k_k (K, 3) radians a voxel;  phases: (K,)
    """

    vectors: Array
    waves: Array
    phases: Array

    def __call__(self, points: Array) -> Array:
        """Moving points (3, ...) of fixed points (3, ...)."""
        return points + self.displacement(points)

    def displacement(self, points: Array) -> Array:
        """``phi(x) - x``, (3, ...)."""
        return np.asarray(np.tensordot(self.vectors.T, np.sin(self._phase(points)), 1))

    def field(self, shape: Shape) -> Array:
        """The displacement at every voxel, (3, Z, Y, X)."""
        return self.displacement(np.indices(shape).astype(float))

    def derivative(self, points: Array) -> Array:
        """``Du``, (..., 3, 3): component i by coordinate j."""
        return np.einsum("k...,ki,kj->...ij", np.cos(self._phase(points)), self.vectors, self.waves, optimize=True)

    def jacobian_determinant(self, points: Array) -> Array:
        """``det(I + Du)``, (...)."""
        return np.asarray(np.linalg.det(np.eye(3) + self.derivative(points)))

    def inverse(self, points: Array, tolerance: float = 1e-6) -> Array:
        """Fixed points (3, ...) of moving points (3, ...), by fixed-point iteration to ``tolerance`` voxels."""
        x = points - self.displacement(points)
        for _ in range(200):
            better = points - self.displacement(x)
            moved, x = float(np.abs(better - x).max()), better
            if moved < tolerance * 0.1:  # the error left is at most moved * q / (1 - q), q < 0.9 the contraction
                return x
        raise ValueError(f"the inverse still moves by {moved:.2g} voxels after 200 steps; take a smaller amplitude.")

    def _phase(self, points: Array) -> Array:
        return np.tensordot(self.waves, points, 1) + self.phases.reshape(-1, *[1] * (points.ndim - 1))


def smooth_field(shape: Shape, amplitude_voxels: float, sigma: float | None = None, seed: int = 0, terms: int = 6) -> Warp:
    """A random warp whose longest displacement over the shape's voxels is ``amplitude_voxels`` (Euclidean, within 1 %).

    sigma: voxels, wavelengths are 2 pi sigma times 1 to 1.6; a sixth of the longest axis when None
    Raises ValueError where so much displacement in so short a wave is no contraction, so that it may fold.
    """
    rng = np.random.default_rng(seed)
    sigma = max(shape) / 6 if sigma is None else sigma
    direction = rng.standard_normal((terms, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    waves = direction / (sigma * rng.uniform(1, 1.6, (terms, 1)))
    warp = Warp(rng.standard_normal((terms, 3)), waves, rng.uniform(0, 2 * np.pi, terms))
    points = _sparse_points(shape, min(2, math.ceil(sigma / 8)))
    longest = float(np.sqrt((warp.displacement(points) ** 2).sum(axis=0)).max())
    warp = replace(warp, vectors=warp.vectors * (amplitude_voxels / longest))
    steepest = float(np.sqrt((warp.derivative(_sparse_points(shape, math.ceil(max(shape) / 24))) ** 2).sum((-2, -1))).max())
    if steepest >= 0.9:
        raise ValueError(
            f"{amplitude_voxels} voxels in waves of sigma {sigma:.3g} voxels have a slope of {steepest:.2f}, under 0.9 was "
            f"expected; take sigma {sigma * steepest / 0.85:.3g} or an amplitude of {amplitude_voxels * 0.85 / steepest:.3g}."
        )
    return warp


def _sparse_points(shape: Shape, stride: int) -> Array:
    """Every ``stride``-th voxel and the last of each axis, (3, ...)."""
    axes = [np.unique(np.append(np.arange(0, n, stride), n - 1)).astype(float) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


# --- pairs with a truth -----------------------------------------------------------------------------------------------


def known_warp_pair(
    shape: Shape, amplitude: float, seed: int = 0, contrast: Contrast | None = None, sigma: float | None = None
) -> tuple[Image, Image, Warp]:
    """fixed, moving (Z, Y, X) float32 and the warp with ``contrast(fixed(x)) = moving(warp(x))`` at every real x.

    Both images are samples of one formula, so that no interpolation blurs the truth. amplitude, sigma: see ``smooth_field``;
    contrast: intensity in [0, 1] to the moving image's, identity when None
    """
    formula, warp = texture(shape, seed), smooth_field(shape, amplitude, sigma, seed + 1)
    grid = np.indices(shape).astype(float)
    fixed, moving = formula(warp(grid)), formula(grid)
    return np.asarray(fixed, np.float32), np.asarray(moving if contrast is None else contrast(moving), np.float32), warp


def unrelated_contrasts(shape: Shape, seed: int = 0, regions: int = 180) -> tuple[Image, Image, Array]:
    """fixed, moving (Z, Y, X) float32 and the rigid map (4, 4), fixed to moving voxels, of one set of regions.

    Each region has one of four intensities in either image, drawn independently. The moving image also has a multiplicative bias
    along z, and is inverted in half of the volume. Edges are all that both images share; regions fill the field of view.
    """
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-8, np.asarray(shape) + 8.0, (regions, 3))
    first, second = np.linspace(0.2, 0.9, 4)[rng.integers(4, size=(2, regions))]
    grid, middle = np.indices(shape).astype(float), (np.asarray(shape) - 1) / 2
    truth = np.eye(4)
    truth[:3, :3] = rotation((3, -4, 5))
    truth[:3, 3] = middle - truth[:3, :3] @ middle + (1.5, -2, 2.5)
    points = np.tensordot(truth[:3, :3], grid, 1) + truth[:3, 3].reshape(3, 1, 1, 1)
    fixed, moving = (
        values[np.argmin([((p - c.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) for c in centers], axis=0)]
        for values, p in ((first, points), (second, grid))
    )
    z, _, x = grid / np.reshape(shape, (3, 1, 1, 1))
    moving = np.where(x > 0.5, 1.1 - moving, moving) * (0.6 + 0.8 * z)
    return *(np.asarray(gaussian_filter(a, 0.7), np.float32) for a in (fixed, moving)), truth


def body_mask(shape: Shape, warp: Warp | None = None) -> NDArray[np.bool_]:
    """Where a ``known_warp_pair``'s fixed image has texture at full contrast, (Z, Y, X)."""
    grid = np.indices(shape).astype(float)
    return ellipsoid(grid if warp is None else warp(grid), shape) > 0.999


def target_registration_error(u: NDArray[np.floating], warp: Warp, mask: NDArray[np.bool_] | None = None) -> Array:
    """``|x + u(x) - warp(x)|`` in voxels at the voxels of ``mask`` (all when None), (n,); take its mean, maximum, quantile.

    u: (3, Z, Y, X) voxels, fixed to moving
    """
    error = np.sqrt(((u - warp.field(u.shape[1:])) ** 2).sum(axis=0))
    return np.asarray(error.ravel() if mask is None else error[mask], float)


@dataclass(frozen=True)
class LabelFormula:
    """Disjoint regions at any real point: the nearest of K centres, inside the ellipsoid of the shape; 0 outside, else 1 .. K."""

    shape: Shape
    centers: Array

    def __call__(self, points: Array) -> Labels:
        """Labels (...) at points (3, ...)."""
        distance = np.stack([((points - c.reshape(3, *[1] * (points.ndim - 1))) ** 2).sum(axis=0) for c in self.centers])
        return np.where(ellipsoid(points, self.shape) > 0.5, distance.argmin(axis=0) + 1, 0).astype(np.uint16)


def label_pair(shape: Shape, warp: Warp, count: int = 6, seed: int = 0) -> tuple[Labels, Labels]:
    """fixed and moving labels with ``fixed(x) = moving(warp(x))``, 0 outside and 1 .. count inside."""
    rng = np.random.default_rng(seed)
    middle = (np.asarray(shape) - 1) / 2
    formula = LabelFormula(shape, middle + rng.uniform(-0.3, 0.3, (count, 3)) * np.asarray(shape))
    grid = np.indices(shape).astype(float)
    return formula(warp(grid)), formula(grid)


# --- the same image, stored otherwise ---------------------------------------------------------------------------------


def rotation(angles: ArrayLike) -> Array:
    """Rotation matrix (3, 3) by angles in degrees about the z, then y, then x axis, components z, y, x."""
    total = np.eye(3)
    for axis, angle in enumerate(np.radians(np.asarray(angles, float))):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
        total = turn @ total
    return total


def oblique_grid(
    array: NDArray[np.generic],
    grid: Grid,
    order: tuple[int, int, int] = (2, 0, 1),
    flip: tuple[bool, bool, bool] = (True, False, True),
) -> tuple[NDArray[np.generic], Grid]:
    """The same physical image with its axes in another order and some of them reversed: every voxel keeps its world position.

    array: (Z, Y, X);  order: new axis i is old axis ``order[i]``;  flip: which of the *new* axes are then reversed
    """
    stored = np.flip(array.transpose(order), tuple(i for i in range(3) if flip[i]))
    sign = np.where(flip, -1.0, 1.0)
    old_index = np.zeros(3)  # of the new voxel 0
    old_index[list(order)] = np.where(flip, np.asarray(stored.shape) - 1, 0)
    direction = np.asarray(grid.direction)[:, list(order)] * sign
    return np.ascontiguousarray(stored), replace(
        grid,
        shape=stored.shape,
        spacing=tuple(grid.spacing[k] for k in order),  # type: ignore[arg-type]
        origin=tuple(grid.to_world(old_index)),
        direction=tuple(map(tuple, direction)),  # type: ignore[arg-type]
    )


def turned(grid: Grid, angles: ArrayLike) -> Grid:
    """The grid rotated about its own centre by angles in degrees (z, y, x): the same array becomes a turned object."""
    r = rotation(angles)
    origin = grid.center + r @ (np.asarray(grid.origin) - grid.center)
    direction = r @ np.asarray(grid.direction)
    return replace(grid, origin=tuple(origin), direction=tuple(map(tuple, direction)))  # type: ignore[arg-type]
