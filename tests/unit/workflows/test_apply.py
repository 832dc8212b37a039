"""An image through a finished run: any grid, any type, any blocks."""

import logging
from dataclasses import replace

import dask.array as da
import nibabel as nib
import numpy as np
import pytest
import zarr

from daskreg.errors import ConfigError, IncompleteRun, OutputError, OutputExists, UnitsError
from daskreg.grid import Grid, Region
from daskreg.kernels.sampling.cpu import EXTENT, sample
from daskreg.kernels.sampling.labels import sample_label
from daskreg.lazy import blocks as module
from daskreg.lazy.blocks import block_of
from daskreg.lazy.load import load_transform
from daskreg.lazy.resample import require_size, warn_of_other_grid
from daskreg.lazy.transform import Transform
from daskreg.storage import Volume, open_stack, open_volume, write_image
from daskreg.storage.axes import Axis
from daskreg.storage.fs.files import list_names
from daskreg.storage.images import _warn_of_unit_spacing
from daskreg.transforms.bounds import sampling_bounds
from daskreg.transforms.linear import index_map, linear_part, to_fixed_point
from daskreg.workflows.apply import apply
from daskreg.workflows.evaluate import evaluate
from daskreg.workflows.export import export
from daskreg.workflows.jacobian import jacobian
from daskreg.workflows.points import points
from daskreg.workflows.view import view
from tests.phantoms import blobs, oblique_grid
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, make_run, trilinear_by_hand


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run.zarr", affine(), displacement())


@pytest.fixture(scope="module")
def image():
    return Volume(da.from_array(blobs(MOVING.shape), chunks=20), MOVING)


def phi_by_hand(grid=FIXED):
    """Moving world points of every voxel of the fixed grid."""
    x = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) + np.moveaxis(displacement(), 0, -1)
    return x @ affine()[:3, :3].T + affine()[:3, 3]


def voxels(volume):
    return volume.data.compute()


def test_applying_to_the_moving_image_is_what_the_engine_computes(run, image):
    matrix = index_map(affine(), FIXED, MOVING)
    u = np.einsum("rc,czyx->rzyx", FIXED.world_to_index[:3, :3], displacement()).astype(np.float32)
    engine = np.empty(FIXED.shape, np.float32)
    sample(engine.shape, 0, to_fixed_point(matrix), linear_part(matrix), u, 0, MOVING.shape[0], EXTENT, voxels(image), engine)
    moved = apply(run, image)
    assert moved.grid == FIXED
    np.testing.assert_allclose(voxels(moved), np.nan_to_num(engine), atol=2e-5)


def test_linear_is_trilinear_at_phi(run, image):
    wanted = trilinear_by_hand(voxels(image), MOVING.to_index(phi_by_hand()))
    np.testing.assert_allclose(voxels(apply(run.path, image)), wanted, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "label"])
def test_blocks_change_no_bit(run, image, interpolation, monkeypatch):
    stored = replace(image, data=(image.data * 1000).astype(np.int16))
    whole = voxels(apply(run, stored, interpolation=interpolation))
    monkeypatch.setattr(module, "EDGE", 13)
    monkeypatch.setattr(module, "CACHED_BYTES", 0)
    small = apply(run, stored, interpolation=interpolation)
    assert small.data.numblocks == (3, 3, 4)
    np.testing.assert_array_equal(voxels(small), whole)


def test_a_block_reads_only_what_it_can_reach(run, image, monkeypatch):
    monkeypatch.setattr(module, "CACHED_BYTES", 0)
    monkeypatch.setattr(module, "EDGE", 8)
    seen = []

    def note(block):
        if block.size:
            seen.append(block.size)
        return block

    watched = replace(image, data=image.data.rechunk(4).map_blocks(note, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)))
    apply(run, watched).data.blocks[1, 2, 2].compute(scheduler="synchronous")
    assert 0 < sum(seen) < MOVING.size / 4


