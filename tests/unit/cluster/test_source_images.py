"""Images that stay in their files give what images in memory do, bit for bit: maps, measures, what a result is judged on."""

import logging
import re
from dataclasses import fields, replace

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from scipy.ndimage import affine_transform, gaussian_filter

from daskreg.cluster.image_reader import read_images
from daskreg.cluster.result_writer import write_result
from daskreg.comm import SingleRank
from daskreg.config import Config, Deformable, Moments, Rigid
from daskreg.engine import pass_progress, source_measure
from daskreg.engine.background import Background
from daskreg.engine.coarse_pair import coarse_pair
from daskreg.engine.filling import Filling
from daskreg.engine.halo import Block
from daskreg.engine.measure import folding, likeness
from daskreg.engine.planes import ArrayPlanes, on
from daskreg.engine.rank import Rank
from daskreg.engine.report import LevelReport, Outcome, Watch
from daskreg.errors import ConfigError, PlanTooLarge, VoxelError
from daskreg.grid import Grid, Region
from daskreg.kernels.device import CPU
from daskreg.planning import SOURCE, Encoding, make_plan
from daskreg.planning import source as sources
from daskreg.similarity import MI, MSE
from daskreg.storage import RunStore, Volume, open_volume
from tests.unit.engine.spread import on_ranks

FIXED, MOVING = Grid((30, 50, 44), (1.5, 1, 1), unit="mm"), Grid((33, 40, 46), (1.4, 1.2, 1), unit="mm")
LINEAR = (Moments(), Rigid(similarity=MSE(), scales=(4, 2), iterations=(9, 6)))
COARSE = (Rigid(similarity=MI(), scales=(4,), iterations=(6,)), Deformable(scales=(8, 4), iterations=(5, 4)))


def textures(dtype):
    wide = gaussian_filter(np.random.default_rng(5).standard_normal(FIXED.shape), 2.5)
    fixed = 2000 + 1500 * wide / np.abs(wide).max()
    turn = np.array([[0.93, 0.05, 0], [-0.04, 1.2, 0.03], [0.02, 0, 1.0]])
    return fixed.astype(dtype), affine_transform(fixed, turn, (-1, 1, -2), MOVING.shape, order=1, cval=500).astype(dtype)


def volumes(dtype, masked, folder=None):
    """In arrays, or in a TIFF and an OME-Zarr file."""
    images, masks = of_arrays(dtype, masked)
    if folder is not None:
        sizes = {f"PhysicalSize{axis}": s for axis, s in zip("ZYX", FIXED.spacing, strict=True)}
        pages = {"rowsperstrip": 16, "compression": "zlib", "metadata": {"axes": "ZYX", **sizes}}
        folder.mkdir(exist_ok=True)
        tifffile.imwrite(folder / "fixed.ome.tif", textures(dtype)[0], ome=True, **pages)
        zarr.save_array(str(folder / "moving.zarr"), textures(dtype)[1], zarr_format=3)
        images[0] = open_volume(folder / "fixed.ome.tif", grid=FIXED)
        images[1] = open_volume(f"{folder}/moving.zarr::axes=zyx", grid=MOVING)
    turned = [None if i is None else i.permute((1, 0, 2)) for i in (*images, *masks)]  # as an image of many rows is cut
    return turned[:2], tuple(turned[2:])


def of_arrays(dtype, masked):
    images = [
        Volume(da.from_array(v, chunks=(5, 13, 46)), g, "image") for v, g in zip(textures(dtype), (FIXED, MOVING), strict=True)
    ]
    masks = [None, None]
    if masked:
        for k, grid in enumerate((FIXED, MOVING)):
            weights = np.zeros(grid.shape, np.float32)
            weights[2:-2, 4:-6, 3:-3] = np.random.default_rng(k).random(
                (grid.shape[0] - 4, grid.shape[1] - 10, grid.shape[2] - 6)
            )
            masks[k] = Volume(da.from_array(3 * weights, chunks=(5, 13, 46)), grid, "mask")
    return images, masks


@pytest.fixture(autouse=True)
def small_boxes(monkeypatch):
    monkeypatch.setattr(sources, "LEAST", 1 << 14)
    monkeypatch.setattr(sources, "MOST", 1 << 14)


