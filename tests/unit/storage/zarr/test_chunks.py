"""A chunk that is missing is told, counted and refused, not read as zeros."""

import os
import pickle
import shutil

import fsspec
import numpy as np
import pytest
import zarr

from daskreg.errors import ConfigError, OutputError, Unreadable
from daskreg.grid import Grid, Region
from daskreg.lazy.save import write_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, open_volume, write_image
from daskreg.storage.formats import ome_zarr as ome_zarr_format
from daskreg.storage.zarr.pyramid import new_array
from daskreg.workflows.apply import apply
from tests.unit.storage.stores import SHAPE, dataset, ome_zarr, simple, voxels

GRID = Grid((70, 66, 40), unit="mm")


def sparse(path, **options):
    """As zarr-python writes by default: without chunks that are empty."""
    image = voxels()
    image[:4, :4, :4] = 0
    return ome_zarr(path, [image], [dataset("0", (1.0, 1.0, 1.0))], **options), image


@pytest.mark.parametrize("options", [{"version": "0.4"}, {}, {"shards": (8, 8, 8)}, {"compressors": None}])
def test_a_missing_chunk_of_an_input_is_refused_with_its_key_and_their_number(tmp_path, options):
    path = simple(tmp_path / "a.zarr", **options)
    names = sorted(n for n, _, files in os.walk(path + "/0") for f in files if not f.startswith((".z", "zarr")))
    files = sorted(os.path.join(n, f) for n in set(names) for f in os.listdir(n) if not f.startswith((".z", "zarr")))
    assert open_volume(path).read().shape == SHAPE
    os.unlink(files[-1])
    total = len(files)
    with pytest.raises(Unreadable, match=rf"{path}: the chunk .* is missing, and 1 of {total} chunks are; .*'::missing=fill'"):
        open_volume(path).read()
    if total > 1:
        open_volume(path).read(Region((0, 0, 0), (2, 2, 2)))  # what is there is read


def test_a_store_that_is_said_to_be_sparse_is_read_and_its_missing_chunks_are_counted(tmp_path, caplog):
    path, image = sparse(tmp_path / "a.zarr")
    with pytest.raises(Unreadable, match=r"the chunk c/0/0/0 is missing, and 1 of 8 chunks are; it would be read as 0\."):
        open_volume(path).read()
    with caplog.at_level("WARNING", "daskreg"):
        volume = pickle.loads(pickle.dumps(open_volume(f"{path}::missing=fill")))
    np.testing.assert_array_equal(volume.read(), image)
    assert f"{path}: 1 of 8 chunks are missing (the first is c/0/0/0), and are read as 0" in caplog.text
    with pytest.raises(ConfigError, match=r"'fill' .* or 'error' was expected"):
        open_volume(f"{path}::missing=ignore")


def test_in_an_object_store_chunks_are_missed_as_well(tmp_path):
    path, image = sparse(tmp_path / "a.zarr")
    memory, inside = fsspec.filesystem("memory"), f"/{tmp_path.name}/a.zarr"
    memory.put(path, inside, recursive=True)
    with pytest.raises(Unreadable, match=r"the chunk c/0/0/0 is missing, and 1 of 8"):
        open_volume(f"memory:/{inside}").read()
    np.testing.assert_array_equal(open_volume(f"memory:/{inside}::missing=fill").read(), image)
    memory.rm(f"{inside}/0/c/1/1/1")
    with pytest.raises(Unreadable, match=r"the chunk c/1/1/1 is missing, and 2 of 8"):
        open_volume(f"memory:/{inside}").read(Region((4, 4, 4), SHAPE))


def test_daskreg_writes_chunks_that_are_empty(tmp_path):
    for place in (str(tmp_path / "a.ome.zarr"), f"memory://{tmp_path.name}/a.ome.zarr"):
        write_image(place, np.zeros(GRID.shape, np.float32), GRID)
        assert not open_volume(place).read().any()
    os.unlink(tmp_path / "a.ome.zarr/0/c/1/1/0")
    with pytest.raises(Unreadable, match=r"the chunk c/1/1/0 is missing, and 1 of 4 chunks are"):
        open_volume(tmp_path / "a.ome.zarr").read()


def test_a_store_of_an_earlier_version_of_daskreg_may_lack_empty_chunks(tmp_path):
    path = str(tmp_path / "a.ome.zarr")
    write_image(path, np.zeros(GRID.shape, np.float32), GRID)
    array = zarr.open_array(f"{path}/0")
    array.attrs.put({})
    shutil.rmtree(f"{path}/0/c")
    assert not open_volume(path).read().any()


