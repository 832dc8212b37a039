"""The oracle and the phantoms are right: finite differences, closed forms, and SciPy where it computes the same thing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from daskreg.grid import Grid
from tests import phantoms
from tests import reference as ref

SHAPE = (7, 8, 9)
RANGE_F, RANGE_M = (0.1, 0.9), (0.05, 0.8)  # inside the intensities, so that some are clamped
Array = ref.Array


def rng() -> np.random.Generator:
    """The same numbers in every test."""
    return np.random.default_rng(7)


@pytest.fixture
def images() -> tuple[Array, Array, Array]:
    """fixed, moved, soft weights with a hole of zeros."""
    r = rng()
    fixed = r.uniform(0, 1, SHAPE)
    w = r.uniform(0, 1, SHAPE)
    w[:2, :3] = 0
    return fixed, np.clip(0.6 * fixed + 0.4 * r.uniform(0, 1, SHAPE), 0, 1), w


def finite_difference(f: Callable[[Array], float], a: Array, h: float = 1e-5, stride: int = 1) -> Array:
    """df/da at every ``stride``-th entry by central differences, NaN at the others."""
    out = np.full_like(a, np.nan)
    for i in list(np.ndindex(a.shape))[::stride]:
        ends = []
        for sign in (h, -h):
            b = a.copy()
            b[i] += sign
            ends.append(f(b))
        out[i] = (ends[0] - ends[1]) / (2 * h)
    return out


def assert_gradient(found: Array, expected: Array, tolerance: float = 1e-6) -> None:
    """Equal, relative to the largest entry."""
    known = np.isfinite(expected)
    scale = np.abs(expected[known]).max()
    assert scale > 0
    np.testing.assert_allclose(found[known] / scale, expected[known] / scale, atol=tolerance, rtol=0)


# --- similarities -----------------------------------------------------------------------------------------------------


def test_mse_gradient_is_the_finite_difference(images: tuple[Array, Array, Array]) -> None:
    fixed, moved, w = images
    assert_gradient(ref.mse_gradient(fixed, moved, w), finite_difference(lambda m: ref.mse(fixed, m, w), moved))


@pytest.mark.parametrize("radius", [1, 2])
def test_exact_lncc_gradient_is_the_finite_difference(images: tuple[Array, Array, Array], radius: int) -> None:
    fixed, moved, w = images
    expected = finite_difference(lambda m: ref.lncc(fixed, m, w, radius, 1e-3), moved)
    assert_gradient(ref.lncc_gradient(fixed, moved, w, radius, 1e-3), expected)


def test_ngf_gradient_is_the_finite_difference(images: tuple[Array, Array, Array]) -> None:
    fixed, moved, w = images
    assert_gradient(ref.ngf_gradient(fixed, moved, w, 0.1), finite_difference(lambda m: ref.ngf(fixed, m, w, 0.1), moved))


def test_ngf_gradient_with_a_gain_is_the_finite_difference(images: tuple[Array, Array, Array]) -> None:
    fixed, moved, w = images
    gain = ref.ngf_gain(fixed, moved, w, 0.1)
    for smoothed in (False, True):
        slope = finite_difference(lambda m, s=smoothed: ref.ngf(fixed, m, w, 0.1, gain, s), moved)
        assert_gradient(ref.ngf_gradient(fixed, moved, w, 0.1, gain, smoothed), slope)


def test_ngf_is_minus_one_of_equal_edges_and_zero_of_crossing_ones() -> None:
    z, y, _ = ref.voxel_indices((5, 6, 7))
    w = np.ones(z.shape)
    assert ref.ngf(z, 3 - 2 * z, w, 1e-6) == pytest.approx(-1)
    assert ref.ngf(z, y, w, 1e-6) == 0
    assert ref.ngf(z, np.zeros_like(z), w) == 0


def test_center_lncc_gradient_is_that_of_the_own_window_alone(images: tuple[Array, Array, Array]) -> None:
    fixed, moved, w = images
    q = (3, 4, 5)

    def own_window(value: float) -> float:
        m = moved.copy()
        m[q] = value
        box = tuple(slice(k - 2, k + 3) for k in q)
        f, m, v = fixed[box], m[box], w[box]
        mu_f, mu_m = (v * f).sum() / v.sum(), (v * m).sum() / v.sum()
        a = (v * (f - mu_f) * (m - mu_m)).sum()
        b, c = (v * (m - mu_m) ** 2).sum(), (v * (f - mu_f) ** 2).sum()
        return float(-w[q] * a * a / (b * c + 1e-5) / w.sum())

    slope = (own_window(moved[q] + 1e-5) - own_window(moved[q] - 1e-5)) / 2e-5
    # the window's derivative weighs the voxel; the method's centre form carries that weight as the leading w
    assert ref.lncc_gradient(fixed, moved, w, gradient="center")[q] == pytest.approx(slope, rel=1e-6)


def test_center_lncc_gradient_points_where_the_exact_one_does() -> None:
    fixed, moving, _ = phantoms.known_warp_pair((24, 24, 24), 1.0, 3)
    f, m, w = fixed.astype(float), moving.astype(float), phantoms.body_mask(fixed.shape).astype(float)
    exact, center = (ref.lncc_gradient(f, m, w, gradient=g).ravel() for g in ("exact", "center"))
    assert np.corrcoef(exact, center)[0, 1] > 0.6


def test_lncc_is_the_textbook_sum_over_each_window(images: tuple[Array, Array, Array]) -> None:
    fixed, moved, w = images
    total = 0.0
    for z, y, x in np.ndindex(SHAPE):
        box = slice(max(z - 2, 0), z + 3), slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3)
        f, m, v = fixed[box], moved[box], w[box]
        if v.sum() > 0:
            df, dm = f - np.average(f, weights=v), m - np.average(m, weights=v)
            cc = (v * df * dm).sum() ** 2 / ((v * df * df).sum() * (v * dm * dm).sum() + 1e-5)
            total += w[z, y, x] * cc
    assert ref.lncc(fixed, moved, w) == pytest.approx(-total / w.sum(), rel=1e-12)


def test_lncc_of_a_linear_relation_is_minus_one_and_of_a_constant_zero(images: tuple[Array, Array, Array]) -> None:
    fixed, _, w = images
    assert ref.lncc(fixed, 3 - 2 * fixed, w, eps=1e-12) == pytest.approx(-1, abs=1e-6)
    flat = np.full(SHAPE, 0.3)
    assert ref.lncc(fixed, flat, w) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(ref.lncc_gradient(flat, flat, w)).all()


def test_mi_gradient_is_the_finite_difference(images: tuple[Array, Array, Array]) -> None:
    fixed, moved, w = images
    expected = finite_difference(lambda m: ref.mi(fixed, m, w, 12, RANGE_F, RANGE_M), moved, stride=2)
    found = ref.mi_gradient(fixed, moved, w, 12, RANGE_F, RANGE_M)
    assert_gradient(found, expected)
    clamped = (moved < RANGE_M[0]) | (moved > RANGE_M[1])
    assert clamped.any()
    assert (found[clamped] == 0).all()


@pytest.mark.parametrize("bins", [8, 9, 32])
def test_parzen_weights_sum_to_one_and_keep_to_the_padded_bins(bins: int) -> None:
    intensity = np.linspace(-0.5, 1.5, 4001)
    weights = ref.parzen(intensity, bins, (0.0, 1.0))
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-14)
    np.testing.assert_allclose(ref.parzen_slope(intensity, bins, (0.0, 1.0)).sum(axis=0), 0, atol=1e-12)
    assert weights.min() >= 0
    assert (weights[0] == 0).all()
    assert ((weights > 0).sum(axis=0) <= 4).all()
    # the mean bin is the coordinate itself: the weights lose nothing
    np.testing.assert_allclose(np.arange(bins) @ weights, ref.bin_coordinate(intensity, bins, (0.0, 1.0)), atol=1e-12)


def test_parzen_slope_is_the_finite_difference() -> None:
    intensity = rng().uniform(0.01, 0.99, 200)
    h = 1e-6
    expected = (ref.parzen(intensity + h, 16, (0.0, 1.0)) - ref.parzen(intensity - h, 16, (0.0, 1.0))) / (2 * h)
    np.testing.assert_allclose(ref.parzen_slope(intensity, 16, (0.0, 1.0)), expected, atol=1e-7)


def test_mi_is_symmetric_positive_and_zero_for_a_constant(images: tuple[Array, Array, Array]) -> None:
    fixed, moved, w = images
    forth = ref.mi(fixed, moved, w, 16, RANGE_F, RANGE_M)
    assert forth == pytest.approx(ref.mi(moved, fixed, w, 16, RANGE_M, RANGE_F), rel=1e-12)
    assert forth < 0
    assert ref.mi(fixed, np.full(SHAPE, 0.3), w, 16, RANGE_F, RANGE_M) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["mse", "lncc", "mi"])
def test_voxels_of_weight_zero_do_not_count(images: tuple[Array, Array, Array], name: str) -> None:
    fixed, moved, w = images
    extra = (12, RANGE_F, RANGE_M) if name == "mi" else ()
    other = np.where(w == 0, rng().uniform(0, 1, SHAPE), moved)
    value, gradient = getattr(ref, name), getattr(ref, f"{name}_gradient")
    assert value(fixed, moved, w, *extra) == pytest.approx(value(fixed, other, w, *extra), rel=1e-12)
    assert (gradient(fixed, other, w, *extra)[w == 0] == 0).all()


@pytest.mark.parametrize("name", ["mse", "lncc", "mi"])
def test_single_precision_input_is_still_computed_in_double(images: tuple[Array, Array, Array], name: str) -> None:
    single = [a.astype(np.float32) for a in images]
    double = [a.astype(float) for a in single]
    extra = (12, RANGE_F, RANGE_M) if name == "mi" else ()
    for f in (getattr(ref, name), getattr(ref, f"{name}_gradient")):
        np.testing.assert_array_equal(f(*single, *extra), f(*double, *extra))


# --- sampling and the chain rule --------------------------------------------------------------------------------------


def test_trilinear_is_map_coordinates_in_the_interior() -> None:
    image = rng().standard_normal(SHAPE)
    p = np.stack([rng().uniform(0, n - 1, 500) for n in SHAPE])
    value, _, inside = ref.trilinear(image, p)
    np.testing.assert_allclose(value, ndimage.map_coordinates(image, p, order=1), atol=1e-13)
    assert inside.all()


def test_trilinear_beyond_the_faces_is_that_of_the_image_padded_by_its_faces() -> None:
    image = rng().standard_normal(SHAPE)
    p = np.stack([rng().uniform(-3, n + 2, 2000) for n in SHAPE])
    padded = np.pad(image, 5, mode="edge")
    value, gradient, inside = ref.trilinear(image, p)
    expected, slope, _ = ref.trilinear(padded, p + 5)
    np.testing.assert_allclose(value, expected, atol=1e-13)
    np.testing.assert_allclose(gradient, slope, atol=1e-13)
    n = np.reshape(SHAPE, (3, 1))
    assert (inside == ((p >= 0) & (p <= n - 1)).all(axis=0)).all()


def test_trilinear_gradient_is_the_finite_difference() -> None:
    image = rng().standard_normal(SHAPE)
    p = np.stack([rng().integers(-1, n, 300) + rng().uniform(0.01, 0.99, 300) for n in SHAPE])
    for axis in range(3):
        h = np.zeros((3, 1))
        h[axis] = 1e-5
        slope = (ref.trilinear(image, p + h)[0] - ref.trilinear(image, p - h)[0]) / 2e-5
        np.testing.assert_allclose(ref.trilinear(image, p)[1][axis], slope, atol=1e-9)


def test_trilinear_reproduces_a_linear_image_and_its_slope() -> None:
    z, y, x = np.indices(SHAPE)
    p = np.stack([rng().uniform(0, n - 1, 100) for n in SHAPE])
    value, gradient, _ = ref.trilinear(2.0 * z - 3.0 * y + 0.5 * x + 1, p)
    np.testing.assert_allclose(value, 2 * p[0] - 3 * p[1] + 0.5 * p[2] + 1, atol=1e-12)
    inner = (p < np.reshape(SHAPE, (3, 1)) - 1).all(axis=0)
    np.testing.assert_allclose(gradient[:, inner], np.array([[2], [-3], [0.5]]) * np.ones(inner.sum()), atol=1e-12)


def test_scatter_is_the_transpose_of_trilinear() -> None:
    image, r = rng().standard_normal(SHAPE), rng()
    p = np.stack([r.uniform(0, n - 1, 400) for n in SHAPE])
    g = r.standard_normal(400)
    assert (g * ref.trilinear(image, p)[0]).sum() == pytest.approx((ref.scatter(g, p, SHAPE) * image).sum(), rel=1e-12)


AFFINE = np.array([[0.95, 0.04, -0.03, 0.31], [-0.05, 1.03, 0.06, -0.22], [0.02, -0.07, 0.97, 0.43]])


@pytest.mark.parametrize("tied", [True, False])
def test_affine_sums_are_the_finite_difference(images: tuple[Array, Array, Array], tied: bool) -> None:
    fixed, moving, w = images
    u = 0.3 * rng().standard_normal((3, *SHAPE))
    s = None if tied else AFFINE[:, :3].copy()

    def loss(affine: Array) -> float:
        return ref.mse(fixed, ref.trilinear(moving, ref.sampling_points(SHAPE, affine, s, u))[0], w)

    moved, grad_m, _ = ref.trilinear(moving, ref.sampling_points(SHAPE, AFFINE, s, u))
    found = ref.affine_gradient(ref.mse_gradient(fixed, moved, w), grad_m, u, tied)
    assert_gradient(found, finite_difference(loss, AFFINE, 1e-7), 1e-5)


def test_displacement_gradient_is_the_finite_difference(images: tuple[Array, Array, Array]) -> None:
    fixed, moving, w = images
    u = 0.3 * rng().standard_normal((3, *SHAPE))
    s = AFFINE[:, :3]

    def loss(v: Array) -> float:
        return ref.mse(fixed, ref.trilinear(moving, ref.sampling_points(SHAPE, AFFINE, s, v))[0], w)

    moved, grad_m, _ = ref.trilinear(moving, ref.sampling_points(SHAPE, AFFINE, s, u))
    found = ref.displacement_gradient(ref.mse_gradient(fixed, moved, w), grad_m, s)
    assert_gradient(found, finite_difference(loss, u, 1e-7, stride=5), 1e-5)


def test_composition_of_translations_adds_them() -> None:
    a, b = (np.broadcast_to(np.reshape(v, (3, 1, 1, 1)), (3, *SHAPE)).astype(float) for v in ([1, -2, 0.5], [0.3, 0.2, 9]))
    np.testing.assert_allclose(ref.compose(a, b), a + b, atol=1e-13)


def test_composition_with_zero_changes_nothing() -> None:
    u = rng().standard_normal((3, *SHAPE))
    zero = np.zeros_like(u)
    np.testing.assert_array_equal(ref.compose(u, zero), u)
    np.testing.assert_array_equal(ref.compose(zero, u), u)


def test_composition_of_linear_maps_is_their_product() -> None:
    shape = (15, 15, 15)
    x = ref.voxel_indices(shape) - 7
    a, b = np.asarray(0.05 * rng().standard_normal((2, 3, 3)), float)
    total = (np.eye(3) + a) @ (np.eye(3) + b) - np.eye(3)
    found = ref.compose(ref.linear(a, x), ref.linear(b, x))
    inner = (slice(None), *[slice(4, 11)] * 3)
    np.testing.assert_allclose(found[inner], ref.linear(total, x)[inner], atol=1e-12)


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "taps"), [(1.0, 5), (0.5, 3)])
def test_gaussian_has_the_stated_taps_and_keeps_a_constant(sigma: float, taps: int) -> None:
    point = np.zeros((11, 11, 11))
    point[5, 5, 5] = 1
    assert (ref.gaussian_smooth(point, sigma) > 0).sum() == taps**3
    np.testing.assert_allclose(ref.gaussian_smooth(np.full(SHAPE, 3.0), sigma), 3, atol=1e-14)


def test_gaussian_is_scipy_renormalised_at_the_borders() -> None:
    a = rng().standard_normal((2, *SHAPE))

    def scipy(q: Array) -> Array:
        return np.stack([ndimage.gaussian_filter(c, 1.0, mode="constant", radius=2) for c in q])

    np.testing.assert_allclose(ref.gaussian_smooth(a, 1.0), scipy(a) / scipy(np.ones_like(a)), atol=1e-13)
    np.testing.assert_array_equal(ref.gaussian_smooth(a, 0.0), a)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 3, 4), (1, 1, 1), (8, 2, 16)])
def test_downsampling_keeps_constants_and_voxel_centres(factors: tuple[int, int, int]) -> None:
    shape = (16, 24, 32)
    coarse = ref.downsample(np.full(shape, 2.5), factors)
    assert coarse.shape == tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
    np.testing.assert_allclose(coarse, 2.5, atol=1e-13)
    for axis, f in enumerate(factors):
        index = np.moveaxis(ref.downsample(np.indices(shape)[axis].astype(float), factors), axis, 0)
        inner = slice(2, -2)  # the kernel is symmetric wherever it is whole
        centers = f * np.arange(index.shape[0]) + (f - 1) / 2
        np.testing.assert_allclose(index[inner], np.broadcast_to(centers[inner, None, None], index[inner].shape), atol=1e-12)


def test_downsampling_an_odd_shape_rounds_up() -> None:
    assert ref.downsample(rng().standard_normal((7, 1, 9)), (2, 2, 4)).shape == (4, 1, 3)


def test_upsampled_linear_displacement_is_the_same_world_map() -> None:
    coarse, fine, shape = (4, 2, 3), (2, 1, 3), (16, 16, 6)
    coarse_shape = (8, 8, 6)
    factor = [np.reshape(np.asarray(f, float), (3, 1, 1, 1)) for f in (coarse, fine)]

    def displacement(shape: tuple[int, ...], f: Array) -> Array:
        world = np.asarray(np.indices(shape) * f + (f - 1) / 2, float)
        return ref.linear(np.array([[0.1, 0.02, 0.0], [0.0, -0.1, 0.03], [0.05, 0.0, 0.1]]), world) / f

    found = ref.upsample_displacement(displacement(coarse_shape, factor[0]), coarse, fine, shape)
    inner = (slice(None), slice(1, -1), slice(1, -1), slice(None))
    np.testing.assert_allclose(found[inner], displacement(shape, factor[1])[inner], atol=1e-12)


# --- the step ---------------------------------------------------------------------------------------------------------


def test_first_adam_step_is_the_sign() -> None:
    g = rng().standard_normal((3, *SHAPE))
    zero = np.zeros_like(g)
    d, m, v = ref.adam_step(g, zero, zero, 1)
    np.testing.assert_allclose(d, g / (np.abs(g) + 1e-8), atol=1e-12)
    np.testing.assert_allclose((m, v), (0.1 * g, 0.01 * g * g), rtol=1e-12)


def test_adam_on_a_constant_gradient_stays_its_sign() -> None:
    g = rng().standard_normal((3, *SHAPE))
    m, v = np.zeros_like(g), np.zeros_like(g)
    for t in range(1, 20):
        d, m, v = ref.adam_step(g, m, v, t)
    np.testing.assert_allclose(d, g / (np.abs(g) + 1e-8), atol=1e-12)


def test_a_step_moves_no_voxel_farther_than_half_the_rate() -> None:
    d = 5 * rng().standard_normal((3, *SHAPE))
    assert np.sqrt((ref.limit_step(d, 0.5) ** 2).sum(axis=0)).max() == pytest.approx(0.25)
    np.testing.assert_allclose(ref.limit_step(0.01 * d / np.abs(d).max(), 0.5), -0.0025 * d / np.abs(d).max(), rtol=1e-12)


@pytest.mark.parametrize("name", ["mse", "lncc", "mi"])
def test_the_deformable_step_finds_a_known_warp(name: str) -> None:
    contrast = phantoms.non_monotonic if name == "mi" else None
    shape = (24, 26, 28)
    fixed, moving, warp = phantoms.known_warp_pair(shape, 1.5, 1, contrast)

    def gradient(f: Array, m: Array, w: Array) -> Array:
        extra = (16, (0.0, 1.0), (0.0, 1.0)) if name == "mi" else ()
        return np.asarray(getattr(ref, f"{name}_gradient")(f, m, w, *extra))

    engine = ref.Deformable(fixed.astype(float), moving.astype(float), np.eye(3, 4), gradient)
    for _ in range(7):
        engine.step()
    mask = phantoms.body_mask(shape, warp)
    before = phantoms.target_registration_error(np.zeros((3, *shape)), warp, mask).mean()
    after = phantoms.target_registration_error(engine.u, warp, mask).mean()
    assert after < 0.75 * before
    assert ref.jacobian_determinant(engine.u).min() > 0


# --- reports ----------------------------------------------------------------------------------------------------------


def test_jacobian_of_a_linear_map_is_its_determinant() -> None:
    a = 0.2 * rng().standard_normal((3, 3))
    spacing = np.array([2.0, 0.5, 1.0])
    u = ref.linear(a, np.indices(SHAPE) * spacing.reshape(3, 1, 1, 1))
    np.testing.assert_allclose(ref.jacobian_determinant(u, spacing.tolist()), np.linalg.det(np.eye(3) + a), rtol=1e-10)


def test_jacobian_of_a_smooth_warp_is_the_analytic_one() -> None:
    shape = (24, 25, 26)
    warp = phantoms.smooth_field(shape, 2.0)
    found = ref.jacobian_determinant(warp.field(shape))
    expected = warp.jacobian_determinant(np.indices(shape).astype(float))
    np.testing.assert_allclose(found[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=0.02)


def test_jacobian_of_one_plane_takes_no_derivative_across() -> None:
    assert ref.jacobian_determinant(np.ones((3, 1, 4, 5))) == pytest.approx(np.ones((1, 4, 5)))


def test_dice_counts_overlap() -> None:
    a, b = np.array([[[1, 1, 2, 0]]]), np.array([[[1, 2, 2, 0]]])
    np.testing.assert_allclose(ref.dice(a, b, [1, 2, 3]), [2 / 3, 2 / 3, np.nan])


# --- phantoms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", [None, phantoms.non_monotonic])
def test_the_pair_meets_its_warp(contrast: phantoms.Contrast | None) -> None:
    shape = (24, 26, 28)
    fixed, moving, warp = phantoms.known_warp_pair(shape, 2.0, 5, contrast)
    grid = np.indices(shape).astype(float)
    seen = ndimage.map_coordinates(moving.astype(float), warp(grid), order=3)
    expected = fixed.astype(float) if contrast is None else contrast(fixed.astype(float))
    mask = phantoms.body_mask(shape, warp)
    assert np.abs(seen - expected)[mask].mean() < 0.08 * np.abs(moving - expected)[mask].mean()
    formula = phantoms.texture(shape, 5)
    np.testing.assert_allclose(formula(warp(grid)), fixed, atol=1e-6)


def test_the_pair_has_a_dark_background_and_a_bright_body() -> None:
    fixed, moving, _ = phantoms.known_warp_pair((24, 26, 28), 2.0)
    for image in (fixed, moving):
        assert image.dtype == np.float32
        assert image[0].max() == 0
        assert 0.6 < image.max() <= 1
        assert image.min() == 0


def test_a_warp_has_its_amplitude_and_its_inverse() -> None:
    shape = (20, 30, 40)
    warp = phantoms.smooth_field(shape, 2.5, seed=4)
    assert np.sqrt((warp.field(shape) ** 2).sum(axis=0)).max() == pytest.approx(2.5, rel=0.01)
    points = np.stack([rng().uniform(0, n, 500) for n in shape])
    np.testing.assert_allclose(warp(warp.inverse(points)), points, atol=1e-6)
    assert phantoms.target_registration_error(warp.field(shape), warp).max() == 0


def test_a_warp_that_may_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="take sigma"):
        phantoms.smooth_field((20, 20, 20), 6.0, sigma=2.0)


def test_blobs_are_dark_outside_and_textured_inside() -> None:
    image = phantoms.blobs((20, 24, 28), 2)
    assert image.dtype == np.float32
    assert (image.min(), image.max()) == (0, 1)
    assert image[0].max() == 0
    assert image[10, 8:16, 8:20].std() > 0.05
    assert not np.array_equal(image, phantoms.blobs((20, 24, 28), 3))


def test_labels_follow_the_warp() -> None:
    shape = (24, 24, 24)
    warp = phantoms.smooth_field(shape, 3.0, seed=2)
    fixed, moving = phantoms.label_pair(shape, warp)
    p = np.rint(warp(np.indices(shape).astype(float))).astype(int)
    carried = moving[tuple(np.clip(p, 0, 23))]
    ids = range(1, 7)
    assert np.nanmean(ref.dice(fixed, carried, ids)) > np.nanmean(ref.dice(fixed, moving, ids)) + 0.05
    assert set(np.unique(moving)) == set(range(7))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_an_oblique_grid_keeps_every_voxel_in_place(order: tuple[int, int, int]) -> None:
    grid = phantoms.turned(Grid((3, 4, 5), (2.0, 1.0, 0.5), (10.0, -3.0, 7.0)), (20, -10, 5))
    array = np.arange(60.0).reshape(grid.shape)
    for flip in itertools.product((False, True), (False, True), (False, True)):
        other, there = phantoms.oblique_grid(array, grid, order, flip)
        assert there.shape == other.shape
        for index in ((0, 0, 0), (2, 1, 2), tuple(n - 1 for n in other.shape)):
            index = tuple(min(i, n - 1) for i, n in zip(index, other.shape, strict=True))
            back = np.rint(grid.to_index(there.to_world(index))).astype(int)
            np.testing.assert_allclose(grid.to_world(back), there.to_world(index), atol=1e-9)
            assert array[tuple(back)] == other[index]


def test_turning_a_grid_keeps_its_centre_and_its_lengths() -> None:
    grid = Grid((3, 4, 5), (2.0, 1.0, 0.5), (10.0, -3.0, 7.0))
    there = phantoms.turned(grid, (30, 40, -50))
    np.testing.assert_allclose(there.center, grid.center, atol=1e-12)
    assert np.linalg.det(np.asarray(there.direction)) == pytest.approx(1)
    quarter = phantoms.rotation((90, 0, 0)) @ np.array([0, 1, 0])
    np.testing.assert_allclose(quarter, [0, 0, math.sin(math.pi / 2)], atol=1e-12)
