"""Configurations that cannot be are refused with a sentence that says what was found and what was expected."""

import inspect
import pydoc

import pytest
import yaml

from daskreg import LNCC, MI, MSE, NGF, Adam, Affine, Config, Deformable, Moments
from daskreg.errors import ConfigError, NotFound
from daskreg.models.displacement import Displacement

STAGE = {"stage": "deformable"}


@pytest.mark.parametrize("found", [(-5, 300), (99, 1), (50, 50), (0, 101), (float("nan"), 99)])
def test_percentiles_rise_from_0_to_100(found):
    with pytest.raises(ConfigError, match=r"percentiles: found .*, two percentages were expected, the first below the second"):
        Config.parse({"stages": ["affine"], "percentiles": found})
    assert Config.parse({"stages": ["affine"], "percentiles": (0, 100)}).percentiles == (0.0, 100.0)


@pytest.mark.parametrize("found", [(1, 0.99), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))])
def test_betas_are_less_than_one(found):
    with pytest.raises(ConfigError, match=r"betas.[01]: found .*(or (more|less)|a finite number) was expected"):
        Config.parse({"stages": [{**STAGE, "betas": found}]})
    Config.parse({"stages": [{**STAGE, "betas": (0, 0.999)}]})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"stages": [{"stage": "affine", "iteratons": 3}]}, "unknown key .*iteratons'; the nearest known name is 'iterations'"),
        ({"stages": ["moments", {"stage": "affine", "scale": [8]}]}, "unknown key .*scale'; the nearest known name is 'scales'"),
        ({"stages": ["afine"]}, "unknown name 'afine'; the nearest known name is 'affine'"),
        ({"stages": [{**STAGE, "similarity": "ncc"}]}, "unknown name 'ncc'; the nearest known name is 'lncc'"),
        ({"stages": []}, "stages: found .*1 or more entries were expected"),
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


@pytest.mark.parametrize(("text", "words"), [("[1, 2", "is not YAML"), ("- affine", "holds list"), ("", "is empty; a mapping")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        Config.load(tmp_path / "config.yaml")
    with pytest.raises(NotFound, match=r"absent\.yaml does not exist"):
        Config.load(tmp_path / "absent.yaml")
    with pytest.raises(NotFound, match="cannot be read"):
        Config.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "stages: [rigid]\nstages: [affine]\n",
            "config .* has 'stages' twice, in lines 1 and 2; write each key of a mapping once",
        ),
        ("stages: [{stage: rigid, scales: [4, 2], scales: [8]}]\n", "has 'scales' twice, in line 1;"),
    ],
)
def test_a_key_that_is_written_twice_is_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        Config.load(tmp_path / "config.yaml")


def test_a_key_besides_those_of_a_merged_mapping_is_no_second_one(tmp_path):
    (tmp_path / "config.yaml").write_text("stages: [&first {stage: rigid, scales: [4]}, {<<: *first, scales: [2]}]\n")
    assert [stage.scales for stage in Config.load(tmp_path / "config.yaml").stages] == [(4,), (2,)]


# --- earlier names, copies, and parameters that are objects ---------------------------------------------------------------


def test_earlier_names_give_the_values_that_they_gave():
    stage = Deformable(step=0.5, betas=(0.8, 0.95))
    assert stage.maximum_step == 0.25
    assert stage.step == 0.5
    assert stage.optimizer == Adam(betas=(0.8, 0.95))
    assert LNCC(flat=0.01).minimum_contrast == LNCC(flat=0.01).flat == 0.01
    written = Config(stages=(stage,)).dump()
    assert "maximum_step: 0.25" in written
    assert Config.parse(yaml.safe_load(written)).stages == (stage,)


@pytest.mark.parametrize(
    "given", [{"step": 0.5, "maximum_step": 0.25}, {"betas": (0.9, 0.9), "optimizer": "adam"}], ids=["step", "betas"]
)
def test_an_earlier_name_and_its_successor_are_refused_together(given):
    with pytest.raises(ConfigError, match="give one of them"):
        Config.parse({"stages": [{"stage": "deformable", **given}]})


def test_a_copy_takes_no_value_that_it_would_ignore():
    with pytest.raises(ConfigError, match=r"unknown field of Deformable 'step'; did you mean"):
        Deformable().model_copy(update={"step": 0.1})
    assert Deformable().model_copy(update={"maximum_step": 0.1}).maximum_step == 0.1


def test_a_kind_may_be_named_given_as_a_mapping_or_as_an_object():
    objects = (Deformable(similarity=s) for s in ("ngf", {"kind": "ngf"}, NGF()))
    assert {stage.similarity for stage in objects} == {NGF()}


def test_a_storage_that_an_optimizer_cannot_keep_is_refused():
    with pytest.raises(ConfigError, match=r"storage 'mixed' does not go with optimizer 'sgd'; use 'float32' or 'adam'\.$"):
        Config.parse({"stages": [{"stage": "deformable", "optimizer": "sgd", "storage": "mixed"}]})


def test_several_iterations_a_sweep_are_refused_where_a_gradient_needs_sums_first():
    Deformable(similarity="ngf", iterations_per_sweep=8)
    with pytest.raises(ConfigError, match=r"iterations_per_sweep 2 does not go with similarity 'mi', whose gradient needs sums"):
        Config.parse({"stages": [{"stage": "deformable", "similarity": "mi", "iterations_per_sweep": 2}]})


@pytest.mark.parametrize("similarity", [LNCC(), LNCC(gradient="center"), MI(), MSE(), NGF()], ids=str)
def test_a_configuration_knows_which_similarities_are_separable(similarity):
    assert similarity.separable == similarity.build("cpu").separable


