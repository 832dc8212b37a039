"""The position of voxels in the world."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from daskreg.errors import GridError, UnitsError
from daskreg.grid import Grid, Region, level_factors, shrink_factors


@st.composite
def grids(draw):
    shape = draw(st.tuples(*[st.integers(1, 40)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.1, 5)] * 3))
    origin = draw(st.tuples(*[st.floats(-50, 50)] * 3))
    direction = Rotation.random(random_state=draw(st.integers(0, 99))).as_matrix()
    return Grid(shape, spacing, origin, tuple(map(tuple, direction)), "millimeter")


def corners(grid):
    return np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1)


@given(grids())
def test_index_to_world_and_back_is_the_identity(grid):
    index = corners(grid)
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-9)
    np.testing.assert_allclose(grid.to_world(index), grid.corners()[[0, 4, 2, 6, 1, 5, 3, 7]])


@given(grids())
def test_a_grid_is_that_of_its_matrix(grid):
    again = Grid.from_matrix(grid.shape, grid.index_to_world, grid.unit)
    np.testing.assert_allclose(again.index_to_world, grid.index_to_world, atol=1e-9)
    assert again.shape == grid.shape


@given(grids(), st.tuples(*[st.integers(0, 3)] * 3))
def test_a_crop_keeps_the_positions_of_its_voxels(grid, start):
    part = grid.crop(Region.of(start, np.add(start, 2)))
    np.testing.assert_allclose(part.to_world([1, 1, 1]), grid.to_world(np.add(start, 1)), atol=1e-9)


@given(grids(), st.tuples(*[st.integers(1, 4)] * 3))
def test_a_coarse_voxel_lies_at_the_centre_of_the_voxels_it_covers(grid, factors):
    coarse = grid.coarsen(factors)
    f = np.array(factors)
    np.testing.assert_allclose(coarse.to_world([1, 0, 2]), grid.to_world(f * [1, 0, 2] + (f - 1) / 2), atol=1e-8)
    assert all((n - 1) * k < m <= n * k for n, k, m in zip(coarse.shape, factors, grid.shape, strict=True))


@given(grids(), st.permutations([0, 1, 2]))
def test_a_permuted_grid_has_the_same_voxels(grid, order):
    index = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(grid.permute(tuple(order)).to_world(index[list(order)]), grid.to_world(index), atol=1e-9)


def test_the_edge_of_a_voxel_is_that_of_a_cube_in_millimetres():
    assert Grid((4, 4, 4), (4, 1, 2), unit="mm").edge_mm == pytest.approx(2)
    assert Grid((4, 4, 4), (25, 25, 25), unit="um").edge_mm == pytest.approx(0.025)
    assert Grid((4, 4, 4), (4, 1, 2)).edge_mm is None


def test_another_unit_scales_positions():
    grid = Grid((2, 3, 4), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), unit="mm")
    np.testing.assert_allclose(grid.to_unit("um").to_world([1, 1, 1]), 1000 * grid.to_world([1, 1, 1]))
    with pytest.raises(UnitsError, match="states no unit"):
        grid.to_unit(None)
    with pytest.raises(UnitsError, match="'stone' is no"):
        Grid((2, 2, 2), unit="stone")


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 2, 2)},
        {"shape": (2, 2)},
        {"spacing": (1, 0, 1)},
        {"origin": (np.nan, 0, 0)},
        {"direction": ((1, 0, 0),) * 3},
    ],
)
def test_a_grid_without_voxels_in_the_world_is_refused(wrong):
    with pytest.raises(GridError):
        replace(Grid((2, 2, 2)), **wrong)


def test_equal_grids_have_equal_tokens_and_hashes():
    a, b = (Grid((2, 3, 4), (1, 2, 3), unit=unit) for unit in ("mm", "millimeter"))
    assert a == b
    assert hash(a) == hash(b)
    assert a.__dask_tokenize__() == b.__dask_tokenize__()


@given(grids(), st.floats(0.1, 40))
def test_shrink_factors_keep_eight_voxels_and_never_refine(grid, voxel):
    factors = shrink_factors(grid, voxel)
    assert min(factors) >= 1
    assert all(k == 1 or n // k >= 8 for k, n in zip(factors, grid.shape, strict=True))


def test_levels_of_both_images_have_voxels_of_nearly_one_size():
    fixed, moving = Grid((64, 128, 128), (2.0, 1.0, 1.0)), Grid((200, 200, 200), (0.5, 0.5, 0.5))
    f, m = level_factors(fixed, moving, 4)
    assert f == (2, 4, 4)
    assert m == (8, 8, 8)
