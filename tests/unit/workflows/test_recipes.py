"""Which of several recipes is run: the one with the best verdict on coarse images."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from daskreg.config import Affine, Config, Rigid
from daskreg.engine.verdict import Verdict
from daskreg.errors import ConfigError, NoOverlap, RunError
from daskreg.grid import Grid
from daskreg.storage import open_volume
from daskreg.workflows import recipes
from daskreg.workflows.inputs import Request
from daskreg.workflows.recipes import Trial, best_of, choose_recipe, coarse_inputs, coarser


def trial(name, status, in_place):
    return Trial(name, Verdict(status, ("reason",), {"in_place": in_place}))


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ((trial("a", "failed", 0.9), trial("b", "ok", 0.5)), "b"),
        ((trial("a", "ok", 0.7), trial("b", "ok", 0.73)), "a"),
        ((trial("a", "ok", 0.7), trial("b", "ok", 0.8)), "b"),
        ((Trial("a", error="diverged"), trial("b", "failed", 0.1)), "b"),
    ],
)
def test_the_best_verdict_wins_and_the_first_of_equals(trials, best):
    assert best_of(trials).name == best


def test_where_no_recipe_has_a_result_all_are_named():
    with pytest.raises(NoOverlap, match=r"tried a: one.*tried b: two"):
        best_of([Trial("a", error="one"), Trial("b", error="two")])


@pytest.mark.parametrize("names", [[], ["brain", "brain"], ["brian"], "brain"])
def test_recipes_are_different_presets(names):
    with pytest.raises(ConfigError):
        recipes.require_recipes(names)


def test_levels_stay_where_they_are_in_the_world():
    config = Config(stages=(Rigid(scales=(8, 4), iterations=(60, 40)), Affine(scales=(4, 2, 1), iterations=(9, 8, 7))))
    found = coarser(config, 2.1).stages
    assert [(s.scales, s.iterations) for s in found] == [((4, 2), (60, 40)), ((2, 1), (9, 8))]


def test_recipes_are_tried_on_coarse_images_and_masks(monkeypatch):
    """The one that fails is named, the other is taken."""
    voxels = np.random.default_rng(0).random((130, 20, 128)).astype(np.float32)
    volume = open_volume(voxels, grid=Grid(voxels.shape))
    mask = open_volume(np.ones_like(voxels), grid=volume.grid)
    seen = []

    def register(**given):
        seen.append(given)
        if len(seen) == 1:
            raise RunError("it diverged")
        return SimpleNamespace(verdict=trial("", "ok", 0.8).verdict)

    monkeypatch.setattr("daskreg.workflows.register.register", register)
    request = Request(volume, volume, fixed_mask=mask)
    trials = choose_recipe(request, ["brain", "affine"])
    assert [t.name for t in trials] == ["affine", "brain"]
    assert "it diverged" in trials[1].line()
    assert seen[0]["fixed"].shape == seen[0]["fixed_mask"].shape == (65, 10, 64)
    np.testing.assert_allclose(np.asarray(seen[0]["moving"].data)[3, 2, 5], voxels[6:8, 4:6, 10:12].mean(), rtol=1e-6)
    picked, _ = coarse_inputs(replace(request, background=0.0).open())
    np.testing.assert_array_equal(np.asarray(picked[0].data), voxels[1::2, 1::2, 1::2])
