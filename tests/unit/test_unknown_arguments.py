"""Arguments that a public function does not have, or lacks, are answered with where they belong."""

import inspect

import pytest

import daskreg
from daskreg import ArgumentError, ConfigError, Transform
from daskreg.arguments import checked_arguments

FUNCTIONS = [name for name in daskreg.__all__ if inspect.isfunction(getattr(daskreg, name))]
REGISTER = "register", ("f.nii", "m.nii")


def refusal(name, *args, **kwargs):
    with pytest.raises(ArgumentError) as caught:
        getattr(daskreg, name)(*args, **kwargs)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ConfigError)
    return str(caught.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_names_an_argument_that_it_does_not_have(name):
    assert f"{getattr(daskreg, name).__name__}() has no argument 'nonsense'" in refusal(name, nonsense=1)


@pytest.mark.parametrize(("function", "given", "words"), [
    (REGISTER, {"stages": []}, r"write config=\[daskreg.Affine\(\), daskreg.Deformable\(\)\]"),
    (REGISTER, {"percentiles": (0, 99)}, r"write config=daskreg.Config\(stages=\[...\], percentiles=...\)"),
    (REGISTER, {"iterations": 5}, r"write config=\[daskreg.Deformable\(iterations=...\), ...\]"),
    (REGISTER, {"radius": 5}, r"write config=\[daskreg.Deformable\(similarity=daskreg.LNCC\(radius=...\)\), ...\]"),
    (REGISTER, {"units": "mm"}, r"'::unit=...' behind its path, or give daskreg.open_volume\(image, unit=...\)"),
    (REGISTER, {"channel": 1}, r"write '::channel=...' behind its path\."),
    (REGISTER, {"outputs": "r.zarr"}, "did you mean 'output'"),
    (REGISTER, {"n_workers": 2}, "did you mean 'workers'"),
    (REGISTER, {"mask": "k.nii"}, "did you mean 'fixed_mask' or 'moving_mask'"),
    (("series", (["a", "b"], "o")), {"residensy": "ring"}, "did you mean 'residency'"),
    (("refine", ("r", "f", "m", "o", "0:8,0:8,0:8")), {"iterations": 3}, r"write stages=\[daskreg.Deformable\(iterations="),
    (("apply", ("r.zarr", "m.nii")), {"xyz": 1}, "it has transform, image, output"),
    (("info", ("r.zarr",)), {"voxel": True}, "did you mean 'voxels'"),
    (("submit", ([], "job.sh")), {"nodes": 2}, r"write job=daskreg.Job\(nodes=...\)\."),
    (("submit", ([], "job.sh")), {"output": "r.zarr"}, r"write arguments=\['FIXED', 'MOVING', '-o', 'RUN.zarr', ...\]\."),
])  # fmt: skip
def test_an_unknown_argument_is_answered_with_where_it_belongs(function, given, words):
    name, args = function
    with pytest.raises(ArgumentError, match=words):
        getattr(daskreg, name)(*args, **given)


def test_arguments_that_are_lacking_or_too_many_are_named():
    assert "submit() lacks 'script' and 'job'; write submit(arguments, script, job, ...)" in refusal("submit", [])
    assert "takes the first 3 (fixed, moving, config) so; name the others: output=" in refusal("register", *"fmco")
    assert "lacks 'image'" in refusal("apply", "r.zarr")
    assert "multiple values for argument 'fixed'" in refusal("register", "f", fixed="f")


def test_methods_and_values_are_as_functions():
    for call, words in [
        (lambda: Transform.of(units="mm"), r"Transform.of\(\) has no argument 'units'; did you mean 'unit'"),
        (lambda: Transform.of().apply(), r"Transform.apply\(\) lacks 'image'"),
        (lambda: daskreg.Job(node=2), r"Job\(\) has no argument 'node'; did you mean 'nodes'"),
        (lambda: daskreg.Grid((2, 2, 2), units="mm"), r"Grid\(\) has no argument 'units'; did you mean 'unit'"),
        (lambda: daskreg.Grid(), r"Grid\(\) lacks 'shape'; write Grid\(shape, spacing"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            call()


def test_a_type_error_of_the_function_itself_is_its_own():
    @checked_arguments()
    def wrong(value):
        return value + "text"

    with pytest.raises(TypeError, match="unsupported operand"):
        wrong(1)