def result(comm, stages, dtype, masked, backgrounds, where, allocate=None, kept=False, folder=None):
    """All that a run makes of images at a place, as arrays and numbers."""
    images, masks = volumes(dtype, masked, folder)
    known = tuple(m or b is not None for m, b in zip((masked, masked), backgrounds, strict=True))
    given = {"workers": comm.size, "minimum_planes": 4, "masks": known, "images": where}
    encodings = tuple(Encoding(v.piece, v.dtype.itemsize, v.dtype.kind == "u") for v in images)
    plan = make_plan(*(i.grid for i in images), Config(stages=stages), encodings=encodings, **given)
    if kept:
        places = [{"images": "disk", "state": state, "slab": 7} for state in ("device", "disk")]
        levels = zip(plan.levels, places, strict=True)
        plan = replace(plan, levels=tuple(tuple(replace(lv, **place) for lv in some) for some, place in levels))
    read = read_images(plan, *images, masks, comm, "cpu", backgrounds, allocate)
    outcome = Rank(plan, read, np.eye(4), comm, Watch(), scratch=allocate).run()
    if not masked:  # as if a search had left that out: a finer level is judged
        filling = Filling(0.0, 0.0, (Region((3, 0, 0), (27, 30, 44)), None))
        outcome = replace(outcome, levels=[LevelReport("search", 1, FIXED.shape, detail=filling.report()), *outcome.levels])
    if where == SOURCE:
        measures = list(source_measure.likenesses(plan, np.eye(4), outcome, read, comm))
    else:
        begun = Outcome(np.eye(4), None, [], replace(outcome.block, halo=0))
        measures = [likeness(plan, one, read, comm) for one in (begun, outcome)]
    u = outcome.displacement
    if u is not None:
        own = plan.partition[comm.rank]
        measures.append(source_measure.folding(u, own, comm) if where == SOURCE else folding(u, outcome.block, comm))
        u = on(CPU, u, own).tobytes()
    pair = coarse_pair(plan, outcome, read, comm)
    parts = [pair.displacement, *(getattr(i, f.name) for i in (pair.fixed, pair.moving) for f in fields(i) if f.name != "grid")]
    return outcome.affine.tobytes(), u, measures, [None if p is None else p.tobytes() for p in parts], [i.left_out for i in read]


NONE = (None, None)


@pytest.mark.parametrize(
    ("stages", "dtype", "masked", "backgrounds", "ranks"),
    [
        (LINEAR, np.uint16, False, NONE, 1),
        (LINEAR, np.float32, True, NONE, 3),
        (LINEAR, np.int16, True, (None, Background(500.0, areas=True)), 2),
        (LINEAR, np.float32, False, (Background(2000.0), Background(500.0, areas=True)), 1),
        (COARSE, np.uint8, False, NONE, 3),
        (COARSE, np.uint16, True, NONE, 1),
    ],
)
def test_the_result_is_that_of_images_in_memory(stages, dtype, masked, backgrounds, ranks):
    given = stages, dtype, masked, backgrounds
    for here, there in zip(
        on_ranks(ranks, lambda comm: result(comm, *given, SOURCE)),
        on_ranks(ranks, lambda comm: result(comm, *given, "device")),
        strict=True,
    ):
        assert here == there


@pytest.mark.parametrize("ranks", [1, 2])
def test_levels_can_be_out_of_memory(ranks, monkeypatch):
    monkeypatch.setattr(sources, "MOST", 1 << 20)  # levels elsewhere are made of whole planes
    monkeypatch.setattr(sources, "LEAST", 1 << 20)
    stages = COARSE
    for here, there in zip(
        on_ranks(ranks, lambda comm: result(comm, stages, np.uint16, True, NONE, SOURCE, ArrayPlanes.zeros, kept=True)),
        on_ranks(ranks, lambda comm: result(comm, stages, np.uint16, True, NONE, "device")),
        strict=True,
    ):
        assert here == there


@pytest.mark.parametrize("ranks", [1, 2])
def test_images_are_read_from_tiff_and_zarr(ranks, tmp_path):
    given = LINEAR, np.uint16, False, NONE
    found = on_ranks(ranks, lambda comm: result(comm, *given, SOURCE, folder=tmp_path / str(comm.rank)))
    wanted = on_ranks(ranks, lambda comm: result(comm, *given, "device"))
    assert found == wanted


def test_a_constant_image_is_refused_as_ever():
    plan = make_plan(FIXED, MOVING, Config(stages=LINEAR), images=SOURCE)
    flat = [Volume(da.full(g.shape, 7, np.uint8, chunks=9), g, "flat") for g in (FIXED, MOVING)]
    with pytest.raises(VoxelError, match="the fixed image flat is constant: every voxel is 7"):
        read_images(plan, *flat, (None, None), SingleRank(), "cpu")


