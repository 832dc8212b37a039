"""Rows on their way into a run: cut into parts, in the stored order of axes, whatever made them."""

import threading
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from daskreg.cluster import result_writer as module
from daskreg.cluster.result_writer import ResultWriter
from daskreg.grid import Span


class OnDevice(np.ndarray):
    """Takes itself for an array of a GPU."""

    __cuda_array_interface__ = property(lambda self: self.__array_interface__)


class Store:
    """What was written into which region, in order, and by which thread."""

    def __init__(self, shape, fails=None):
        self.found, self.calls, self.threads, self.fails = np.full(shape, np.nan, np.float32), [], set(), fails

    def write(self, name, region, voxels):
        if len(self.calls) == self.fails:
            raise OSError("no more")
        self.calls.append((name, region))
        self.threads.add(threading.current_thread().name)
        self.found[(..., *region.slices)] = voxels


@pytest.fixture
def device(monkeypatch):
    """Copies from the device that are not waited for."""
    copies = []

    def page_locked(part):
        copies.append(np.array(part))
        return copies[-1]

    monkeypatch.setattr(module, "page_locked", page_locked)
    return SimpleNamespace(copies=copies)


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("back", list(permutations(range(3))))
@pytest.mark.parametrize("kind", [np.ndarray, OnDevice])
def test_rows_are_stored_unchanged_in_the_stored_axis_order(monkeypatch, device, back, lead, kind):
    monkeypatch.setattr(module, "PART_BYTES", 700)
    voxels = np.random.default_rng(0).random((*lead, 12, 10, 6), np.float32)
    stored = voxels.transpose(*range(len(lead)), *(len(lead) + a for a in back))
    store = Store(stored.shape)
    with ResultWriter(store, back, 4) as writer:
        for z in (0, 8):
            row = Span(z, min(z + 8, 12))
            writer.write("moved", row, voxels[..., z : row.stop, :, :].view(kind), lambda part: 2 * part)
    np.testing.assert_array_equal(store.found, 2 * stored)
    assert len(store.calls) == 6  # three parts of 4, 4 and 2 rows, twice
    assert store.threads == {"MainThread" if kind is np.ndarray else "daskreg-output_0"}


def test_a_part_is_at_least_one_row_of_chunks(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 1)
    store = Store((8, 10, 6))
    with ResultWriter(store, (0, 1, 2), 4) as writer:
        writer.write("moved", Span(0, 8), np.zeros((8, 10, 6), np.float32), lambda part: part)
    assert [region.start[1] for _, region in store.calls] == [0, 4, 8]


def test_an_error_in_the_writer_thread_is_raised_and_ends_writing(device):
    store, planes = Store((8, 10, 6), fails=1), np.zeros((4, 10, 6), np.float32).view(OnDevice)

    def put(writer):
        for z in (0, 4, 0, 4, 0, 4):
            writer.write("moved", Span(z, z + 4), planes, lambda part: part)

    with pytest.raises(OSError, match="no more"), ResultWriter(store, (0, 1, 2), 10) as writer:
        put(writer)
    assert len(store.calls) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("daskreg-output")]


def test_the_queue_of_parts_is_bounded(device):
    gate, store = threading.Event(), Store((4, 10, 6))
    plain = store.write
    store.write = lambda *given: (gate.wait(30), plain(*given))
    planes = np.zeros((4, 10, 6), np.float32).view(OnDevice)

    def puts():
        with ResultWriter(store, (0, 1, 2), 10) as writer:
            for _ in range(6):
                writer.write("moved", Span(0, 4), planes, lambda part: part)

    maker = threading.Thread(target=puts)
    maker.start()
    maker.join(0.5)
    assert len(device.copies) == module.QUEUE_LENGTH
    gate.set()
    maker.join(30)
    assert len(store.calls) == 6
