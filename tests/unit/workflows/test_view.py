"""Images that are computed while a viewer looks at them: the values of ``apply``, over HTTP, and nothing else."""

import json
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from itertools import product
from pathlib import Path
from urllib.parse import quote

import dask.array as da
import numpy as np
import ome_zarr_models
import pytest
import zarr
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.errors import ConfigError, Unreadable
from daskreg.grid import Grid
from daskreg.lazy.byte_cache import ByteCache
from daskreg.lazy.coarse_levels import link_levels, run_field_levels, stack_levels
from daskreg.lazy.load import load_transform
from daskreg.storage import Volume, open_stack, open_volume, write_image
from daskreg.storage.axes import Axis
from daskreg.workflows.apply import apply
from daskreg.workflows.view import ServedImages, view
from tests.phantoms import blobs, rotation
from tests.unit.workflows.runs import FIELD, FIXED, MOVING, affine, displacement, make_run

LIKE = Grid((70, 20, 132), (0.9, 2.7, 0.3), (-20.0, -25.0, 12.0), tuple(map(tuple, rotation((6, -11, 17)))), "mm", True)
AXES = (Axis("t", "time", "second", scale=2.5), Axis("c", "channel"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and images of its moving space: one, one of two times and channels, and labels."""
    folder = tmp_path_factory.mktemp("view")
    make_run(folder / "run.zarr", affine(), displacement())
    image = (blobs(MOVING.shape) * 1000).astype(np.uint16)
    write_image(folder / "moving.ome.zarr", image, MOVING)
    write_image(folder / "fixed.ome.zarr", (blobs(FIXED.shape) * 500).astype(np.float32), FIXED)
    several = np.stack([np.stack([image, 2 * image]), np.stack([image // 2, image // 3])])
    write_image(folder / "several.ome.zarr", several, MOVING, axes=AXES)
    write_image(folder / "labels.ome.zarr", (image // 200).astype(np.int16), MOVING, labels=True)
    return folder


def get(url, method="GET", **headers):
    with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)) as answer:
        return answer.status, dict(answer.headers), answer.read()


def refused(url, method="GET", **headers):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, method, **headers)
    return caught.value.code, caught.value.read().decode()


def download(made, name, version, folder):
    """The store as files: every document, and every chunk of every level."""
    image, address = made.images[name], made.address(name, version)
    documents = [".zgroup", ".zattrs"] if version == "0.4" else ["zarr.json"]
    for path, array in image.arrays.items():
        documents.append(f"{path}/{'.zarray' if version == '0.4' else 'zarr.json'}")
        prefix = f"{path}/" if version == "0.4" else f"{path}/c/"
        documents += [prefix + "/".join(map(str, index)) for index in product(*map(range, array.counts))]
    for key in documents:
        place = folder / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(get(f"{address}/{key}")[2])
    return folder


@pytest.mark.parametrize(("name", "interpolation"), [("several", "linear"), ("labels", "label"), ("moving", "cubic")])
def test_all_levels_are_those_that_apply_writes(folder, tmp_path, name, interpolation):
    image = str(folder / f"{name}.ome.zarr")
    apply(folder / "run.zarr", image, tmp_path / "moved.ome.zarr", like=LIKE, interpolation=interpolation)
    wanted = zarr.open_group(tmp_path / "moved.ome.zarr", mode="r")
    with view(folder / "run.zarr", image, like=LIKE, interpolation=interpolation, fixed=False) as made:
        assert len(made.images["moved"].factors) == 4
        for version in ("0.4", "0.5"):
            place = download(made, "moved", version, tmp_path / version)
            got = zarr.open_group(place, mode="r")
            for path in made.images["moved"].arrays:
                assert got[path].dtype == wanted[path].dtype
                np.testing.assert_array_equal(got[path][...], wanted[path][...])
            assert len(ome_zarr_models.open_ome_zarr(got).ome_attributes.multiscales[0].datasets) == 4
            stack, written = open_stack(place), open_stack(tmp_path / "moved.ome.zarr")
            assert stack.grid == written.grid
            assert [(a.name, a.scale, a.unit) for a in stack.lead] == [(a.name, a.scale, a.unit) for a in written.lead]


def test_the_fixed_image_is_served_as_it_is(folder, tmp_path):
    with view(folder / "run.zarr", folder / "moving.ome.zarr", fixed=str(folder / "fixed.ome.zarr")) as made:
        assert list(made.images) == ["fixed", "moved"]
        place = download(made, "fixed", "0.5", tmp_path / "fixed")
        np.testing.assert_array_equal(open_volume(place).data, open_volume(folder / "fixed.ome.zarr").data)
        assert [layer["name"] for layer in state(made)["layers"]] == ["fixed", "moved"]
        assert state(made)["displayDimensions"] == ["x", "y", "z"]
        assert state(made)["dimensions"] == {"x": [0.001, "m"], "y": [0.0015, "m"], "z": [0.002, "m"]}
        assert made.address("fixed") in made.napari
        assert made.neuroglancer in made._repr_html_().replace("&#x27;", "'")


def state(made):
    return json.loads(urllib.parse.unquote(made.neuroglancer.partition("#!")[2]))


def test_requests_are_answered_as_browsers_and_viewers_need_it(folder):
    with view(folder / "run.zarr", folder / "moving.ome.zarr", fixed=False) as made:
        chunk = f"{made.address()}/0/0/0/0"
        status, headers, whole = get(chunk)
        assert (status, len(whole), headers["Access-Control-Allow-Origin"]) == (200, 30 * 36 * 41 * 2, "*")
        assert get(chunk, "HEAD")[1]["Content-Length"] == str(len(whole))
        assert get(chunk, "HEAD")[2] == b""
        assert get(chunk, Range="bytes=100-299")[::2] == (206, whole[100:300])
        assert get(chunk, Range="bytes=-10")[2] == whole[-10:]
        assert get(chunk, Range="bytes=88000-")[1]["Content-Range"] == f"bytes 88000-{len(whole) - 1}/{len(whole)}"
        assert refused(chunk, Range="bytes=999999-")[0] == 416
        status, headers, body = get(chunk, "OPTIONS", Origin="https://viewer.example")
        assert (status, body) == (204, b"")
        assert "Range" in headers["Access-Control-Allow-Headers"]
        assert refused(chunk, "PUT")[0] == 405
        assert b"Neuroglancer" in get(made.url)[2]


NOTHING = (
    *("0/9/0/0", "0/0/0", "0/0/0/-1", "0/0/0/1e0", "1/0/0/0", "0/", ".zmetadata"),
    *("..%2f..%2f..%2fetc/passwd", "../../../../etc/passwd", "%00"),
)


@pytest.mark.parametrize("path", NOTHING)
def test_there_is_nothing_but_documents_and_chunks(folder, path):
    with view(folder / "run.zarr", folder / "moving.ome.zarr", fixed=False) as made:
        assert refused(f"{made.address()}/{path}")[0] == 404


def test_who_does_not_know_the_path_sees_nothing(folder):
    with view(folder / "run.zarr", folder / "moving.ome.zarr", fixed=False) as made:
        assert made.url.startswith("http://127.0.0.1:")
        token = made.url.rstrip("/").rpartition("/")[2]
        for other in ("x" * len(token), token[:-1], ""):
            assert refused(made.url.replace(token, other))[0] == 404
        port = made.url.split(":")[2].partition("/")[0]
        with pytest.raises(ConfigError, match="cannot be listened on"):
            view(folder / "run.zarr", folder / "moving.ome.zarr", fixed=False, port=int(port))
    assert made.closed
    with pytest.raises(urllib.error.URLError):
        get(made.url)


def test_a_chunk_that_cannot_be_computed_is_an_error_in_one_sentence(folder, tmp_path):
    write_image(tmp_path / "broken.ome.zarr", blobs(MOVING.shape), MOVING)
    with view(folder / "run.zarr", tmp_path / "broken.ome.zarr", fixed=False) as made:
        image = made.images["moved"]
        image.samplers[0].image._whole = None  # not as it was when the display window was estimated
        next((tmp_path / "broken.ome.zarr" / "0" / "c" / "0" / "0").iterdir()).write_bytes(b"no chunk")
        code, text = refused(f"{made.address()}/0/0/0/0")
        assert code == 500
        assert "is damaged" in text
        assert text.count("\n") == 1


def test_sampled_levels_are_about_the_means(folder):
    smooth = Volume(da.from_array(blobs(MOVING.shape) * 100, chunks=16), MOVING)
    large = replace(FIXED, shape=tuple(4 * n for n in FIXED.shape), spacing=tuple(s / 4 for s in FIXED.spacing))
    run = load_transform(folder / "run.zarr")
    with view(run, smooth, like=large) as exact, view(folder / "run.zarr", smooth, like=large, coarse="sampled") as fast:
        means, sampled = exact.images["moved"], fast.images["moved"]
        assert means.means
        assert not sampled.means
        np.testing.assert_array_equal(means.chunk(0, (1, 1, 1)), sampled.chunk(0, (1, 1, 1)))
        assert fast.images["moved"].attributes("FFFFFF")["ome"]["multiscales"][0]["type"] == "resampled"
        level = len(means.factors) - 1
        a, b = means.chunk(level, (0, 0, 0)), sampled.chunk(level, (0, 0, 0))
        assert np.abs(a - b)[1:-1, 1:-1, 1:-1].max() < 0.08 * a.max()
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.995


def test_coarser_levels_of_images_and_fields_are_at_the_centres_of_their_blocks():
    grid = Grid((100, 90, 130), (1.0, 1.0, 0.5))
    ramp = da.from_array(np.broadcast_to(np.arange(130, dtype=np.float32), grid.shape), chunks=50)
    levels = stack_levels(open_stack(Volume(ramp, grid)))
    assert [v.grid.shape for v in levels] == [(100, 90, 130), (100, 90, 65), (50, 45, 33)]
    np.testing.assert_allclose(levels[-1].data[3, 3, :32], np.arange(32) * 4 + 1.5)
    assert levels[-1].grid.origin[2] == 0.5 * 1.5


def test_levels_of_a_displacement_are_those_of_its_run_where_it_has_them(tmp_path):
    fixed = Grid((80, 20, 70), (1.0, 2.0, 1.0))
    store = make_run(tmp_path / "run.zarr", field=displacement(fixed), fixed=fixed, finish=False)
    store.build_pyramid(FIELD)
    run = store.finish({})
    (stored,), (made,) = (link_levels(load_transform(run).links, f) for f in (run_field_levels(run), None))
    assert [v.grid for v in stored] == [v.grid for v in made]
    np.testing.assert_allclose(stored[-1].data, made[-1].data, atol=1e-6)


def test_an_array_is_computed_once_and_those_used_last_are_kept():
    cache, started, calls = ByteCache(2000), threading.Barrier(4), []

    def compute():
        calls.append(1)
        return np.zeros(100)

    def ask():
        started.wait()
        cache.get("a", compute)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in [*threads, *threads]:
        thread.start() if not thread.ident else thread.join()
    assert len(calls) == 1
    for key in "bcad":  # of 800 bytes each
        cache.get(key, compute)
        assert cache.held <= 2000
    assert list(cache._kept) == ["a", "d"]

    def fail():
        raise Unreadable("no chunk")

    for _ in range(2):
        with pytest.raises(Unreadable):
            cache.get("e", fail)


def test_what_a_run_knows_is_shown_and_what_is_missing_is_said(folder, caplog):
    with pytest.raises(ConfigError, match="no image was named"):
        view(load_transform(folder / "run.zarr"))
    with pytest.raises(ConfigError, match="no image was named"):
        view(folder / "run.zarr")  # made by hand, without inputs and moved image
    with pytest.raises(ConfigError, match="did you mean 'means'"):
        view(folder / "run.zarr", folder / "moving.ome.zarr", coarse="mean")


def test_the_command_prints_where_images_are_until_it_is_interrupted(folder, monkeypatch):
    seen = []

    def interrupted(self):
        seen.append(get(f"{self.address('moved')}/.zattrs")[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(ServedImages, "wait", interrupted)
    given = ["view", str(folder / "run.zarr"), str(folder / "several.ome.zarr"), "--fixed", str(folder / "fixed.ome.zarr")]
    found = CliRunner().invoke(app, given)
    assert (found.exit_code, seen) == (0, [200])
    assert "2 t x 2 c x 30 x 36 x 41" in found.output
    assert quote('"localPosition":[0]', safe="") in found.output
    assert "neuroglancer-demo.appspot.com" in found.output


def test_the_page_about_viewing_names_options_that_there_are():
    text = (Path(__file__).parents[3] / "docs" / "viewing.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--[a-z]+", "\n".join(re.findall(r"^daskreg view .*$", text, re.M))))
    known = CliRunner().invoke(app, ["view", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert len(named) >= 5
    assert [n for n in named if n not in known] == []


def test_an_image_in_memory_is_on_the_grid_of_its_side(folder, tmp_path):
    image = open_volume(folder / "moving.ome.zarr")
    with view(folder / "run.zarr", image.data.compute(), fixed=np.zeros(FIXED.shape, np.uint8)) as served:
        assert served.images["fixed"].grid == FIXED
        found = np.asarray(zarr.open_array(download(served, "moved", "0.5", tmp_path) / "0"))
    np.testing.assert_array_equal(found, apply(folder / "run.zarr", image).read())
