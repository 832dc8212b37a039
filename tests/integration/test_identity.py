"""Identity in, identity out: bit for bit, or to the last digits where a search went before."""

import numpy as np
import pytest

import daskreg
from daskreg.errors import ConfigError
from daskreg.workflows.demo import demo_pair


@pytest.mark.parametrize(("preset", "digits"), [("brain", 0), pytest.param("rigid", 1e-4, marks=pytest.mark.slow)])
def test_an_image_registered_to_itself_stays_where_it_is(preset, digits, tmp_path):
    head = demo_pair(3)[0]
    result = daskreg.register(head, head, preset, output=tmp_path / "run.zarr")
    np.testing.assert_allclose(result.affine, np.eye(4), rtol=0, atol=digits)
    np.testing.assert_array_equal(np.asarray(result.moved.data), np.asarray(daskreg.open_volume(head).data))
    if result.displacement is not None:
        assert not np.asarray(result.displacement).any()


def test_stages_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"Affine is a class; write Affine\(\)"):
        daskreg.Config.of_stages([daskreg.Affine])
    with pytest.raises(ConfigError, match="stages"):
        daskreg.Config.of_stages([])
    assert daskreg.Config.of_stages(["moments"]).stages == (daskreg.Moments(),)