def test_several_iterations_a_sweep_are_refused_with_a_model_that_does_not_shorten_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Displacement, "shortens_steps", False)
        with pytest.raises(ConfigError, match=r"iterations_per_sweep 2 does not go with model 'displacement', which does not"):
            Deformable(iterations_per_sweep=2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Deformable(radius=3), "Deformable: 'radius' is a parameter of its similarity; write similarity=LNCC(radius=3)."),
        (lambda: Affine(bins=16), "Affine: 'bins' is a parameter of its similarity; write similarity=MI(bins=16)."),
        (
            lambda: Deformable(momentum=0.5),
            "Deformable: 'momentum' is a parameter of its optimizer; write optimizer=SGD(momentum=0.5).",
        ),
        (lambda: LNCC(3), "LNCC takes its parameters by name, as in LNCC(radius=3)."),
        (lambda: LNCC(radius="a"), "LNCC: radius: found 'a', a whole number was expected."),
        (lambda: Deformable(iterations=-1), "Deformable: iterations.0: found -1, 0 or more was expected."),
        (lambda: Config(stages=[Affine()], intensity="lin"), "Config: intensity: found 'lin', 'linear' or 'log' was expected."),
        (lambda: Config.parse({}), "stages is missing."),
        (lambda: Config(stages=[]), "Config: stages: found [], 1 or more entries were expected."),
        (
            lambda: Config.parse({"stages": [{"stage": "similarity", "similarity": {"kind": "mi", "radius": 3}}]}),
            "unknown key 'stages.0.similarity.similarity.mi.radius'; known are bins, kind.",
        ),
        (
            lambda: Config.parse({"stages": [{"stage": "rigid", "scales": [], "iterations": [3]}]}),
            "stages.0.rigid.scales: found [], 1 or more entries were expected.",
        ),
        (
            lambda: Config.parse({"stages": ["rigid"], "percentiles": [0, 99, 100]}),
            "percentiles: found [0, 99, 100], two numbers were expected.",
        ),
        (
            lambda: Config.parse({"stages": [{"stage": "rigid", "similarity": None}]}),
            "stages.0.rigid.similarity: found None, a name, or a mapping of its keys to values, was expected.",
        ),
        (
            lambda: Config.parse({"preset": "brain"}),
            "a preset is no part of a configuration; give --preset brain in place of --config (config='brain' in Python), or "
            "write it out and change it: daskreg register --preset brain --print-config > FILE.",
        ),
    ],
)  # fmt: skip
def test_a_refusal_is_a_sentence_of_ours(make, said):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == said


def test_a_single_stage_stands_for_a_list_of_one():
    assert Config.of_stages(Affine()) == Config(stages=Affine()) == Config(stages=(Affine(),))


@pytest.mark.parametrize("cls", [Deformable, Config, LNCC, Adam])
def test_help_has_the_docstring_and_nothing_of_pydantic(cls):
    text = pydoc.plain(pydoc.render_doc(cls))
    own = text.partition("Method resolution order")[2].replace("pydantic.main.BaseModel", "", 1)
    assert "pydantic" not in own
    assert "Annotated" not in text
    assert not any(word in text for word in ("model_dump", "model_fields", "__pydantic", "FieldInfo"))
    assert len(text.splitlines()) < 100
    assert all(f"\n |  {name}" in text for name in cls.model_fields if name not in ("stage", "kind"))
    assert {"copy", "json", "model_config"}.isdisjoint(dir(cls))


def test_signature_and_repr_are_short():
    assert str(inspect.signature(LNCC)).startswith("(*, radius=2, gradient='exact', ")
    assert "similarity=LNCC(), scales=(4, 2, 1)" in str(inspect.signature(Deformable))
    assert repr(Deformable(similarity=LNCC(radius=3))) == "Deformable(similarity=LNCC(radius=3))"
    assert eval(repr(Config(stages=(Deformable(),), intensity="log"))) == Config(stages=(Deformable(),), intensity="log")


@pytest.mark.parametrize("iterations", [30, "30"])
def test_one_number_of_iterations_is_that_of_every_scale(iterations):
    assert Deformable(scales=(4, 2, 1), iterations=iterations).iterations == (30, 30, 30)
    assert Affine(iterations=iterations).iterations == (30, 30)
    assert Config.parse({"stages": [{"stage": "deformable", "iterations": iterations}]}).stages[0].iterations == (30, 30, 30)


def test_a_list_of_one_number_of_iterations_is_that_of_one_scale():
    with pytest.raises(ConfigError, match="must be as many; a single number, as in iterations=50, is that of every scale"):
        Deformable(scales=(4, 2), iterations=[30])


def test_stages_may_be_named_everywhere():
    for stages in ("affine", ["affine"], Affine(), [{"stage": "affine"}], {"stage": "affine"}):
        assert Config(stages=stages).stages == (Affine(),)
        assert Config.parse({"stages": stages}).stages == (Affine(),)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Config(stages=[Affine]), "Affine is a class; write Affine()"),
        (lambda: Config.of_stages([Affine]), "Affine is a class; write Affine()"),
        (lambda: Config.of_stages(Affine), "Affine is a class; write Affine()"),
        (lambda: Deformable(similarity=LNCC), r"its similarity is the class LNCC; write similarity=LNCC\(\)"),
        (lambda: Config.parse({"stages": [{"affine": {"scales": 4}}]}), "name beside its parameters: {stage: affine, ...}"),
        (lambda: Deformable(similarity="LNCC"), "the nearest known name is 'lncc'"),
    ],
)
def test_a_class_or_a_key_in_place_of_a_stage_is_answered_with_what_to_write(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
