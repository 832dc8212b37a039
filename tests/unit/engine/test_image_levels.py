"""Levels and intensities of an image do not depend on the number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskreg.comm import SingleRank
from daskreg.config import Config, Deformable
from daskreg.engine.images import Image, check_mask, normalise
from daskreg.errors import VoxelError
from daskreg.grid import Grid, Partition, Span
from tests.cases import image, weights
from tests.unit.engine.spread import on_ranks, piece

FEW = settings(max_examples=40, deadline=None)
CONFIGS = [Config(stages=(Deformable(),), intensity=intensity) for intensity in ("linear", "log")]


def held_spans(partition, rim):
    return [partition.around(rank, rim) for rank in range(len(partition.slabs))]


@FEW
@given(
    planes=st.integers(1, 40), factors=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    ranks=st.integers(2, 5), masked=st.booleans(), data=st.data(),
)  # fmt: skip
def test_planes_of_a_level_are_the_same_on_any_number_of_ranks(planes, factors, ranks, masked, data):
    """For any partition, factors and wanted planes, for voxels and mask."""
    shape = (planes, 5, 4)
    whole = Image.whole(image(*shape), Grid(shape), weights(*shape) if masked else None)
    coarse = -(-planes // factors[0])
    expected = whole.gather_level(factors, [Span(0, coarse)], SingleRank())
    ends = st.integers(0, coarse)
    wanted = [Span(*sorted(data.draw(st.tuples(ends, ends)))) for _ in range(ranks)]
    partition = Partition.of(planes, ranks, 1)
    rim = 2 * factors[0] + 2 if max(factors) > 1 else 0

    def rank(comm):
        mine = piece(comm, whole.voxels, whole.grid, partition, rim, whole.mask)
        return mine.gather_level(factors, wanted, comm)

    for span, came in zip(wanted, on_ranks(ranks, rank), strict=True):
        for found, level in zip(came, expected, strict=True):
            assert (found is None) == (level is None)
            if level is not None:
                np.testing.assert_array_equal(found, level[span.start : span.stop])


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("ranks", [1, 3, 20])
def test_a_preview_is_the_whole_level_on_rank_0(ranks, factors):
    shape = (17, 6, 7)
    whole, partition = Image.whole(image(*shape), Grid(shape)), Partition.of(17, ranks, 1)
    coarse = Span(0, whole.grid.coarsen(factors).shape[0])
    seen = on_ranks(ranks, lambda comm: piece(comm, whole.voxels, whole.grid, partition, 8).preview([factors], comm))
    found, _ = seen[0].gather_level(factors, [coarse], SingleRank())
    np.testing.assert_array_equal(found, whole.gather_level(factors, [coarse], SingleRank())[0])


@pytest.mark.parametrize("config", CONFIGS, ids=["linear", "log"])
@pytest.mark.parametrize(("ranks", "rim"), [(2, 0), (3, 4), (5, 1), (14, 2)])
def test_percentiles_and_scaled_voxels_are_the_same_on_any_number_of_ranks(config, ranks, rim):
    """Each rank counts only its own planes, although others hold them too; some ranks have none."""
    voxels = image(11, 6, 7) ** 3 * 4000 - 100
    one, partition = voxels.copy(), Partition.of(11, ranks, 1)
    ends = normalise(one, config, SingleRank(), "an image")

    def rank(comm):
        mine = piece(comm, voxels, Grid(voxels.shape), partition, rim)
        return normalise(mine.voxels, config, comm, "an image", partition[comm.rank].within(mine.held)), mine.voxels

    for held, (found, scaled) in zip(held_spans(partition, rim), on_ranks(ranks, rank), strict=True):
        assert found == ends
        np.testing.assert_array_equal(scaled, one[held.start : held.stop])


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "NaN or infinite at 1 voxel; .*--background nan"), (np.inf, "NaN or infinite at 1 voxel;"), (None, "constant")],
)
def test_a_bad_voxel_anywhere_stops_every_rank(value, words):
    voxels = np.full((9, 4, 4), 7, np.float32) if value is None else image(9, 4, 4)
    if value is not None:
        voxels[8, 1, 2] = value
    partition = Partition.of(9, 3, 1)

    def rank(comm):
        own = partition[comm.rank]
        with pytest.raises(VoxelError, match=words):
            normalise(voxels[own.start : own.stop].copy(), CONFIGS[0], comm, "an image")
        return True

    assert all(on_ranks(3, rank))


@pytest.mark.parametrize("ranks", [1, 3, 12])
def test_a_mask_is_scaled_by_the_largest_weight_anywhere(ranks):
    mask, partition = weights(9, 4, 4) * np.float32(3), Partition.of(9, ranks, 1)
    part = on_ranks(ranks, lambda comm: check_mask(piece(comm, mask, Grid(mask.shape), partition).voxels, "a mask", comm))
    np.testing.assert_array_equal(np.concatenate(part), mask / mask.max())


def test_masked_voxels_do_not_blur_into_a_coarser_level():
    voxels, mask = image(12, 12, 12), np.ones((12, 12, 12), np.float32)
    mask[:, :, 7:] = 0
    levels = []
    for beyond in (0.0, 1000.0):
        voxels[:, :, 7:] = beyond
        level = Image.whole(voxels.copy(), Grid(voxels.shape), mask).gather_level((2, 2, 2), [Span(0, 6)], SingleRank())
        levels.append(level[0])
    np.testing.assert_array_equal(*levels)
    constant = Image.whole(np.full((12, 12, 12), 3, np.float32), Grid((12, 12, 12)), mask)
    small, weight = constant.gather_level((2, 2, 2), [Span(0, 6)], SingleRank())
    np.testing.assert_allclose(small[weight > 1e-3], 3, rtol=1e-5)


@pytest.mark.parametrize(("mask", "words"), [(np.zeros((6, 4, 4)), "zero everywhere"), (-np.eye(6)[:, :4, None], "negative")])
def test_a_mask_without_weight_or_with_a_negative_one_stops_every_rank(mask, words):
    mask, partition = mask.astype(np.float32), Partition.of(6, 3, 1)

    def rank(comm):
        own = partition[comm.rank]
        with pytest.raises(VoxelError, match=words):
            check_mask(mask[own.start : own.stop], "a mask", comm)
        return True

    assert all(on_ranks(3, rank))