def test_voxels_that_are_not_numbers_are_counted_without_the_background(monkeypatch):
    monkeypatch.setattr(sources, "MOST", 1 << 20)  # all in one box
    monkeypatch.setattr(sources, "LEAST", 1 << 20)
    plan = make_plan(FIXED, MOVING, Config(stages=LINEAR), images=SOURCE, masks=(True, True))
    voxels = textures(np.float32)
    voxels[0][:, :20], voxels[0][3, 40, 3] = -9, np.nan
    images = [Volume(da.from_array(v), g, "image") for v, g in zip(voxels, (FIXED, MOVING), strict=True)]
    with pytest.raises(VoxelError, match="is NaN or infinite at 1 voxel;"):
        read_images(plan, *images, NONE, SingleRank(), "cpu", (Background(-9.0), None))


# --- the plan -------------------------------------------------------------------------------------------------------------

STACK = Grid((800, 8000, 8000), (2, 1, 1), unit="um")
SMALL = Grid((200, 250, 250), (8, 32, 32), unit="um")
ENCODINGS = (Encoding((1, 256, 8000), 2, True), Encoding((1, 250, 250), 2, True))


def planned(scales=(32, 16), memory=4 << 30, fixed=STACK, stages=None, **given):
    stages = stages or (Rigid(similarity=MSE(), scales=scales, iterations=(9,) * len(scales)),)
    return make_plan(
        fixed, SMALL, Config(stages=stages), memory=memory, state="auto", encodings=ENCODINGS, process=1 << 28, **given
    )


def test_auto_leaves_images_in_their_files_where_they_fit_nowhere_and_no_stage_needs_them_whole():
    plan = planned()
    assert plan.images == SOURCE
    assert plan.peak_bytes <= plan.memory
    assert "fixed in 3 passes of 95 GiB" in str(plan)
    assert planned(fixed=SMALL).images == "device"
    assert planned(scales=(16, 1)).images == "device"
    with pytest.raises(PlanTooLarge):
        planned(scales=(16, 1)).validate(4 << 30)
    with pytest.raises(PlanTooLarge, match=r"needs \d+ MiB a worker.* has 300 MiB"):
        planned(memory=300 << 20).validate(300 << 20)


def test_levels_on_disk_are_made_of_whole_planes_in_any_memory():
    """However many rows of the image fit into a box: they were cut, and the run ended with an AssertionError."""
    plan = planned(memory=8 << 30)
    kept = replace(plan, levels=tuple(tuple(replace(level, images="disk") for level in some) for some in plan.levels))
    for memory in (1 << 28, 1 << 30, 8 << 30):
        assert sources.level_boxes(replace(kept, memory=memory), 0).rows == STACK.shape[1]
    assert sources.level_boxes(replace(plan, memory=1 << 30), 0).rows < STACK.shape[1]


