"""What is added up part by part has the bits of what is computed from a whole image."""

import numpy as np
import pytest

from daskreg.engine import plane_sums
from daskreg.engine.coarse_pair import plane_sums as block_sums
from daskreg.engine.images import downsample
from daskreg.engine.level_stream import FieldStream, source_planes
from daskreg.engine.measure import moments
from daskreg.engine.plane_sums import BlockSums, PlaneMoments
from daskreg.grid import Region, Span
from daskreg.planning.source import Boxes

SHAPE = (37, 53, 41)
IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def boxes(rows, planes, span):
    return Boxes(SHAPE, rows, planes).over(span)


@pytest.mark.parametrize("sigmas", [None, (2.0, 1.5, 0.7)])
@pytest.mark.parametrize("factors", [(1, 1, 1), (4, 4, 4), (1, 4, 4), (2, 1, 3), (8, 16, 16)])
def test_a_level_of_parts_is_that_of_the_whole(factors, sigmas):
    whole = downsample(IMAGE, factors, sigmas=sigmas)
    for own in (Span(0, len(whole)), Span(1, 4)):
        read = source_planes(SHAPE[0], factors[0], None if sigmas is None else sigmas[0], own)
        for rows, planes in ((53, 1), (16, 4), (7, 9), (1, 37)):
            found = np.full((len(own), *whole.shape[1:]), np.nan, np.float32)

            def put(plane, span, part, found=found, own=own):
                found[plane - own.start, span.start : span.stop] = part

            stream = FieldStream(SHAPE, factors, sigmas, own, put)
            for box in boxes(rows, planes, read):
                stream.add(Span(box.start[0], box.stop[0]), Span(box.start[1], box.stop[1]), IMAGE[box.slices].copy())
            np.testing.assert_array_equal(found.view(np.uint32), whole[own.start : own.stop].view(np.uint32))


def of_numpy(fixed, moved):
    """Sums (6, rows) of 1, F, M, FF, MM, FM by NumPy, whose bits the kernel has."""
    inside = np.isfinite(moved)
    one, f, m = (np.where(inside, v, 0).reshape(len(fixed), -1).astype(np.float64) for v in (1, fixed, moved))
    return np.stack([v.sum(axis=1) for v in (one, f, m, f * f, m * m, f * m)])


@pytest.mark.parametrize("n", [1, 7, 8, 9, 127, 128, 129, 1000, 4097, 100003])
def test_moments_have_the_bits_of_numpy(n):
    fixed, moved = np.random.default_rng(n).normal(size=(2, 3, 1, n)).astype(np.float32)
    moved[0, 0, ::3], moved[1, 0, n // 2], moved[2] = np.nan, np.inf, moved[2] * 1000
    assert moments(fixed, moved).tobytes() == of_numpy(fixed, moved).tobytes()
    assert moments(fixed[:0], moved[:0]).shape == (6, 0)


@pytest.mark.parametrize("rows", [53, 16, 7, 1])
def test_moments_of_rows_are_those_of_planes(monkeypatch, rows):
    monkeypatch.setattr(plane_sums, "LEAF", 128)  # as NumPy's own blocks
    moved = np.roll(IMAGE, 3, axis=2)
    moved[:, :9] = np.nan
    moved[4] = np.nan
    own = Span(3, 20)
    found = PlaneMoments(own, SHAPE[1] * SHAPE[2])
    for box in boxes(rows, 5, own):
        found.add(box, IMAGE[box.slices], moved[box.slices])
    each = [of_numpy(IMAGE[z : z + 1], moved[z : z + 1]) for z in range(own.start, own.stop)]
    np.testing.assert_array_equal(found.sums, np.concatenate(each, axis=1))


def test_a_plane_is_split_where_numpy_splits_it():
    n = 3 * plane_sums.LEAF + 1237
    fixed, moved = np.random.default_rng(1).normal(size=(2, 1, 1, n)).astype(np.float32)
    found = PlaneMoments(Span(0, 1), n)
    found.add(Region((0, 0, 0), (1, 1, n)), fixed, moved)
    np.testing.assert_array_equal(found.sums, of_numpy(fixed, moved))


@pytest.mark.parametrize("factors", [(3, 5, 4), (1, 1, 1), (9, 53, 20)])
@pytest.mark.parametrize("rows", [53, 16, 7])
def test_sums_over_blocks_of_rows_are_those_of_planes(factors, rows):
    own = Span(2, 31)
    found = BlockSums(own, SHAPE[1:], factors)
    for box in boxes(rows, 4, own):
        found.add(box, IMAGE[box.slices])
    np.testing.assert_array_equal(found.sums, block_sums(IMAGE[own.start : own.stop], factors))
