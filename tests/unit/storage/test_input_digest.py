"""An input that was changed is told from one that was not, from a bounded number of bytes."""

import os
import time

import fsspec
import numpy as np
import pytest
import zarr

from daskreg.grid import Grid
from daskreg.storage import digest as module
from daskreg.storage import open_volume, write_image
from daskreg.storage.digest import difference, digest, located
from tests.unit.storage.stores import voxels

GRID = Grid((8, 70, 9), unit="mm")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 999, GRID.shape).astype(np.uint16)


@pytest.fixture(params=["a.nii", "a.nii.gz", "a.ome.zarr", "a.mhd", "memory:a.ome.zarr", "memory:a.nii.gz"])
def path(request, tmp_path, image):
    place, _, name = request.param.rpartition(":")
    path = f"memory://{tmp_path.name}/{name}" if place else str(tmp_path / name)
    write_image(path, image, GRID)
    return path


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Of an image that is hashed as a whole, or in pieces."""
    if request.param == "large":
        monkeypatch.setattr(module, "BUDGET", 2048)
    return request.param


def rewritten(path, image):
    write_image(path, image, GRID, overwrite=True)


def test_what_was_not_touched_is_the_same(path, size):
    known = digest(path)
    assert known["whole"] == (size == "small")
    assert difference(known, digest(path)) is None


def test_what_was_only_written_again_is_the_same_where_all_of_it_was_hashed(path, image, size):
    known = digest(path)
    time.sleep(0.02)
    rewritten(path, image)
    told = size == "large" and not path.startswith("memory")  # which keeps no times
    assert difference(known, digest(path)) == ("the time at which files of it were written" if told else None)


def test_other_voxels_are_another_image(path, image, size):
    known = digest(path)
    rewritten(path, image[::-1])
    assert difference(known, digest(path)).startswith(("its content", "its size"))


def test_another_type_is_another_image(path, image):
    known = digest(path)
    rewritten(path, image.astype(np.float32))
    assert difference(known, digest(path)) is not None


def test_the_whole_content_of_a_small_image_counts(path, image):
    known = digest(path)
    image[3, 50, 4] += 1
    rewritten(path, image)
    assert difference(known, digest(path)).startswith(("its content", "its size"))


def test_only_the_level_that_is_read_counts(tmp_path, image):
    path = str(tmp_path / "a.ome.zarr")
    write_image(path, image, GRID)
    known, coarse = digest(path), digest(f"{path}::level=1")
    zarr.create_array(f"{path}/labels/cells", data=voxels())
    zarr.open_array(f"{path}/1")[:] = 7
    assert difference(known, digest(path)) is None
    assert difference(coarse, digest(f"{path}::level=1")) is not None


def test_a_deleted_chunk_is_a_change(tmp_path, image):
    path = str(tmp_path / "a.ome.zarr")
    write_image(path, image, GRID)
    known = digest(path)
    os.unlink(f"{path}/0/c/0/1/0")
    assert difference(known, digest(path)).startswith("its size")


def test_an_address_is_the_same_from_every_folder(tmp_path, image, monkeypatch):
    write_image(tmp_path / "a.ome.zarr", image, GRID)
    (tmp_path / "link.ome.zarr").symlink_to("a.ome.zarr")
    monkeypatch.chdir(tmp_path)
    there = str(tmp_path / "a.ome.zarr")
    assert located("a.ome.zarr") == located("link.ome.zarr/") == located(f"{there}::spacing=2,unit=um") == there
    assert located("a.ome.zarr::channel=2,level=1") == f"{there}::level=1,channel=2"
    assert digest(open_volume("a.ome.zarr"))["address"] == there


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mhd", "a.ome.zarr"])
def test_an_image_is_the_same_by_whatever_path(tmp_path, image, monkeypatch, name):
    write_image(tmp_path / name, image, GRID)
    os.symlink(tmp_path, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    by_whole_path = digest(str(tmp_path / name))
    for other in (name, f"./{name}", f"link/{name}", f"../{tmp_path.name}/{name}"):
        assert digest(other) == by_whole_path


def test_arrays_in_memory_have_digests_and_computed_ones_have_none(image, size):
    known = digest(image)
    assert known["whole"] == (size == "small")
    assert difference(known, digest(image.copy())) is None
    assert difference(known, digest(image + 1)) == "its content"
    assert difference(known, digest(image[1:])) == "its metadata"
    assert digest(open_volume(image, grid=GRID)) is None
    assert digest(None) is None


def test_transforms_have_digests(tmp_path):
    (tmp_path / "t.zarr").mkdir()
    zarr.create_group(str(tmp_path / "t.zarr"), attributes={"daskreg": {"kind": "transform"}})
    (tmp_path / "t.tfm").write_text("#Insight Transform File V1.0")
    for name in ("t.zarr", "t.tfm"):
        known = digest(tmp_path / name)
        file = tmp_path / name / "zarr.json" if name == "t.zarr" else tmp_path / name
        file.write_text(file.read_text().replace("t", "T"))
        assert difference(known, digest(tmp_path / name)) == "its content"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_the_digest_of_a_terabyte_reads_little(tmp_path, monkeypatch, place):
    """Some of the chunks exist; each is 1 MB."""
    path = str(tmp_path / "a.zarr") if place == "local" else f"memory://{tmp_path.name}/a.zarr"
    array = zarr.create_array(path, shape=(8192,) * 3, chunks=(64,) * 3, dtype="u2", compressors=None)
    counts = module.object_counts(array)
    keys = [module.object_key(array, np.unravel_index(k, counts)) for k in module._spread(128**3, module.SAMPLES)]
    assert len({k.split("/")[1] for k in keys}) > 40  # of 64: not all in one row
    for key in keys:
        if place == "local":
            os.makedirs(os.path.dirname(f"{path}/{key}"), exist_ok=True)
            with open(f"{path}/{key}", "wb") as file:
                file.truncate(1 << 20)
        else:
            fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/a.zarr/{key}", bytes(1 << 20))
    read = []

    def counted(content, real=module.hashlib.blake2b, **options):
        read.append(len(content))
        return real(content, **options)

    began = time.perf_counter()
    monkeypatch.setattr(module, "_hashed", lambda content: counted(content).digest())
    known = digest(path)
    assert time.perf_counter() - began < 20
    assert (sum(read), known["whole"]) == (module.BUDGET, False)


def test_a_run_behind_a_url_is_told_from_another_one(tmp_path):
    path = f"memory://{tmp_path.name}/run.zarr"
    zarr.create_group(path, attributes={"daskreg": {"made": time.time_ns()}})
    known = digest(path)
    assert known["kind"] == "store"
    assert difference(known, digest(path)) is None
    zarr.create_group(path, attributes={"daskreg": {"made": time.time_ns()}}, overwrite=True)
    assert difference(known, digest(path)) == "its content"
