"""Other programs on the pair of a run: measured alike, told in a sentence where they fail."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.config import Affine, Config, Moments
from daskreg.errors import ConfigError, OutputExists
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform
from daskreg.storage import Volume, open_volume, write_image
from daskreg.workflows.compare import compare
from daskreg.workflows.contenders import Pair, measured
from daskreg.workflows.evaluate import evaluate
from daskreg.workflows.export import export
from daskreg.workflows.jacobian import jacobian
from daskreg.workflows.programs.inside import _word
from daskreg.workflows.programs.start import PROGRAMS, find_environment
from daskreg.workflows.register import register
from tests.phantoms import blobs
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, make_run

# greedy's command line as far as it matters here: the field that it is asked for is one that is known
GREEDY = """#!{python}
import shutil, sys, time
words = sys.argv[1:]
if "-version" in words:
    print("greedy of a test")
    sys.exit()
assert words[words.index("-d") + 1] == "3"
{more}
target = words[words.index("-rc" if "-rc" in words else "-o") + 1]
shutil.copy("{field}", target)
"""


# the four programs of NiftyReg: the field is asked for along NIfTI's axes, and labels through the splines
NIFTYREG = """#!{python}
import pathlib, sys
import nibabel, numpy
words, name = sys.argv[1:], pathlib.Path(sys.argv[0]).name
if "-version" in words:
    print("NiftyReg of a test")
    sys.exit()
with open(r"{log}", "a") as log:
    print(name, *(w for w in words if "/" not in w), file=log)
