"""How many kernels a run compiles is known before the first."""

from dataclasses import replace

import numpy as np
import pytest

from daskreg.cluster import compile_count
from daskreg.cluster.compile_count import CompileCount, foreseen_files
from daskreg.config import Affine, Config, Deformable, Moments, Search
from daskreg.engine.measure import folding, likeness
from daskreg.engine.rank import Rank
from daskreg.grid import Grid
from daskreg.kernels.compiler import dry_run, host_launch, launch, precompile
from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.optimizers.adam import Adam
from daskreg.optimizers.sgd import SGD
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MI, MSE, NGF
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration, on_ranks

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")
SHORT = {"scales": (2, 1), "iterations": (2, 1)}
CONFIGS = {
    "heads": Config(stages=(Moments(), Affine(similarity=MI(), **SHORT), Deformable(similarity=LNCC(radius=1), **SHORT))),
    "edges": Config(
        stages=(
            Affine(similarity=NGF(smoothed=True), **SHORT),
            Deformable(similarity=NGF(), optimizer=SGD(), iterations_per_sweep=2, **SHORT),
        )
    ),
    "coherence": Config(stages=(Deformable(similarity=MSE(), optimizer=Adam(coherence=1), moving_oversampling=2, **SHORT),)),
    "search": Config(stages=(Search(rotations="fine", contrast="any"), Affine(similarity=LNCC(), **SHORT)), intensity="log"),
}


def plan(config, **given):
    return make_plan(Grid((32, 32, 32)), Grid((32, 32, 32)), config, **given)


def launched(monkeypatch, function):
    """Files of what a function launches."""
    found = set()

    def noted(compiled, items, voxels, arguments):
        found.add(dry_run.file_of(compiled, (0, items, *arguments)))
        compiled(0, items, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(launch, "launch", noted)
        function()
    return found


def run(registration):
    """A run with what follows its stages, as a rank does."""

    def on_rank(comm):
        made = registration.plan(1, "replicate")
        images = tuple(registration.images(made, comm))
        outcome = Rank(made, images, np.eye(4), comm, registration.rank(comm, "replicate").watch).run()
        likeness(made, outcome, images, comm)
        if outcome.displacement is not None:
            folding(outcome.displacement, outcome.block, comm)

    on_ranks(1, on_rank)


@pytest.mark.parametrize(
    ("name", "masked", "state"),
    [
        ("heads", True, "device"),
        pytest.param("edges", False, "device", marks=pytest.mark.slow),
        ("coherence", False, "host"),
        pytest.param("search", False, "device", marks=pytest.mark.slow),
    ],
)
def test_what_a_run_launches_is_foreseen(monkeypatch, name, masked, state):
    shape = (16, 18, 20)
    masks = (np.ones(shape, np.float32),) * 2 if masked else (None, None)
    registration = Registration(blobs(shape, 1), blobs(shape, 2), CONFIGS[name], masks, state=state)
    needed = launched(monkeypatch, lambda: run(registration))
    foreseen = foreseen_files(plan(CONFIGS[name], masks=(masked, masked), state=state), "cpu")
    assert needed
    assert needed - foreseen == set()


def test_nothing_is_compiled_or_computed_to_know_it(monkeypatch):
    def refused(*_):
        raise AssertionError("executed")

    before = host_launch.thread_count()
    monkeypatch.setattr(launch.numba.core.dispatcher.Dispatcher, "__call__", refused)
    assert foreseen_files(plan(CONFIGS["coherence"]), "cpu")
    assert host_launch.thread_count() == before


@pytest.fixture
def foreseen(monkeypatch, tmp_path):
    """Files of five kernels, of which the first is there."""
    files = [tmp_path / f"{n}.kernel" for n in "abcde"]
    files[0].touch()
    monkeypatch.setattr(compile_count, "foreseen_files", lambda *_: set(files))
    monkeypatch.delenv("DASKREG_KERNEL_CACHE", raising=False)
    return files


def test_what_other_processes_compile_counts_too(foreseen):
    count = CompileCount(plan(CONFIGS["coherence"]), "cpu")
    assert count.at(foreseen[1], 1) == (1, 4)
    for path in foreseen[1:4]:
        path.touch()
    assert count.at(foreseen[4], 1) == (4, 4)


def test_a_kernel_that_was_not_foreseen_is_one_more(foreseen, tmp_path):
    count = CompileCount(plan(CONFIGS["coherence"]), "cpu")
    assert count.at(tmp_path / "other.kernel", 1) == (1, 5)


def test_kernels_that_cannot_be_kept_are_counted(foreseen):
    count = CompileCount(plan(CONFIGS["coherence"]), "cpu")
    assert [count.at(path, own) for own, path in enumerate(foreseen[1:], 1)] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_the_shared_folder_has_is_not_compiled(foreseen, monkeypatch, tmp_path):
    shared = tmp_path / "shared" / "daskreg-cpu"
    shared.mkdir(parents=True)
    (shared / foreseen[1].name).touch()
    monkeypatch.setenv("DASKREG_KERNEL_CACHE", str(tmp_path / "shared"))
    assert CompileCount(plan(CONFIGS["coherence"]), "cpu").at(foreseen[2], 1) == (1, 3)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_no_total_is_told_that_is_not_known(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(precompile, "_STARTED", [])
    count = CompileCount(replace(plan(CONFIGS["coherence"]), workers=2), kind)
    assert [count.at(tmp_path / n, own) for own, n in enumerate("ab", 1)] == [(1, None), (2, None)]


def test_a_fault_of_the_dry_run_ends_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_count.Rehearsal, "_levels", lambda *_: 1 / 0)
    assert CompileCount(plan(CONFIGS["coherence"]), "cpu").at(tmp_path / "a", 1) == (1, None)
