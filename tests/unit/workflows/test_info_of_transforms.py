"""``daskreg info`` of every kind of transform that ``daskreg apply`` takes, and of points."""

import json

import numpy as np
import pytest
import zarr

from daskreg.errors import IncompleteRun, NotFound, Unreadable
from daskreg.lazy.load import load_transform
from daskreg.storage import VolumeInfo
from daskreg.storage.point_file import PointFile
from daskreg.storage.points import write_points
from daskreg.workflows import info
from daskreg.workflows.export import export
from daskreg.workflows.info import describe
from daskreg.workflows.invert import invert
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, make_run

LARGEST = float(np.linalg.norm(displacement(), axis=0).max())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run.zarr", affine(), displacement())


@pytest.mark.parametrize(
    ("name", "part", "form", "displaced"),
    [
        ("t.zarr", "total", "daskreg transform", 1),
        ("t.nii.gz", "total", "NIfTI", 1),
        ("t.nii", "warp", "NIfTI", 1),
        ("t.h5", "total", "HDF5", 1),
        ("t.mat", "affine", "linear", 0),
        ("t.tfm", "affine", "linear", 0),
        ("t.txt", "affine", "linear", 0),
    ],
)
def test_transforms_are_described(run, tmp_path, name, part, form, displaced):
    export(run.path, tmp_path / name, part=part)
    found = describe(tmp_path / name)
    assert form in found.format
    assert found.unit == "millimeter"
    fields = [p for p in found.parts if p.grid is not None]
    assert len(fields) == displaced
    if displaced:
        assert found.fixed.shape == FIXED.shape
        if name != "t.nii.gz":  # where the affine is in the field
            assert fields[0].largest == pytest.approx(LARGEST, rel=1e-4)
    text = "\n".join(found.lines())
    assert "points of the fixed to points of the moving image" in text
    assert ("displacement on 30 x 36 x 41 at 2 x 1.5 x 1 millimeter, largest" in text) == bool(displaced)
    assert ("--like" in text) != bool(displaced)
    assert json.loads(json.dumps(found.as_dict(), default=str))["format"] == found.format


def test_an_inverse_says_how_good_it_is_and_where_it_came_from(run, tmp_path):
    certificate = invert(run.path, tmp_path / "inverse.zarr")
    found = describe(tmp_path / "inverse.zarr")
    assert (found.fixed, found.moving) == (MOVING, FIXED)
    assert found.made["command"] == "invert"
    assert found.made["of"] == run.path
    text = "\n".join(found.lines())
    assert f"mean {certificate.fixed_round_trip.mean:.2g}" in text
    assert run.path in text


def test_a_chain_of_two_fields_and_a_scene_of_another_program(run, tmp_path):
    two = load_transform(run.path).then(load_transform(run.path))
    export(two, tmp_path / "two.zarr")
    found = describe(tmp_path / "two.zarr")
    assert [p.grid is not None for p in found.parts] == [True, True]
    assert "origin 2" in "\n".join(found.lines())
    group = zarr.open_group(tmp_path / "two.zarr", mode="r+")
    group.attrs.put({"ome": group.attrs["ome"]})
    found = describe(tmp_path / "two.zarr")
    assert found.format == "OME-NGFF 0.6 scene"
    assert found.made is None


def test_large_fields_are_not_looked_through(run, tmp_path, monkeypatch):
    monkeypatch.setattr(info, "CHEAP", 100)
    assert "not computed" in "\n".join(describe(run.path).lines())
    export(run.path, tmp_path / "t.zarr")
    assert "not computed" in "\n".join(describe(tmp_path / "t.zarr").lines())


def test_runs_and_images_are_described_as_before(run):
    found = describe(run.path)
    assert isinstance(found, VolumeInfo)
    assert found.run["displacement"] == f"largest {LARGEST:.4g} millimeter"
    assert {"displacement", "complete"} <= found.as_dict().keys()  # by the names that its lines have
    assert isinstance(describe(f"{run.path}/transform/displacement"), VolumeInfo)


def test_points_are_described(tmp_path):
    (tmp_path / "p.csv").write_text("x,y,z,name\n1,2,3,a\n-4,5,6,b\n")
    found = describe(tmp_path / "p.csv")
    assert (found.points, found.low, found.high) == (2, (-4.0, 2.0, 3.0), (1.0, 5.0, 6.0))
    assert found.columns == ("x", "y", "z", "name")
    (tmp_path / "p.txt").write_text("1 2 3\n")
    assert describe(tmp_path / "p.txt").points == 1
    write_points(tmp_path / "p.npy", PointFile(np.array([[1.0, 2, 3]]), "zyx"))
    assert "x 3 to 3" in "\n".join(describe(tmp_path / "p.npy").lines())


def test_what_is_neither_is_said(run, tmp_path):
    for name, text, match in [
        ("matrix.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0\n", "plain matrix"),
        ("words.txt", "hello\n", "ITK transform file"),
        ("words.tfm", "hello\n", "ITK transform file"),
        ("words.h5", "hello\n", "is no HDF5 file"),
        ("words.csv", "hello\n", "x, y and z"),
        ("words.nii", "hello\n", "words.nii"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(Unreadable, match=match):
            describe(tmp_path / name)
    for name in ("gone.h5", "gone.tfm", "gone.txt", "gone.nii.gz", "gone.zarr", "gone.csv"):
        with pytest.raises(NotFound):
            describe(tmp_path / name)
    zarr.create_group(tmp_path / "t.zarr", zarr_format=3, attributes={"daskreg": {"kind": "transform", "complete": False}})
    with pytest.raises(IncompleteRun, match="incomplete"):
        describe(tmp_path / "t.zarr")