if name == "reg_transform":
    image = nibabel.load(r"{field}")
    values = numpy.asarray(image.dataobj, numpy.float32) * numpy.float32([-1, -1, 1])
    nibabel.save(nibabel.Nifti1Image(values, image.affine), words[-1])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run in millimetres and the same numbers in micrometres, their images and labels, and the field of the map."""
    folder = tmp_path_factory.mktemp("compare")
    for unit in ("millimeter", "micrometer"):
        place = folder / unit
        place.mkdir()
        fixed, moving = replace(FIXED, unit=unit), replace(MOVING, unit=unit)
        make_run(place / "run.zarr", affine(), displacement(), fixed, moving)
        write_image(place / "fixed.ome.zarr", (blobs(FIXED.shape) * 500).astype(np.float32), fixed)
        image = (blobs(MOVING.shape) * 1000).astype(np.uint16)
        write_image(place / "moving.ome.zarr", image, moving)
        write_image(place / "moving_labels.ome.zarr", image // 200, moving)
        write_image(place / "fixed_labels.ome.zarr", (blobs(FIXED.shape) * 5).astype(np.uint8), fixed)
    export(folder / "millimeter" / "run.zarr", folder / "field.nii.gz")
    return folder


def program(folder, more=""):
    path = folder / "greedy"
    path.write_text(GREEDY.format(python=sys.executable, field=folder / "field.nii.gz", more=more))
    path.chmod(0o755)
    return path


def niftyreg(folder, place):
    for name in ("reg_aladin", "reg_f3d", "reg_resample", "reg_transform"):
        path = place / name
        path.write_text(NIFTYREG.format(python=sys.executable, field=folder / "field.nii.gz", log=place / "log.txt"))
        path.chmod(0o755)
    return place / "reg_f3d"


def given(place):
    return {name: str(place / f"{name}.ome.zarr") for name in ("fixed", "moving", "fixed_labels", "moving_labels")}


def test_the_programs_of_niftyreg_follow_each_other_and_give_a_map_along_nifti_axes(folder, tmp_path):
    place, bins = folder / "millimeter", tmp_path / "bin"
    bins.mkdir()
    where = {"niftyreg": niftyreg(folder, bins)}
    found = compare(place / "run.zarr", ["niftyreg"], tmp_path / "out", environments=where, threads=3, **given(place))
    ours, theirs = found.rows[1:]
    for name in ("correlation", "dice", "folded_percent", "jacobian_smallest", "jacobian_largest"):
        assert getattr(theirs.measures, name) == pytest.approx(getattr(ours.measures, name), abs=2e-3), name
    assert theirs.version.endswith("NiftyReg of a test")
    assert (bins / "log.txt").read_text().splitlines() == [
        "reg_aladin -ref -flo -omp 3 -aff -res",
        "reg_f3d -ref -flo -omp 3 -aff -cpp -res",
        "reg_transform -ref -disp",
    ]


def test_a_program_that_is_built_from_sources_is_told_with_them(tmp_path):
    with pytest.raises(
        ConfigError, match=r"build it from https://github.com/KCL-BMEIS/niftyreg, and --environment niftyreg=DIR/bin/reg_f3d"
    ):
        find_environment("niftyreg", tmp_path / "reg_f3d")
    with pytest.raises(ConfigError, match=r"python\S* is not reg_f3d"):
        find_environment("niftyreg", sys.executable)


@pytest.mark.parametrize("unit", ["millimeter", "micrometer"])
def test_a_program_that_finds_the_same_map_has_the_same_measures(folder, tmp_path, unit):
    place, said = folder / unit, []
    found = compare(
        place / "run.zarr", ["greedy", "elastix"], tmp_path / "out", environments={"greedy": program(folder)}, threads=2,
        tell=said.append, **given(place),
    )  # fmt: skip
    start, ours, theirs, missing = found.rows
    assert [r.state for r in found.rows] == ["start", "recorded", "measured", "missing"]
    for name in ("correlation", "mutual_information", "dice", "folded_percent", "jacobian_smallest", "jacobian_largest"):
        assert getattr(theirs.measures, name) == pytest.approx(getattr(ours.measures, name), abs=2e-3), name
    assert theirs.seconds > 0
    assert theirs.peak_bytes > 1e6
    assert "-threads 2 -a -dof 12" in theirs.settings
    assert theirs.version.endswith("greedy of a test")
    assert "pip install itk-elastix" in missing.error
    assert start.measures.jacobian_largest == 1
    dice = evaluate(
        place / "run.zarr", fixed_labels=given(place)["fixed_labels"], moving_labels=given(place)["moving_labels"]
    ).dice
    assert (start.measures.dice, ours.measures.dice) == pytest.approx(dice)
    folds = jacobian(place / "run.zarr", tmp_path / "j.ome.zarr").jacobian_statistics
    assert (ours.measures.jacobian_smallest, ours.measures.jacobian_largest) == pytest.approx((folds.smallest, folds.largest))
    with (tmp_path / "out" / "compare.csv").open() as file:
        assert [row["program"] for row in csv.DictReader(file)] == ["headers", "daskreg", "greedy", "elastix"]
    kept = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert kept["machine"]["threads"] == 2
    assert kept["programs"][2]["correlation"] == theirs.measures.correlation
    assert "| greedy |" in (tmp_path / "out" / "compare.md").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.json", "compare.md"]
    assert len(said) == len(found.lines()) - 3
    with pytest.raises(OutputExists, match=r"compare\.csv"):
        compare(place / "run.zarr", ["greedy"], tmp_path / "out", **given(place))


FAILURES = {
    "print('no memory', file=sys.stderr); sys.exit(3)": "code 3",
    "time.sleep(60)": "took longer than 3 s",
    "sys.exit()": "does not exist",
}


@pytest.mark.parametrize("more", FAILURES)
def test_a_program_that_fails_is_told_in_a_sentence(folder, tmp_path, more):
    place = folder / "millimeter"
    words = [*map(str, ("compare", place / "run.zarr", "-o", tmp_path / "out", "--against", "greedy", "--time-limit", 3)),
             "--environment", f"greedy={program(tmp_path_of(folder, tmp_path), more)}"]  # fmt: skip
    words += [w for k, v in given(place).items() if "labels" not in k for w in (f"--{k}", v)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1
    error = found.output.splitlines()[-1]
    assert error.startswith("greedy: ")
    assert FAILURES[more] in error


def tmp_path_of(folder, tmp_path):
    """A folder of its own with the field, so that programs of other tests stay."""
    (tmp_path / "field.nii.gz").write_bytes((folder / "field.nii.gz").read_bytes())
    return tmp_path


def test_what_cannot_be_compared_is_refused_before_anything_runs(folder, tmp_path):
    run, images = folder / "millimeter" / "run.zarr", given(folder / "millimeter")
    with pytest.raises(ConfigError, match="did you mean 'greedy'"):
        compare(run, ["gredy"], tmp_path, **images)
    with pytest.raises(ConfigError, match="no program was named"):
        compare(run, [], tmp_path, **images)
    with pytest.raises(ConfigError, match="is no run"):
        compare(folder / "field.nii.gz", ["greedy"], tmp_path, **images)
    with pytest.raises(ConfigError, match="was an array in memory"):
        compare(run, ["greedy"], tmp_path)
    with pytest.raises(ConfigError, match="Dice needs"):
        compare(run, ["greedy"], tmp_path, **{k: v for k, v in images.items() if k != "moving_labels"})
    with pytest.raises(ConfigError, match="is no interpreter"):
        find_environment("ants", tmp_path)
    with pytest.raises(ValueError, match="no path with blanks"):
        _word("/tmp/a b")
    assert not list(tmp_path.iterdir())


def test_an_environment_is_an_interpreter_a_folder_or_a_binary(folder, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for path in (tmp_path, tmp_path / "bin" / "python"):
        assert find_environment("ants", path).python == str(tmp_path / "bin" / "python")
    found = find_environment("greedy", program(folder))
    assert (found.python, found.binary) == (sys.executable, str(folder / "greedy"))
    assert all(p.installation.startswith("python -m venv" if p.package else "build it from https://") for p in PROGRAMS.values())


def test_measures_know_the_identity(tmp_path):
    grid = Grid((20, 24, 28), (1.0, 2.0, 1.5))
    voxels = blobs(grid.shape).astype(np.float32)
    run = make_run(tmp_path / "run.zarr", fixed=grid, moving=grid)
    volume = Volume(open_volume(voxels).data, grid)
    found = measured(Pair.seen(Config.of_stages(["affine"]), volume, volume), load_transform(run))
    assert found.correlation == pytest.approx(1)
    assert (found.folded_percent, found.jacobian_smallest, found.jacobian_largest) == (0, 1, 1)
    assert found.mutual_information > 1
    assert np.isnan(found.dice)


def test_stored_background_has_the_least_value_as_in_the_run():
    """It ended in a TypeError."""
    grid = Grid((20, 24, 28))
    voxels = 100 + 900 * blobs(grid.shape).astype(np.float32)
    voxels[:, :, 20:] = 0
    volume = Volume(open_volume(voxels).data, grid)
    config = Config.of_stages(["affine"]).model_copy(update={"moving_background": 0.0, "percentiles": (0.0, 100.0)})
    seen = Pair.seen(config, volume, volume)
    assert seen.fixed[:, :, 20:].max() == 0 < seen.fixed[:, :, :19].min()
    moving = seen.moving.read()
    assert moving.min() == moving[:, :, 20:].max() == 0
    assert seen.fixed.max() == pytest.approx(moving.max(), abs=1e-3)
    assert (moving[:, :, :19] < seen.fixed[:, :, :19]).mean() > 0.99  # it begins at their least value, not at 0


def test_voxels_beyond_the_centres_of_the_outermost_ones_do_not_count(tmp_path):
    grid, matrix = Grid((20, 24, 28)), np.eye(4)
    matrix[0, 3] = 0.3  # of a voxel along z
    voxels = blobs(grid.shape).astype(np.float32) ** 2
    run = make_run(tmp_path / "run.zarr", matrix, fixed=grid, moving=grid)
    volume = Volume(open_volume(voxels).data, grid)
    found = measured(Pair.seen(Config.of_stages(["affine"]), volume, volume), load_transform(run))
    moved = 0.7 * voxels[:-1] + 0.3 * voxels[1:]
    assert found.correlation == pytest.approx(np.corrcoef(voxels[:-1].ravel(), moved.ravel())[0, 1], abs=1e-6)


@pytest.mark.slow
def test_daskreg_again_has_the_measures_of_the_run(folder, tmp_path):
    images = {k: v for k, v in given(folder / "millimeter").items() if "labels" not in k}
    stages = [Moments(), Affine(scales=(2, 1), iterations=(10, 5))]
    run = register(images["fixed"], images["moving"], stages, output=tmp_path / "run.zarr")
    found = compare(run, ["greedy"], tmp_path / "out", environments={"greedy": program(folder)}, again=True, time_limit=300)
    _, ours, again, greedy = found.rows
    assert (again.program, again.state) == ("daskreg again", "measured")
    assert again.measures == ours.measures
    assert ours.measures.correlation == pytest.approx(run.report["metrics"]["after"]["ncc"], abs=1e-5)
    assert ours.measures.mutual_information == pytest.approx(run.report["metrics"]["after"]["mi"], abs=1e-5)
    assert again.peak_bytes > 1e8
    assert "-dof 12" in greedy.settings
    assert "NCC" not in greedy.settings
