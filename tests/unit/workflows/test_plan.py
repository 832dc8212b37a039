"""A plan says what a run would take, without reading a voxel."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

import daskreg
from daskreg import Affine, Config, Deformable, Rigid, plan
from daskreg.errors import ConfigError, NoOverlap, NotFound, PlanTooLarge
from daskreg.grid import Grid
from daskreg.lazy.transform import Transform
from daskreg.storage import Volume, open_volume
from daskreg.workflows.plan import time_of_first_run
from daskreg.workflows.presets import preset

GRID = Grid((64, 64, 64), unit="millimeter")
STAGES = (Affine(scales=(2,), iterations=(5,)), Deformable(scales=(2, 1), iterations=(5, 5)))


@pytest.fixture
def image():
    """Its voxels cannot be read."""
    unreadable = open_volume(np.zeros(GRID.shape, np.float32)).data.map_blocks(lambda v: 1 / 0, dtype=np.float32)
    return Volume(unreadable, GRID, "image")


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    monkeypatch.setattr("daskreg.cluster.workers.gpus", lambda: 1)


@pytest.mark.parametrize(
    ("workers", "device", "found"), [(1, "auto", "cuda"), (2, "auto", "cpu"), (2, "cuda", "cuda"), (1, "cpu", "cpu")]
)
def test_the_device_is_the_one_that_a_run_would_take(image, workers, device, found):
    plan = daskreg.plan(image, image, STAGES, workers=workers, device=device)
    assert plan.device == found
    assert ("GPU" in str(plan)) == (found == "cuda")
    assert str(plan) == "\n".join(plan.lines())
    assert plan.lines("cpu" if found == "cuda" else "cuda") != plan.lines()


def test_mixed_storage_is_planned_on_a_gpu_only(image, caplog):
    mixed = [Deformable(scales=(1,), iterations=(5,), storage="mixed")]
    on_gpu = daskreg.plan(image, image, mixed, device="cuda")
    assert on_gpu.config.stages[0].storage == "mixed"
    with caplog.at_level(logging.WARNING, "daskreg"):
        on_cpu = daskreg.plan(image, image, mixed, device="cpu")
    assert on_cpu.config.stages[0].storage == "float32"
    assert "computed in float32" in caplog.text
    caplog.clear()
    moments = mixed[0].model_copy(update={"storage": "moments"})
    packed = daskreg.plan(image, image, [moments], device="cpu")
    assert not caplog.text
    uses = [plan.memory_use(0, plan.levels[0][0]).fields for plan in (packed, on_cpu)]
    assert uses[1] - uses[0] == 12 * 64**3
    daskreg.plan(image, image, [moments], device="cuda")
    assert "storage: moments is for CPUs" in caplog.text
    assert on_cpu.memory_use(0, on_cpu.levels[0][0]).total > on_gpu.memory_use(0, on_gpu.levels[0][0]).total


def test_an_initial_transform_with_a_displacement_leaves_the_deformable_stages(image, tmp_path):
    field = Transform.of(None, GRID, np.zeros((3, *GRID.shape), np.float32))
    daskreg.export(field, tmp_path / "start.nii.gz")
    plan = daskreg.plan(image, image, STAGES, initial_transform=tmp_path / "start.nii.gz")
    assert [stage.name for stage in plan.config.stages] == ["deformable"]
    with pytest.raises(ConfigError, match="only a deformable stage"):
        daskreg.plan(image, image, STAGES[:1], initial_transform=tmp_path / "start.nii.gz")


def test_images_that_do_not_overlap_are_refused_as_by_a_run(image):
    far = replace(image, grid=replace(GRID, origin=(500.0, 0.0, 0.0)))
    for refuses in (daskreg.plan, daskreg.register):
        with pytest.raises(NoOverlap, match="the images do not overlap in space: their centres are 500 millimeter apart"):
            refuses(image, far, STAGES, device="cpu")
    assert daskreg.plan(image, far, "rigid").levels  # it searches


def test_masks_that_do_not_overlap_are_refused_before_anything_runs(image):
    far = open_volume(np.ones(GRID.shape, np.uint8), grid=Grid(GRID.shape, origin=(500.0, 0.0, 0.0), unit="millimeter"))
    with pytest.raises(NoOverlap, match="fixed mask"):
        daskreg.plan(image, image, STAGES, fixed_mask=far)
    with pytest.raises(NoOverlap, match="moving mask"):
        daskreg.register(image, image, STAGES, moving_mask=far)


def test_what_does_not_fit_is_refused_with_what_would(image):
    with pytest.raises(PlanTooLarge, match="as asked for"):
        daskreg.plan(image, image, STAGES, memory="1MB", device="cpu")


@pytest.mark.parametrize("name", ["rigid.yaml", "rigid.JSON", "without_an_ending"])
def test_a_configuration_is_loaded_from_its_file(image, tmp_path, name):
    wanted = Config(stages=(Rigid(iterations=(3, 2)),))
    path = tmp_path / name
    path.write_text(json.dumps(wanted.model_dump(mode="json")))
    assert plan(image, image, str(path)).config == plan(image, image, path).config == wanted


def test_a_configuration_that_is_not_there_is_answered_with_the_presets(image, tmp_path, monkeypatch):
    with pytest.raises(NotFound, match=r"config aff\.yaml does not exist; .* brain, rigid, affine, multimodal, lightsheet"):
        plan(image, image, "aff.yaml")
    (tmp_path / "rigid").write_text("stages: [affine]")
    monkeypatch.chdir(tmp_path)
    assert plan(image, image, "rigid").config == preset("rigid")


@pytest.mark.parametrize(("files", "said"), [(3, "compiles about 3 kernels too, once on this machine, 2.7 s of a core"), (0, "")])
def test_the_time_of_a_first_run_has_that_of_compilation(image, monkeypatch, tmp_path, files, said):
    """It is most of it, for a small image."""
    noted = {tmp_path / f"{n}.kernel" for n in range(files)}
    monkeypatch.setattr("daskreg.cluster.compile_count._noted", lambda plan: noted)
    planned = daskreg.plan(image, image, STAGES, device="cpu", workers=2)
    assert said in time_of_first_run(planned)
    assert bool(time_of_first_run(planned)) == bool(said)
    assert time_of_first_run(daskreg.plan(image, image, STAGES, device="cuda")) == ""
