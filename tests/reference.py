"""The slow oracle: what daskreg computes, in float64 NumPy, written from the mathematics and from nothing in the package.

Arrays are (Z, Y, X) float64, vectors (3, Z, Y, X) with components z, y, x, coordinates are voxel indices, weights ``w`` are
soft masks (Z, Y, X) held constant in every gradient. Each similarity returns the *loss*, which is to be made small.
Nothing here is fast or blocked, and that is its worth: there is only one order in which the sums can be taken.
"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Range = tuple[float, float]
Shape = tuple[int, int, int]

# --- where things are -------------------------------------------------------------------------------------------------


def voxel_indices(shape: Shape) -> Array:
    """``x``: the index of every voxel, (3, Z, Y, X)."""
    return np.indices(shape).astype(float)


def linear(matrix: ArrayLike, vectors: Array) -> Array:
    """``matrix @ v`` at every voxel; matrix (3, 3), vectors (3, ...)."""
    return np.einsum("ij,j...->i...", np.asarray(matrix, float), vectors)


def sampling_points(shape: Shape, affine: ArrayLike, s: ArrayLike | None = None, u: Array | None = None) -> Array:
    """``p(x) = A x + t + S u(x)`` in moving voxel indices, (3, Z, Y, X).

    affine: (3, 4), columns ``A | t``;  s: (3, 3), A when None;  u: (3, Z, Y, X) fixed voxels, zero when None
    """
    affine = np.asarray(affine, float)
    p = linear(affine[:, :3], voxel_indices(shape)) + affine[:, 3].reshape(3, 1, 1, 1)
    return p if u is None else p + linear(affine[:, :3] if s is None else s, u)


# --- sampling ---------------------------------------------------------------------------------------------------------


def trilinear(image: Array, p: Array) -> tuple[Array, Array, Mask]:
    """Value, gradient and domain of ``image`` at ``p``; beyond the faces of the image the nearest voxel counts.

    image: (Z, Y, X);  p: (3, ...) voxel indices
    Returns value (...), gradient (3, ...) per voxel, and where p lies between the outermost voxel centres (within the voxel's
    extent along an axis of one voxel) (...). On a plane of voxels the gradient is that of the cell behind it (larger index).
    """
    n = np.asarray(image.shape).reshape(3, *[1] * (p.ndim - 1))
    margin = np.where(n == 1, 0.5, 0)
    inside = ((p >= -margin) & (p <= n - 1 + margin)).all(axis=0)
    p = np.clip(p, -2, n + 1)  # farther out nothing changes, and the whole part fits an integer
    base = np.floor(p).astype(int)
    f = p - base
    value, gradient = np.zeros(p.shape[1:]), np.zeros(p.shape)
    for corner in itertools.product((0, 1), repeat=3):
        index = np.clip(base + np.reshape(corner, n.shape), 0, n - 1)
        voxel = image[tuple(index)]
        weight = [f[a] if corner[a] else 1 - f[a] for a in range(3)]
        value += voxel * weight[0] * weight[1] * weight[2]
        for a in range(3):
            gradient[a] += voxel * (1 if corner[a] else -1) * weight[(a + 1) % 3] * weight[(a + 2) % 3]
    return value, gradient, inside


def least_weight(mask: Array, p: Array) -> Array:
    """The least mask (...) of the corners that have a weight in the trilinear value at p (3, ...)."""
    base, n = np.floor(p).astype(int), np.reshape(mask.shape, (3, *[1] * (p.ndim - 1)))
    least = np.ones(p.shape[1:])
    for corner in itertools.product((0, 1), repeat=3):
        index = np.clip(base + np.reshape(corner, n.shape), 0, n - 1)
        counts = np.all([p[a] > base[a] if corner[a] else np.ones(p.shape[1:], bool) for a in range(3)], axis=0)
        least = np.where(counts, np.minimum(least, mask[tuple(index)]), least)
    return least


def scatter(g: Array, p: Array, shape: Shape) -> Array:
    """``dC/dM`` (shape) from ``g = dC/dmoved`` (...) and ``p`` (3, ...): the transpose of ``trilinear``."""
    out = np.zeros(shape)
    base = np.floor(p).astype(int)
    f = p - base
    for corner in itertools.product((0, 1), repeat=3):
        index = [base[a] + corner[a] for a in range(3)]
        weight = math.prod(f[a] if corner[a] else 1 - f[a] for a in range(3))
        there = np.logical_and.reduce([(i >= 0) & (i < n) for i, n in zip(index, shape, strict=True)])
        np.add.at(out, tuple(i[there] for i in index), (g * weight)[there])
    return out


def compose(u: Array, d: Array) -> Array:
    """``(u o d)(x) = d(x) + u(x + d(x))``, u looked up at ``x + d`` clamped to the grid; both (3, Z, Y, X) voxels."""
    shape = d.shape[1:]
    last = np.reshape([n - 1 for n in u.shape[1:]], (3, 1, 1, 1))
    p = np.clip(np.indices(shape) + d, 0, last)
    return d + np.stack([trilinear(component, p)[0] for component in u])


def displacement_gradient(g: Array, grad_m: Array, s: ArrayLike) -> Array:
    """``dC/du = S^T (g grad M)``, (3, Z, Y, X);  g: dC/dmoved (Z, Y, X);  grad_m: (3, Z, Y, X) at p;  s: (3, 3)."""
    return linear(np.asarray(s, float).T, g * grad_m)


def affine_gradient(g: Array, grad_m: Array, u: Array | None = None, tied: bool = True) -> Array:
    """``dC/d(A | t)``, (3, 4): ``sum g grad M (x + u)^T`` where S = A is tied, ``sum g grad M x^T`` where S is held fixed.

    g: dC/dmoved (Z, Y, X);  grad_m: (3, Z, Y, X) at p;  u: (3, Z, Y, X) fixed voxels, zero when None
    """
    x = np.indices(g.shape) + (u if tied and u is not None else 0.0)
    push = g * grad_m
    return np.column_stack([np.einsum("izyx,jzyx->ij", push, x), push.sum(axis=(1, 2, 3))])


# --- similarities -----------------------------------------------------------------------------------------------------


def _double(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    return np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(c, np.float64)


def mse(fixed: Array, moved: Array, w: Array) -> float:
    """``sum w (F - moved)^2 / sum w``."""
    fixed, moved, w = _double(fixed, moved, w)
    return float((w * (fixed - moved) ** 2).sum() / w.sum())


def mse_gradient(fixed: Array, moved: Array, w: Array) -> Array:
    """``dC/dmoved``, (Z, Y, X)."""
    fixed, moved, w = _double(fixed, moved, w)
    return 2 * w * (moved - fixed) / w.sum()


def box_sum(a: Array, radius: int) -> Array:
    """Sum over the window ``|offset| <= radius`` of every voxel, zero outside the array."""
    for axis, n in enumerate(a.shape):
        band = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= radius
        a = np.moveaxis(np.tensordot(band.astype(float), a, (1, axis)), 0, axis)
    return a


def _lncc_terms(
    fixed: Array, moved: Array, w: Array, radius: int, eps: float, noise: float = 0.0
) -> tuple[Array, Array, Array, Array, Array]:
    """cc, D, K, mu_F, mu_M of the method, all (Z, Y, X); the first three times v / (v + noise^2), v the variance of F."""
    volume = box_sum(w, radius)

    def mean(q: Array) -> Array:
        total = box_sum(w * q, radius)
        return np.divide(total, volume, out=np.zeros_like(total), where=volume > 0)

    mu_f, mu_m = mean(fixed), mean(moved)
    a = volume * (mean(fixed * moved) - mu_f * mu_m)
    b = np.maximum(volume * (mean(moved * moved) - mu_m**2), 0)
    c = np.maximum(volume * (mean(fixed * fixed) - mu_f**2), 0)
    share = c / (c + volume * noise**2) if noise else 1.0
    d = share * 2 * a * w / (b * c + eps)
    return share * a**2 / (b * c + eps), d, d * a * c / (b * c + eps), mu_f, mu_m


def lncc(fixed: Array, moved: Array, w: Array, radius: int = 2, eps: float = 1e-5, noise: float = 0.0) -> float:
    """``-sum w cc / sum w`` with ``cc = a^2 / (b c + eps)`` over windows of ``(2 radius + 1)^3`` voxels, see ``_lncc_terms``."""
    fixed, moved, w = _double(fixed, moved, w)
    cc = _lncc_terms(fixed, moved, w, radius, eps, noise)[0]
    return float(-(w * cc).sum() / w.sum())


def lncc_gradient(
    fixed: Array, moved: Array, w: Array, radius: int = 2, eps: float = 1e-5, gradient: str = "exact", noise: float = 0.0
) -> Array:
    """``dC/dmoved``, (Z, Y, X): of every window that holds the voxel ("exact"), or of its own window only ("center")."""
    fixed, moved, w = _double(fixed, moved, w)
    _, d, k, mu_f, mu_m = _lncc_terms(fixed, moved, w, radius, eps, noise)
    if gradient == "center":
        return -w / w.sum() * (d * (fixed - mu_f) - k * (moved - mu_m))
    if gradient != "exact":
        raise ValueError(f"gradient {gradient!r} is unknown; use 'exact' or 'center'.")
    sums = fixed * box_sum(d, radius) - moved * box_sum(k, radius) + box_sum(k * mu_m - d * mu_f, radius)
    return -w / w.sum() * sums


def cubic_b_spline(r: Array) -> Array:
    """``B3(r)``: support ``|r| < 2``, unit sum over the integers."""
    r = np.abs(r)
    return np.where(r < 1, 2 / 3 - r**2 + r**3 / 2, np.where(r < 2, (2 - r) ** 3 / 6, 0.0))


def cubic_b_spline_slope(r: Array) -> Array:
    """``dB3/dr``."""
    s = np.abs(r)
    return np.sign(r) * np.where(s < 1, -2 * s + 1.5 * s**2, np.where(s < 2, -((2 - s) ** 2) / 2, 0.0))


def bin_coordinate(intensity: Array, bins: int, limits: Range) -> Array:
    """``c = 2 + clip((I - lo) / (hi - lo), 0, 1) (B - 5)``, in [2, B - 3]: a cubic B-spline there touches bins 1 to B - 1."""
    lo, hi = limits
    return 2 + np.clip((intensity - lo) / (hi - lo), 0, 1) * (bins - 5)


def parzen(intensity: Array, bins: int, limits: Range) -> Array:
    """``w_b(I) = B3(c - b)``, (B, ...); sums to one over b at every intensity."""
    return cubic_b_spline(bin_coordinate(intensity, bins, limits) - _bin_axis(bins, intensity.ndim))


def parzen_slope(intensity: Array, bins: int, limits: Range) -> Array:
    """``dw_b/dI``, (B, ...), bins per unit of intensity; 0 where the intensity lies outside the limits (they are inside)."""
    lo, hi = limits
    slope = cubic_b_spline_slope(bin_coordinate(intensity, bins, limits) - _bin_axis(bins, intensity.ndim))
    return slope * (bins - 5) / (hi - lo) * ((intensity >= lo) & (intensity <= hi))


def _bin_axis(bins: int, ndim: int) -> Array:
    return np.arange(bins, dtype=float).reshape(bins, *[1] * ndim)


def joint_histogram(fixed: Array, moved: Array, w: Array, bins: int, range_f: Range, range_m: Range) -> Array:
    """``p(i, j)``, (B, B), rows moved, columns fixed; sums to one."""
    p = np.einsum("izyx,jzyx,zyx->ij", parzen(moved, bins, range_m), parzen(fixed, bins, range_f), w, optimize=True)
    return p / p.sum()


def log_ratio(p: Array) -> Array:
    """``T_ij = log(p_ij / (p_i p_j))``, (B, B), 0 where p = 0."""
    product = np.outer(p.sum(axis=1), p.sum(axis=0))
    return np.log(np.divide(p, product, out=np.ones_like(p), where=p > 0))


def mi(fixed: Array, moved: Array, w: Array, bins: int, range_f: Range, range_m: Range) -> float:
    """``-sum p log(p / (p_i p_j))`` in nats: the loss, so minus the mutual information."""
    p = joint_histogram(*_double(fixed, moved, w), bins, range_f, range_m)
    return float(-(p * log_ratio(p)).sum())


def mi_gradient(fixed: Array, moved: Array, w: Array, bins: int, range_f: Range, range_m: Range) -> Array:
    """``dC/dmoved = -(w / N) sum_ij T_ij w'_i(moved) w_j(F)``, (Z, Y, X)."""
    fixed, moved, w = _double(fixed, moved, w)
    t = log_ratio(joint_histogram(fixed, moved, w, bins, range_f, range_m))
    slope, weight = parzen_slope(moved, bins, range_m), parzen(fixed, bins, range_f)
    return -w / w.sum() * np.einsum("ij,izyx,jzyx->zyx", t, slope, weight, optimize=True)


