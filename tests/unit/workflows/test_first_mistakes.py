"""What people type at first is answered with what to type."""

from dataclasses import replace

import numpy as np
import pytest

import daskreg
from daskreg import Affine, Grid
from daskreg.errors import ArrayError, AxesError, ConfigError, GridError, InputError, NoOverlap, NotFound, OutputError
from daskreg.lazy.save import write_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import open_volume, write_image
from daskreg.storage.transforms import write_affine
from tests.phantoms import blobs

GRID = Grid((12, 14, 16), unit="mm")
VOXELS = blobs(GRID.shape).astype(np.float32)
IMAGE = open_volume(VOXELS, grid=GRID)
STAGES = [Affine(scales=(2,), iterations=1)]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"config": "run.zarr"}, ConfigError, "is no preset .* is given by its name, output='run.zarr'"),
        ({"output": "no/such/run.zarr"}, OutputError, "the folder .*no/such does not exist; create it first"),
        ({"fixed": VOXELS[0]}, AxesError, r"given as one plane: in Python array\[np.newaxis\]"),
        (
            {"fixed_mask": VOXELS[1:] > 0},
            GridError,
            r"the fixed mask is an array of shape \(11, 14, 16\), the fixed image",
        ),
        ({"initial_transform": np.eye(4)}, ArrayError, r"given as daskreg.Transform.of\(affine\)"),
        ({"client": 5}, InputError, "client is a int; a dask.distributed.Client, or a scheduler's address"),
        ({"progress": 5}, ConfigError, "progress is 5; a function of a daskreg.Progress, False or None"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_was_expected(given, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        daskreg.register(**{"fixed": IMAGE, "moving": IMAGE, "config": STAGES, **given})
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_may_be_named_as_the_client():
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        daskreg.doctor(client="tcp://127.0.0.1:1")


def test_progress_true_is_the_display_that_fits(caplog):
    with caplog.at_level("INFO"):
        daskreg.register(IMAGE, IMAGE, STAGES, progress=True)
    assert "reading the images" in caplog.text


def test_an_initial_transform_of_another_pair_is_told(tmp_path, caplog):
    grids = GRID, Grid((10, 14, 16), unit="mm")
    images = [open_volume(np.zeros(grid.shape, np.float32), grid=grid) for grid in grids]
    start = str(tmp_path / "start.zarr")
    write_transform(Transform.of(np.eye(4), grids[0], None, grids[1]), start, made={})
    daskreg.plan(*images, STAGES, initial_transform=start)
    assert "was made for" not in caplog.text
    daskreg.plan(*images[::-1], STAGES, initial_transform=start)
    assert "start.zarr was made for the two images in the other order" in caplog.text
    away = open_volume(images[0].data, grid=replace(GRID, origin=(1e5, 0.0, 0.0)))
    with pytest.raises(NoOverlap, match="do not overlap in space through"):
        daskreg.plan(away, images[1], STAGES, initial_transform=start)
    assert "start.zarr is (12 x 14 x 16" in caplog.text


def test_an_initial_transform_in_another_unit_is_named_as_the_cause(tmp_path):
    """One that was made in micrometers of images in micrometers, in a file of ITK, is taken in millimeters."""
    image = open_volume(VOXELS, grid=Grid(GRID.shape, (10, 10, 10), unit="um"))
    start, shift = str(tmp_path / "start.tfm"), np.eye(4)
    shift[:3, 3] = 30, 40, 0
    write_affine(start, shift)
    said = (
        r"through .*start.tfm: their centres are 50000 micrometer apart, .*; without it they overlap. It is taken in millimeter; "
    )
    with pytest.raises(NoOverlap, match=said) as found:
        daskreg.register(image, image, STAGES, initial_transform=start)
    assert f"if its numbers are in micrometer, write {start}::unit=micrometer." in str(found.value)
    daskreg.plan(image, image, STAGES, initial_transform=f"{start}::unit=micrometer")
    away = open_volume(VOXELS, grid=Grid(GRID.shape, (10, 10, 10), (500.0, 0.0, 0.0), unit="um"))
    with pytest.raises(NoOverlap, match=r"are 500 micrometer apart, .*; repair a header, give --initial-transform"):
        daskreg.register(image, away, STAGES)


@pytest.mark.parametrize("stated", [False, True])
def test_images_whose_axes_may_be_in_the_reverse_order_are_told(caplog, stated):
    fixed, moving = (open_volume(v, grid=Grid(v.shape, unit="mm", oriented=stated)) for v in (VOXELS, VOXELS.T))
    daskreg.plan(fixed, moving, STAGES)
    assert ("are the axes of one of them x, y, z? '::axes=xyz'" in caplog.text) == (not stated)


def test_a_configuration_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "recipe.yaml").write_text("stages: [affine]")
    with pytest.raises(NotFound, match=r"recipes.yaml does not exist; the nearest name there is .*recipe.yaml; give a YAML"):
        daskreg.plan(IMAGE, IMAGE, str(tmp_path / "recipes.yaml"))


def test_an_image_in_memory_is_described_too():
    assert daskreg.info(VOXELS).shape == GRID.shape
    assert daskreg.info(IMAGE).unit == "millimeter"
    with pytest.raises(ConfigError, match="an image of type list cannot be read"):
        daskreg.info([VOXELS])


def test_a_transform_without_a_unit_is_told_where_readers_take_millimetres(tmp_path, caplog):
    daskreg.export(Transform.of(np.eye(4)), tmp_path / "a.mat", part="affine")
    assert "readers of" in caplog.text
    assert "RUN.zarr::unit=um" in caplog.text
    caplog.clear()
    daskreg.export(Transform.of(np.eye(4), unit="mm"), tmp_path / "b.mat", part="affine")
    assert caplog.text == ""


def test_labels_in_a_unit_and_a_transform_without_one_are_told_apart(tmp_path):
    write_image(tmp_path / "labels.nii.gz", (VOXELS > 0.5).astype(np.uint8), GRID)
    bare = Transform.of(np.eye(4), Grid(GRID.shape), np.zeros((3, *GRID.shape), np.float32), Grid(GRID.shape))
    labels = str(tmp_path / "labels.nii.gz")
    with pytest.raises(daskreg.UnitsError, match=r"labels\.nii\.gz is in millimeter, and the transform states no unit"):
        daskreg.evaluate(bare, fixed_labels=labels, moving_labels=labels)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: daskreg.load_transform(np.eye(4)),
            r"as ndarray; .* an affine map, \(4, 4\), is daskreg.Transform",
        ),
        (lambda: daskreg.apply(None, IMAGE), "no transform was given; an address, a Result or a Transform was expected"),
        (lambda: daskreg.view(VOXELS), "a transform was given as ndarray"),
        (lambda: daskreg.series([VOXELS, VOXELS], "out"), "a series of ndarray was given; addresses of images"),
        (lambda: daskreg.verify(IMAGE, IMAGE, STAGES, workers=2), "workers is 2 .* lists to compare were expected"),
        (lambda: daskreg.demo_pair(1), "the bundled heads are at 2 and at 3 mm"),
        (lambda: daskreg.demo(1), "out is 1; the path of a folder"),
        (lambda: daskreg.register(IMAGE, IMAGE, candidates="brain, brian"), "unknown preset 'brian'; did you mean 'brain'"),
        (lambda: daskreg.compare("no.zarr", "greedy, ant", "out"), "unknown program 'ant'; did you mean 'ants'"),
    ],
)
def test_a_value_of_another_type_is_a_sentence(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        call()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_output_and_nothing_advises_to_overwrite_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"neither image nor run, .* name a store in it, .*/NAME.zarr") as found:
            daskreg.register(IMAGE, IMAGE, STAGES, output=".", overwrite=overwrite)
        assert "--overwrite" not in str(found.value)
    with pytest.raises(OutputError, match="the output has an empty name"):
        daskreg.register(IMAGE, IMAGE, STAGES, output="")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
