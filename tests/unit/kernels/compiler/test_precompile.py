"""The list of usual kernels names kernels that are there, and helpers share it out."""

import os
import subprocess
import sys
from collections import defaultdict
from functools import cache

import pytest
from numba import typeof, types

from daskreg import PRESETS, Deformable
from daskreg.kernels.compiler import precompile
from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.smoothing.cpu import gaussian_radius
from daskreg.models.displacement.composition import FUSED_REACH
from tests import cases

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")
USUAL = list(precompile.warm_up_signatures())


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A cache folder of its own, four helpers, a GPU that is always the same."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(precompile, "_shares", lambda room: [(k, 4) for k in range(4)])
    monkeypatch.setattr(precompile, "_STARTED", [])
    monkeypatch.setattr(precompile, "_marker", lambda k, n: tmp_path / f"precompile-{k}of{n}")
    return tmp_path


@pytest.mark.parametrize(("name", "constants", "signature"), USUAL, ids=[f"{u[0]} {u[1]}" for u in USUAL])
def test_what_is_listed_can_be_asked_for(name, constants, signature):
    kernel, types = precompile.find_kernel(name, constants), precompile.parse_types(signature)
    assert kernel.py_func.__code__.co_argcount == len(types)  # else benchmarks/warm_up_signatures.py is to be run again
    assert precompile.format_types(types) == signature


def structure(kind):
    """What an argument is: an array of so many axes, a tuple of whole or of real numbers, or such a number."""
    if isinstance(kind, types.Array):
        return "array", kind.ndim
    if isinstance(kind, types.BaseTuple):
        return "tuple", *sorted(set(map(structure, kind.types)))
    return "integer" if isinstance(kind, types.Integer) else "real"


def structures(parameters, kinds):
    """Of arguments, by the names of their parameters."""
    return dict(zip(parameters, map(structure, kinds), strict=False))


def parameters_of(form):
    code = form.py_func.__code__
    return code.co_varnames[: code.co_argcount]


@cache
def launched(name):
    """The structures that arguments of a kernel have where tests launch it: a set for each parameter."""
    found = defaultdict(set)
    for title, make in {**cases.CASES, **cases.COOPERATIVE_CASES}.items():
        if title.partition(" ")[0] != name:
            continue
        case = make()
        if name in cases.CASES:
            parameters, arguments = cases.kernel_of(name).parameters, case[1:]
        else:
            parameters, arguments = parameters_of(cases.cooperative_kernels()[name].form(*case.constants)), case.arguments
        for parameter, kind in structures(parameters, map(typeof, arguments)).items():
            found[parameter].add(kind)
    return found


@pytest.mark.parametrize(("name", "constants", "signature"), USUAL, ids=[f"{u[0]} {u[1]}" for u in USUAL])
def test_arguments_are_listed_as_they_are_launched(name, constants, signature):
    listed = structures(parameters_of(precompile.find_kernel(name, constants)), precompile.parse_types(signature))
    compared = {parameter: kind for parameter, kind in listed.items() if parameter in launched(name)}
    assert compared
    wrong = {parameter: kind for parameter, kind in compared.items() if kind not in launched(name)[parameter]}
    assert not wrong  # else benchmarks/warm_up_signatures.py is to be run again


@pytest.mark.parametrize("preset", PRESETS)
def test_filters_of_the_presets_are_listed(preset):
    stages = [s for s in PRESETS[preset].stages if isinstance(s, Deformable)]
    steps = {
        ("smooth_adam", str((gaussian_radius(s.smooth_gradient), *s.optimizer.build(s.storage, "cuda").constants)))
        for s in stages
    }
    filters = {gaussian_radius(s.smooth_warp) for s in stages}
    maps = {("compose_smooth", f"({reach if reach <= FUSED_REACH else 0},)") for reach in filters}
    assert steps | maps <= {
        (name, str(constants)) for name, constants, _ in USUAL
    }  # else warm_up_signatures.py is to be run again


def test_no_kernel_is_listed_twice():
    assert len(USUAL) == len(set(map(str, USUAL)))


def test_what_is_no_longer_there_is_missed():
    with pytest.raises(KeyError):
        precompile.find_kernel("gone", ())
    with pytest.raises(KeyError):
        precompile.find_kernel("gone", [])


class Compiler:
    """Notes what it was asked to compile; cannot compile one of them."""

    def __init__(self):
        self.made = []

    def __call__(self, name, constants):
        self.name = name
        return self

    def compile(self, types):
        self.made.append(self.name)
        if self.name == "broken":
            raise RuntimeError("no")


def test_helpers_share_the_list_and_one_kernel_stops_none(machine, monkeypatch):
    monkeypatch.setattr(
        precompile, "warm_up_signatures", lambda: iter([(n, (), "void()") for n in ("a", "b", "broken", "d", "e", "f", "g")])
    )
    made = []
    for k in range(2):
        compiler = Compiler()
        monkeypatch.setattr(precompile, "find_kernel", compiler)
        precompile.compile_share(k, 2, lambda: True)
        made.append(compiler.made)
    assert made == [["a", "broken", "e", "g"], ["b", "d", "f"]]
    assert [p.name for p in machine.iterdir()] == ["precompile-1of2"]  # the other is tried again next time


def test_a_helper_that_is_no_longer_wanted_has_not_finished(machine, monkeypatch):
    monkeypatch.setattr(precompile, "find_kernel", Compiler())
    precompile.compile_share(0, 2, lambda: False)
    assert not list(machine.iterdir())


def test_helpers_start_once_and_only_for_what_is_not_done(machine, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command[-3:-1]))
    (machine / "precompile-1of4").touch()
    precompile.start_helpers(0)
    precompile.start_helpers(0)
    assert started == [["0", "4"], ["2", "4"], ["3", "4"]]


def test_a_run_goes_on_without_helpers_where_none_can_start(machine, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("not here")

    monkeypatch.setattr(precompile, "_marker", refused)
    precompile.start_helpers(0)
    monkeypatch.setattr(precompile, "_marker", lambda k, n: machine / str(k))
    monkeypatch.setattr(subprocess, "Popen", refused)
    precompile.start_helpers(0)


def test_two_helpers_do_not_do_the_same(machine, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["precompile", "0", "4", str(os.getpid())])
    monkeypatch.setattr(precompile, "compile_share", lambda *_: precompile.main())  # the second begins while the first is at it
    with pytest.raises(BlockingIOError):
        precompile.main()


@pytest.mark.parametrize(
    ("cores", "room", "helpers"), [(1, 80, 0), (2, 80, 0), (4, 80, 3), (64, 80, 8), (64, 4, 4), (64, 1, 0), (64, -3, 0)]
)
def test_helpers_leave_a_core_and_what_is_planned_of_the_gpu(monkeypatch, cores, room, helpers):
    monkeypatch.setattr(precompile.machine, "cores", lambda: precompile.machine.Limit(cores, "here"))
    assert len(precompile._shares(room * precompile.HELPER_MEMORY)) == helpers
