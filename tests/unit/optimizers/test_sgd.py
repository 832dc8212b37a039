"""Gradient descent with momentum: its formula, and that its runs do not depend on ranks or interruptions."""

import numpy as np
import pytest

from daskreg import MSE, Config, Deformable, register
from daskreg.errors import ConfigError
from daskreg.optimizers.sgd import SGD
from daskreg.optimizers.sgd.update import momentum_step
from daskreg.planning.memory import checkpoint_bytes
from tests.cases import SHAPE, empty, vectors
from tests.phantoms import body_mask, known_warp_pair, target_registration_error
from tests.unit.engine.spread import Registration, assert_same_bits, on_ranks, whole
from tests.unit.engine.test_invariance import SAVE, Asking, Memory, masks, resumed, texture

DECAY, SCALE = 0.8, 0.05


def registration(masked=False):
    """Two levels of a few iterations by two losses, between grids of unlike shape and direction."""
    stages = (
        Deformable(similarity=MSE(), scales=(2, 1), iterations=(4, 3), tolerance=0, optimizer=SGD()),
        Deformable(similarity="lncc", scales=(1,), iterations=(2,), tolerance=0, optimizer=SGD(momentum=0), smooth_warp=0.7),
    )
    return Registration(
        texture((17, 12, 11), 0), texture((15, 13, 12), 1), Config(stages=stages), masks() if masked else (None, None)
    )


def test_a_direction_is_the_unbiased_mean_of_the_gradients_over_their_scale():
    optimizer, mean = SGD(momentum=DECAY).build("float32", "cpu"), empty(3, *SHAPE)
    rows = np.stack([optimizer.coefficients(t + 1, SCALE) for t in range(3)])
    gradients = [vectors(*SHAPE, seed=k) for k in range(3)]
    for t, gradient in enumerate(gradients):
        d = gradient.copy()
        longest = momentum_step(SHAPE, rows, np.array([t], np.int32), mean, d)
        weights = DECAY ** np.arange(t, -1, -1.0)
        expected = -np.average(gradients[: t + 1], axis=0, weights=weights) / SCALE
        np.testing.assert_allclose(d, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(longest[0], np.square(expected).sum(axis=0).max(axis=-1), rtol=1e-3)


def test_a_gradient_of_zero_does_not_move():
    rows = SGD().build("float32", "cpu").coefficients(1, SCALE)[None]
    d = empty(3, *SHAPE)
    assert momentum_step(SHAPE, rows, np.array([0], np.int32), empty(3, *SHAPE), d).max() == 0
    assert not d.any()


@pytest.mark.parametrize("masked", [False, True])
def test_the_result_does_not_depend_on_the_number_of_ranks(masked):
    case = registration(masked)
    expected = case.run(1)
    assert np.abs(expected.displacement).max() > 0.3
    for ranks, residency in [(2, "window"), (3, "ring"), (5, "replicate"), (21, "ring")]:
        assert_same_bits(case.run(ranks, residency), expected)


def test_a_run_resumed_from_its_mean_gradient_gives_the_same_bits():
    case, memory = registration(), Memory()
    saving = on_ranks(2, lambda comm: case.outcome(case.rank(comm, "window", Asking(SAVE), memory.of(comm))))
    expected = whole(saving)
    midst = [saved for saved in memory.saved if saved[0]["losses"]]
    assert len(midst) == 3 + 2 + 1
    assert all(sorted(fields) == ["mean", "u"] for _, fields in midst)
    for saved in midst[::2]:
        assert_same_bits(resumed(case, saved, 3, "ring"), expected)


def test_mixed_storage_is_refused():
    with pytest.raises(ConfigError, match="storage 'mixed' does not go with optimizer 'sgd'; use 'float32'"):
        Config.parse({"stages": [{"stage": "deformable", "optimizer": "sgd", "storage": "mixed"}]})


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_mean_that_forgets_nothing_is_refused(momentum):
    with pytest.raises(ConfigError, match="momentum"):
        Config.parse({"stages": [{"stage": "deformable", "optimizer": {"kind": "sgd", "momentum": momentum}}]})


def test_a_plan_counts_one_field_of_state_less_than_for_adam():
    plans = [
        Registration(
            texture((17, 12, 11), 0), texture((15, 13, 12), 1), Config(stages=(Deformable(optimizer=o, scales=(1,)),))
        ).plan(1, "replicate")
        for o in ("sgd", "adam")
    ]
    voxels = 17 * 12 * 11
    sgd, adam = (p.memory_use(0, p.levels[0][0]).fields for p in plans)
    assert adam - sgd == 12 * voxels
    assert [checkpoint_bytes(p) for p in plans] == [2 * 24 * voxels, 2 * 36 * voxels]


def test_a_known_warp_is_found(tmp_path):
    shape = (40, 36, 44)
    fixed, moving, warp = known_warp_pair(shape, 2.0)
    stages = [Deformable(similarity=MSE(), scales=(2, 1), iterations=(40, 20), optimizer=SGD())]
    u = register(fixed, moving, stages, output=tmp_path / "run.zarr").displacement.compute(scheduler="synchronous")
    before, after = (target_registration_error(v, warp, body_mask(shape, warp)).mean() for v in (0 * u, u))
    assert after < 0.3 * before
