"""An image that is sampled while its file is read has the bits of one in memory, and no part of the file is decoded twice."""

import numpy as np
import pytest

from daskreg.engine import file_order
from daskreg.engine.box_sampling import reads, sampled
from daskreg.engine.counted_reader import CountedReader
from daskreg.engine.file_order import FileOrderSampler, PlacedMap
from daskreg.engine.reach import SamplingMap
from daskreg.grid import Region, Span
from daskreg.kernels.sampling.cpu import CENTERS, EXTENT
from daskreg.planning.source import Boxes
from daskreg.transforms.linear import linear_part, to_fixed_point

FIXED, MOVING = (9, 17, 21), (23, 31, 19)
IMAGE = np.random.default_rng(1).normal(size=MOVING).astype(np.float32)
BLOCK = Region((2, 0, 3), (8, 17, 20))


class InMemory:
    """Reads parts of an array."""

    def read(self, region=None):
        return np.ascontiguousarray(IMAGE[region.slices])


def oblique(seed):
    """A map that turns, stretches and leaves the image at some ends."""
    random = np.random.default_rng(seed)
    matrix = np.eye(4)
    scale = np.diag(np.divide(MOVING, FIXED) * random.uniform(0.7, 1.2))
    matrix[:3, :3] = scale @ (np.eye(3) + random.uniform(-0.4, 0.4, (3, 3)))
    matrix[:3, 3] = (np.array(MOVING) - 1) / 2 - matrix[:3, :3] @ (np.array(FIXED) - 1) / 2 + random.uniform(-3, 3, 3)
    return SamplingMap(0, to_fixed_point(matrix), linear_part(matrix))


def displacement(box):
    z, y, x = np.meshgrid(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)), indexing="ij")
    return np.stack([np.sin(y + x), 2 * np.cos(z * 0.7), np.sin(z + y * 0.3)]).astype(np.float32)


@pytest.mark.parametrize("domain", [CENTERS, EXTENT])
@pytest.mark.parametrize(
    ("rows", "planes", "piece"), [(31, 1, (1, 31, 19)), (8, 3, (1, 8, 19)), (5, 23, (7, 5, 6)), (31, 23, (9, 9, 9))]
)
def test_a_block_has_the_bits_of_the_whole_image(monkeypatch, rows, planes, piece, domain):
    monkeypatch.setattr(file_order, "BRICK", (3, 5, 8))
    sampler = FileOrderSampler(MOVING, Boxes(MOVING, rows, planes), piece, domain)
    maps = [PlacedMap(oblique(0)), PlacedMap(oblique(1), displacement), PlacedMap(SamplingMap(0, *sent_away()))]
    counted = CountedReader(InMemory(), MOVING, piece)
    found = sampler.sample(BLOCK, maps, lambda regions: ((r, counted.read(r)) for r in regions))
    for place, moved in zip(maps, found, strict=True):
        wanted = sampled(place.mapping, IMAGE, domain, BLOCK, place.displacement(BLOCK))
        assert np.isfinite(wanted).any() == (place is not maps[2])
        np.testing.assert_array_equal(moved.part(BLOCK).view(np.uint32), wanted.view(np.uint32))
        part = Region((3, 4, 5), (7, 11, 18))
        np.testing.assert_array_equal(moved.part(part), wanted[part.within(BLOCK)])
    often = Boxes(MOVING, rows, planes).decoded(piece)  # where boxes cut pieces
    assert counted.decoded <= often * counted.pieces


def sent_away():
    matrix = np.eye(4)
    matrix[0, 3] = 1e6
    return to_fixed_point(matrix), linear_part(matrix)


def test_planes_that_are_asked_for_beside_are_read_in_order():
    sampler, seen = FileOrderSampler(MOVING, Boxes(MOVING, 8, 3), (1, 8, 19), CENTERS), []
    small = Region((4, 8, 10), (5, 9, 11))
    sampler.sample(small, [PlacedMap(oblique(0))], lambda regions: seen.extend(regions) or iter(()))
    alone = list(seen)
    assert 0 < len(alone) < len(list(sampler.boxes.over(Span(0, MOVING[0]))))
    seen.clear()
    sampler.sample(small, [PlacedMap(oblique(0))], lambda regions: seen.extend(regions) or iter(()), Span(6, 12))
    assert [r for r in seen if r not in alone] == [r for r in sampler.boxes.over(Span(6, 12)) if r not in alone]


def test_what_a_box_reads_holds_all_its_corners():
    place = oblique(3)
    box = Region((1, 2, 3), (4, 9, 7))
    read = reads(place, MOVING, box)
    cut = np.full(MOVING, np.nan, np.float32)
    cut[read.slices] = IMAGE[read.slices]
    np.testing.assert_array_equal(sampled(place, cut, CENTERS, box), sampled(place, IMAGE, CENTERS, box))
