"""The global search finds rotations, scales and partial overlaps, in another contrast, and says how clearly."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from daskreg.comm import SingleRank
from daskreg.config import Config, Rigid, Search
from daskreg.engine import pose_search
from daskreg.engine.images import Image, normalise
from daskreg.engine.initial import run_initial
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.engine.rotation_lattice import PEAKS
from daskreg.errors import NoOverlap
from daskreg.grid import Grid
from daskreg.planning import make_plan
from daskreg.transforms.linear import linear_about, transform_points, translation
from daskreg.transforms.rotations import between_rotations, local_rotations
from tests.phantoms import blobs

SHAPE = (36, 40, 32)
FIRST = 2 * 648 * PEAKS  # candidates: some shifts of every rotation, with the background and without
TURN = Rotation.from_rotvec(np.radians(140) * np.array([0.6, -0.48, 0.64])).as_matrix()


def dark(image):
    """The other contrast: bright blobs are dark, on the same body."""
    return np.asarray(gaussian_filter((image > 0.02) * (1.2 - image), 0.5), np.float32)


def found(fixed, moving, grid, **options):
    """The map, and the report's detail, with the scale."""
    images = Image.whole(fixed, Grid(fixed.shape)), Image.whole(moving, grid)
    stage = Search(rotations="fine", contrast="any", **options)
    world, report = run_initial(stage, images, np.eye(4), SingleRank(), Watch())
    return world, report.detail | {"scale": report.scale}


class Noted(Watch):
    """Keeps what is told, in order."""

    def __init__(self):
        self.told = []

    def phase(self, name):
        self.told.append(name)

    def level_ended(self, level):
        self.told.append((level.stage, level.scale, level.shape))


@pytest.mark.parametrize(("size", "scale", "shape"), [(20, 2, (18, 20, 16)), (16, 2, (15, 16, 13))])
def test_a_search_is_told_when_it_begins_and_by_the_scale_of_its_lattice(image, size, scale, shape):
    """It was told when it ended, as scale 1, with the voxels of the fixed image."""
    watch, grid = Noted(), Grid(SHAPE)
    stages = Search(size=size), Rigid(scales=(2,), iterations=(1,))
    plan = make_plan(grid, grid, Config(stages=stages))
    Rank(plan, (Image.whole(image, grid), Image.whole(image, grid)), np.eye(4), SingleRank(), watch).run()
    assert watch.told == ["search", "optimise", ("search", scale, shape), ("rigid", 2, (18, 20, 16))]


def distance(world, truth):
    """Mean over the fixed image's corners, voxels."""
    corners = Grid(SHAPE).corners()
    return np.linalg.norm(transform_points(world, corners) - transform_points(truth, corners), axis=1).mean()


def turned(grid, linear=TURN, shift=(7.0, -9.0, 5.0)):
    """A grid moved in the world, and the map that moves it."""
    move = translation(np.array(shift)) @ linear_about(grid.center, linear)
    return Grid.from_matrix(grid.shape, move @ grid.index_to_world, oriented=False), move


@pytest.fixture(scope="module")
def image():
    return blobs(SHAPE, 3)


def test_a_rotation_by_140_degrees_in_another_contrast(image):
    grid, move = turned(Grid(SHAPE))
    world, detail = found(image, dark(image), grid)
    assert distance(world, move) < 0.7
    assert detail["margin"] > 0.1
    assert detail["overlap"] > 0.95
    assert detail["scores"]["count"] == FIRST
    assert detail["scale"] == round(detail["voxel"]) > 1
    assert detail["scores"]["p50"] < detail["scores"]["p99"] < detail["scores"]["p100"]


def test_rotations_in_between_are_tried_where_no_candidate_is_clearly_the_best(image, monkeypatch):
    few = (40, 20, 6, 3, 2)  # candidates on each level, for less time
    levels = [replace(level, candidates=n) for level, n in zip(pose_search.LEVELS, few, strict=True)]
    monkeypatch.setattr(pose_search, "LEVELS", levels)
    grid, move = turned(Grid(SHAPE), local_rotations()[5] @ between_rotations())  # as far from the first rotations as any
    monkeypatch.setattr(pose_search, "CLEAR", 1.0)
    world, both = found(image, dark(image), grid)
    assert distance(world, move) < 0.7
    assert both["scores"]["count"] == 2 * FIRST


