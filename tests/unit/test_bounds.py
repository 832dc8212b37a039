"""Every number that a user can give has a lower and an upper bound, every text a length: all else is refused in a sentence."""

import dataclasses
import inspect
import math
import re
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskreg import Affine, Config
from daskreg.cli import app
from daskreg.config import AnyStage
from daskreg.errors import ConfigError, DaskregError
from daskreg.parameters import TAGS, Model
from daskreg.registry import MODELS, OPTIMIZERS, SIMILARITIES
from daskreg.workflows.resources import BOUNDS, Resources, parse_memory

STAGES = typing.get_args(typing.get_args(AnyStage)[0])
KINDS = [Config, *STAGES, *(registry.classes()[k] for registry in (SIMILARITIES, OPTIMIZERS, MODELS) for k in registry.builtin)]
LOW, HIGH = {"minimum", "exclusiveMinimum", "ge", "gt"}, {"maximum", "exclusiveMaximum", "le", "lt"}
NONSENSE = [
    -1,
    -1e-9,
    1e300,
    -1e300,
    10**9,
    10**40,
    math.nan,
    math.inf,
    -math.inf,
    True,
    "x",
    "",
    [],
    [[]],
    {},
    b"\xff",
    object(),
]


def named(value):
    """In the name of a test, the same in every process: no address."""
    return "object" if type(value) is object else str(value)


def unbounded(schema, path=""):
    """Where in a JSON schema a number, a text or a list has no bounds."""
    kind = schema.get("type")
    if "enum" not in schema and "const" not in schema:
        if kind in ("number", "integer") and not (LOW & set(schema) and HIGH & set(schema)):
            yield path
        if kind == "string" and "maxLength" not in schema:
            yield path
        if kind == "array" and "maxItems" not in schema:
            yield path
        if kind == "object" and "properties" not in schema:
            yield path
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from unbounded(schema[key], f"{path}[]")
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for inner in schema.get(key, ()):
            yield from unbounded(inner, path)
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from unbounded(inner, f"{path}.{name}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_configuration_has_bounds(kind):
    assert list(unbounded(kind.model_json_schema())) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_configuration_is_explained_by_help(kind):
    """With what it means, and the default."""
    fields = [name for name in kind.model_fields if name not in TAGS]
    found = re.findall(r"^(\w+)(?: : .*default .*)?\n    ([A-Z`].*)", inspect.getdoc(kind), re.MULTILINE)
    assert [name for name, _ in found] == fields


def test_a_field_without_bounds_is_found():
    class Careless(Model):
        rate: float = 1.0
        sizes: tuple[int, ...] = ()

    assert list(unbounded(Careless.model_json_schema())) == [".rate", ".sizes", ".sizes[]"]


def outcome(make):
    """What is made, or None and the words of the ConfigError; anything else that is raised fails the test."""
    try:
        return make(), ""
    except ConfigError as error:
        return None, str(error)


FIELDS = [(kind, name) for kind in KINDS for name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_nonsense_in_a_field_is_a_config_error_that_names_it(kind, name):
    sound = {} if kind is not Config else {"stages": (Affine(),)}
    for value in NONSENSE:
        made, said = outcome(lambda value=value: kind(**{**sound, name: value}))
        if made is None:
            assert name in said or "unknown name" in said or "scales" in said
            assert len(said) < 1000
        else:
            assert getattr(made, name) is not None
            assert made == kind.model_validate(made.model_dump())


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["mi", "lncc", "adam", "4x2"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted({name for kind in KINDS for name in kind.model_fields}))
stages = st.one_of(
    values,
    st.builds(
        lambda stage, rest: {"stage": stage, **rest},
        st.sampled_from([s.model_fields["stage"].default for s in STAGES]),
        st.dictionaries(names, values, max_size=3),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names, values, max_size=3), st.lists(stages, max_size=3) | values)
def test_a_tree_is_a_configuration_or_a_config_error(tree, found):
    config, said = outcome(lambda: Config.parse({**tree, "stages": found}))
    assert said.endswith(".") if config is None else Config.parse(config.model_dump(mode="json")) == config


# --- resources and options ------------------------------------------------------------------------------------------------


def test_every_number_among_the_resources_has_bounds():
    hints = typing.get_type_hints(Resources)
    for field in dataclasses.fields(Resources):
        kinds = set(typing.get_args(hints[field.name])) or {hints[field.name]}
        assert field.name in BOUNDS or not kinds & {int, float}, field.name


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Resources) if field.name not in ("trace", "scratch")]
)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**40, "x", b"a", [], True, object()], ids=named)
def test_nonsense_among_the_resources_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        Resources(**{name: value})


@pytest.mark.parametrize("value", [-1, math.nan, b"", "", [], True, object(), "s3://bucket/scratch"], ids=named)
def test_what_is_no_folder_for_scratch_is_refused(value):
    with pytest.raises(ConfigError, match="scratch"):
        Resources(scratch=value)


@pytest.mark.parametrize("text", ["GB", "", "nan", "1e999GB", "4 potatoes", b"4GB", [], 2.5, True, -1, "-4GB", "0"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(ConfigError, match="memory"):
        Resources(memory=parse_memory(text))
    assert parse_memory("4GB") == 4_000_000_000


@pytest.mark.parametrize(("text", "meant"), [("8", "8GB"), (8, "8GB"), ("16 ", "16GB"), ("8kB", "8GB"), ("0.5kB", "8GB")])
def test_an_amount_of_memory_without_a_unit_asks_for_it(text, meant):
    with pytest.raises(ConfigError, match=rf"less than a megabyte; {meant}\?"):
        parse_memory(text)
    assert parse_memory("1MB") == 1_000_000


def test_every_number_among_the_options_has_bounds():
    found = 0
    for command in app.registered_commands:
        for name, hint in typing.get_type_hints(command.callback, include_extras=True).items():
            kind, *rest = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
            if {kind, *typing.get_args(kind)} & {int, float}:
                found += 1
                option = rest[0]
                assert None not in (option.min, option.max), f"{command.callback.__name__} {name}"
    assert found >= 8


def test_a_function_that_takes_a_number_refuses_nonsense(tmp_path):
    import daskreg

    calls = {
        "refine": lambda v: daskreg.refine("t.zarr", "f.zarr", "m.zarr", tmp_path / "o.zarr", "0:9,0:9,0:9", blend=v),
        "invert": lambda v: daskreg.Transform.of().inverse(v),
        "verify": lambda v: daskreg.verify("f.zarr", "m.zarr", workers=[1, v]),
        "plan": lambda v: daskreg.plan("f.zarr", "m.zarr", workers=v),
    }
    for call in calls.values():
        for value in (-1, 0, math.nan, math.inf, 2.5, "x", 10**40):
            with pytest.raises(DaskregError, match="number"):
                call(value)
