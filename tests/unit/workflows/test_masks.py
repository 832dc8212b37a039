"""Masks are brought onto their image's grid by their own; by index only where the grids are the same."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from daskreg import MSE, Deformable, Rigid, register
from daskreg.errors import GridError, NoOverlap
from daskreg.grid import Grid
from daskreg.reporting.page import render
from daskreg.storage import Volume, open_volume, write_image
from daskreg.workflows.inputs import Request, staged
from daskreg.workflows.masks import RESAMPLED, open_mask, same_grid
from tests.unit.storage.stores import voxels
from tests.unit.storage.zarr.test_archives import early

GRID = Grid((6, 8, 10), spacing=(2.0, 1.0, 1.5), origin=(-4.0, 3.0, 10.0), unit="millimeter")
IMAGE = open_volume(np.arange(480, dtype=np.float32).reshape(GRID.shape), grid=GRID)
WEIGHTS = np.random.default_rng(3).random(GRID.shape).astype(np.float32)


def mirrored(grid, axis):
    """The same voxels stored the other way round along an axis."""
    first = [0, 0, 0]
    first[axis] = grid.shape[axis] - 1
    flip = np.diag([-1.0 if a == axis else 1.0 for a in range(3)])
    return replace(grid, origin=tuple(grid.to_world(first)), direction=tuple(map(tuple, np.asarray(grid.direction) @ flip)))


def test_a_mask_on_the_same_grid_keeps_its_bits():
    rounded = replace(GRID, origin=(-4.0000003, 3.0, 10.0))
    for source in (WEIGHTS, Volume(open_volume(WEIGHTS).data, rounded, "m", "nifti"), open_volume(WEIGHTS)):
        mask = open_mask(source, IMAGE, "fixed")
        assert mask.grid == GRID
        assert mask.format != RESAMPLED
        np.testing.assert_array_equal(mask.read(), WEIGHTS)
    assert open_mask(None, IMAGE, "fixed") is None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bool])
def test_a_mirrored_mask_lies_where_its_header_says(axis, dtype):
    weights = WEIGHTS if dtype == np.float32 else (WEIGHTS > 0.5).astype(dtype)
    stored = open_volume(np.flip(weights, axis).copy(), grid=mirrored(GRID, axis))
    mask = open_mask(stored, IMAGE, "fixed")
    assert mask.format == RESAMPLED
    np.testing.assert_allclose(mask.read(), weights.astype(np.float32), atol=1e-6)


def test_a_mask_of_half_the_resolution_is_interpolated_if_it_is_soft_and_nearest_if_it_is_hard():
    """Weights that rise linearly in the world come out as the same function of the world; labels stay labels."""
    coarse = Grid((4, 5, 6), spacing=(4.0, 2.0, 3.0), origin=(-4.0, 3.0, 10.0), unit="millimeter")
    z = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 5, 6), np.float32)
    soft = open_mask(open_volume(z, grid=coarse), IMAGE, "moving").read()
    np.testing.assert_allclose(soft[:, 3, 4], np.arange(6) / 2, atol=1e-6)
    hard = open_mask(open_volume(z.astype(np.uint8), grid=coarse), IMAGE, "moving").read()
    assert set(np.unique(hard)) <= {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_array_equal(hard[::2, 3, 4], [0, 1, 2])


def test_beyond_its_grid_a_mask_is_zero():
    part = GRID.crop(GRID.region.grow(-2))
    mask = open_mask(open_volume(np.ones(part.shape, np.uint8), grid=part), IMAGE, "fixed").read()
    expected = np.zeros(GRID.shape, np.float32)
    expected[2:-2, 2:-2, 2:-2] = 1
    np.testing.assert_array_equal(mask, expected)


def test_a_mask_without_a_unit_is_in_that_of_its_image():
    mask = open_mask(Volume(open_volume(WEIGHTS).data, replace(GRID, unit=None), "m.zarr", "zarr"), IMAGE, "fixed")
    np.testing.assert_array_equal(mask.read(), WEIGHTS)


def test_a_mask_in_another_unit_is_converted():
    scaled = GRID.to_unit("micrometer")
    assert same_grid(scaled, GRID)
    assert not same_grid(scaled, replace(GRID, spacing=(2.0, 1.0, 1.0)))


def test_a_mask_that_does_not_overlap_is_refused():
    far = open_volume(WEIGHTS, grid=replace(GRID, origin=(-4.0, 3.0, 210.0)))
    with pytest.raises(NoOverlap, match=r"moving mask array does not overlap the moving image array in space: .* 200 millimeter"):
        open_mask(far, IMAGE, "moving")
    beside = replace(GRID, origin=(-4.0, 10.2, 23.6))
    with pytest.raises(NoOverlap):
        open_mask(open_volume(WEIGHTS, grid=beside), IMAGE, "moving")


def test_a_mask_whose_header_turns_it_away_is_refused_with_the_reason():
    own = Grid((4, 40, 40), unit="millimeter")
    turned = Grid.from_matrix(own.shape, np.diag([1.0, -1.0, -1.0, 1.0]) @ own.index_to_world, own.unit, oriented=True)
    image, mask = (open_volume(np.ones(own.shape, np.float32), grid=grid) for grid in (own, turned))
    with pytest.raises(NoOverlap, match=r"says how its axes lie in space; .* is taken as LPS"):
        open_mask(mask, image, "fixed")


def test_an_array_of_another_shape_is_refused():
    with pytest.raises(
        GridError, match=r"the fixed mask is an array of shape \(6, 8, 9\), the fixed image array has \(6, 8, 10\)"
    ):
        open_mask(WEIGHTS[:, :, 1:], IMAGE, "fixed")


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_an_array_file_of_the_shape_of_its_image_is_on_its_grid(tmp_path, side):
    np.save(tmp_path / "mask.npy", WEIGHTS)
    inputs = Request(IMAGE, IMAGE, "rigid", **{f"{side}_mask": str(tmp_path / "mask.npy")}).open()
    mask = inputs.masks[side == "moving"]
    assert mask.grid == GRID
    np.testing.assert_array_equal(mask.read(), WEIGHTS)


def test_an_ome_zarr_of_a_version_without_voxel_sizes_is_on_the_grid_of_an_image_of_its_shape(tmp_path):
    path = early(tmp_path / "mask.ome.zarr", "0.3", "zyx")
    grid = replace(GRID, shape=(4, 6, 8))
    mask = open_mask(path, open_volume(np.zeros(grid.shape, np.float32), grid=grid), "fixed")
    assert mask.grid == grid
    np.testing.assert_array_equal(mask.read(), voxels(grid.shape))
    with pytest.raises(GridError, match=r"mask\.ome\.zarr states no voxel size and is an array of shape \(4, 6, 8\), the fixed"):
        open_mask(path, IMAGE, "fixed")
    placed = Grid(grid.shape, (4.0, 2.0, 2.0))
    assert open_mask(f"{path}::spacing=4x2x2", open_volume(np.zeros(grid.shape, np.float32), grid=placed), "fixed").grid == placed


def test_an_array_file_of_another_shape_is_refused(tmp_path):
    np.save(tmp_path / "mask.npy", WEIGHTS[:, :, 1:])
    with pytest.raises(
        GridError, match=r"mask.npy states no voxel size and is an array of shape \(6, 8, 9\), the moving image .* 10\)"
    ):
        open_mask(tmp_path / "mask.npy", IMAGE, "moving")


def test_a_mask_of_the_images_shape_that_lies_elsewhere_for_want_of_a_header_is_told(caplog):
    own = replace(GRID, oriented=True)
    image = open_volume(np.ones(own.shape, np.float32), grid=own)
    open_mask(open_volume(WEIGHTS, grid=replace(GRID, origin=(-3.0, 2.0, 9.0))), image, "fixed")
    assert "has the shape of the fixed image, but lies elsewhere: its header does not say how its axes lie" in caplog.text
    caplog.clear()
    open_mask(open_volume(WEIGHTS, grid=replace(own, origin=(-3.0, 2.0, 9.0))), image, "fixed")
    assert "lies elsewhere" not in caplog.text


def test_a_resampled_mask_is_computed_once_before_the_ranks_read_it(tmp_path):
    stored = open_volume(np.flip(WEIGHTS, 2).copy(), grid=mirrored(GRID, 2))
    inputs = Request(IMAGE, IMAGE, "rigid", fixed_mask=stored, moving_mask=WEIGHTS).open()
    with staged(inputs, str(tmp_path / "run.zarr"), None) as reachable:
        assert [v.format for v in reachable.masks] != [RESAMPLED, "array"]
        assert reachable.fixed is IMAGE
        assert reachable.masks[0].grid == GRID
        np.testing.assert_allclose(reachable.masks[0].read(), WEIGHTS, atol=1e-6)
    assert not list(tmp_path.iterdir())


def test_a_mask_file_is_placed_by_its_header(tmp_path):
    image = tmp_path / "image.nii.gz"
    write_image(image, IMAGE.data, GRID)
    header = nib.load(image)
    flipped = header.affine @ np.diag([-1, 1, 1, 1])
    flipped[:3, 3] += header.affine[:3, 0] * (GRID.shape[2] - 1)
    nib.save(nib.Nifti1Image(WEIGHTS.T[::-1], flipped), tmp_path / "mask.nii.gz")
    opened = Request(str(image), str(image), "rigid", fixed_mask=tmp_path / "mask.nii.gz").open()
    np.testing.assert_allclose(opened.masks[0].read(), WEIGHTS, atol=1e-5)


def test_a_registration_does_not_depend_on_how_its_mask_is_stored():
    """Mirrored and in another unit, the mask weights the same voxels: the result is the same, bit for bit."""
    rng = np.random.default_rng(5)
    grid = Grid((16, 18, 20), spacing=(1.0, 1.5, 1.0), unit="millimeter")
    fixed, moving = (open_volume(rng.random(grid.shape, np.float32), grid=grid) for _ in range(2))
    weights = (rng.random(grid.shape) > 0.3).astype(np.uint8)
    stored = open_volume(np.flip(weights, 1).copy(), grid=mirrored(grid, 1).to_unit("micrometer"))
    stages = [Deformable(similarity=MSE(), scales=(1,), iterations=(3,))]
    given = {"device": "cpu", "checkpoint": None}
    direct, placed = (register(fixed, moving, stages, fixed_mask=mask, **given) for mask in (weights, stored))
    assert placed.report["levels"][0]["losses"] == direct.report["levels"][0]["losses"]
    np.testing.assert_array_equal(placed.displacement, direct.displacement)


def shares_are_told(caplog, **options):
    """One that leaves next to nothing, as one in another unit does, is likely another image's."""
    grid = Grid((20, 20, 20), unit="millimeter")
    fixed, moving = (open_volume(np.random.default_rng(5).random(grid.shape, np.float32), grid=grid) for _ in range(2))
    few = np.zeros(grid.shape, np.uint8)
    few[5, 8:12, :] = 1
    few[5, 8, 0] = 0
    half = replace(grid, shape=(10, 20, 20))
    masks = {"fixed_mask": few, "moving_mask": open_volume(np.ones(half.shape, np.uint8), grid=half)}
    stages = [Rigid(scales=(1,), iterations=(1,), similarity=MSE())]
    with caplog.at_level("INFO"):
        run = register(fixed, moving, stages, device="cpu", **masks, **options)
    assert "the moving mask leaves 50 % of the moving image (4000 of 8000 voxels)" in caplog.text
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.getMessage().startswith("the"))
    assert warning.startswith("the fixed mask leaves 0.988 % of the fixed image (79 of 8000 voxels); is it the right one")
    assert run.report["masked"] == [79, 4000]
    return run


def test_the_share_of_an_image_that_a_mask_leaves_is_told_and_recorded(caplog, tmp_path):
    """On several workers: ``test_workers``."""
    run = shares_are_told(caplog, output=tmp_path / "run.zarr")
    assert "and at the fixed mask, which leaves 0.99 % of its image" in run.verdict.text()
    assert "The moving mask leaves 50 % of the moving image (4000 of 8000 voxels)." in render(run.store)


def test_a_mask_that_takes_nothing_out_is_told(caplog):
    image = open_volume(np.random.default_rng(5).random((8, 8, 8), np.float32), spacing=1)
    register(image, image, [Rigid(scales=(1,), iterations=(1,))], device="cpu", fixed_mask=np.ones((8, 8, 8), np.uint8))
    assert "leaves 100 % of the fixed image (512 of 512 voxels): its weights are above 0 everywhere" in caplog.text
