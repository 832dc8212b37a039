"""The control flow of the CUDA backend, and the order of its messages and device work. No GPU is needed."""

import sys
import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from daskreg.comm.local import ThreadCommunicator
from daskreg.config import Deformable
from daskreg.engine import halo, ring
from daskreg.engine.backend_cuda import LAG, CudaBackend
from daskreg.engine.halo import Block, Movement, wait_all
from daskreg.engine.loop import Judge, iterate
from daskreg.engine.memory import trim
from daskreg.engine.reach import Reach
from daskreg.engine.report import SAVE, Watch
from daskreg.engine.ring import Ring
from daskreg.grid import Grid, Partition, Span
from daskreg.kernels.device import host
from daskreg.planning import Level
from daskreg.similarity.mutual_information.cuda import histogram
from tests.unit.engine.spread import on_ranks


def level_of(iterations):
    """A level of one plane, of which nothing is computed."""
    grid = Grid((4, 4, 4))
    return Level.alone(1, (1, 1, 1), (1, 1, 1), grid, grid, iterations)


class Clocked(Watch):
    """Asks from an iteration on, until somebody has listened: as a clock does that starts again when it was read."""

    def __init__(self, since=10**9):
        self.since, self.now, self.heard = since, 0, False

    def asked(self, *, level_end=False):
        asks, self.heard = self.now >= self.since and not self.heard, self.heard or self.now >= self.since
        return SAVE * asks


class Scalar(np.ndarray):
    """An array of a GPU, as far as it is written from here."""

    def set(self, values):
        self[...] = values


class Pretended(CudaBackend):
    """On one of two ranks of constant loss, without a device: only what ranks agree on is computed."""

    def __init__(self, iterations, losses=(), watch=None, ranks=2):
        comm = SimpleNamespace(size=ranks, gather=lambda row: np.stack([row] * ranks), busy_wait=False, stream_ordered=None)
        device = SimpleNamespace(mark=lambda: None)
        super().__init__(SimpleNamespace(device=device), comm, watch or Clocked(), list(losses), iterations)
        self.sums, self.longest = np.zeros(3, np.int64), np.zeros(1, np.float32).view(Scalar)
        self.marks, self.launched, self.pairs, self.loss_sign, self.graphs = deque(), 0, False, 1, {}

    def event(self):
        return SimpleNamespace(synchronize=lambda: None)

    def run(self, name, launches, *, reads_moving=False):
        """Nothing is on a device."""


@pytest.mark.parametrize("k", range(0, 21, 2))
def test_a_resumed_level_decides_from_the_same_losses_as_a_whole_run(k):
    losses = [float(v) for v in range(20)]
    whole = Pretended(40)
    whole.past = list(losses)
    assert Pretended(40, losses).known(k) == whole.known(k) == losses[: max(k - LAG, 0)]


def test_a_level_at_rest_waits_for_its_loss():
    backend = Pretended(4)
    assert backend.advance(lambda t: "at rest", 0) == (1, "at rest")
    assert [k for k, _ in backend.marks] == [1]


def iterated(backend, stage, saved):
    """A level whose iterations only agree."""

    def iteration(t):
        backend.watch.now = t
        backend.settle(backend.agree(t))

    judge = Judge(stage, level_of(backend.iterations), backend.watch, 0)
    return iterate(backend.iterations, iteration, backend, judge, lambda losses, asked: saved.append(len(losses)))


@pytest.mark.parametrize(("iterations", "tolerance"), [(12, 0), (13, 0), (40, 1e-3)])
@pytest.mark.parametrize("since", range(1, 14))
def test_a_checkpoint_request_is_served_at_once_or_at_the_end_of_the_level(since, iterations, tolerance):
    saved, watch = [], Clocked(since)
    k, reason = iterated(Pretended(iterations, watch=watch), Deformable(tolerance=tolerance, window=3), saved)
    first = since + since % 2
    reached = k if reason == "plateau" else iterations - 1
    assert saved == [first] * (first <= reached)
    assert watch.heard == bool(saved)


