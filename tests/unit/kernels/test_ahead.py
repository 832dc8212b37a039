"""The list of usual kernels names kernels that are there, and helpers share it out."""

import os
import subprocess
import sys

import pytest

from daskreg.kernels import ahead
from daskreg.kernels.launch import DISABLED

pytestmark = pytest.mark.skipif(DISABLED, reason="the simulator compiles nothing")
USUAL = list(ahead.usual())


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A cache folder of its own, four helpers, a GPU that is always the same."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ahead, "_shares", lambda: [(k, 4) for k in range(4)])
    monkeypatch.setattr(ahead, "_mark", lambda k, n: tmp_path / f"ahead-{k}of{n}")
    ahead.begin.cache_clear()
    return tmp_path


@pytest.mark.parametrize(("name", "constants", "signature"), USUAL, ids=[f"{u[0]} {u[1]}" for u in USUAL])
def test_what_is_listed_can_be_asked_for(name, constants, signature):
    kernel, types = ahead.dispatcher(name, constants), ahead.types_of(signature)
    assert kernel.py_func.__code__.co_argcount == len(types)  # else benchmarks/usual_kernels.py is to be run again
    assert ahead.spelled(types) == signature


def test_no_kernel_is_listed_twice():
    assert len(USUAL) == len(set(map(str, USUAL)))


def test_what_is_no_longer_there_is_missed():
    with pytest.raises(KeyError):
        ahead.dispatcher("gone", ())
    with pytest.raises(KeyError):
        ahead.dispatcher("gone", [])


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
    monkeypatch.setattr(ahead, "usual", lambda: iter([(n, (), "void()") for n in ("a", "b", "broken", "d", "e", "f", "g")]))
    made = []
    for k in range(2):
        compiler = Compiler()
        monkeypatch.setattr(ahead, "dispatcher", compiler)
        ahead.compiled(k, 2, lambda: True)
        made.append(compiler.made)
    assert made == [["a", "broken", "e", "g"], ["b", "d", "f"]]
    assert sorted(p.name for p in machine.iterdir()) == ["ahead-0of2", "ahead-1of2"]


def test_a_helper_that_is_no_longer_wanted_has_not_finished(machine, monkeypatch):
    monkeypatch.setattr(ahead, "dispatcher", Compiler())
    ahead.compiled(0, 2, lambda: False)
    assert not list(machine.iterdir())


def test_helpers_start_once_and_only_for_what_is_not_done(machine, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command[-2:]))
    (machine / "ahead-1of4").touch()
    ahead.begin()
    ahead.begin()
    assert started == [["0", "4"], ["2", "4"], ["3", "4"]]


def test_a_run_goes_on_without_helpers_where_none_can_start(machine, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("not here")

    monkeypatch.setattr(ahead, "_mark", refused)
    ahead.begin()
    ahead.begin.cache_clear()
    monkeypatch.setattr(ahead, "_mark", lambda k, n: machine / str(k))
    monkeypatch.setattr(subprocess, "Popen", refused)
    ahead.begin()


def test_two_helpers_do_not_do_the_same(machine, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ahead", "0", "4"])
    monkeypatch.setattr(ahead, "compiled", lambda *_: ahead.main())  # the second begins while the first is at it
    with pytest.raises(BlockingIOError):
        ahead.main()


def test_there_are_fewer_helpers_than_cores_and_at_most_a_few(monkeypatch):
    for cores, helpers in ((1, 0), (2, 0), (4, 3), (64, ahead.HELPERS)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert len(ahead._shares()) == helpers