def test_a_linear_stage_leaves_out_what_a_search_of_all_rotations_has_compared():
    """A coarse level drew T1 off an EPI of 50 x 50 x 31 voxels on which the search had found it."""
    assert pose_search.ROTATION_SIZE / pose_search.LEVELS[-1].lattice == 64
    stage, large, small = Rigid(scales=(4, 2, 1), iterations=(1, 2, 3)), Grid((128, 128, 128)), Grid((120, 128, 128))

    def scales(grid, *before):
        levels = make_plan(grid, grid, Config(stages=(*before, stage))).levels[-1]
        return [(level.scale, level.iterations) for level in levels]

    fine = Search(rotations="fine")
    assert scales(large, fine) == [(2, 2), (1, 3)]
    assert scales(small, fine) == scales(Grid((20, 20, 20)), fine) == [(1, 3)]
    for before in ((), (Search(),), (fine, Rigid(scales=(1,), iterations=(1,)))):
        assert scales(small, *before) == [(4, 1), (2, 2), (1, 3)]


def test_images_of_few_voxels_are_refused_with_their_size():
    voxels = np.random.default_rng(0).random((2, 2, 2), np.float32)
    images = Image.whole(voxels, Grid(voxels.shape)), Image.whole(voxels[::-1].copy(), Grid(voxels.shape))
    with pytest.raises(NoOverlap, match=r"2 x 2 x 2 voxels.*enough voxels"):
        run_initial(Search(rotations="fine"), images, np.eye(4), SingleRank(), Watch())


@pytest.mark.slow
def test_half_an_overlap(image):
    kept = 27  # of 40 rows, from opposite ends: 14 are shared, 52 %
    whole, moving = Grid(SHAPE), np.ascontiguousarray(dark(image)[:, -kept:])
    grid, move = turned(Grid(moving.shape, origin=tuple(whole.to_world((0, SHAPE[1] - kept, 0)))))
    world, detail = found(np.ascontiguousarray(image[:, :kept]), moving, grid)
    assert distance(world, move) < 0.7
    assert 0.4 < detail["overlap"] < 0.8  # of the domain without background


@pytest.mark.slow
def test_a_scale(image):
    grid, move = turned(Grid(SHAPE), 1.35 * TURN)
    world, _ = found(image, dark(image), grid, scale=1.4)
    assert distance(world, move) < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("intensity", ["linear", "log"])
def test_a_resampled_image_is_not_held_by_its_own_edges(intensity):
    """The image fills its grid; where it was turned, what lies outside was filled with zeros, from which logarithms begin."""
    texture = gaussian_filter(np.random.default_rng(0).random((68, 68, 68)), 1.5).astype(np.float32)
    texture = (texture - texture.min()) / np.ptp(texture) + 1
    linear = Rotation.from_rotvec(np.radians(50) * np.array([0.6, -0.48, 0.64])).as_matrix()
    box = tuple(slice(10, 58) for _ in range(3))
    inner = np.pad(texture[box], 9)
    middle = (np.asarray(inner.shape) - 1) / 2
    moving = affine_transform(inner, linear, middle - linear @ middle, order=1).astype(np.float32)
    # moving(y) = inner(linear (y - c) + c): fixed index x = y' lies at y = linear^-1 (x + 9 - c) + c
    truth = linear_about(middle, linear.T) @ translation(np.full(3, 9.0))
    search = Search(rotations="fine", contrast="any")
    config = Config(stages=(search,), intensity=intensity)
    images = [Image.whole(voxels, Grid(voxels.shape)) for voxels in (np.ascontiguousarray(texture[box]), moving)]
    for image in images:
        normalise(image.voxels, config, SingleRank(), "image")
    world, _ = run_initial(search, (images[0], images[1]), np.eye(4), SingleRank(), Watch())
    assert distance(world, truth) < 1


@pytest.mark.slow
def test_a_mirror_image_is_found_only_where_it_is_allowed(image):
    grid, move = turned(Grid(SHAPE), TURN @ np.diag([1.0, 1.0, -1.0]))
    assert distance(found(image, image, grid, flips=True)[0], move) < 1
    assert np.linalg.det(found(image, image, grid)[0]) > 0
