"""Poses of ``benchmarks/capture_range.py`` that were lost, and how it keeps and counts its rows."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from daskreg import PRESETS, demo_pair


@pytest.fixture
def capture_range(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import capture_range

    return capture_range


def row(pose: int, **other: Any) -> dict[str, Any]:
    return {"seed": 1, "pair": "brain", "pose": pose, "preset": "rigid", "commit": "a", "found": True, "angle": 20.0} | other


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "index"), [(900, 9), (3300, 125)])
def test_heads_that_share_half_are_found(seed: int, index: int, capture_range: ModuleType) -> None:
    """The second is turned by more than 130 degrees and resampled: 80 % of its grid is filling, whose edges match nothing.

    The other pose was still refined, from two voxels of the search off, when unsmoothed edges left it out.
    """
    pair = capture_range.brain(Path(demo_pair(3)[0]).parent)
    found = capture_range.measure(pair, index, capture_range.draw_pose(seed, index, pair), PRESETS["rigid"])
    assert found["truth_moved"] < 1
    assert found["search"]["filling"][1] is not None
    assert found["found"]


def test_rows_replace_those_of_the_same_pose_and_commit_alone(capture_range: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    capture_range.add([row(0), row(1)], out)
    capture_range.add([row(1, found=False), row(1, commit="b"), row(1, program="greedy_search")], out)
    expected = [row(0), row(1, found=False), row(1, commit="b"), row(1, program="greedy_search")]
    assert json.loads(out.read_text()) == expected


def test_poses_are_counted_in_the_interval_that_they_lie_in(capture_range: ModuleType) -> None:
    rows = [row(0, angle=0.0), row(1, angle=30.0, found=False), row(2, angle=59.9), row(3, angle=180.0)]
    lacking = {"found": True, "shift": 0.1}
    assert capture_range.found_in_bins([*rows, lacking], "angle", (0.0, 30.0, 60.0)) == [(1, 1), (1, 2)]


def test_every_pose_is_in_an_interval_of_the_figure(capture_range: ModuleType, tmp_path: Path) -> None:
    pair = capture_range.brain(Path(demo_pair(3)[0]).parent)
    extent = float(pair.fixed_grid.extent.max())
    poses = [capture_range.draw_pose(3, k, pair) for k in range(100)]
    shifts = [float(np.linalg.norm(pose.shift)) / extent for pose in poses]
    rows = [row(k, angle=p.angle, overlap=p.overlap, shift=s) for k, (p, s) in enumerate(zip(poses, shifts, strict=True))]
    for name, (_, edges) in capture_range.BINS.items():
        assert sum(of for _, of in capture_range.found_in_bins(rows, name, edges)) == 100
    capture_range.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