def test_the_footprint_holds_every_point_and_little_more():
    box = Region((4, 6, 8), (12, 20, 21))
    matrix, d = index_map(affine(), FIXED, MOVING), displacement()[(slice(None), *box.slices)]
    at = MOVING.to_index(phi_by_hand()[box.slices]).reshape(-1, 3)
    there = sampling_bounds(matrix, MOVING.world_to_index[:3, :3] @ affine()[:3, :3], d, box, MOVING.shape)
    low = np.maximum(np.floor(at.min(axis=0)), 0)
    high = np.minimum(np.floor(at.max(axis=0)) + 2, MOVING.shape)
    assert (there.start <= low).all()
    assert (there.stop >= high).all()
    assert (low - there.start <= 5).all()
    assert (there.stop - high <= 5).all()


def test_a_bump_inside_a_block_is_read_though_no_corner_shows_it():
    """The displacement is zero at corners and faces, and ten voxels in the middle (method, section 7.1)."""
    grid = Grid((64, 64, 64), unit="mm")
    z, y, x = (np.indices(grid.shape) - 31.5) / 8
    d = np.zeros((3, *grid.shape), np.float32)
    d[2] = 40 * np.exp(-(z**2 + y**2 + x**2))
    moving = Grid((64, 64, 120), unit="mm")
    image = np.random.default_rng(0).random(moving.shape, np.float32)
    assert np.abs(d[:, [0, -1]]).max() < 1e-4
    transform = Transform.of(None, grid, d, moving)
    at = np.moveaxis(np.indices(grid.shape) + d, 0, -1)
    np.testing.assert_allclose(transform.apply(image).compute(), trilinear_by_hand(image, at), atol=2e-4)


def test_only_world_coordinates_matter(run, image):
    stored, grid = oblique_grid(voxels(image), MOVING)
    np.testing.assert_allclose(voxels(apply(run, open_volume(stored, grid=grid))), voxels(apply(run, image)), atol=2e-5)


def test_the_unit_of_the_image_is_converted(run, image):
    micro = replace(image, grid=MOVING.to_unit("um"))
    np.testing.assert_allclose(voxels(apply(run, micro)), voxels(apply(run, image)), atol=2e-5)
    with pytest.raises(UnitsError, match="unit"):
        apply(run, replace(image, grid=replace(MOVING, unit=None)))


# a kernel is compiled for each of these types, and not for others, in every interpolation that keeps what it takes
COMPILED = {"int8", "uint16", "int32", "float64"}


@pytest.mark.parametrize(
    ("interpolation", "dtype"),
    [
        pytest.param(interpolation, dtype, marks=[pytest.mark.slow] * (interpolation != "linear" and dtype in COMPILED))
        for interpolation in ("linear", "nearest", "label")
        for dtype in ("bool", "int8", "uint8", "uint16", "int32", "uint64", "float16", ">f4", "float64")
    ],
)
def test_the_type_stays(run, image, dtype, interpolation):
    given = (voxels(image) * 100).astype(dtype)
    moved = voxels(apply(run, open_volume(given, grid=MOVING), interpolation=interpolation))
    assert moved.dtype == np.dtype(dtype).newbyteorder("=")
    if interpolation != "linear":
        assert set(np.unique(moved)) <= set(np.unique(given)) | {0}
        assert len(np.unique(moved)) > 1


def test_linear_rounds_and_clips_integers(tmp_path):
    run = make_run(tmp_path / "r.zarr", half_a_voxel(), fixed=GRID, moving=GRID)
    line = np.array([[[0, 3, 255, 255, 0, 1]]], np.uint8)
    assert voxels(apply(run, open_volume(line, grid=GRID))).ravel().tolist() == [2, 129, 255, 128, 0, 0]
    top = np.full((1, 1, 6), np.iinfo(np.int64).max)
    assert voxels(apply(run, open_volume(top, grid=GRID)))[0, 0, 0] >= np.iinfo(np.int64).max - 1024


GRID = Grid((1, 1, 6), unit="mm")


def half_a_voxel():
    matrix = np.eye(4)
    matrix[2, 3] = 0.5
    return matrix


def test_large_identities_survive(tmp_path):
    run = make_run(tmp_path / "r.zarr", fixed=GRID, moving=GRID)
    labels = np.array([[[2**53 + 1, 2**63 + 5, 16777217, 7, 0, 2**64 - 1]]], np.uint64)
    for interpolation in ("nearest", "label"):
        np.testing.assert_array_equal(voxels(apply(run, open_volume(labels, grid=GRID), interpolation=interpolation)), labels)


