"""The process that compiles a run's kernels beside the rank that needs them."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from daskreg import machine
from daskreg.cluster import compile_ahead
from daskreg.cluster.compile_ahead import PROCESS_BYTES, CompileHelper, Rehearsal
from daskreg.config import Affine, Config, Deformable, Moments
from daskreg.grid import Grid
from daskreg.kernels.compiler.launch import Kernel, RowKernel
from daskreg.machine import Limit
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MI
from daskreg.similarity.lncc.loss import LocalCorrelation
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration

CONFIG = Config(
    stages=(
        Moments(),
        Affine(similarity=MI(), scales=(2,), iterations=(2,)),
        Deformable(similarity=LNCC(radius=1), scales=(2, 1), iterations=(2, 2)),
    )
)


@pytest.fixture
def launched(monkeypatch):
    """Every kernel that is launched with the types of its arrays, in order."""
    found = []

    def recorded(kind, name):
        call = kind.__call__

        def wrapper(kernel, *arguments):
            found.append((name(kernel), tuple(a.dtype.str + str(a.ndim) for a in arguments if isinstance(a, np.ndarray))))
            return call(kernel, *arguments)

        monkeypatch.setattr(kind, "__call__", wrapper)

    recorded(Kernel, lambda kernel: kernel.name)
    recorded(RowKernel, lambda kernel: kernel.function.__name__)
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_it_launches_what_a_run_launches(launched, masked):
    shape = (16, 18, 20)
    masks = (np.ones(shape, np.float32),) * 2 if masked else (None, None)
    Registration(blobs(shape, 1), blobs(shape, 2), CONFIG, masks).run(1)
    needed = {call for call in launched if call[0] != "intensity_histogram"}  # which reading launches
    launched.clear()
    Rehearsal(CONFIG, (masked, masked)).run()
    assert needed - set(launched) == set()


def test_the_last_stage_comes_first(launched):
    Rehearsal(CONFIG, (False, False)).run()
    names = [name for name, _ in launched]
    assert names.index("adam") < names.index("jacobian") < names.index("affine_sums")


def test_windows_in_millimetres_are_as_wide_as_in_the_run(monkeypatch):
    radii, begin = [], LocalCorrelation.__init__
    monkeypatch.setattr(LocalCorrelation, "__init__", lambda self, p: radii.append(p.radius) or begin(self, p))
    config = Config(stages=(Deformable(similarity=LNCC(radius=3, radius_mm=4), scales=(2, 1), iterations=(2, 2)),))
    grid = Grid((32, 32, 32), (2000, 2000, 2000), unit="micrometer")
    Rehearsal.of(make_plan(grid, grid, config)).run()
    assert set(radii) == {1, 2}


def plan(memory=None, workers=1):
    return make_plan(Grid((32, 32, 32)), Grid((32, 32, 32)), CONFIG, memory=memory, workers=workers)


@pytest.fixture
def started(monkeypatch):
    """Processes that were started, on a machine with two cores."""
    found = []
    begin = subprocess.Popen
    monkeypatch.setattr(machine, "cores", lambda: Limit(2, "the machine"))
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: found.append(begin(*given, **options)) or found[-1])
    yield found
    for process in found:
        process.kill()
        process.wait()


def test_it_starts_once_and_ends_with_the_rank(started):
    helper = CompileHelper(plan(), wanted=True)
    helper.start()
    helper.start()
    (process,) = started
    helper.close()
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),  # of a rank that is not the first of its machine
        ({"memory": plan().peak_bytes + PROCESS_BYTES // 2}, True),  # without room for it
        ({"workers": 2}, True),  # without a core for it
    ],
)
def test_it_does_not_take_what_the_run_needs(started, given, wanted):
    CompileHelper(plan(**given), wanted=wanted).start()
    assert started == []


def test_it_ends_when_its_parent_has_ended(tmp_path):
    script = f"""
import subprocess, sys, os
helper = subprocess.Popen([sys.executable, "-P", "-m", {compile_ahead.__name__!r}, str(os.getpid())], stdin=subprocess.PIPE)
print(helper.pid, flush=True)
sys.stdin.readline()
os._exit(1)
"""
    # the helper waits for its configuration: nothing but its parent's end can end it before the pipe does
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        helper = int(parent.stdout.readline())
        parent.stdin.write("\n")
        parent.stdin.flush()
        parent.wait(30)
    end = time.monotonic() + 30
    while _alive(helper) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _alive(helper)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