def test_strips_of_whole_planes_are_decoded_again_for_levels_alone(monkeypatch):
    monkeypatch.setattr(sources, "LEAST", 16 << 20)
    monkeypatch.setattr(sources, "MOST", 256 << 20)
    plan = replace(planned(memory=4 << 30), encodings=(Encoding((1, 8000, 8000), 2, True), ENCODINGS[1]))
    bands = -(-STACK.shape[1] // sources.level_boxes(plan, 0).rows)
    assert bands > 1
    assert sources.source_passes(plan, 0) == (1 + bands, 2 + bands)


def test_the_memory_that_is_said_to_be_needed_is_enough():
    """Boxes are larger in more memory: what a plan in too little of it takes is not."""
    with pytest.raises(PlanTooLarge, match=r"needs (\d+) MiB a worker") as refused:
        planned(memory=300 << 20).validate(300 << 20)
    enough = int(re.search(r"needs (\d+) MiB", str(refused.value))[1]) << 20
    assert planned(memory=enough).peak_bytes <= enough


TURNED = np.array([[0.9, 0.2, -0.3, 4], [-0.2, 0.9, 0.3, 2], [0.3, -0.2, 0.9, -3], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(("whole", "most", "passes"), [(True, 1 << 20, 4), (False, 1 << 20, 3), (False, 1 << 14, None)])
def test_images_are_decoded_as_often_as_the_plan_says(monkeypatch, whole, most, passes):
    """The moving one in strips of whole width, of which oblique boxes of the fixed grid read a little each."""
    monkeypatch.setattr(sources, "LEAST", most)
    monkeypatch.setattr(sources, "MOST", most)
    monkeypatch.setattr(sources, "crop_bytes", lambda memory: most if whole else 0)
    images = [Volume(da.from_array(v), g, "image") for v, g in zip(textures(np.uint16), (FIXED, MOVING), strict=True)]
    images = [replace(image, decoded=(1, 10, image.shape[2])) for image in images]
    encodings = tuple(Encoding(image.piece, 2, True) for image in images)
    plan = make_plan(FIXED, MOVING, Config(stages=LINEAR), images=SOURCE, encodings=encodings)
    seen, outcome = read_images(plan, *images, NONE, SingleRank(), "cpu"), Outcome(TURNED, None, [], None)
    source_measure.likenesses(plan, TURNED, outcome, seen, SingleRank())
    coarse_pair(plan, outcome, seen, SingleRank())
    decoded = [one.source.voxels.decoded / one.source.voxels.pieces for one in seen]
    assert decoded[0] == sources.source_passes(plan, 0)[1]
    written = 1 if whole else sources.sampled_passes(plan, sources.written_block(plan, TURNED), TURNED)
    expected = sources.source_passes(plan, 1, TURNED)[1] - written  # it has not been moved yet
    assert expected == passes or passes is None
    assert decoded[1] == expected if passes else expected / 2 < decoded[1] <= expected, (decoded[1], expected)


def written(folder, plan, moving, outcome):
    """All that is written of a result."""
    store = RunStore.create(folder / f"{plan.images}.zarr", fixed=plan.fixed, moving=plan.moving)
    write_result(str(store.path), plan, (0, 1, 2), moving, outcome, SingleRank())
    arrays = ("moved/0", "transform/displacement/0")[: 1 + plan.deformable]
    return [zarr.open_array(f"{store.path}/{name}", mode="r")[:].tobytes() for name in arrays]


@pytest.mark.parametrize("whole", [True, False])
def test_the_moved_image_is_that_of_an_image_in_memory(whole, monkeypatch, tmp_path):
    """In several boxes, and several blocks of these."""
    monkeypatch.setattr(sources, "crop_bytes", lambda memory: 1 << 30 if whole else 0)
    moving = Volume(da.from_array(textures(np.int16)[1], chunks=(5, 13, 46)), MOVING, "image")
    fixed, found = Grid((70, 20, 140), (0.7, 2, 0.3), unit="mm"), []
    for where in (SOURCE, "device"):
        plan = make_plan(fixed, MOVING, Config(stages=LINEAR), images=where, encodings=(Encoding(), Encoding(moving.piece, 2)))
        block = Block(fixed.shape, plan.partition)
        found.append(written(tmp_path, plan, moving, Outcome(TURNED, None, [], block)))
    assert len(set(found[0][0])) > 2
    assert found[0] == found[1]
    assert whole or sources.written_block(plan, TURNED) == (64, 20, 64)


def test_the_displacement_of_a_coarse_level_is_written_as_one_in_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "crop_bytes", lambda memory: 0)
    found = []
    for where in (SOURCE, "device"):
        images, _ = volumes(np.int16, False)
        given = {"images": where, "encodings": tuple(Encoding(v.piece, 2, True) for v in images)}
        plan = make_plan(*(i.grid for i in images), Config(stages=COARSE), **given)
        read = read_images(plan, *images, NONE, SingleRank(), "cpu")
        outcome = Rank(plan, read, np.eye(4), SingleRank(), Watch()).run()
        found.append(written(tmp_path, plan, images[1], outcome))
    assert found[0] == found[1]


def test_images_that_fit_on_disk_go_there_for_deformable_stages():
    given = {
        "stages": (Deformable(scales=(16,), iterations=(9,)),),
        "fixed": Grid((400, 1500, 1500), unit="um"),
        "memory": 16 << 30,
    }
    assert planned(**given).images == "disk"
    assert planned(**given, scratch=1 << 30).images == SOURCE


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="read by CPUs"):
        planned(images=SOURCE, host=1 << 40)
    with pytest.raises(ConfigError, match="stop at a coarser scale"):
        planned(images=SOURCE, stages=(Deformable(scales=(4, 1), iterations=(2, 2)),))
    with pytest.raises(ConfigError, match="scale 4 of one has the voxels of the fixed image"):  # too few to be shrunk
        planned(images=SOURCE, fixed=Grid((12, 14, 13), unit="um"), stages=(Deformable(scales=(4, 2), iterations=(2, 2)),))


def test_a_long_pass_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(pass_progress, "SILENCE", 0.0)
    images, masks = volumes(np.uint16, False)
    plan = make_plan(*(i.grid for i in images), Config(stages=LINEAR), images=SOURCE)
    with caplog.at_level(logging.INFO, "daskreg"):
        read_images(plan, *images, masks, SingleRank(), "cpu")
    assert "the fixed image image is read for its levels: 100 %" in caplog.text
