"""A digest covers what decides machine code and nothing else, and is the same in every process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import float32, njit

from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.digest import digest
from daskreg.kernels.compiler.formula import CPU, specialise
from tests.cases import kernels

ROOT = Path(__file__).parents[4]
SOURCE = '''
def f(a, b=2):
    """What it does."""
    scaled = helper(a) * FACTOR + TAPS[0] + float32(b)
    return scaled
'''
HELPER = "def helper(a):\n    return a + 1\n"
SCOPE = {"FACTOR": np.float32(3), "TAPS": (1, 2.5), "float32": float32}


def function(source=SOURCE, file="here.py", helper=HELPER, **scope):
    names = {**SCOPE, **scope}
    exec(compile(helper, file, "exec"), names)
    exec(compile(source, file, "exec"), names)
    return names["f"]


@pytest.mark.parametrize(
    "other",
    [
        function("\n\n\n" + SOURCE),
        function(file="elsewhere/there.py"),
        function(SOURCE.replace("What it does", "Says more")),
        function(SOURCE.replace("scaled", "renamed")),
        function(SOURCE.replace("FACTOR", "WEIGHT"), WEIGHT=SCOPE["FACTOR"]),
        function(SOURCE.replace("a, b=2", "c, b=2").replace("(a)", "(c)")),
        function("from __future__ import annotations\n" + SOURCE),
    ],
    ids=["lines", "file", "docstring", "local name", "global's name", "argument's name", "future"],
)
def test_what_compiles_to_the_same_code_has_the_same_digest(other):
    assert digest(other) == digest(function())


@pytest.mark.parametrize(
    "other",
    [
        function(SOURCE.replace("b=2", "b=3")),
        function(SOURCE.replace("b=2", "b=2.0")),
        function(SOURCE.replace("* FACTOR", "- FACTOR")),
        function(SOURCE.replace("TAPS[0]", "TAPS[1]")),
        function(FACTOR=np.float32(4)),
        function(FACTOR=np.float64(3)),
        function(FACTOR=3),
        function(TAPS=(1, 2)),
        function(TAPS=np.array([1, 2.5])),
        function(helper=HELPER.replace("1", "2")),
        function(helper=HELPER.replace("def", "K = 1\ndef").replace("+ 1", "+ K")),
    ],
    ids=["default", "default's type", "operation", "index", "global", "global's precision", "global's type",
         "tuple", "array", "callee", "callee's global"],
)  # fmt: skip
def test_what_compiles_to_other_code_has_another_digest(other):
    assert digest(other) != digest(function())


def test_names_of_arguments_count_where_a_call_uses_them():
    source, helper = SOURCE.replace("helper(a)", "helper(a=a, b=b)"), "def helper(a, b):\n    return a - b\n"
    other = "def helper(b, a):\n    return b - a\n"  # the same code
    assert digest(function(source, helper=helper)) != digest(function(source, helper=other))
    source = SOURCE.replace("helper(a)", "helper(a, b)")
    assert digest(function(source, helper=helper)) == digest(function(source, helper=other))


def closing_over(value, step):
    def inner(a):
        def innermost(b):
            return b + step

        return innermost(a) + value

    return inner


def test_closures_count():
    assert digest(closing_over(1, 2)) == digest(closing_over(1, 2))
    assert len({digest(closing_over(*v)) for v in [(1, 2), (2, 2), (1, 3), (1.0, 2)]}) == 4


@pytest.mark.skipif(SIMULATED, reason="nothing is compiled")
def test_options_of_what_is_called_count():
    plain = njit(error_model="numpy")(function())
    assert digest(plain) == digest(njit(error_model="numpy")(function()))
    assert digest(plain) != digest(njit(error_model="python")(function()))


def test_a_function_may_call_itself():
    source = "def f(a):\n    return f(a - 1) if a else 0\n"
    assert digest(function(source)) == digest(function(source)) != digest(function(source.replace("0", "1")))


@pytest.mark.parametrize("value", [object(), os, {"a": 1}])
def test_what_has_no_stable_content_is_refused(value):
    with pytest.raises(TypeError, match="no digest covers"):
        digest(function(FACTOR=value))


PROGRAM = """
from daskreg.kernels.compiler.digest import digest
from daskreg.kernels.compiler.formula import CPU, specialise
from tests.cases import kernels

for name, kernel in sorted(kernels().items()):
    print(name, digest(specialise(kernel.body, CPU)))
"""


def test_every_process_finds_the_same():
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True)
    here = {name: digest(specialise(kernel.body, CPU)) for name, kernel in kernels().items()}
    assert dict(line.split() for line in done.stdout.splitlines()) == here
    assert len(set(here.values())) == len(here)
