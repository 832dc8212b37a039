"""Rounds and times of one sample: one table, chains of transforms, and what is there is kept."""

import csv
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import daskreg
from daskreg import MSE, Rigid
from daskreg.cli import app
from daskreg.errors import ConfigError, NotFound, OutputBusy
from daskreg.grid import Grid
from daskreg.storage import open_stack, write_image
from daskreg.storage.axes import Axis
from daskreg.storage.fs.lock import only_writer
from daskreg.workflows import series as module
from daskreg.workflows.series import series
from tests.phantoms import blobs

GRID = Grid((12, 14, 16), (2.0, 1.0, 1.0), unit="um")
CONFIG = [Rigid(similarity=MSE(), scales=(1,), iterations=(15,))]
CHANNELS = {"channels": [{"label": "DAPI", "color": "0000FF"}, {"label": "GFP", "color": "00FF00"}]}


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Three rounds of two channels, each a voxel further along x, and the same as one movie."""
    folder = tmp_path_factory.mktemp("rounds")
    whole = blobs((12, 14, 20))
    images = np.stack([np.stack([whole[..., k : k + 16], 2 * whole[..., k : k + 16]]) for k in range(3)])
    axes = (Axis("t", "time", "second", scale=30.0), Axis("c", "channel", omero=CHANNELS))
    write_image(folder / "movie.ome.zarr", images, GRID, axes=axes)
    for k, image in enumerate(images):
        write_image(folder / f"{k}.ome.zarr", image, GRID, axes=axes[1:])
    return folder


def table(path):
    with open(path / "series.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_round_is_registered_to_the_one_before_and_brought_to_the_reference(rounds, tmp_path, monkeypatch):
    images = [rounds / f"{k}.ome.zarr" for k in range(3)]
    found = series(images, tmp_path / "s", CONFIG, to="previous", channel="DAPI", progress=False)
    assert [(row["fixed"], row["state"]) for row in table(tmp_path / "s")] == [
        ("", "reference"), ("0", "registered"), ("1", "registered"),
    ]  # fmt: skip
    reference = open_stack(images[0]).data.compute()
    moved = open_stack(found.rows[2].moved)
    assert [c["label"] for c in moved.lead[0].omero["channels"]] == ["DAPI", "GFP"]
    inside = (slice(None), slice(2, -2), slice(2, -2), slice(4, -4))
    for channel, wanted in zip(moved.data.compute()[inside], reference[inside]):
        assert np.corrcoef(channel.ravel(), wanted.ravel())[0, 1] > 0.98
    shift = found.transform(2).fixed_to_moving_points([[8.0, 6.0, 8.0]])[0] - [8.0, 6.0, 8.0]
    np.testing.assert_allclose(shift, (0, 0, -2), atol=0.3)
    with pytest.raises(ConfigError, match="is the reference"):
        found.transform(0)

    monkeypatch.setattr(module, "register", None)  # nothing is left to register
    again = series(images, tmp_path / "s", CONFIG, to="previous", channel="DAPI", progress=False)
    assert [row.state for row in again.rows] == ["reference", "kept", "kept"]
    assert again.rows[2].measures == found.rows[2].measures
    before = (tmp_path / "s" / "series.csv").read_text()
    others = r"its fixed image is .*0\.ome\.zarr::channel=DAPI, and .*0\.ome\.zarr::channel=GFP was given; its moving image"
    with pytest.raises(ConfigError, match=others):
        series(images, tmp_path / "s", CONFIG, to="previous", channel="GFP", progress=False)
    with only_writer(str(tmp_path / "s" / "series.csv")), pytest.raises(OutputBusy, match=r"series\.csv is being written"):
        series(images, tmp_path / "s", CONFIG, to="previous", channel="DAPI", progress=False)
    other = [CONFIG[0].model_copy(update={"iterations": (14,)})]
    with pytest.raises(ConfigError, match=r"its configuration is another, stages\[0\]\.iterations\[0\] is 15 where 14 was given"):
        series(images, tmp_path / "s", other, to="previous", channel="DAPI", progress=False)
    with pytest.raises(ConfigError, match=r"002\.zarr is of another series: its moving image"):  # the last of three
        series([*images[:2], rounds / "movie.ome.zarr::time=0"], tmp_path / "s", CONFIG, to="previous", channel="DAPI")
    assert (tmp_path / "s" / "series.csv").read_text() == before


def test_times_of_one_image_are_a_series_and_a_failure_leaves_out_what_follows(rounds, tmp_path, monkeypatch):
    calls = []

    def fails(fixed, moving, config, **given):
        calls.append((fixed, moving))
        raise NotFound("it is gone")

    monkeypatch.setattr(module, "register", fails)
    movie = f"{rounds / 'movie.ome.zarr'}"
    found = series([movie], tmp_path / "s", CONFIG, to="previous", reference=1, channel=0)
    assert calls == [(f"{movie}::time=1,channel=0", f"{movie}::time={k},channel=0") for k in (2, 0)]
    assert [(row["state"], row["error"]) for row in table(tmp_path / "s")] == [
        ("failed", "it is gone"), ("reference", ""), ("failed", "it is gone"),
    ]  # fmt: skip
    found = series([movie], tmp_path / "t", CONFIG, to="previous", channel=0)
    assert [row.state for row in found.rows] == ["reference", "failed", "left out"]
    assert [row.run for row in found.rows] == ["", "", ""]  # there are none
    assert "image 1, to which it would be registered, could not be registered" in found.rows[2].line()
    with pytest.raises(ConfigError, match="image 2 has no transform to the reference: image 2 was left out"):
        found.transform(2)


def test_nothing_begins_where_an_image_is_wrong(rounds, tmp_path):
    with pytest.raises(NotFound):
        series([rounds / "absent.zarr", rounds / "0.ome.zarr::channel=0"], tmp_path / "s", CONFIG)
    with pytest.raises(NotFound, match="has no channel 'DAPPI'"):
        series([rounds / f"{k}.ome.zarr" for k in range(2)], tmp_path / "s", CONFIG, channel="DAPPI")
    with pytest.raises(ConfigError, match="did you mean 'rigid'"):
        series([rounds / f"{k}.ome.zarr" for k in range(2)], tmp_path / "s", "rigit", channel=0)
    with pytest.raises(ConfigError, match="two images or more"):
        series([rounds / "0.ome.zarr"], tmp_path / "s", CONFIG)
    with pytest.raises(ConfigError, match="reference 5 is no image of the series; it has 3"):
        series([rounds / "movie.ome.zarr"], tmp_path / "s", CONFIG, reference=5)
    assert not (tmp_path / "s").exists()


def test_rounds_that_cannot_be_opened_are_told_and_the_others_are_registered(rounds, tmp_path, monkeypatch):
    calls = []

    def fails(fixed, moving, config, **given):
        calls.append(moving)
        raise NotFound("it is gone")

    monkeypatch.setattr(module, "register", fails)
    (tmp_path / "damaged.nii.gz").write_bytes(b"no image")
    write_image(tmp_path / "metres.ome.zarr", blobs(GRID.shape), replace(GRID, unit="m"))
    wrong = [tmp_path / name for name in ("absent.zarr", "damaged.nii.gz", "metres.ome.zarr")]
    good = [f"{rounds / f'{k}.ome.zarr'}::channel=0" for k in range(3)]
    images = [str(image) for image in (*good[:2], *wrong, good[2])]
    done = CliRunner().invoke(app, ["series", *images, "-o", str(tmp_path / "s"), "--preset", "rigid"])
    assert done.exit_code == 1
    rows = table(tmp_path / "s")
    assert calls == [good[1], good[2]]
    assert [row["state"] for row in rows] == ["reference", *["failed"] * 5]
    for row, word in zip(rows[2:5], ("absent.zarr", "damaged.nii.gz", "across"), strict=True):
        assert word in row["error"]
        assert f"{row['number']} {row['image']}: failed: {row['error']}" in done.output
    found = series([good[0], wrong[0], good[1]], tmp_path / "t", CONFIG, to="previous")
    assert [row.state for row in found.rows] == ["reference", "failed", "left out"]


def test_the_command_tells_a_failure_by_its_exit_code(rounds, tmp_path, monkeypatch):
    def fails(*images, **given):
        raise daskreg.NotFound("it is gone")

    monkeypatch.setattr(module, "register", fails)
    images = [f"{rounds / f'{k}.ome.zarr'}::channel=0" for k in range(2)]
    done = CliRunner().invoke(app, ["series", *images, "-o", str(tmp_path / "s"), "--preset", "rigid"])
    assert done.exit_code == 1
    assert "failed: it is gone" in done.output


def test_a_series_is_kept_by_whatever_path_its_images_are_named(rounds, tmp_path, monkeypatch):
    images = [f"{k}.ome.zarr::channel=0" for k in range(2)]
    monkeypatch.chdir(rounds)
    series(images, tmp_path / "s", CONFIG, progress=False, moved=False)
    monkeypatch.chdir(tmp_path)
    again = [str(rounds / image) for image in images]
    assert [row.state for row in series(again, tmp_path / "s", CONFIG, moved=False).rows] == ["reference", "kept"]
    with pytest.raises(ConfigError, match="of another series: its moving image is"):
        series([again[0], str(rounds / "2.ome.zarr::channel=0")], tmp_path / "s", CONFIG, moved=False)


def test_an_interrupted_series_says_how_far_it_is(rounds, tmp_path, monkeypatch):
    real, calls = module.register, []

    def interrupted(*images, **given):
        calls.append(images)
        if len(calls) == 2:
            error = KeyboardInterrupt()
            error.add_note("continue with 'daskreg register --resume'")
            raise error
        return real(*images, **given)

    monkeypatch.setattr(module, "register", interrupted)
    images = [f"{rounds / f'{k}.ome.zarr'}::channel=0" for k in range(3)]
    with pytest.raises(KeyboardInterrupt) as caught:
        series(images, tmp_path / "s", CONFIG, moved=False, progress=False)
    assert [row["state"] for row in table(tmp_path / "s")] == ["reference", "registered", "waiting"]
    (note,) = caught.value.__notes__
    assert "1 of 2 images are registered" in note
    assert "the same command, without --overwrite, goes on" in note


def test_a_wrong_result_is_told_in_the_rows_behind_it(rounds, tmp_path, monkeypatch):
    """A round that matched its neighbour was ok, although that one did not match the reference."""
    verdicts = iter(["failed", "ok"])
    monkeypatch.setattr(module, "_verdict_of", lambda run: next(verdicts))
    images = [str(rounds / f"{k}.ome.zarr") for k in range(3)]
    (tmp_path / "c.yaml").write_text("stages: [{stage: rigid, similarity: mse, scales: [2], iterations: [2]}]")
    options = ["--to", "previous", "--channel", "0", "--no-moved", "--config", str(tmp_path / "c.yaml")]
    done = CliRunner().invoke(app, ["series", *images, "-o", str(tmp_path / "s"), *options, "--strict"])
    assert [(row["verdict"], row["chain_verdict"]) for row in table(tmp_path / "s")[1:]] == [
        ("failed", "failed"),
        ("ok", "failed"),
    ]
    assert "; failed on the way to the reference" in done.output
    assert done.exit_code == 3


def test_results_of_an_earlier_longer_series_are_told(rounds, tmp_path, monkeypatch, caplog):
    images = [f"{rounds / f'{k}.ome.zarr'}::channel=0" for k in range(2)]
    (tmp_path / "s" / "002.zarr").mkdir(parents=True)
    series(images, tmp_path / "s", CONFIG, moved=False, progress=False)
    assert "holds results of an earlier series that are not of this one, and are left there: 002" in caplog.text


def test_rounds_that_were_touched_or_moved_with_the_series_are_kept(rounds, tmp_path, monkeypatch):
    """They were of another series, of which nothing but to compute all again led on."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(rounds / "0.ome.zarr", folder / "0.ome.zarr")
    write_image(folder / "1.nii.gz", open_stack(rounds / "1.ome.zarr").data[0].compute(), GRID)
    monkeypatch.chdir(folder)
    images = ["0.ome.zarr::channel=0", "1.nii.gz"]
    series(images, "s", CONFIG, moved=False, progress=False)
    for file in (path for path in folder.rglob("*") if path.is_file() and "s" not in path.relative_to(folder).parts):
        os.utime(file, (1e9, 1e9))
    assert [row.state for row in series(images, "s", CONFIG, moved=False).rows] == ["reference", "kept"]
    folder.rename(tmp_path / "renamed")
    monkeypatch.chdir(tmp_path / "renamed")
    assert [row.state for row in series(images, "s", CONFIG, moved=False).rows] == ["reference", "kept"]
    write_image("1.nii.gz", open_stack(rounds / "2.ome.zarr").data[0].compute(), GRID, overwrite=True)
    with pytest.raises(ConfigError, match=r"its moving image .*1\.nii\.gz.*"):
        series(images, "s", CONFIG, moved=False)
