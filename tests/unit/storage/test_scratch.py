"""Fields in scratch files: what is written comes back, damage is noticed, nothing is left."""

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import daskreg
from daskreg.errors import OutOfSpace, OutputError, RunError
from daskreg.grid import Span
from daskreg.storage import scratch
from daskreg.storage.scratch import ScratchFolder
from daskreg.workflows.demo import demo_pair

PLANE = (13, 7)


def planes(count, seed=0, dtype=np.float32):
    return (1000 * np.random.default_rng(seed).random((3, count, *PLANE))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
def test_planes_come_back_and_others_are_zero(tmp_path, dtype):
    with ScratchFolder(tmp_path) as folder:
        field = folder.allocate(3, Span(5, 40), PLANE, dtype)
        written = planes(11, dtype=dtype)
        field.write(Span(9, 20), written)
        found = np.full((3, 35, *PLANE), 7, dtype)
        field.read(Span(5, 40), found)
    expected = np.zeros_like(found)
    expected[:, 4:15] = written
    np.testing.assert_array_equal(found, expected)


def test_part_of_what_was_written_is_replaced_and_read(tmp_path):
    with ScratchFolder(tmp_path) as folder:
        field = folder.allocate(3, Span(0, 9), PLANE)
        field.write(Span(0, 9), planes(9))
        field.write(Span(3, 5), planes(2, seed=1))
        found = np.empty((3, 4, *PLANE), np.float32)
        field.read(Span(2, 6), found)
    np.testing.assert_array_equal(found[:, [0, 3]], planes(9)[:, [2, 5]])
    np.testing.assert_array_equal(found[:, 1:3], planes(2, seed=1))


def test_a_damaged_plane_is_told(tmp_path):
    with ScratchFolder(tmp_path) as folder:
        field = folder.allocate(3, Span(0, 4), PLANE)
        field.write(Span(0, 4), planes(4))
        buffer = np.frombuffer(scratch.mmap.mmap(-1, field.pitch), np.uint8)
        os.pwritev(field._file, [buffer], 2 * field.pitch)
        found = np.empty((3, 4, *PLANE), np.float32)
        with pytest.raises(RunError, match="is not what was written there"):
            field.read(Span(0, 4), found)


def test_a_limit_and_a_small_disk_are_told_before_anything_is_written(tmp_path, monkeypatch):
    with ScratchFolder(tmp_path, limit=100_000) as folder:
        with pytest.raises(OutOfSpace, match="--scratch-size allows"):
            folder.allocate(3, Span(0, 400), PLANE)
        monkeypatch.setattr(scratch.shutil, "disk_usage", lambda path: _Usage(10_000))
        with pytest.raises(OutOfSpace, match="GiB free"):
            folder.allocate(3, Span(0, 4), PLANE)


class _Usage:
    def __init__(self, free):
        self.free = free


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ScratchFolder(tmp_path) as folder:
        field = folder.allocate(3, Span(0, 4), PLANE)
        monkeypatch.setattr(scratch.os, "pwritev", full)
        with pytest.raises(OutOfSpace, match="is full"):
            field.write(Span(0, 4), planes(4))


def test_a_folder_that_is_not_there_is_refused_and_not_made(tmp_path):
    (tmp_path / "file").write_text("")
    for name, what in (("file", "is no folder"), ("file/below", "does not exist"), ("absent", "does not exist")):
        with pytest.raises(OutputError, match=rf"the scratch folder .*{name} {what} on .*; create it first, .*--scratch"):
            ScratchFolder(tmp_path / name)
    with pytest.raises(OutputError, match="absent does not exist"):  # although this run has no fields on disk
        daskreg.register(*demo_pair(3), output=tmp_path / "run.zarr", scratch=tmp_path / "absent", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_are_gone_when_they_are_made_and_room_is_given_back(tmp_path):
    with ScratchFolder(tmp_path) as folder:
        field = folder.allocate(3, Span(0, 4), PLANE)
        assert not [name for _, _, files in os.walk(tmp_path) for name in files]
        assert folder.used == field.bytes
        field.close()
        assert folder.used == 0
    assert not list(tmp_path.iterdir())


def test_an_array_like_the_file_is_one_transfer_of_all_components(tmp_path, monkeypatch):
    moved, transfer = [], scratch._transfer
    monkeypatch.setattr(scratch, "_transfer", lambda call, *given: (moved.append(len(given[1])), transfer(call, *given)))
    with ScratchFolder(tmp_path) as folder:
        field = folder.allocate(3, Span(5, 40), PLANE)
        given, found = field.staging(11), field.staging(14)
        given[...], found[...] = planes(11), 7
        field.write(Span(9, 20), given)
        field.read(Span(7, 19), found[:, 1:13])
    assert moved == [3 * 11 * field.pitch, 3 * 12 * field.pitch]
    assert (found[:, [0, 13]] == 7).all()
    assert not found[:, 1:3].any()
    np.testing.assert_array_equal(found[:, 3:13], planes(11)[:, :10])


def test_bytes_are_counted_whichever_thread_moves_them(tmp_path):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ScratchFolder(tmp_path) as folder, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: [folder.count(1) for _ in range(20000)], range(4)))
            assert folder.moved == 80000
    finally:
        sys.setswitchinterval(before)
