"""Fields of Adam by which noise moves less: runs do not depend on ranks, need no memory more, and bad values are refused."""

from itertools import pairwise

import numpy as np
import pytest

from daskreg import LNCC, MSE, Config, Deformable
from daskreg.errors import ConfigError
from daskreg.optimizers.adam import Adam
from tests.unit.engine.spread import Registration, assert_same_bits
from tests.unit.engine.test_invariance import masks, texture


def registration(masked: bool = False, **given: float) -> Registration:
    """Two levels, so that the moments start twice, between grids of unlike shape and direction."""
    stages = (
        Deformable(similarity=MSE(), scales=(2, 1), iterations=(4, 3), tolerance=0, optimizer=Adam(**given)),
        Deformable(similarity=LNCC(), scales=(1,), iterations=(3,), tolerance=0, optimizer=Adam(**given), smooth_warp=0.7),
    )
    return Registration(
        texture((17, 12, 11), 0), texture((15, 13, 12), 1), Config(stages=stages), masks() if masked else (None, None)
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("given", [{"coherence": 0.5}, {"significance": 1}], ids=["coherence", "significance"])
def test_the_result_does_not_depend_on_the_number_of_ranks(given, masked):
    case = registration(masked, **given)
    expected = case.run(1)
    assert np.abs(expected.displacement).max() > 0.1
    for ranks, residency in [(2, "window"), (3, "ring"), (5, "replicate")]:
        assert_same_bits(case.run(ranks, residency), expected)


@pytest.mark.parametrize(("field", "values"), [("coherence", (0.5, 4)), ("significance", (0, 1, 4))])
def test_voxels_move_less_the_more_is_asked(field, values):
    moved = [np.linalg.norm(registration(**{field: v}).run(1).displacement, axis=0).mean() for v in values]
    assert all(more > less > 0 for more, less in pairwise(moved))
    assert getattr(Adam(), field) == 0


@pytest.mark.parametrize("field", ["coherence", "significance"])
def test_it_needs_no_memory_more(field):
    plans = [registration(**{field: v}).plan(1, "replicate") for v in (0, 1)]
    assert plans[0].memory_use(0, plans[0].levels[0][0]) == plans[1].memory_use(0, plans[1].levels[0][0])


@pytest.mark.parametrize("optimizer", [{"coherence": -1}, {"coherence": 101}, {"coherence": 1, "significance": 1}])
def test_what_does_not_go_is_refused(optimizer):
    with pytest.raises(ConfigError, match="coherence"):
        Config.parse({"stages": [{"stage": "deformable", "optimizer": {"kind": "adam", **optimizer}}]})


def test_a_filter_that_shared_memory_does_not_hold_is_refused():
    with pytest.raises(ConfigError, match=r"at most 3 voxels"):
        Deformable(smooth_gradient=3.1, optimizer=Adam(coherence=0.5))
    assert Deformable(smooth_gradient=3, optimizer=Adam(coherence=0.5)).optimizer.fused_reach == 6


def test_a_filter_of_one_voxel_has_nothing_to_compare():
    """The mean of its squares is the square of its mean: with coherence 1 nothing moved."""
    with pytest.raises(
        ConfigError, match=r"smooth_gradient 0 does not go with coherence .*: use 1 voxel or more, or coherence 0"
    ):
        Deformable(smooth_gradient=0, optimizer=Adam(coherence=1))
    assert Deformable(smooth_gradient=0, optimizer=Adam()).smooth_gradient == 0


@pytest.mark.parametrize("significance", [-1, 101, float("nan")])
def test_a_level_out_of_range_is_refused(significance):
    with pytest.raises(ConfigError, match="significance"):
        Config.parse({"stages": [{"stage": "deformable", "optimizer": {"kind": "adam", "significance": significance}}]})
