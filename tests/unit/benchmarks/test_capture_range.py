"""Poses of ``benchmarks/capture_range.py`` that were lost."""

from pathlib import Path

import pytest

from daskreg import PRESETS, demo_pair


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "index"), [(900, 9), (3300, 125)])
def test_heads_that_share_half_are_found(seed: int, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is turned by more than 130 degrees and resampled: 80 % of its grid is filling, whose edges match nothing.

    The other pose was still refined, from two voxels of the search off, when unsmoothed edges left it out.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import capture_range

    pair = capture_range.brain(Path(demo_pair(3)[0]).parent)
    row = capture_range.measure(pair, index, capture_range.draw_pose(seed, index, pair), PRESETS["rigid"])
    assert row["truth_moved"] < 1
    assert row["search"]["filling"][1] is not None
    assert row["found"]
