"""``describe`` tells what is there, also where it cannot be registered as it is."""

import json

import numpy as np
import pytest
import zarr

import daskreg
from daskreg.errors import ConfigError, NotFound
from daskreg.grid import Grid
from daskreg.storage import RunStore, describe, write_image
from tests.unit.storage.stores import axes, dataset, ome_zarr, simple, voxels


def test_an_image_is_described(tmp_path):
    info = describe(simple(tmp_path / "a.zarr"))
    assert (info.shape, info.axes, info.spacing, info.unit, info.dtype) == (
        (6, 7, 8),
        ("z", "y", "x"),
        (2, 1, 0.5),
        "micrometer",
        "uint16",
    )
    assert info.hint is None
    text = "\n".join(info.lines())
    for part in ("6 x 7 x 8", "2 x 1 x 0.5 micrometer", "10, 20, 30", "not stated: taken as LPS", "chunks 4 x 4 x 4", "level 0"):
        assert part in text
    assert json.loads(json.dumps(info.as_dict()))["levels"][0]["path"] == "0"


def test_channels_to_choose_from_are_a_hint(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", [voxels((2, 6, 7, 8))], [dataset("0", (1, 2, 1, 1))], axis_list=axes("czyx"))
    info = describe(path)
    assert info.shape == (2, 6, 7, 8)
    assert info.spacing == (2, 1, 1)
    assert "::channel=0" in (info.hint or "")
    with pytest.raises(NotFound, match="has no channel 7; it has 2: choose one with '::channel=0'"):
        describe(f"{path}::channel=7")
    with pytest.raises(NotFound, match="has no time 3: it has no time axis"):
        describe(f"{path}::time=3,channel=0")


def test_the_chosen_channel_is_named_and_its_voxels_alone_are_read(tmp_path):
    stacks = [voxels((2, 2, 6, 7, 8)), voxels((2, 2, 3, 4, 4))]
    scales = [dataset("0", (1, 1, 2, 1, 1)), dataset("1", (1, 1, 4, 2, 2), (0, 0, 1, 0.5, 0.5))]
    labels = {"channels": [{"label": name, "color": "FFFFFF"} for name in ("DAPI", "GFP")]}
    path = ome_zarr(tmp_path / "a.zarr", stacks, scales, axis_list=axes("tczyx"), omero=labels)
    info = describe(f"{path}::channel=GFP,time=0", voxels=True)
    assert (info.chosen, info.values) == ({"time": 0, "channel": 1}, (336, 671))
    assert "chosen     time 0, channel 1 (GFP)" in info.lines()
    assert describe(f"{path}::channel=0,time=1,level=1").lines()[5] == "chosen     level 1, time 1, channel 0 (DAPI)"
    assert not any(line.startswith("chosen") for line in describe(path).lines())
    assert describe(path, voxels=True).values == (0, 1343)


@pytest.mark.parametrize("key", ["channel=0", "level=1", "spacing=2", "time=0"])
def test_a_part_of_an_image_that_is_asked_of_a_transform_or_points_is_refused(tmp_path, key):
    """It was left out, with exit code 0."""
    RunStore.create(tmp_path / "r.zarr", fixed=Grid((6, 7, 8), unit="mm"), moving=Grid((5, 5, 5), unit="mm")).finish({})
    np.savetxt(tmp_path / "p.csv", np.zeros((2, 3)), delimiter=",", header="x,y,z", comments="")
    daskreg.export(tmp_path / "r.zarr", tmp_path / "t.tfm", part="affine")
    for name in ("r.zarr", "p.csv", "t.tfm"):
        assert daskreg.info(tmp_path / name).lines()
        with pytest.raises(ConfigError, match=f"{key.partition('=')[0]} belongs to an image"):
            daskreg.info(f"{tmp_path / name}::{key}")


def test_a_bare_array_is_described_with_a_hint(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=voxels())
    info = describe(tmp_path / "a.zarr")
    assert info.spacing is None
    assert "--spacing" in info.lines()[-1]
    assert "(not stated: taken as z y x; '::axes=' names others)" in info.lines()[2]
    zarr.create_array(str(tmp_path / "b.zarr"), data=voxels(), dimension_names=("z", "y", "x"))
    assert "(z, y, x)" in describe(tmp_path / "b.zarr").lines()[2]


def test_a_flat_image_is_described_with_a_hint(tmp_path):
    info = describe(ome_zarr(tmp_path / "a.zarr", [voxels((6, 7))], [dataset("0", (1, 1))], axis_list=axes("yx")))
    assert "3D" in (info.hint or "")


def test_nifti_files_and_arrays_are_described(tmp_path):
    write_image(tmp_path / "a.nii.gz", voxels(), Grid((6, 7, 8), unit="mm", oriented=True))
    assert describe(tmp_path / "a.nii.gz").oriented
    assert describe(np.zeros((3, 4, 5))).shape == (3, 4, 5)
    with pytest.raises(NotFound):
        describe(tmp_path / "b.nii.gz")


def test_runs_are_described(tmp_path):
    run = RunStore.create(tmp_path / "r.zarr", fixed=Grid((6, 7, 8), unit="mm"), moving=Grid((5, 5, 5), unit="mm"))
    assert "incomplete" in (describe(tmp_path / "r.zarr").hint or "")
    run.create_image("moved", run.fixed_grid)
    run.write("moved", run.fixed_grid.region, np.zeros(run.fixed_grid.shape, np.float32))
    run.finish({})
    text = "\n".join(describe(tmp_path / "r.zarr").lines())
    for part in ("daskreg run", "complete   yes", "moving     5 x 5 x 5", "moved      yes", "displacement no"):
        assert part in text
