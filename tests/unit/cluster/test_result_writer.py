"""Rows on their way into a run: cut into parts, in the stored order of axes, whatever made them."""

import threading
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from daskreg.cluster import result_writer as module
from daskreg.cluster.result_writer import ResultWriter, cast, to_world
from daskreg.comm import SingleRank
from daskreg.grid import Grid, Span
from daskreg.kernels.device import CPU
from daskreg.storage import RunStore
from daskreg.storage.runs.layout import DISPLACEMENT


class OnDevice(np.ndarray):
    """Takes itself for an array of a GPU."""

    __cuda_array_interface__ = property(lambda self: self.__array_interface__)


class Store:
    """What was written into which region of level 0, in order, and by which thread; there are no coarser levels."""

    def __init__(self, shape, fails=None):
        self.found, self.calls, self.threads, self.fails = np.full(shape, np.nan, np.float32), [], set(), fails

    def write_stored(self, name, level, region, voxels):
        if len(self.calls) == self.fails:
            raise OSError("no more")
        assert level == 0
        self.calls.append((name, region))
        self.threads.add(threading.current_thread().name.partition("_")[0])
        self.found[(..., *region.slices)] = voxels

    def as_stored(self, name, voxels):
        return voxels

    def chunk(self, name):
        return (4, 4, 4)

    def level_shapes(self, name):
        return [self.found.shape[-3:]]

    def coarse_steps(self, name):
        return []

    def voxel_type(self, name):
        return self.found.shape[:-3], self.found.dtype

    def has(self, name):
        return name == "moved"


def writing(store, back=(0, 1, 2)):
    """A writer for one rank."""
    order = tuple(int(i) for i in np.argsort(back))
    return ResultWriter(store, back, order, [(Span(0, 64), 0)], SingleRank())


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
    with writing(store, back) as writer:
        for z in (0, 8):
            row = Span(z, min(z + 8, 12))
            writer.write("moved", row, voxels[..., z : row.stop, :, :].view(kind), lambda part: 2 * part)
        writer.finish()
    np.testing.assert_array_equal(store.found, 2 * stored)
    assert len(store.calls) == 6  # three parts of 4, 4 and 2 rows, twice
    assert store.threads == {module.STORED}


def test_a_part_is_at_least_one_row_of_chunks(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 1)
    store = Store((8, 10, 6))
    with writing(store) as writer:
        writer.write("moved", Span(0, 8), np.zeros((8, 10, 6), np.float32), lambda part: part)
        writer.finish()
    assert sorted(region.start[1] for _, region in store.calls) == [0, 4, 8]


def test_an_error_in_the_writer_thread_is_raised_and_ends_writing(device, monkeypatch):
    monkeypatch.setattr(module, "MAX_WRITERS", 1)
    store, planes = Store((8, 10, 6), fails=1), np.zeros((4, 10, 6), np.float32).view(OnDevice)

    def put(writer):
        for z in (0, 4, 0, 4, 0, 4):
            writer.write("moved", Span(z, z + 4), planes, lambda part: part)
        writer.finish()

    with pytest.raises(OSError, match="no more"), writing(store) as writer:
        put(writer)
    assert len(store.calls) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("daskreg-output")]


def test_the_queue_of_parts_is_bounded(device, monkeypatch):
    monkeypatch.setattr(module, "MAX_WRITERS", 1)
    gate, store = threading.Event(), Store((4, 10, 6))
    plain = store.write_stored
    store.write_stored = lambda *given: (gate.wait(30), plain(*given))
    planes = np.zeros((4, 10, 6), np.float32).view(OnDevice)

    def puts():
        with writing(store) as writer:
            for _ in range(6):
                writer.write("moved", Span(0, 4), planes, lambda part: part)
            writer.finish()

    maker = threading.Thread(target=puts)
    maker.start()
    maker.join(0.5)
    assert len(device.copies) == 2  # one being written, one waiting
    gate.set()
    maker.join(30)
    assert len(store.calls) == 6


def test_coarser_levels_are_those_read_back_from_the_finest_whatever_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 1)
    grid, chunk = Grid((20, 40, 70)), 8
    voxels = np.random.default_rng(0).random((3, *grid.shape), np.float32)
    runs = [RunStore.create(tmp_path / f"{name}.zarr", fixed=grid, moving=grid) for name in ("passing", "after")]
    for run, coarser in zip(runs, (True, False), strict=True):
        run.create_image(DISPLACEMENT, grid, components=3, chunk=chunk, coarser=coarser)
    rows = [(Span(z, min(z + chunk, 20)), 0) for z in range(0, 20, chunk)]
    with ResultWriter(runs[0], (0, 1, 2), (0, 1, 2), rows, SingleRank()) as writer:
        for row, _ in rows:
            writer.write(DISPLACEMENT, row, voxels[:, row.start : row.stop], lambda part: part)
        writer.finish()
    runs[1].write(DISPLACEMENT, grid.region, voxels)
    made = runs[0].level_shapes(DISPLACEMENT)
    for run in runs:
        run.build_pyramid(DISPLACEMENT)
    assert len(made) > 1
    for level in range(len(made)):
        found, right = (run.displacement(level).compute(scheduler="sync") for run in runs)
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_displacement_in_world_units_has_the_bits_of_the_matrix_product(order):
    grid = Grid((4, 5, 6), (0.7, 1.3, 2.9)).permute(order)
    u = np.random.default_rng(0).standard_normal((3, 4, 5, 6), np.float32)
    u[:, 0] = -0.0
    matrix = (np.asarray(grid.direction) * np.asarray(grid.spacing)).astype(np.float32)
    assert to_world(grid, CPU)(u).tobytes() == np.tensordot(matrix, u, 1).astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32])
def test_integers_are_rounded_half_to_even_and_clipped_as_in_float64(dtype):
    limits = np.iinfo(dtype)
    values = np.array([0.5, 1.5, -0.5, 2.49999, 1e9, -1e9, np.inf, -np.inf, np.nan, limits.max, limits.min], np.float32)
    right = np.clip(np.rint(np.nan_to_num(values).astype(np.float64)), limits.min, limits.max).astype(dtype)
    right[8] = 7
    np.testing.assert_array_equal(cast(values, np.dtype(dtype), 7), right)
