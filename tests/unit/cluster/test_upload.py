"""Planes of an archive on their way to a GPU: the same voxels as through the host, whatever pieces they come in."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from daskreg.cluster import upload as module
from daskreg.cluster.upload import upload
from daskreg.errors import Unreadable
from daskreg.grid import Span
from daskreg.storage import open_volume


class OnDevice(np.ndarray):
    """Takes copies as an array of CuPy does."""

    def set(self, voxels, stream):
        self[...] = voxels


@pytest.fixture
def waited(monkeypatch):
    """A GPU that copies at once; how often the host waited for it."""
    found = []
    event = SimpleNamespace(synchronize=lambda: found.append("copy"))
    stream = SimpleNamespace(record=lambda: event, synchronize=lambda: found.append("all"))
    fake = SimpleNamespace(
        empty=lambda n, dtype: np.full(n, 99, dtype).view(OnDevice), cuda=SimpleNamespace(get_current_stream=lambda: stream)
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(module, "page_locked_zeros", np.zeros)
    monkeypatch.setattr(module, "PIECE_BYTES", 1 << 14)
    return found


def stored(path, dtype, shape=(70, 50, 20), **options):
    """Noise in small chunks."""
    array = zarr.create_array(path, shape=shape, chunks=(16,) * 3, dtype=dtype, **options)
    voxels = np.random.default_rng(0).uniform(-100 if np.dtype(dtype).kind != "u" else 0, 200, shape).astype(dtype)
    array[...] = voxels
    return voxels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("planes", [Span(0, 70), Span(5, 67), Span(64, 70)])
def test_voxels_are_those_that_the_host_reads(tmp_path, waited, dtype, planes):
    voxels = stored(tmp_path / "a.zarr", dtype)
    volume = open_volume(f"{tmp_path / 'a.zarr'}::spacing=1")
    found = np.full((len(planes), 50, 20), np.nan, np.float32)
    upload(volume, planes, found)
    np.testing.assert_array_equal(found, voxels[planes.start : planes.stop].astype(np.float32))
    assert waited[-1] == "all"


def test_memory_is_used_again_only_after_it_was_copied(tmp_path, waited):
    stored(tmp_path / "a.zarr", "uint16")
    volume = open_volume(f"{tmp_path / 'a.zarr'}::spacing=1")
    upload(volume, Span(0, 70), np.empty((70, 50, 20), np.float32))
    assert waited.count("copy") == len(module._pieces(volume, Span(0, 70))) - module.ROOMS


def test_a_missing_chunk_is_named(tmp_path, waited):
    stored(tmp_path / "a.zarr", "uint16")
    (tmp_path / "a.zarr" / "c" / "1" / "2" / "0").unlink()
    volume = open_volume(f"{tmp_path / 'a.zarr'}::spacing=1")
    with pytest.raises(Unreadable, match="c/1/2/0 is missing"):
        upload(volume, Span(0, 70), np.empty((70, 50, 20), np.float32))


def test_other_voxels_are_read_through_the_host(tmp_path):
    for dtype in ("float64", "bool", "float16", "int64"):
        stored(tmp_path / f"{dtype}.zarr", dtype)
        assert not open_volume(f"{tmp_path / dtype}.zarr::spacing=1").reads_stored()
    stored(tmp_path / "a.zarr", "uint16")
    volume = open_volume(f"{tmp_path / 'a.zarr'}::spacing=1")
    assert volume.reads_stored()
    assert not volume.permute((1, 0, 2)).reads_stored()
