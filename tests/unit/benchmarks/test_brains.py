"""The protocol of labelled heads: its cases, and what it measures of a map."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

AXES = np.array([[-2.0, 0, 0, 10], [0, 0, 2, -5], [0, -2, 0, 7], [0, 0, 0, 1]])  # voxel to LPS, (2 mm, oblique order)


@pytest.fixture
def brains(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import brain_heads
    import brain_measures

    yield brain_heads, brain_measures
    for name in ("brain_heads", "brain_measures", "measure"):
        sys.modules.pop(name, None)


def linear_field(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """d(x) = matrix x - x + (1, 2, 3) at every voxel."""
    x = np.moveaxis(np.indices(shape), 0, -1) @ AXES[:3, :3].T + AXES[:3, 3]
    return x @ matrix.T - x + np.array([1.0, 2, 3])


def test_a_rigid_map_has_nothing_beyond(brains: tuple[ModuleType, ModuleType]) -> None:
    _, measures = brains
    turn = Rotation.from_euler("xyz", (4, -7, 3), degrees=True).as_matrix()
    mask = np.ones((9, 8, 7), bool)
    assert measures.beyond_rigid(linear_field(turn, mask.shape), AXES, mask) == 0
    assert measures.beyond_rigid(linear_field(turn @ np.diag([1.1, 1, 1]), mask.shape), AXES, mask) > 0.2


@pytest.mark.parametrize(("diagonal", "folded", "plain"), [((1.2, 1, 1), 0, 100), ((-1, 1, 1), 100, 0), ((0.05, 1, 1), 0, 0)])
def test_jacobian_shares(brains: tuple[ModuleType, ModuleType], diagonal: tuple[float, ...], folded: float, plain: float) -> None:
    _, measures = brains
    mask = np.ones((6, 7, 8), bool)
    found = measures.jacobians(linear_field(np.diag(diagonal), mask.shape), AXES, mask)
    assert found == {"folded_percent": folded, "plain_percent": plain}


def test_what_presets_are_chosen_on_is_never_reported(brains: tuple[ModuleType, ModuleType]) -> None:
    heads, _ = brains
    sides = {
        tune: {(c.kind, frozenset((c.fixed, c.moving))) for c in heads.CASES.values() if c.tune is tune} for tune in (True, False)
    }
    assert not sides[True] & sides[False]
    assert {c.kind for c in heads.CASES.values() if c.tune} == {"pair", "warp", "retest"}


def test_both_directions_and_shared_structures(brains: tuple[ModuleType, ModuleType]) -> None:
    heads, _ = brains
    pairs = [c for c in heads.CASES.values() if c.kind == "pair"]
    assert {(c.fixed, c.moving) for c in pairs} == {(c.moving, c.fixed) for c in pairs}
    twelve = heads.CASES["oasis-brain->mni-brain"].structures
    assert len(twelve) == 12  # parts, not their sums
    assert heads.CASES["colin->mni"].structures["cerebellum"] == ((44, 55), tuple(range(91, 117)))


def test_a_known_warp_fades_and_folds_nowhere(brains: tuple[ModuleType, ModuleType]) -> None:
    heads, measures = brains
    d = heads.smooth_displacement((40, 36, 32), 3.0, 8.0, np.random.default_rng(1))
    assert np.percentile(np.sqrt((d**2).sum(0)), 98) == pytest.approx(3, abs=0.01)
    axes = np.diag([1.0, 1, 1, 1])
    found = measures.jacobians(np.moveaxis(d, 0, -1), axes, np.ones(d.shape[1:], bool))
    assert found == {"folded_percent": 0, "plain_percent": 100}
