"""What ``register`` returns is taken wherever a run or a transform is."""

import logging

import numpy as np
import pytest
import zarr

import daskreg
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform, path_of
from daskreg.workflows.inputs import Request
from daskreg.workflows.recorded import run_of
from daskreg.workflows.start import stored_start
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, make_run


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
    assert load_transform(result).fixed == FIXED
    transform = daskreg.load_transform(result)
    assert daskreg.load_transform(transform) is transform


@pytest.mark.parametrize("take", [daskreg.apply, lambda run, array: load_transform(run).apply(array)])
def test_an_array_of_another_shape_is_told_where_to_state_its_geometry(result, take):
    """Functions that take an array have no arguments spacing and unit; 1 x 1 x 1 would be a guess."""
    with pytest.raises(daskreg.GridError, match=r"40 x 33 x 44 voxels .* size, .* has 38 x 33 x 44 at 1.5 x 1.7 x 1.2 mill"):
        take(result, np.zeros((40, 33, 44), np.float32))
    with pytest.raises(daskreg.GridError, match=r"open_volume\(array, spacing=\.\.\., unit=.* the shape of the fixed image"):
        take(result, np.zeros(FIXED.shape, np.float32))
    with pytest.raises(daskreg.GridError, match="does not know its moving image"):
        take(daskreg.Transform.of(np.eye(4), unit="mm"), np.zeros(MOVING.shape, np.float32))


def test_an_array_where_voxels_are_1_x_1_x_1_has_to_say_so_too(tmp_path):
    """Fewer voxels may be of a coarser level."""
    grid = Grid((8, 9, 10))
    run = make_run(tmp_path / "run.zarr", fixed=grid, moving=grid)
    with pytest.raises(daskreg.GridError, match=r"4 x 5 x 5 voxels"):
        daskreg.apply(run, np.zeros((4, 5, 5), np.float32))
    assert daskreg.apply(run, daskreg.open_volume(np.ones((4, 5, 5), np.float32), spacing=2)).read().mean() > 0.7


def test_an_image_of_another_library_without_a_geometry_is_as_an_array_is(result, tmp_path, caplog):
    caplog.set_level(logging.INFO, "daskreg")
    array = zarr.array(displacement(MOVING)[0])
    for output in (None, tmp_path / "moved.zarr"):
        caplog.clear()
        assert daskreg.apply(result, array, output, overwrite=True).grid.shape == FIXED.shape
        assert "the array is taken on the grid of the moving image, whose shape it has: 38 x 33 x 44 at" in caplog.text
        with pytest.raises(daskreg.GridError, match="does not say of which size"):
            daskreg.apply(result, zarr.array(np.zeros((4, 5, 5), np.float32)), output, overwrite=True)


def test_a_file_that_states_no_voxel_size_is_as_an_array_is(result, tmp_path, caplog):
    """Of the shape of the image it is where that is; of another one it is refused with what to type."""
    caplog.set_level(logging.INFO, "daskreg")
    path, voxels = str(tmp_path / "a.npy"), displacement(MOVING)[0]
    np.save(path, voxels)
    for output in (None, tmp_path / "moved.zarr"):
        caplog.clear()
        np.testing.assert_array_equal(daskreg.apply(result, path, output).read(), daskreg.apply(result, voxels).read())
        assert f"{path} is taken on the grid of the moving image, whose shape it has: 38 x 33 x 44 at" in caplog.text
    np.save(path, voxels[::2])
    with pytest.raises(daskreg.GridError, match=r"a\.npy has 19 x 33 x 44 voxels .* '::spacing=ZxYxX,unit=mm' behind its path"):
        daskreg.apply(result, path, tmp_path / "other.zarr")
    coarser = tuple(2 * s if k == 0 else s for k, s in enumerate(MOVING.spacing))
    assert daskreg.apply(result, f"{path}::spacing={'x'.join(map(str, coarser))},unit=mm").grid == FIXED


def test_a_registration_starts_from_a_result(result, tmp_path):
    assert stored_start(result, None, None, None, tmp_path / "run.zarr", resume=False) == result.path
    assert Request(initial_transform=result).chosen.initial_transform == result.path