def test_of_equal_labels_the_smallest_wins(tmp_path):
    run = make_run(tmp_path / "r.zarr", half_a_voxel(), fixed=GRID, moving=GRID)
    labels = np.array([[[5, 3, 3, 9, -2, 4]]], np.int16)
    assert voxels(apply(run, open_volume(labels, grid=GRID), interpolation="label")).ravel().tolist() == [3, 3, 3, -2, -2, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_label_is_the_one_with_most_weight(dtype):
    rng = np.random.default_rng(1)
    shape = (5, 6, 7)
    labels, u = rng.integers(0, 4, shape).astype(dtype), (rng.random((3, *shape)) * 4 - 2).astype(np.float32)
    moved = np.full(shape, 9, dtype)
    sample_label(shape, 0, to_fixed_point(np.eye(4)), linear_part(np.eye(4)), u, labels, moved)
    at = np.moveaxis(np.indices(shape) + u.astype(float), 0, -1)
    inside = ((at >= -0.5) & (at < np.array(shape) - 0.5)).all(axis=-1)
    assert (moved[~inside] == 9).all()
    at = np.clip(at, 0, np.array(shape) - 1)[inside]
    weights = np.stack([trilinear_by_hand(labels == n, at) for n in range(4)])
    best = np.take_along_axis(weights, moved[inside][None].astype(int), 0)[0]
    np.testing.assert_allclose(best, weights.max(axis=0), atol=1e-6)


def test_nearest_is_the_nearest_voxel(run, image):
    at = np.floor(MOVING.to_index(phi_by_hand()) + 0.5).astype(int)
    inside = ((at >= 0) & (at < MOVING.shape)).all(axis=-1)
    wanted = np.where(inside, voxels(image)[tuple(np.moveaxis(np.clip(at, 0, np.array(MOVING.shape) - 1), -1, 0))], 0)
    assert (voxels(apply(run, image, interpolation="nearest")) != wanted).mean() < 1e-3


def test_on_the_grid_of_another_image(run, image):
    like = Grid((12, 20, 18), (4.0, 3.0, 2.5), tuple(FIXED.to_world((2.3, 1.1, 0.4))), FIXED.direction, "mm", True)
    moved = apply(run, image, like=like.to_unit("um"))
    assert moved.grid == like.to_unit("um")
    x = like.to_world(np.moveaxis(np.indices(like.shape), 0, -1))
    at = FIXED.to_index(x)
    x = x + np.stack([trilinear_by_hand(c, at) for c in displacement()], axis=-1)
    wanted = trilinear_by_hand(voxels(image), MOVING.to_index(x @ affine()[:3, :3].T + affine()[:3, 3]))
    np.testing.assert_allclose(voxels(moved), wanted, atol=2e-4)


def test_an_array_is_on_the_grid_of_its_image(run, image, tmp_path, caplog):
    _warn_of_unit_spacing.cache_clear()  # which says once a process that an array is taken as 1 x 1 x 1
    found = apply(run, image.read(), tmp_path / "moved.ome.zarr")
    np.testing.assert_array_equal(found.read(), voxels(apply(run, image)))
    on = apply(run, image, like=np.zeros(FIXED.shape, np.float32))
    assert on.grid == FIXED
    assert "no voxel size" not in caplog.text


def test_a_transform_of_a_coarser_level_moves_the_full_image_on_the_grid_that_is_named(tmp_path, caplog):
    """As docs/howto/memory.md says: found at ``::level=1``, applied to level 0."""
    caplog.set_level(logging.INFO, "daskreg")
    voxels = blobs((70, 26, 30), 3)
    full = tmp_path / "full.ome.zarr"
    write_image(full, voxels, Grid(voxels.shape, (1.0, 2.0, 2.0), unit="mm"))
    coarse, fine = open_volume(f"{full}::level=1").grid, open_volume(full).grid
    shift = np.eye(4)
    shift[:3, 3] = 2.0, 4.0, 0.0  # whole voxels of the full image
    run = make_run(tmp_path / "run.zarr", shift, fixed=coarse, moving=coarse)
    small = apply(run, str(full), tmp_path / "small.ome.zarr")
    assert small.grid.shape == coarse.shape
    assert f"voxels of {full} are 1 x 2 x 2, and those of the output 2 x 2 x 2 millimeter" in caplog.text
    assert "--like (like=) FIXED at full resolution" in caplog.text
    caplog.clear()
    moved = apply(run, str(full), tmp_path / "moved.ome.zarr", like=str(full))
    assert moved.grid == fine
    np.testing.assert_allclose(moved.read()[:-2, :-2], voxels[2:, 2:], atol=1e-5)
    assert "FIXED at full resolution" not in caplog.text
    apply(run, str(f"{full}::level=1"), tmp_path / "again.ome.zarr")
    assert "FIXED at full resolution" not in caplog.text


def test_a_larger_grid_agrees_where_both_are_and_a_crop_is_a_crop(run, image):
    whole = voxels(apply(run, image))
    larger = replace(FIXED, shape=tuple(n + 4 for n in FIXED.shape))
    part = Region((3, 4, 5), (20, 21, 22))
    np.testing.assert_allclose(voxels(apply(run, image, like=larger))[FIXED.region.slices], whole, atol=2e-5)
    np.testing.assert_allclose(voxels(apply(run, image, like=FIXED.crop(part))), whole[part.slices], atol=2e-4)


def test_a_run_without_displacement(tmp_path, image):
    run = make_run(tmp_path / "r.zarr", affine())
    at = FIXED.to_world(np.moveaxis(np.indices(FIXED.shape), 0, -1)) @ affine()[:3, :3].T + affine()[:3, 3]
    np.testing.assert_allclose(voxels(apply(run, image)), trilinear_by_hand(voxels(image), MOVING.to_index(at)), atol=2e-5)


@pytest.mark.parametrize("name", ["moved.nii", "moved.nii.gz", "moved.ome.zarr"])
def test_what_is_written_is_what_is_computed(run, image, tmp_path, name, caplog):
    stored = replace(image, data=(image.data * 1000).astype(np.uint16))
    back = apply(run, stored, tmp_path / name)
    assert back.dtype == np.uint16
    np.testing.assert_allclose(back.grid.index_to_world, FIXED.index_to_world, atol=1e-4)
    np.testing.assert_array_equal(voxels(back), voxels(apply(run, stored)))
    caplog.clear()
    with caplog.at_level("INFO"), pytest.raises(OutputExists):
        apply(run, stored, tmp_path / name)
    assert caplog.messages == []
    apply(run, stored, tmp_path / name, overwrite=True)


def test_blocks_for_nifti_are_as_deep_as_its_slabs():
    assert block_of((5000, 2048, 2048), 4) == (2, 128, 128)
    assert block_of((5000, 600, 500), 4) == (64, 128, 128)  # 27 planes would do, but chunks are 64 deep
    assert block_of((300, 300, 300)) == (128, 128, 128)
    depth, edge, _ = block_of((100000, 256, 256), 1)
    assert depth == 512
    assert depth * edge * edge <= 128**3


def test_an_image_elsewhere_is_a_warning_and_zero(run, image, caplog):
    away = replace(image, grid=replace(MOVING, origin=(1e6, 0.0, 0.0)))
    with caplog.at_level(logging.WARNING, "daskreg"):
        assert not voxels(apply(run, away)).any()
    assert "does not overlap" in caplog.text


def test_an_image_whose_header_turns_it_away_is_told(caplog):
    own = Grid((4, 40, 40), (2.0, 1.0, 1.0), unit="millimeter")
    turned = np.diag([1.0, -1.0, -1.0, 1.0]) @ own.index_to_world  # as a header of other axes has it: they share a corner
    away = open_volume(np.zeros(own.shape), grid=Grid.from_matrix(own.shape, turned, own.unit, oriented=True))
    with caplog.at_level(logging.WARNING, "daskreg"):
        warn_of_other_grid(away, "moving", {"moving": own, "fixed": None})
    assert "lies where the moving image of the transform is. The header of" in caplog.text
    assert "is taken as LPS" in caplog.text
    caplog.clear()
    part = own.crop(Region((1, 1, 1), (3, 3, 3)))
    with caplog.at_level(logging.WARNING, "daskreg"):
        warn_of_other_grid(open_volume(np.zeros(part.shape), grid=part), "moving", {"moving": own, "fixed": None})
    assert not caplog.text


def test_the_grid_of_an_image_of_several_channels_is_taken(run, image, tmp_path):
    path = str(tmp_path / "two.ome.zarr")
    write_image(path, np.zeros((2, *FIXED.shape), np.uint8), FIXED, axes=(Axis("c", "channel"),))
    assert apply(run, image, like=path).shape == FIXED.shape


def test_a_displacement_elsewhere_is_a_warning(run, image, caplog):
    transform = Transform.of(None, replace(FIXED, origin=(1e6, 0.0, 0.0)), displacement())
    with caplog.at_level(logging.WARNING, "daskreg"):
        apply(run, image)
        assert "displacement" not in caplog.text
        apply(transform, image, like=FIXED)
    assert "displacement does not overlap the output grid" in caplog.text


def test_a_wrong_word_gets_the_nearest(run, image):
    with pytest.raises(ConfigError, match="unknown interpolation 'labels'; did you mean 'label'"):
        apply(run, image, interpolation="labels")


def test_an_incomplete_run_is_refused(tmp_path, image):
    make_run(tmp_path / "r.zarr", finish=False)
    with pytest.raises(IncompleteRun):
        apply(tmp_path / "r.zarr", image)


def test_the_transform_of_a_run_maps_points(run):
    transform = load_transform(run)
    places = np.array([[3, 4, 5], [29, 35, 40], [0, 0, 0]])
    wanted = phi_by_hand()[tuple(places.T)]
    np.testing.assert_allclose(transform.fixed_to_moving_points(FIXED.to_world(places)), wanted, atol=1e-5)


def test_all_channels_of_a_store_are_applied_and_kept(run, image, tmp_path):
    """To a multiscale OME-Zarr with a channel axis, chunks of one channel each; from another pyramid level as well."""
    two = np.stack([voxels(image), 1 - voxels(image)])
    write_image(tmp_path / "two.ome.zarr", two, MOVING, axes=("c",))
    apply(run, tmp_path / "two.ome.zarr", tmp_path / "out.ome.zarr")
    for c in range(2):
        channel = open_volume(f"{tmp_path / 'out.ome.zarr'}::channel={c}")
        assert channel.grid == FIXED
        np.testing.assert_array_equal(voxels(channel), voxels(apply(run, Volume(da.from_array(two[c]), MOVING))))
    with pytest.raises(OutputError, match=r"c.*do not go into one file"):
        apply(run, tmp_path / "two.ome.zarr", tmp_path / "out.nii.gz")
    write_image(tmp_path / "big.ome.zarr", blobs((80, 72, 90)), replace(MOVING, shape=(80, 72, 90)))
    fine, coarse = (voxels(apply(run, f"{tmp_path / 'big.ome.zarr'}::level={k}")) for k in (0, 1))
    assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("axes", [("t", "c"), ("t",), ("phase",)])
def test_times_and_other_axes_are_applied_and_kept(run, image, tmp_path, axes):
    several = np.zeros((*(2,) * len(axes), *MOVING.shape), np.float32)
    several[(0,) * len(axes)] = voxels(image)
    write_image(tmp_path / "in.ome.zarr", several, MOVING, axes=axes)
    first = apply(run, tmp_path / "in.ome.zarr", tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(voxels(first), voxels(apply(run, image)))
    stored = open_stack(tmp_path / "out.ome.zarr")
    assert stored.axes == axes
    np.testing.assert_array_equal(np.asarray(stored.data).reshape(-1, *FIXED.shape)[0], voxels(first))


# --- outside of the image -------------------------------------------------------------------------------------------------

SHIFTED = Transform.of(np.array([[1, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), unit="mm")
CUBE = Grid((16, 12, 14), unit="mm")


def scan(dtype=np.int16, outside=-1024):
    """A body in air."""
    voxels = np.full(CUBE.shape, outside, dtype)
    voxels[4:12, 3:9, 3:10] = 40
    return Volume(da.from_array(voxels, chunks=5), CUBE, "scan")


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic", "label"])
@pytest.mark.parametrize(
    ("dtype", "outside", "fill", "wanted"),
    [
        (np.int16, -1024, None, -1024),  # air, as at the corners
        (np.int16, -1024, 7, 7),
        (np.int16, 5, None, 0),
        (np.uint8, 5, None, 0),
        (np.uint8, 5, 255, 255),
        (np.float32, -0.5, None, -0.5),
        (np.float32, 0.0, "nan", np.nan),
        (np.float32, np.nan, None, np.nan),
        (np.float64, -1.5, np.float32(2.5), 2.5),
        (np.int64, -3, 2**53 + 1, 2**53 + 1),
    ],
)
def test_outside_of_the_image_is_the_fill_value(interpolation, dtype, outside, fill, wanted):
    moved = SHIFTED.apply(scan(dtype, outside), like=CUBE, interpolation=interpolation, fill=fill).compute()
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved[-5:], np.full((5, 12, 14), wanted, dtype))
    np.testing.assert_array_equal(moved[:4, 5:7, 5:7], 40)  # what is inside is untouched


def test_only_the_corners_decide_and_only_of_signed_images():
    voxels = scan().data.compute()
    voxels[5, 5, 5] = -3000
    grown = Volume(da.from_array(voxels, chunks=5), CUBE, "scan")
    assert SHIFTED.apply(grown, like=CUBE).compute()[-1].max() == -1024
    positive = Volume(da.from_array(np.abs(voxels), chunks=5), CUBE, "scan")
    assert SHIFTED.apply(positive, like=CUBE).compute()[-1].max() == 0


def test_the_fill_value_is_told_and_the_same_in_a_file(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "daskreg"):
        moved = apply(SHIFTED, scan(), tmp_path / "moved.nii.gz", like=CUBE)
        apply(SHIFTED, scan(), tmp_path / "other.nii.gz", like=CUBE, fill="-5")
    assert "outside of scan voxels get -1024 (the smallest value at its corners); --fill" in caplog.text
    assert "outside of scan voxels get -5 (as chosen)" in caplog.text
    assert voxels(moved)[-1].max() == -1024
    assert voxels(open_volume(tmp_path / "other.nii.gz"))[-1].max() == -5


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [(np.int16, 1.5), (np.int16, "nan"), (np.int16, 40_000), (np.uint8, -1024), (np.float32, "inf"), (np.float16, 1e6),
     (np.int16, "air"), (np.int16, True), (np.int16, [1])],
)  # fmt: skip
def test_a_fill_value_that_the_image_cannot_have_is_refused(tmp_path, dtype, fill):
    with pytest.raises(ConfigError, match=r"^fill is .* was expected\.$"):
        apply(SHIFTED, scan(dtype, 0), tmp_path / "moved.nii.gz", like=CUBE, fill=fill)
    assert not (tmp_path / "moved.nii.gz").exists()


# --- leading axes ---------------------------------------------------------------------------------------------------------


def test_time_and_channels_keep_their_names_units_scales_and_colours(tmp_path):
    omero = {"channels": [{"label": "DAPI", "color": "0000FF", "window": {"start": 0, "end": 9, "min": 0, "max": 9}},
                          {"label": "GFP", "color": "00FF00"}], "rdefs": {"model": "color"}}  # fmt: skip
    axes = (Axis("t", "time", "second", scale=60.0, origin=5.0), Axis("c", "channel", omero=omero))
    write_image(tmp_path / "in.ome.zarr", np.ones((3, 2, *MOVING.shape), np.uint16), MOVING, axes=axes)
    apply(Transform.of(unit="mm"), str(tmp_path / "in.ome.zarr"), tmp_path / "out.ome.zarr", like=CUBE)
    stored = zarr.open_group(tmp_path / "out.ome.zarr").attrs["ome"]
    image = stored["multiscales"][0]
    assert image["axes"][:2] == [{"name": "t", "type": "time", "unit": "second"}, {"name": "c", "type": "channel"}]
    for dataset in image["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        assert (scale["scale"][:2], translation["translation"][:2]) == ([60.0, 1.0], [5.0, 0.0])
    assert stored["omero"] == omero
    again = open_stack(tmp_path / "out.ome.zarr")
    assert again.lead == axes
    assert again.lead[1].omero == omero


def test_the_time_of_a_frame_in_nifti_is_kept(tmp_path):
    image = nib.Nifti1Image(np.ones((6, 7, 8, 3), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 720
    nib.save(image, tmp_path / "frames.nii.gz")
    apply(Transform.of(unit="mm"), str(tmp_path / "frames.nii.gz"), tmp_path / "out.ome.zarr", like=CUBE)
    (time,) = open_stack(tmp_path / "out.ome.zarr").lead
    assert (time.name, time.unit, time.scale) == ("t", "millisecond", 720.0)


@pytest.mark.parametrize(
    ("word", "step", "stated"), [("msec", 720, ("msec", 720)), ("unknown", 2, ("unknown", 2)), ("sec", 0.8, ("sec", 0.8))]
)
def test_images_in_time_go_into_one_nifti_file_with_their_repetition_time(tmp_path, word, step, stated):
    frames = np.random.default_rng(0).integers(0, 99, (8, 7, 6, 3)).astype(np.int16)
    image = nib.Nifti1Image(frames, np.eye(4))
    image.header.set_xyzt_units("mm", word)
    image.header["pixdim"][4], image.header["toffset"] = step, 5
    nib.save(image, tmp_path / "frames.nii")
    for name in ("out.nii.gz", "out.nii"):
        apply(
            Transform.of(unit="mm"), str(tmp_path / "frames.nii"), tmp_path / name, like=str(tmp_path / "frames.nii") + "::time=0"
        )
        again = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(again.dataobj), frames)
        assert again.header.get_xyzt_units() == ("mm", stated[0])
        assert (again.header.get_zooms()[3], float(again.header["toffset"])) == (np.float32(stated[1]), 5)


def test_channels_do_not_go_into_one_nifti_file_and_minutes_become_seconds(tmp_path):
    with pytest.raises(
        OutputError, match=r"2 channels do not go into one file; write .*, or choose one, as in 'IMAGE::channel=0'\."
    ):
        write_image(tmp_path / "a.nii", np.ones((2, *CUBE.shape), np.uint8), CUBE, axes=("c",))
    write_image(tmp_path / "a.nii", np.ones((2, *CUBE.shape), np.uint8), CUBE, axes=(Axis("t", "time", "minute", scale=2.0),))
    header = nib.load(tmp_path / "a.nii").header
    assert (header.get_zooms()[3], header.get_xyzt_units()) == (120, ("mm", "sec"))


def test_outputs_of_libraries_for_local_disks_go_to_urls(run, image, tmp_path):
    url = f"memory://{tmp_path.name}/moved"
    for ending in (".mha", ".mhd"):
        np.testing.assert_array_equal(voxels(apply(run, image, url + ending)), voxels(apply(run, image)))
    assert {"moved.mha", "moved.mhd", "moved.raw"} <= set(list_names(f"memory://{tmp_path.name}"))
    jacobian(run, f"memory://{tmp_path.name}/j.mha")
    export(run, f"memory://{tmp_path.name}/t.h5")
    points(run, _table(tmp_path), f"memory://{tmp_path.name}/p.csv")
    assert {"j.mha", "t.h5", "p.csv"} <= set(list_names(f"memory://{tmp_path.name}"))


def _table(folder):
    (folder / "p.csv").write_text("x,y,z\n3,4,5\n")
    return folder / "p.csv"


def test_a_bare_affine_resamples_an_image_on_its_own_grid_and_says_so(image, tmp_path, caplog):
    shift = np.eye(4)
    shift[0, 3] = 2 * MOVING.spacing[0]
    moved = Transform.of(shift, unit="mm").apply(image).compute()
    assert "names no fixed grid; the output is on that of array, and --like" in caplog.text
    np.testing.assert_array_equal(moved, Transform.of(shift, unit="mm").apply(image, like=image.grid).compute())
    assert moved.shape == MOVING.shape


def test_an_image_on_the_grid_of_the_other_side_is_told(run, caplog):
    transform = load_transform(run)
    fixed, moving = (Volume(da.zeros(g.shape, np.float32), g, name) for name, g in transform.grids.items())
    apply(run, moving)
    assert "exchanged" not in caplog.text
    apply(run, fixed)
    assert "fixed has the grid of the fixed image, and one in the space of the moving image was expected" in caplog.text
    caplog.clear()
    labels = [Volume(v.data.astype(np.uint8), v.grid, v.name) for v in (fixed, moving)]
    evaluate(run, fixed_labels=labels[0], moving_labels=labels[1])
    assert "exchanged" not in caplog.text
    evaluate(run, fixed_labels=labels[1], moving_labels=labels[1])
    assert caplog.text.count("exchanged") == 1


@pytest.mark.parametrize("unit", ["micrometer", "centimeter"])
def test_an_image_whose_unit_was_mistaken_is_refused(run, image, tmp_path, unit):
    """The same numbers in another unit, of which the shape says that they are mistaken: the result would be wrong."""
    mistaken = replace(image, grid=replace(MOVING, unit=unit))
    for output in (None, tmp_path / "moved.zarr"):
        with pytest.raises(UnitsError, match=rf"x 1\.2 {unit}.* the moving image of the transform .* as in '::unit=millimeter'"):
            apply(run, mistaken, output)
    assert not (tmp_path / "moved.zarr").exists()
    with pytest.raises(UnitsError, match=r"whose grid the output has \(--like\).* the fixed image of the transform"):
        apply(run, image, like=replace(FIXED, unit=unit))
    with pytest.raises(UnitsError, match="one of their units or voxel sizes is wrong"):
        view(run, mistaken)
    part = open_volume(image.data[:9], grid=MOVING.crop(Region((0, 0, 0), (9, 33, 44))).to_unit("micrometer"))
    assert apply(run, part).grid == FIXED


def test_a_small_part_of_a_large_image_is_no_mistaken_unit():
    """It is hundreds of times as short, and has the voxel size."""
    whole = Grid((4000, 9000, 8000), (2.0, 1.0, 1.0), unit="micrometer")
    for part in (whole.crop(Region((9, 9, 9), (18, 33, 29))), Grid((4, 9, 8), (4.0, 2.0, 2.0), unit="micrometer")):
        require_size(part, "part", whole, "fixed")
        require_size(whole, "whole", part, "fixed")
    with pytest.raises(UnitsError, match=r"part is 3\.61 micrometer across"):
        require_size(Grid((500, 1200, 900), (4e-3, 2e-3, 2e-3), unit="micrometer"), "part", whole, "fixed")


def test_labels_that_would_be_interpolated_are_told(run, tmp_path, caplog):
    _, y, x = np.indices(MOVING.shape)
    labels = (3 * (x // 4) + y // 4 + 1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(1, 200, MOVING.shape).astype(np.uint8)
    noise[:, : MOVING.shape[1] // 2] = 0
    said = []
    for name, array, how in (("labels", labels, "linear"), ("labels", labels, "label"), ("scan", noise, "linear"),
                             ("heights", labels.astype(np.float32), "linear")):  # fmt: skip
        caplog.clear()
        apply(run, Volume(da.from_array(array), MOVING, name), interpolation=how)
        said.append([r.getMessage() for r in caplog.records if "--interpolation label" in r.getMessage()])
    assert said[1:] == [[], [], []]
    assert len(said[0]) == 1
    assert said[0][0].startswith("labels has areas of one integer")


def test_the_unit_of_a_run_that_states_none_is_said_behind_its_path(tmp_path):
    """As after the registration of two arrays, whose lengths the user knows to be in millimetres."""
    bare, mm = (Grid((12, 10, 8), (2.0, 1.0, 1.0), unit=unit) for unit in (None, "mm"))
    voxels = blobs(bare.shape).astype(np.float32)
    shift = np.eye(4)
    shift[0, 3] = 2.0
    path = tmp_path / "arrays.zarr"
    make_run(path, shift, np.full((3, *bare.shape), 0.5, np.float32), fixed=bare, moving=bare)
    with pytest.raises(
        UnitsError, match=r"m is in millimeter, .* 'RUN.zarr::unit=millimeter'.* daskreg.apply\('RUN.zarr', array\)"
    ):
        apply(path, Volume(da.from_array(voxels), mm, "m", "nifti"))
    moved = apply(f"{path}::unit=mm", Volume(da.from_array(voxels), mm, "m", "nifti"))
    assert moved.grid == mm
    np.testing.assert_array_equal(moved.read(), apply(path, voxels).read())
    um = mm.to_unit("micrometer")
    np.testing.assert_allclose(
        apply(f"{path}::unit=mm", Volume(da.from_array(voxels), um, "m", "nifti")).read(), moved.read(), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ConfigError, match="channel and spacing belong to an image"):
        load_transform(f"{path}::channel=0,spacing=2")
