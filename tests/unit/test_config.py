"""Configurations that cannot be are refused with a sentence that says what was found and what was expected."""

import pytest

from daskreg import LNCC, MI, Affine, Config, Deformable, Moments
from daskreg.errors import ConfigError, NotFound

STAGE = {"stage": "deformable"}


@pytest.mark.parametrize("found", [(-5, 300), (99, 1), (50, 50), (0, 101), (float("nan"), 99)])
def test_percentiles_rise_from_0_to_100(found):
    with pytest.raises(ConfigError, match=r"percentiles: found .*, two percentages were expected, the first below the second"):
        Config.parse({"stages": ["affine"], "percentiles": found})
    assert Config.parse({"stages": ["affine"], "percentiles": (0, 100)}).percentiles == (0.0, 100.0)


@pytest.mark.parametrize("found", [(1, 0.99), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))])
def test_betas_are_less_than_one(found):
    with pytest.raises(ConfigError, match=r"betas: found .*, each of betas must be at least 0 and below 1"):
        Config.parse({"stages": [{**STAGE, "betas": found}]})
    Config.parse({"stages": [{**STAGE, "betas": (0, 0.999)}]})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"stages": [{"stage": "affine", "iteratons": 3}]}, "unknown key .*iteratons'; the nearest known name is 'iterations'"),
        ({"stages": ["afine"]}, "unknown name 'afine'; the nearest known name is 'affine'"),
        ({"stages": [{**STAGE, "similarity": "ncc"}]}, "unknown name 'ncc'; the nearest known name is 'lncc'"),
        ({"stages": []}, "stages: found .*at least 1 item"),
        ({}, "stages"),
        ({"stages": ["affine"], "intensity": "square"}, "intensity: found 'square'"),
        ({"stages": [{**STAGE, "scales": [4, 2], "iterations": [1]}]}, "must be as many"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(tree, words):
    with pytest.raises(ConfigError, match=words):
        Config.parse(tree)


def test_short_forms_mean_the_long_ones():
    text = Config.parse(
        {"stages": ["moments", {"stage": "affine", "similarity": "lncc", "scales": "4x2", "iterations": "70x50"}]}
    )
    assert text.stages[0] == Moments()
    assert text.stages[1] == Affine(similarity=LNCC(), scales=(4, 2), iterations=(70, 50))
    one = Config.parse({"stages": [{"stage": "affine", "scales": 4, "iterations": 7}]})
    assert one.stages == (Affine(scales=(4,), iterations=(7,)),)


def test_what_is_dumped_is_loaded_to_the_same(tmp_path):
    config = Config(stages=(Moments(), Affine(similarity=MI(bins=16)), Deformable()), percentiles=(1, 99), intensity="log")
    (tmp_path / "config.yaml").write_text(config.dump())
    assert Config.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(("text", "words"), [("[1, 2", "is not YAML"), ("- affine", "holds list"), ("", "holds NoneType")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        Config.load(tmp_path / "config.yaml")
    with pytest.raises(NotFound, match="cannot be read"):
        Config.load(tmp_path / "absent.yaml")
