"""What ``register`` returns is taken wherever a run or a transform is."""

import numpy as np
import pytest

import daskreg
from daskreg.lazy.load import as_transform, path_of
from daskreg.workflows.inputs import Request
from daskreg.workflows.recorded import run_of
from daskreg.workflows.start import stored_start
from tests.unit.workflows.runs import FIXED, affine, displacement, make_run


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return daskreg.Result(make_run(tmp_path_factory.mktemp("result") / "run.zarr", affine(), displacement()))


def test_functions_take_a_result_as_they_take_its_address(result, tmp_path):
    np.save(tmp_path / "in.npy", FIXED.to_world([[3.0, 4.0, 5.0]]))
    for take in (
        lambda run: daskreg.points(run, tmp_path / "in.npy").tolist(),
        lambda run: daskreg.jacobian(run, tmp_path / "j.nrrd", overwrite=True),
        lambda run: daskreg.invert(run, tmp_path / "i.zarr", overwrite=True),
        lambda run: daskreg.evaluate(run),
        lambda run: daskreg.info(run).lines(),
        lambda run: daskreg.export(run, tmp_path / "a.tfm", part="affine", overwrite=True),
        lambda run: daskreg.apply(run, daskreg.open_volume(displacement()[0], grid=FIXED)).data[9, 9, 9].compute(),
        lambda run: [link.affine.tolist() for link in daskreg.load_transform(run).links],
    ):
        assert take(result) == take(result.path)
    assert path_of(result) == result.path
    assert run_of(result) == result.store
    assert as_transform(result).fixed == FIXED


def test_an_array_without_a_geometry_is_told_where_to_state_it(result):
    """Functions that take an array have no arguments spacing and unit."""
    with pytest.raises(daskreg.UnitsError, match=r"in Python: daskreg\.open_volume\(array, spacing=\.\.\., unit="):
        daskreg.apply(result, np.zeros(FIXED.shape, np.float32))


def test_a_registration_starts_from_a_result(result, tmp_path):
    assert stored_start(result, None, None, None, tmp_path / "run.zarr", resume=False) == result.path
    assert Request(initial_transform=result).chosen.initial_transform == result.path