def _differences(shape: Shape) -> list[Array]:
    """A matrix an axis: central differences, one-sided on its first and last row."""
    return [np.gradient(np.eye(n), axis=0) if n > 1 else np.zeros((1, 1)) for n in shape]


def _along(axis: int, matrix: Array, a: Array) -> Array:
    return np.moveaxis(np.tensordot(matrix, a, (1, axis)), 0, axis)


def _gradients(shape: Shape, smoothed: bool) -> list[list[Array]]:
    """For each component the matrices of all axes: its difference, and what smooths across it, 1, 2, 1 with the ends repeated."""
    differences, across = _differences(shape), []
    for n in shape:
        padded = np.pad(np.eye(n), ((1, 1), (0, 0)), mode="edge")
        across.append((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4 if smoothed else np.eye(n))
    return [[differences[a] if a == k else across[a] for a in range(3)] for k in range(3)]


def _apply(matrices: list[Array], a: Array) -> Array:
    for axis, matrix in enumerate(matrices):
        a = _along(axis, matrix, a)
    return a


def ngf_weights(w: Array, smoothed: bool = False) -> Array:
    """The weights of voxels whose differences read voxels of positive weight alone."""
    known = w > 0
    for matrices in _gradients(w.shape, smoothed):
        known &= _apply([np.abs(m) for m in matrices], (w == 0.0).astype(float)) == 0
    return w * known


def _ngf_terms(fixed: Array, moved: Array, w: Array, eta: float, smoothed: bool) -> tuple[Array, Array, Array, Array, Array]:
    """<n(F), n(M)>^2 and |n(M)|^4, their derivatives with respect to grad M (3, ...), and the weights."""
    f, m = (np.stack([_apply(d, a) for d in _gradients(w.shape, smoothed)]) for a in (fixed, moved))
    a, b, c = (f * m).sum(axis=0), (f * f).sum(axis=0) + eta**2, (m * m).sum(axis=0) + eta**2
    length = 1 - eta**2 / c
    product, square = 2 * a / (b * c) * (f - a / c * m), 4 * length * eta**2 / c**2 * m
    return a * a / (b * c), length**2, product, square, ngf_weights(w, smoothed)


def ngf(fixed: Array, moved: Array, w: Array, eta: float = 0.01, gain: float | None = None, smoothed: bool = False) -> float:
    """``-sum w <n(F), n(M)>^2 / sum w`` with ``n(I) = grad I / sqrt(|grad I|^2 + eta^2)``.

    With a gain ``-sum w (2 <n(F), n(M)>^2 - gain |n(M)|^4) / sum w``.
    """
    product, square, _, _, w = _ngf_terms(*_double(fixed, moved, w), eta, smoothed)
    value = product if gain is None else 2 * product - gain * square
    return float(-(w * value).sum() / max(w.sum(), 1e-300))


def ngf_gain(fixed: Array, moved: Array, w: Array, eta: float = 0.01, smoothed: bool = False) -> float:
    """The gain with which the outer products of n(M) are nearest to those of n(F)."""
    product, square, _, _, w = _ngf_terms(*_double(fixed, moved, w), eta, smoothed)
    return float((w * product).sum() / (w * square).sum())


def ngf_gradient(
    fixed: Array, moved: Array, w: Array, eta: float = 0.01, gain: float | None = None, smoothed: bool = False
) -> Array:
    """``dC/dmoved`` of ``ngf``."""
    _, _, product, square, w = _ngf_terms(*_double(fixed, moved, w), eta, smoothed)
    slope = product if gain is None else 2 * product - gain * square
    back = sum(_apply([m.T for m in d], w * slope[k]) for k, d in enumerate(_gradients(w.shape, smoothed)))
    return np.asarray(-back / max(w.sum(), 1e-300))


# --- filters: one matrix an axis --------------------------------------------------------------------------------------


def along_axes(matrices: Sequence[Array], a: Array) -> Array:
    """Each matrix (n_out, n_in) applied along one of the last three axes, in the order z, y, x."""
    for axis, matrix in zip((-3, -2, -1), matrices, strict=True):
        a = np.moveaxis(np.moveaxis(a, axis, -1) @ matrix.T, -1, axis)
    return a


def _gaussian_rows(centers: Array, n: int, sigma: float, reach: float) -> Array:
    """Rows of Gaussian weights about real ``centers`` over voxels 0 .. n - 1, none farther than ``reach``, sum one each."""
    distance = np.arange(n) - centers[:, None]
    weights = np.exp(-(distance**2) / (2 * sigma**2)) * (np.abs(distance) <= reach)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def gaussian_smooth(a: Array, sigma: float | Sequence[float], radius: int | Sequence[int] | None = None) -> Array:
    """Separable sampled Gaussian over the last three axes; weights outside the array are dropped, the rest renormalised.

    sigma: voxels, one or (z, y, x), 0 leaves the axis alone;  radius: taps each side, ``ceil(2 sigma)`` when None
    """
    sigmas = np.broadcast_to(np.asarray(sigma, float), 3)
    radii = np.broadcast_to(np.ceil(2 * sigmas) if radius is None else np.asarray(radius, float), 3)
    sizes = a.shape[-3:]
    return along_axes(
        [
            _gaussian_rows(np.arange(n, dtype=np.float64), n, s, r) if s > 0 else np.eye(n)
            for n, s, r in zip(sizes, sigmas, radii, strict=True)
        ],
        a,
    )


def downsample(image: Array, factors: Sequence[int]) -> Array:
    """Gaussian then resample, per axis: ``out[i]`` averages voxels within 3 sigma of ``f i + (f - 1)/2``, sigma = f/2.

    image: (..., Z, Y, X);  factors: (z, y, x), 1 leaves the axis alone;  shape ``ceil(n / f)``
    """

    def matrix(n: int, f: int) -> Array:
        centers = np.asarray(f * np.arange(-(-n // f)) + (f - 1) / 2, float)
        return np.eye(n) if f == 1 else _gaussian_rows(centers, n, 0.5 * f, 1.5 * f)

    return along_axes([matrix(n, f) for n, f in zip(image.shape[-3:], factors, strict=True)], image)


def _linear_rows(c: Array, n: int) -> Array:
    """Rows that interpolate n voxels linearly at the real coordinates ``c`` clamped to them."""
    return np.maximum(0, 1 - np.abs(np.clip(c, 0, n - 1)[:, None] - np.arange(n)))


def upsample_displacement(u: Array, factors_coarse: Sequence[int], factors_fine: Sequence[int], shape_fine: Shape) -> Array:
    """u (3, Z, Y, X) in coarse voxels, at the voxels of a finer level and in those voxels, (3, *shape_fine).

    The factors (z, y, x) count full-resolution voxels a level's voxel. Fine voxel x lies at coarse coordinate
    ``(x ff + (ff - 1)/2 - (fc - 1)/2) / fc``, clamped; values times ``fc / ff`` per component.
    """
    matrices = []
    for n_coarse, n_fine, fc, ff in zip(u.shape[1:], shape_fine, factors_coarse, factors_fine, strict=True):
        matrices.append(_linear_rows((np.arange(n_fine) * ff + (ff - 1) / 2 - (fc - 1) / 2) / fc, n_coarse))
    ratio = np.asarray(factors_coarse, float) / np.asarray(factors_fine, float)
    return along_axes(matrices, u) * ratio.reshape(3, 1, 1, 1)


# --- the deformable step ----------------------------------------------------------------------------------------------


def adam_step(
    g: Array, m: Array, v: Array, t: int, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, chance: float = 0
) -> tuple[Array, Array, Array]:
    """Direction ``m^ / (sqrt(v^) + eps) max(0, 1 - chance v^ / m^2)`` and the new moments m, v; t = 1 at the first step."""
    g, m, v = _double(g, m, v)
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    first, second = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    kept = np.maximum(0, 1 - chance * second / np.maximum(first**2, 1e-30))
    return first / (np.sqrt(second) + eps) * kept, m, v


def limit_step(d: Array, lr: float) -> Array:
    """``-lr d / max(1, max_x |d(x)|)`` half voxels: no voxel moves by more than ``lr / 2`` voxels; d (3, Z, Y, X)."""
    longest = float(np.sqrt((d**2).sum(axis=0)).max())
    return -lr * d / max(1.0, longest) * 0.5


Loss = Callable[[Array, Array, Array], float]
LossGradient = Callable[[Array, Array, Array], Array]


class Deformable:
    """Adam on a composed warp at one level, S = A: ``step()`` is method section 5, steps 1 to 6.

    fixed: (Z, Y, X);  moving: (Z', Y', X');  affine: (3, 4);  gradient(fixed, moved, w) is dC/dmoved of a mean loss;
    w: fixed weights (Z, Y, X), ones when None. State: u, m, v (3, Z, Y, X), t iterations done.
    """

    def __init__(
        self,
        fixed: Array,
        moving: Array,
        affine: ArrayLike,
        gradient: LossGradient,
        w: Array | None = None,
        *,
        lr: float = 0.5,
        sigma_grad: float = 1.0,
        sigma_warp: float = 0.5,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        self.fixed, self.moving, self.affine, self.gradient = fixed, moving, np.asarray(affine, float), gradient
        self.w = np.ones(fixed.shape) if w is None else w
        self.lr, self.sigma_grad, self.sigma_warp, self.betas, self.eps = lr, sigma_grad, sigma_warp, betas, eps
        self.u, self.m, self.v = (np.zeros((3, *fixed.shape)) for _ in range(3))
        self.t = 0

    def sample(self) -> tuple[Array, Array, Array]:
        """moved (Z, Y, X), grad M (3, Z, Y, X) and the weights, 0 out of domain (Z, Y, X), at the present u."""
        points = sampling_points(self.fixed.shape, self.affine, None, self.u)
        moved, grad_m, inside = trilinear(self.moving, points)
        return moved, grad_m, self.w * inside

    def loss(self, value: Loss) -> float:
        """A similarity's value at the present u."""
        moved, _, w = self.sample()
        return value(self.fixed, moved, w)

    def step(self) -> None:
        """One iteration."""
        moved, grad_m, w = self.sample()
        g = self.gradient(self.fixed, moved, w) * w.sum()  # sum-scaled, or it meets eps in a large volume
        g = gaussian_smooth(displacement_gradient(g, grad_m, self.affine[:, :3]), self.sigma_grad)
        self.t += 1
        d, self.m, self.v = adam_step(g, self.m, self.v, self.t, self.betas, self.eps)
        self.u = gaussian_smooth(compose(self.u, limit_step(d, self.lr)), self.sigma_warp)


# --- what is reported -------------------------------------------------------------------------------------------------


def jacobian_determinant(u: Array, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Array:
    """``det(I + Du)``, (Z, Y, X): central differences, one-sided at the faces, 0 along an axis of one voxel.

    u: (3, Z, Y, X) in the unit of ``spacing`` (z, y, x), the size of a voxel
    """
    du = np.zeros((*u.shape[1:], 3, 3))
    for i, j in itertools.product(range(3), repeat=2):
        if u.shape[1 + j] > 1:
            du[..., i, j] = np.gradient(u[i], spacing[j], axis=j)
    return np.linalg.det(np.eye(3) + du)


def dice(a: NDArray[np.integer], b: NDArray[np.integer], ids: Sequence[int]) -> Array:
    """``2 |a = k and b = k| / (|a = k| + |b = k|)`` for each label k of ``ids``, (len(ids),); NaN where neither has it."""
    both = np.array([((a == k) & (b == k)).sum() for k in ids], float)
    either = np.array([(a == k).sum() + (b == k).sum() for k in ids], float)
    return np.divide(2 * both, either, out=np.full(len(ids), np.nan), where=either > 0)
