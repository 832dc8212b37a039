"""Long matrices, run nightly: every preset, every stored type, on the bundled heads."""

import numpy as np
import pytest

import daskreg
from daskreg.workflows.demo import demo_pair

TYPES = ["uint8", "uint16", "int16", "float32", "float64"]


@pytest.mark.slow
@pytest.mark.parametrize("name", daskreg.PRESETS)
def test_every_preset_brings_the_bundled_heads_closer(name, tmp_path):
    result = daskreg.register(*demo_pair(3), name, output=tmp_path / "run.zarr")
    before, after = result.report["metrics"]["before"], result.report["metrics"]["after"]
    assert after["ncc"] > before["ncc"]
    assert after["mi"] > before["mi"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_the_stored_type_does_not_matter(dtype, tmp_path):
    fixed, moving = (daskreg.open_volume(path) for path in demo_pair(3))
    typed = [daskreg.open_volume(np.asarray(v.data).astype(dtype), grid=v.grid) for v in (fixed, moving)]
    reference = daskreg.register(fixed, moving, "brain", output=tmp_path / "reference.zarr")
    result = daskreg.register(*typed, "brain", output=tmp_path / "run.zarr")
    assert result.moved.dtype == dtype
    np.testing.assert_array_equal(np.asarray(result.displacement), np.asarray(reference.displacement))
