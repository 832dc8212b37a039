"""Each command of docs/archives.md that describes an image, and its Python, runs on files of the names that it has there."""

import re
import shlex
import zipfile
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.grid import Grid
from daskreg.storage import write_image
from daskreg.storage.axes import Axis
from tests.unit.storage import n5
from tests.unit.storage.formats.test_bdv import FINE, HDF5, xml
from tests.unit.storage.formats.test_imaris import characters
from tests.unit.storage.stores import dataset, ome_zarr, voxels
from tests.unit.storage.zarr.test_archives import converted, early, packed, plate

tifffile = pytest.importorskip("tifffile")
PAGE = Path(__file__).parents[3] / "docs" / "archives.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^daskreg (.*)$", "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S)), re.M)
GRID = Grid((6, 7, 8), (2.0, 1.0, 1.0), unit="millimeter")


def stores(folder):
    levels = [dataset("0", (2, 1, 1)), dataset("1", (4, 2, 2))]
    ome_zarr(folder / "fixed.ome.zarr", [voxels(), voxels((3, 4, 4))], levels)
    early(folder / "early.zarr", "0.3", "zyx")
    packed(folder / "fixed.ome.zarr", folder / "fixed.ozx")
    packed(folder / "fixed.ome.zarr", folder / "packed.zarr.zip", "fixed.zarr/")
    plate(folder / "plate.zarr")
    converted(folder / "converted.zarr")
    ome_zarr(folder / "sparse.zarr", [voxels()], levels[:1])
    (folder / "sparse.zarr" / "0" / "c" / "1" / "1" / "1").unlink()


def microscopes(folder):
    named = {"axes": "CZYX", "PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeZ": 2, "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(folder / "stack.ome.tif", np.stack([voxels()] * 2), metadata=named)
    given = {"metadata": {"axes": "ZYX", "spacing": 2, "unit": "um"}, "resolution": (1, 1), "imagej": True}
    tifffile.imwrite(folder / "hyperstack.tif", voxels(), **given)
    (folder / "planes").mkdir()
    for k, plane in enumerate(voxels()):
        tifffile.imwrite(folder / "planes" / f"z{k}.tif", plane)
    with h5py.File(folder / "brain.ims", "w") as file:
        image = file.create_group("DataSetInfo/Image").attrs
        for k in range(3):
            image[f"ExtMin{k}"], image[f"ExtMax{k}"] = characters("0"), characters("8")
        file.create_dataset("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data", data=voxels())
    with h5py.File(folder / "a.h5", "w") as file:
        for t, s in np.ndindex(2, 2):
            file[f"t{t:05}/s{s:02}/0/cells"] = FINE[t, s].view(np.int16)
    Path(xml(folder, HDF5)).rename(folder / "dataset.xml")
    n5.write(folder / "volumes.n5" / "raw", voxels(), resolution=[1, 1, 2])
    with h5py.File(folder / "export.h5", "w") as file:
        file["exported_data"] = voxels()
    np.save(folder / "turned.npy", voxels().T)
    tifffile.imwrite(folder / "frames.tif", voxels(), **(given | {"metadata": {**given["metadata"], "axes": "TYX"}}))
    tifffile.imwrite(folder / "pages.tif", np.zeros((120, 7, 8), np.uint8))
    with h5py.File(folder / "colours.h5", "w") as file:
        file["raw"] = np.stack([voxels()] * 2, -1)


def scanners(folder):
    for ending in ("nii.gz", "nrrd", "mha", "mhd"):
        write_image(folder / f"head.{ending}", voxels(), GRID)
    write_image(folder / "bold.nii.gz", np.stack([voxels()] * 3), GRID, axes=(Axis("t", "time", "second", scale=2.0),))
    nib.save(nib.MGHImage(voxels().T.astype(np.int16), np.eye(4)), folder / "head.mgz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("archives")
    for make in (stores, microscopes, scanners):
        make(found)
    return found


def test_every_image_of_the_page_is_described(folder, monkeypatch):
    monkeypatch.chdir(folder)
    described = [command for command in COMMANDS if command.startswith("info")]
    assert len(described) > 20
    for command in described:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, (command, done.exception)
        chosen = not command.endswith("plate.zarr")
        assert ("choose" not in done.output and "states no voxel size" not in done.output) == chosen, (command, done.output)


def test_the_other_commands_of_the_page_have_the_options_that_they_name():
    for command in (c for c in COMMANDS if not c.startswith("info")):
        words = shlex.split(command)
        known = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        assert [w for w in words if w.startswith("--") and w not in known] == []


def test_the_python_of_the_page_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["volume"].shape == (3, 4, 4)
    assert names["node"].grid.spacing == (2, 1, 1)
    assert names["array"].grid.unit == "micrometer"
    assert names["turned"].shape == names["array"].shape
    assert names["plan"].fixed.spacing == (2, 1, 1)
    with tifffile.TiffFile("channels.ome.tif") as file:
        assert file.series[0].axes == "CZYX"


def test_a_zip_file_of_the_page_is_one(folder):
    assert zipfile.is_zipfile(folder / "fixed.ozx")