def test_work_on_an_array_ends_before_planes_are_received_into_it(monkeypatch):
    """A link that writes into a GPU's memory by itself does not know of the work that is under way there."""
    happened, plain = [], ThreadCommunicator.receive

    def note(what):
        happened.append((threading.get_ident(), what))

    monkeypatch.setattr(halo, "synchronise", lambda array: note("wait"))
    monkeypatch.setattr(ThreadCommunicator, "receive", lambda self, *a: note("receive") or plain(self, *a))
    partition = Partition.of(4, 2, 1)

    def rank(comm):
        block = Block((4, 2, 3), partition, comm.rank, 1)
        wanted = [Span(0, 3), Span(2, 4)]  # rank 0 only receives, rank 1 only sends
        wait_all(Movement(comm, partition.slabs, wanted).start((block.scalar(), block.first)))

    on_ranks(2, rank)
    assert len(happened) == 3
    (receiver,) = [thread for thread, what in happened if what == "receive"]
    assert [what for thread, what in happened if thread == receiver] == ["wait", "receive"]


@pytest.mark.parametrize(("direct", "waits"), [(True, 2), (False, 1)])
def test_a_ring_buffer_is_read_before_the_next_shard_is_received_into_it(monkeypatch, direct, waits):
    """Once for what is sent, and of four ranks each receives into the first of its two buffers twice."""
    waited, monkey = [], lambda array: waited.append(1)
    monkeypatch.setattr(ring, "synchronise", monkey)
    monkeypatch.setattr(ThreadCommunicator, "device_arrays", direct)
    shards, whole = Partition.of(8, 4, 1), np.arange(8 * 6, dtype=np.float32).reshape(8, 2, 3)

    def rank(comm):
        mine = shards[comm.rank]
        ring = Ring(whole[mine.start : mine.stop], None, shards, mine, comm, None)
        ring.prepare(Reach.of_slabs(shards, [Span(0, 8)] * 4))
        return sorted((origin, [a.copy() for a in arrays]) for _, arrays, origin in ring._shards())

    for seen in on_ranks(4, rank):
        np.testing.assert_array_equal(np.concatenate([arrays[0] for _, arrays in seen]), whole)
    assert len(waited) == 4 * waits


def test_memory_is_released_without_a_cupy_driver(monkeypatch):
    def refuse():
        raise RuntimeError("cudaErrorInsufficientDriver")

    broken = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=refuse)),
                             get_default_memory_pool=refuse)  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", broken)
    trim()


class Strided(np.ndarray):
    """Takes itself for an array of a GPU, of which only whole pieces can leave."""

    __cuda_array_interface__ = property(lambda self: self.__array_interface__)

    def get(self):
        assert self.flags.c_contiguous
        return np.array(self)


def test_a_part_of_a_field_leaves_a_gpu_by_components():
    field = np.arange(3 * 5 * 2 * 3, dtype=np.float32).reshape(3, 5, 2, 3)
    for part in (field[:, 1:4], field, field[1]):
        np.testing.assert_array_equal(host(part.view(Strided)), part)


@pytest.mark.parametrize("room", [48, 64, 99, 163, 227])
@pytest.mark.parametrize("bins", [8, 32, 37, 64, 110])
def test_a_histogram_fits_into_shared_memory(monkeypatch, room, bins):
    monkeypatch.setattr(histogram, "block_memory", lambda: room * 1024)
    copies = histogram.histogram_copies(bins)
    assert copies & (copies - 1) == 0
    assert copies >= 1
    assert histogram.histogram_bytes(bins) <= room * 1024


@pytest.mark.parametrize("reach", range(8))
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_edges_are_the_planes_that_neighbours_want_and_complete_the_own_ones(ranks, reach):
    partition = Partition.of(13, ranks, 1)
    for rank in range(ranks):
        block = Block((13, 2, 2), partition, rank, 7)
        edges, others = block.edges_first(reach)
        planes = sorted(z + block.first for part, *_ in edges + others for z in part)
        assert planes == list(range(block.own.start, block.own.stop))
        wanted = {z for other in range(ranks) if other != rank for z in _within(block.own & partition.around(other, reach))}
        assert wanted == {z + block.first for part, *_ in edges for z in part}


def _within(planes):
    return range(planes.start, planes.stop)


def test_planes_are_sent_after_their_event_while_the_device_continues(monkeypatch):
    waited = []
    monkeypatch.setattr(halo, "synchronise", lambda array: waited.append("everything"))
    partition = Partition.of(4, 2, 1)

    def rank(comm):
        block, event = Block((4, 2, 3), partition, comm.rank, 1), SimpleNamespace(synchronize=lambda: waited.append("event"))
        halos = Movement(comm, partition.slabs, [partition.around(r, 1) for r in range(2)])
        wait_all(halos.start((block.scalar(), block.first), after=event))

    on_ranks(2, rank)
    assert waited == ["event"] * 2
