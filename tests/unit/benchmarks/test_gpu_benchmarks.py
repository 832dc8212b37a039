"""Benchmarks that need a GPU and other programs, as far as they go without."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))


def module(monkeypatch, name, **held):
    made = ModuleType(name)
    vars(made).update(held)
    monkeypatch.setitem(sys.modules, name, made)


def test_the_other_program_is_given_the_volumes_that_are_made_for_both(monkeypatch):
    import gpu_iterations

    volumes, given = (np.zeros((4, 4, 4), np.float32), np.ones((4, 4, 4), np.float32)), []
    nothing = lambda: None  # noqa: E731
    cuda = SimpleNamespace(
        empty_cache=nothing, reset_peak_memory_stats=nothing, synchronize=nothing, max_memory_reserved=lambda: 640
    )
    module(monkeypatch, "torch", cuda=cuda, OutOfMemoryError=MemoryError)
    module(monkeypatch, "SimpleITK", GetImageFromArray=lambda array: given.append(np.asarray(array)))
    for name in ("fireants", "fireants.registration"):
        module(monkeypatch, name)
    module(monkeypatch, "fireants.io", BatchedImages=list, Image=lambda image, device: image)
    level = SimpleNamespace(optimize=nothing)
    module(monkeypatch, "fireants.registration.greedy", GreedyRegistration=lambda *a, **k: level)
    assert gpu_iterations.fireants(4, "mse", volumes)["fireants_bytes_per_voxel"] == 10
    np.testing.assert_array_equal(given, volumes * 3)


def test_a_row_tells_the_gpu_beside_the_machine(monkeypatch, tmp_path):
    import gpu_agreement
    import measure

    reported = {"seconds": {}, "levels": [{"losses": [-0.5]}], "machine": {"gpu": "a GPU"}}
    monkeypatch.setattr(measure, "daskreg", lambda *a, **k: SimpleNamespace(seconds=1.0))
    monkeypatch.setattr(gpu_agreement, "PAIR", SimpleNamespace(
        case="a->b", fixed="a", moving="b", moving_labels="c", overlaps=lambda data, labels: {"structure": 0.7}))  # fmt: skip
    monkeypatch.setattr(gpu_agreement, "RunStore", SimpleNamespace(open=lambda path: SimpleNamespace(provenance=reported)))
    rows = []
    measure.emit(gpu_agreement.register("cuda", tmp_path, tmp_path, [])[0], rows)
    assert "a GPU" in rows[0].values()
    assert rows[0]["machine"] == measure.machine()
