"""What ``import daskreg`` offers: documented, typed, and the same names at run time and for a type checker."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import daskreg
from daskreg import errors
from daskreg.cli.options import PresetOption
from daskreg.deprecation import renamed_arguments
from daskreg.workflows.resources import ResourceKeywords, Resources, RunKeywords

SOURCE = Path(daskreg.__file__)
VERBS = (
    *("register", "plan", "verify", "apply", "points", "invert", "jacobian"),
    *("refine", "export", "evaluate", "info", "demo", "report", "precompile"),
)


def test_every_public_name_is_there_and_documented():
    for name in daskreg.__all__:
        value = getattr(daskreg, name)
        assert name in dir(daskreg)
        assert name == "PRESETS" or inspect.getdoc(value), name


def test_a_type_checker_sees_the_names_that_are_there():
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    seen = {alias.name: line.module for line in block.body for alias in line.names}
    assert seen == daskreg._MODULE
    assert sorted(seen) == sorted(daskreg.__all__)
    assert (SOURCE.parent / "py.typed").exists()


def test_every_public_name_is_in_the_reference():
    pages = SOURCE.parents[1] / "docs" / "reference"
    text = "".join((pages / name).read_text(encoding="utf-8") for name in ("api.md", "config.md"))
    named = set(re.findall(r"^\.\. auto\w+:: (?:daskreg\.)?(\w+)$", text, re.MULTILINE))
    errors_of_the_tree = {name for name in daskreg.__all__ if hasattr(errors, name)}  # which automodule lists
    assert set(daskreg.__all__) - named - errors_of_the_tree == {"PRESETS"}


def test_every_error_is_public():
    defined = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, errors.DaskregError)}
    assert defined <= set(daskreg.__all__)
    for name in defined:
        assert name in errors.__doc__


@pytest.mark.parametrize("verb", VERBS)
def test_the_arguments_of_a_verb_are_named_and_typed(verb):
    parameters = inspect.signature(getattr(daskreg, verb)).parameters.values()
    assert all(p.annotation is not p.empty and "Any" not in p.annotation for p in parameters)


def test_register_has_every_resource_as_a_keyword_with_the_same_default():
    parameters = inspect.signature(daskreg.register).parameters
    for name, field in Resources.__dataclass_fields__.items():
        assert parameters[name].default == field.default
    assert set(Resources.__dataclass_fields__) | {"client", "cluster"} == set(ResourceKeywords.__annotations__)
    assert set(RunKeywords.__annotations__) < set(ResourceKeywords.__annotations__)


@pytest.mark.parametrize("verb", ["apply", "points", "invert", "jacobian", "refine", "export", "evaluate"])
def test_a_verb_of_transforms_takes_the_transform_first(verb):
    assert next(iter(inspect.signature(getattr(daskreg, verb)).parameters)) == "transform"


@pytest.mark.parametrize("verb", ["register", "plan", "apply"])
def test_the_device_is_chosen_automatically_everywhere(verb):
    assert inspect.signature(getattr(daskreg, verb)).parameters["device"].default == "auto"
    assert inspect.signature(daskreg.Transform.apply).parameters["device"].default == "auto"


def test_former_names_are_kept():
    assert daskreg.describe is daskreg.info
    assert daskreg.write_report is daskreg.report


@renamed_arguments(old="new", older="newer")
def renamed(new, newer=2):
    return new, newer


def test_a_former_argument_works_with_a_warning_that_names_the_caller():
    with pytest.warns(DeprecationWarning, match=r"'old' of renamed\(\) is now 'new'") as caught:
        assert renamed(old=1) == (1, 2)
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="'newer'"):
        assert renamed(3, older=4) == (3, 4)
    with pytest.raises(TypeError, match="give one of them"):
        renamed(new=1, old=2)


@pytest.mark.parametrize(("function", "option", "argument"), [
    ("register", "preset", "config"), ("register", "checkpoint_every", "checkpoint"), ("plan", "preset", "config"),
    ("verify", "preset", "config"), ("verify", "residency", "residencies"), ("series", "preset", "config"),
])  # fmt: skip
def test_an_option_of_the_command_is_answered_with_the_argument(function, option, argument):
    with pytest.raises(errors.ConfigError, match=rf"{function}\(\) has no argument '{option}'.*; write {argument}="):
        getattr(daskreg, function)("a.nii", "b.nii", **{option: "brain"})


def test_the_help_names_every_preset():
    (option,) = PresetOption.__metadata__
    assert set(re.findall(r"\w+", option.help)) - {"default", "or"} == set(daskreg.PRESETS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 0}, "workers is 0; a whole number from 1"),
        ({"retries": -1}, "retries is -1; a whole number from 0"),
        ({"device": "gpu"}, "unknown device 'gpu'; did you mean 'cpu'"),
        ({"residency": "rng"}, "unknown residency 'rng'; did you mean 'ring'"),
        ({"comm": "udp"}, "unknown comm 'udp'"),
        ({"memory": "much"}, "memory 'much' is not an amount of memory"),
    ],
)
def test_resources_that_cannot_be_are_refused(given, words):
    with pytest.raises(errors.ConfigError, match=words):
        daskreg.register("fixed.nii", "moving.nii", **given)


def test_a_misspelt_name_is_answered_with_the_nearest():
    for word, near in [("regster", "register"), ("Results", "Result"), ("lncc", "LNCC")]:
        with pytest.raises(AttributeError, match=f"no attribute '{word}'; did you mean '{near}'"):
            getattr(daskreg, word)
    assert not hasattr(daskreg, "__nothing__")
