"""Normalised gradient fields: what is compared, and where it finds what other losses do not."""

import numpy as np
import pytest

from daskreg import MI, NGF, ConfigError, Deformable, Rigid, register
from daskreg.config import Config
from daskreg.kernels.device import NO_MASK
from daskreg.similarity.base import Samples
from tests import reference
from tests.phantoms import body_mask, known_warp_pair, target_registration_error, unrelated_contrasts

SHAPE = (6, 7, 8)


def loss_of(fixed, moved, weight=NO_MASK, matched=False, **given):
    """Loss, N and N dC/dmoved of one rank."""
    similarity = NGF(**given).build("cpu")
    samples = Samples(fixed.shape, 0, fixed, weight, moved.copy(), np.zeros((3, *fixed.shape), np.float32))
    if matched:
        similarity.match(similarity.moments(samples).astype(float).sum(axis=(1, 2)))
    total = similarity.partial(samples).astype(float).sum(axis=(1, 2))
    similarity.finish(samples, total)
    return *similarity.value(total), samples.moved


def ramp(axis):
    """Rises by 0.1 a voxel along an axis."""
    return np.ascontiguousarray(np.indices(SHAPE)[axis] * np.float32(0.1), np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("gain", [0.5, -2.0])
def test_parallel_gradients_of_either_sign_are_as_good_as_equal_ones(axis, gain):
    loss, n, _ = loss_of(ramp(axis), np.float32(gain) * ramp(axis), eta=1e-4)
    assert loss == pytest.approx(-1, abs=1e-4)
    assert n == np.prod(SHAPE)  # faces have one-sided differences


@pytest.mark.parametrize("smoothed", [False, True])
def test_a_matched_loss_is_that_of_the_reference_and_its_gradient_too(smoothed):
    rng = np.random.default_rng(4)
    fixed, moved, weight = (rng.random(SHAPE, np.float32) for _ in range(3))
    weight[2, 3, 4] = weight[0, 0, 0] = 0
    given = fixed, moved, weight, 0.3
    gain = reference.ngf_gain(*given, smoothed=smoothed)
    loss, n, slope = loss_of(fixed, moved, weight, matched=True, eta=0.3, smoothed=smoothed)
    assert loss == pytest.approx(reference.ngf(*given, gain, smoothed), rel=1e-5)
    assert loss == pytest.approx(reference.ngf(*given, smoothed=smoothed), rel=1e-5)  # where it was matched
    np.testing.assert_allclose(slope / n, reference.ngf_gradient(*given, gain, smoothed), atol=1e-7)
    assert n == pytest.approx(reference.ngf_weights(weight, smoothed).sum())


@pytest.mark.parametrize("size", [0.5, 0.97])
def test_lower_edges_are_no_worse_where_they_match(size):
    """A blur, as interpolation is, lowers all edges of one kind alike."""
    fixed = np.random.default_rng(5).random(SHAPE, np.float32)
    slope = loss_of(fixed, np.float32(size * 0.01) * fixed, matched=True, eta=1.0)[2]
    assert abs((slope * fixed).sum()) < 1e-4 * abs(slope * fixed).sum()
    plain = loss_of(fixed, np.float32(size * 0.01) * fixed, eta=1.0)[2]
    assert (plain * fixed).sum() < -0.1 * abs(plain * fixed).sum()


def test_flat_images_are_matched_with_a_gain_of_nothing():
    flat = np.zeros(SHAPE, np.float32)
    loss, _, slope = loss_of(ramp(2), flat, matched=True)
    assert loss == 0
    assert not slope.any()


def test_orthogonal_and_flat_gradients_are_worth_nothing():
    for other in (ramp(1), np.zeros(SHAPE, np.float32)):
        loss, _, slope = loss_of(ramp(2), other)
        assert loss == 0
        assert np.isfinite(slope).all()


def test_gradients_below_eta_hardly_count():
    assert loss_of(ramp(0), ramp(0), eta=0.1)[0] == pytest.approx(-1 / 4)
    assert loss_of(ramp(0), ramp(0), eta=1.0)[0] == pytest.approx(-((0.01 / 1.01) ** 2), rel=1e-4)


def test_a_voxel_next_to_one_without_value_or_weight_is_left_out():
    moved, weight = ramp(0), np.ones(SHAPE, np.float32)
    moved[2, 3, 4], weight[2, 3, 4] = np.nan, 0
    for given in ((moved, NO_MASK), (ramp(0), weight)):
        _, n, slope = loss_of(ramp(1), *given)
        assert n == np.prod(SHAPE) - 7
        assert slope[2, 3, 4] == 0


def test_an_axis_of_one_voxel_has_no_gradient():
    thin = np.ascontiguousarray(ramp(1)[:1])
    loss, _, slope = loss_of(thin, thin, eta=1e-4)
    assert loss == pytest.approx(-1, abs=1e-4)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("eta", [0, -1, 2, float("nan")])
def test_eta_is_part_of_the_intensity_range(eta):
    with pytest.raises(ConfigError, match="eta"):
        Config.parse({"stages": [{"stage": "rigid", "similarity": {"kind": "ngf", "eta": eta}}]})


@pytest.mark.slow
def test_it_aligns_contrasts_without_a_functional_relation_better_than_mutual_information(tmp_path):
    fixed, moving, truth = unrelated_contrasts((36, 40, 44), 0)
    points = np.concatenate([np.indices(fixed.shape).reshape(3, -1)[:, ::41], np.ones((1, -(-fixed.size // 41)))])

    def error(similarity):
        stages = [Rigid(similarity=similarity, scales=(2, 1))]
        found = register(fixed, moving, stages, output=tmp_path / f"{similarity.kind}.zarr").affine
        return np.linalg.norm(((found - truth) @ points)[:3], axis=0).mean()

    assert np.linalg.norm(((np.eye(4) - truth) @ points)[:3], axis=0).mean() > 3.5
    assert error(NGF()) < min(0.25, error(MI()))


def test_a_known_warp_is_found_in_an_inverted_contrast(tmp_path):
    shape = (40, 36, 44)
    fixed, moving, warp = known_warp_pair(shape, 2.0, contrast=lambda i: (1 - i) ** 2)
    stages = [Deformable(similarity=NGF(), scales=(2, 1), iterations=(40, 20), smooth_gradient=2.0, smooth_warp=1.0, tolerance=0)]
    result = register(fixed, moving, stages, output=tmp_path / "run.zarr")
    u = result.displacement.compute(scheduler="synchronous")
    before, after = (target_registration_error(v, warp, body_mask(shape, warp)).mean() for v in (0 * u, u))
    assert after < 0.4 * before
    assert result.report["config"]["stages"][0]["similarity"] == {"kind": "ngf", "eta": 0.01, "smoothed": False}
