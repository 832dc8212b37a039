"""Copies of planes that threads share, also where the new planes lie over the old ones."""

import numpy as np
import pytest

from daskreg.engine import copies
from daskreg.engine.sweep.buffers import Buffer
from daskreg.grid import Span
from daskreg.kernels.device import Device


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(copies, "LEAST_BYTES", 0)
    monkeypatch.setattr(copies, "thread_count", lambda: request.param)


@pytest.mark.parametrize("lead", [(3,), (1,), ()])
@pytest.mark.parametrize("held", [Span(4, 12), Span(4, 14), Span(2, 6), Span(7, 10)], ids=["on", "more", "fewer", "rest"])
def test_a_buffer_that_moves_on_keeps_its_planes(lead, held):
    buffer = Buffer(Device("cpu"), lead, 12, (5, 7))
    buffer.hold(Span(2, 10), 2)
    written = np.random.default_rng(0).random((*lead, 8, 5, 7), np.float32)
    buffer.fill(Span(2, 10))[...] = written
    buffer.hold(held, held.start)
    kept = held & Span(2, 10)
    np.testing.assert_array_equal(buffer.part(kept), written[..., kept.within(Span(2, 10)), :, :])


def test_rows_of_padded_planes_are_copied():
    padded = np.zeros((3, 4, 40), np.float32)[..., :35].reshape(3, 4, 5, 7)
    source = np.random.default_rng(0).random((3, 4, 5, 7), np.float32)
    copies.copy_planes(source, padded)
    np.testing.assert_array_equal(padded, source)