def test_an_image_whose_chunk_is_deleted_while_it_is_written_is_not_complete(tmp_path, monkeypatch):
    path = str(tmp_path / "a.ome.zarr")
    stored = ome_zarr_format._store

    def deleting_after(data, levels, *more):
        done = stored(data, levels, *more)
        deleting(levels[0], levels[1], None)
        return done

    monkeypatch.setattr(ome_zarr_format, "_store", deleting_after)
    with pytest.raises(OutputError, match=rf"{path}/0: 1 of 4 chunks that were written are gone, the first is c/1/0/0"):
        write_image(path, np.ones(GRID.shape, np.float32), GRID)
    assert os.listdir(tmp_path) == []


def deleting(source, target, step, **_):
    os.unlink(os.path.join(source.store.root, source.path, "c/1/0/0" if source.ndim == 3 else "c/0/1/0/0"))
    target[:] = 1


def test_a_transform_whose_chunk_is_deleted_while_it_is_written_is_not_complete(tmp_path, monkeypatch):
    monkeypatch.setattr("daskreg.storage.runs.transforms.coarsen", deleting)
    transform = Transform.of(None, GRID, np.zeros((3, *GRID.shape), np.float32), GRID)
    with pytest.raises(OutputError, match="1 of 4 chunks that were written are gone"):
        write_transform(transform, tmp_path / "t.zarr")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["moved", "transform/displacement"])
@pytest.mark.parametrize("level", ["0", "1"])
def test_a_run_whose_chunk_is_deleted_is_not_complete(tmp_path, name, level):
    run = RunStore.create(tmp_path / "r.zarr", fixed=GRID, moving=GRID)
    for image, components in (("moved", 0), ("transform/displacement", 3)):
        run.create_image(image, GRID, components=components)
        run.write(image, GRID.region, np.zeros((3, *GRID.shape) if components else GRID.shape, np.float32))
        run.build_pyramid(image)
    shutil.rmtree(f"{run.path}/{name}/{level}/c/0")
    with pytest.raises(OutputError, match=rf"{name}/{level}: \d of \d chunks that were written are gone, the first is c/0"):
        run.finish({})
    assert not run.complete


def test_a_missing_chunk_of_a_transform_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    transform = Transform.of(None, GRID, rng.random((3, *GRID.shape), np.float32), GRID)
    write_transform(transform, tmp_path / "t.zarr")
    os.unlink(tmp_path / "t.zarr/coordinateTransformations/0/0/c/0/1/1/0")
    with pytest.raises(Unreadable, match=r"the chunk c/0/1/1/0 is missing, and 1 of 4"):
        apply(tmp_path / "t.zarr", open_volume(np.ones(GRID.shape, np.float32), grid=GRID), tmp_path / "out.ome.zarr")
    apply(f"{tmp_path}/t.zarr::missing=fill", open_volume(np.ones(GRID.shape, np.float32), grid=GRID), tmp_path / "out.ome.zarr")
    assert (tmp_path / "out.ome.zarr").exists()


def test_a_shard_is_one_object(tmp_path):
    """Empty chunks within it are left out by every writer, and cannot be lost alone."""
    path, image = sparse(tmp_path / "a.zarr", shards=(8, 8, 8))
    np.testing.assert_array_equal(open_volume(path).read(), image)


def test_arrays_are_marked(tmp_path):
    assert new_array(zarr.create_group(str(tmp_path / "g.zarr")), "0", (2, 2, 2), "u1").attrs["daskreg"] == {"chunks": "all"}


def test_a_store_that_is_removed_while_it_is_written_is_not_complete(tmp_path, monkeypatch):
    """Zarr makes folders again for the chunks that follow."""
    path = str(tmp_path / "a.ome.zarr")

    def store(data, levels, *more, real=ome_zarr_format._store):
        shutil.rmtree(levels[0].store.root)
        return real(data, levels, *more)

    monkeypatch.setattr(ome_zarr_format, "_store", store)
    with pytest.raises(OutputError, match=rf"{path}/0: the metadata of the array is gone"):
        write_image(path, np.ones(GRID.shape, np.float32), GRID)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["moved", "transform/displacement"])
def test_a_run_that_lacks_an_image_is_not_complete(tmp_path, name):
    run = RunStore.create(tmp_path / "r.zarr", fixed=GRID, moving=GRID)
    with pytest.raises(OutputError, match=rf"{name}, which was written, cannot be read"):
        run.finish({}, (name,))
    assert not run.complete
