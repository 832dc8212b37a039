"""A pose of ``benchmarks/capture_range.py`` that was lost."""

from pathlib import Path

import pytest

from daskreg import PRESETS, demo_pair


@pytest.mark.slow
def test_edges_of_filling_do_not_lead_heads_that_share_half_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is turned by 133 degrees and resampled: 80 % of its grid is filling."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import capture_range

    pair = capture_range.brain(Path(demo_pair(3)[0]).parent)
    row = capture_range.measure(pair, 9, capture_range.draw_pose(900, 9, pair), PRESETS["rigid"])
    assert row["truth_moved"] < 1
    assert row["search"]["filling"][1] is not None
    assert row["found"]
